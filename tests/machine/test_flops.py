"""Model FLOPs are counted as torch counts them; peaks belong to whole names."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from Config import LLMConfig
from engine.machine import flops
from model import SpongeBob


def tiny(**changes) -> SpongeBob:
    torch.manual_seed(0)
    return SpongeBob(
        LLMConfig(**{"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 100} | changes)
    )


@pytest.mark.parametrize(
    "name, tera",
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("Tesla T4", 65),
        ("NVIDIA L40", 181),
        ("NVIDIA L40G", None),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA A10G", None),
    ],
)
def test_the_peak_of_a_gpu_is_its_own_or_not_known(name, tera, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert flops.peak_flops(torch.device("cuda"), torch.bfloat16) == (tera and 1e12 * tera)


def test_model_flops_are_those_that_torch_counts_in_a_step_but_for_half_of_attention():
    model = tiny(max_seq_len=64, vocab_size=640)
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
