"""Model FLOPs are those that torch counts."""

import torch
from tiny_model import tiny
from torch.utils.flop_counter import FlopCounterMode

from engine.machine import flops


def test_model_flops_are_those_that_torch_counts():
    """Of attention, half of them: torch counts what the causal mask leaves out."""
    model = tiny(dim=64, n_heads=4, n_kv_heads=2, max_seq_len=64, vocab_size=640)
    ids = torch.randint(3, 640, (2, 64))
    with FlopCounterMode(display=False) as counter:
        model(ids).logits.sum().backward()
    counts = counter.get_flop_counts()["Global"]
    matmuls = sum(flop for operator, flop in counts.items() if "attention" not in str(operator))
    norms = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 1)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert matmuls == 6 * (parameters - norms) * ids.numel()
    scores = flops.flops_per_token(model.config, parameters) - 6 * parameters
    assert scores == 6 * (2 * 64 * 64) * 2 / 2  # two products of T x C a layer and token, six FLOPs each, half of them
