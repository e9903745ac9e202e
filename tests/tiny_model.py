"""A model small enough for tests that talk to it."""

import torch

from Config import LLMConfig
from model import SpongeBob


def tiny(seed=0, **shape) -> SpongeBob:
    torch.manual_seed(seed)
    shape = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 128} | shape
    model = SpongeBob(LLMConfig(**shape)).eval()
    for parameter in model.parameters():  # a fresh model repeats one token, whatever it is asked
        parameter.data.normal_(std=0.15)
    return model
