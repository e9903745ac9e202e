"""The decoder is a Llama: logits and gradients equal transformers' own, for every way to share key-value heads."""

import pytest
import torch
from factories import SCALING
from transformers import LlamaForCausalLM

from Config import LLMConfig
from engine.export.hugging_face import hf_config, permute_for_hf, to_hf_state_dict
from engine.export.names import TO_HF, translate
from model import SpongeBob


def with_large_weights(config: LLMConfig) -> SpongeBob:
    """Make a model with larger weights than at the start of training, so that attention is far from even."""
    torch.manual_seed(0)
    model = SpongeBob(config)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2)
    return model


def as_llama(model: SpongeBob) -> LlamaForCausalLM:
    """Load its weights into transformers' Llama."""
    llama = LlamaForCausalLM(hf_config(model.config))
    llama.load_state_dict(to_hf_state_dict(model.state_dict(), model.config))
    return llama


@pytest.mark.parametrize("scaling", [None, SCALING], ids=["plain", "scaled"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_logits_and_gradients_equal_transformers_llama(kv_heads, scaling):
    config = LLMConfig(dim=64, n_layers=2, n_heads=4, n_kv_heads=kv_heads, vocab_size=97, rope_scaling=scaling)
    model = with_large_weights(config)
    llama, ids = as_llama(model), torch.randint(97, (3, 37))
    logits = [decoder(ids).logits for decoder in (model, llama)]
    assert (logits[0] - logits[1]).abs().max() < 1e-4
    for output in logits:
        torch.nn.functional.cross_entropy(output[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    expected = {name: parameter.grad for name, parameter in llama.named_parameters()}
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        if name.endswith(("wq.weight", "wk.weight")):
            grad = permute_for_hf(grad, config.n_heads if "wq" in name else kv_heads)
        assert (grad - expected[translate(name, TO_HF)]).abs().max() < 1e-4, name


def test_late_positions_are_those_of_transformers_llama():
    """Half precision cannot tell neighboring positions apart beyond 256."""
    model = with_large_weights(LLMConfig(dim=32, n_layers=1, n_heads=4, vocab_size=97, max_seq_len=1024))
    ids = torch.randint(97, (1, 1024))
    with torch.no_grad():
        assert (model(ids).logits - as_llama(model)(ids).logits).abs().max() < 1e-3


def test_scaled_rope_differs_from_plain():
    ids = torch.arange(37)[None]
    shape = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 97}
    plain, scaled = (with_large_weights(LLMConfig(**shape, rope_scaling=scaling)) for scaling in (None, SCALING))
    assert (plain(ids).logits - scaled(ids).logits).abs().max() > 1e-2
