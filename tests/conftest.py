"""The committed tokenizer, read once."""

import pytest
import torch

from dataset import load_tokenizer
from engine.flags import ROOT


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer(ROOT / "spongebob_tokenizer")


@pytest.fixture(scope="module")
def one_thread():
    """Layers as small as the tests' lose more by waiting for each other's threads than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
