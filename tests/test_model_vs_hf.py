"""The decoder is a Llama: logits and gradients equal transformers' own, for every way to share key-value heads."""

import pytest
import torch
from transformers import LlamaForCausalLM

from Config import LLMConfig
from engine.export.hugging_face import hf_config, permute_for_hf, to_hf_state_dict
from engine.export.names import TO_HF, translate
from model import SpongeBob

SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


@pytest.mark.parametrize("scaling", [None, SCALING], ids=["plain", "scaled"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_logits_and_gradients_equal_transformers_llama(kv_heads, scaling):
    torch.manual_seed(0)
    config = LLMConfig(dim=64, n_layers=2, n_heads=4, n_kv_heads=kv_heads, vocab_size=97, rope_scaling=scaling)
    ours, theirs = SpongeBob(config), LlamaForCausalLM(hf_config(config))
    for parameter in ours.parameters():  # larger than at the start, so that attention is far from even
        parameter.data.normal_(std=0.2)
    theirs.load_state_dict(to_hf_state_dict(ours.state_dict(), config))
    ids = torch.randint(97, (3, 37))

    logits = [model(ids).logits for model in (ours, theirs)]
    assert (logits[0] - logits[1]).abs().max() < 1e-4
    for output in logits:
        torch.nn.functional.cross_entropy(output[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()

    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        wanted, found = gradients[translate(name, TO_HF)].grad, parameter.grad
        if name.endswith(("wq.weight", "wk.weight")):
            found = permute_for_hf(found, config.n_heads if "wq" in name else kv_heads)
        assert (found - wanted).abs().max() < 1e-4, name


def test_late_positions_are_those_of_transformers_llama():
    """Beyond 256 half precision cannot tell neighbors apart."""
    torch.manual_seed(0)
    config = LLMConfig(dim=32, n_layers=1, n_heads=4, vocab_size=97, max_seq_len=1024)
    ours, theirs = SpongeBob(config), LlamaForCausalLM(hf_config(config))
    for parameter in ours.parameters():
        parameter.data.normal_(std=0.2)
    theirs.load_state_dict(to_hf_state_dict(ours.state_dict(), config))
    ids = torch.randint(97, (1, 1024))
    with torch.no_grad():
        assert (ours(ids).logits - theirs(ids).logits).abs().max() < 1e-3


def test_scaled_rope_differs_from_plain():
    ids = torch.arange(37)[None]
    logits = []
    for scaling in (None, SCALING):
        torch.manual_seed(0)
        model = SpongeBob(LLMConfig(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=97, rope_scaling=scaling))
        for parameter in model.parameters():
            parameter.data.normal_(std=0.2)
        logits.append(model(ids).logits)
    assert (logits[0] - logits[1]).abs().max() > 1e-2
