"""A model small enough for tests that talk to it."""

import torch

from Config import LLMConfig
from model import SpongeBob


def fresh(seed=0, **shape) -> SpongeBob:
    """Return a small model as training begins with it."""
    torch.manual_seed(seed)
    return SpongeBob(LLMConfig(**{"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 128} | shape))


def tiny(seed=0, **shape) -> SpongeBob:
    model = fresh(seed, **shape).eval()
    for parameter in model.parameters():  # a fresh model repeats one token, whatever it is asked
        parameter.data.normal_(std=0.15)
    return model
