"""Every exporter names every parameter, and refuses by name one that its format does not compute."""

import gguf
import pytest
import torch
from factories import TOKENIZER_DIR
from tiny_model import tiny
from transformers import LlamaForCausalLM

from engine.checkpoint.weights import full_state_dict
from engine.export import page
from engine.export.gguf import to_gguf
from engine.export.hugging_face import hf_config, to_hf
from engine.export.names import FROM_HF, NAMES, TO_GGUF, TO_HF, translate


def test_names_are_those_of_transformers_and_of_the_gguf_package():
    model = tiny(vocab_size=300)
    names = list(full_state_dict(model))
    hf_names = [translate(name, TO_HF) for name in names]
    assert set(hf_names) == LlamaForCausalLM(hf_config(model.config)).state_dict().keys()
    assert [translate(name.removeprefix("model."), FROM_HF) for name in hf_names] == names
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)  # the package knows Meta's names, too
    for name in names:
        assert translate(name, TO_GGUF) == f"{known.get_name(name.removesuffix('.weight'))}.weight"
    assert page.computed_parameters() == NAMES.keys() - {"output.weight"}


@pytest.mark.parametrize("target", ["hf", "x.gguf", "x.html"])
def test_a_part_that_a_format_does_not_compute_is_refused_by_name(target, tmp_path):
    model = tiny()
    for layer in model.layers:
        layer.attention.q_norm = torch.nn.RMSNorm(16)
    with pytest.raises(ValueError, match=r"does not compute layers\.N\.attention\.q_norm\.weight"):
        if target == "hf":
            to_hf(model, TOKENIZER_DIR, tmp_path / target)
        elif target == "x.gguf":
            to_gguf(model, TOKENIZER_DIR, tmp_path / target, "float32", {})
        else:
            page.describe_model("SFT", model, {}, "SFT", "int8")
    assert list(tmp_path.iterdir()) == []
