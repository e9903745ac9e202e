"""The committed tokenizer, read once."""

import pytest

from dataset import load_tokenizer
from engine.flags import ROOT


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer(ROOT / "spongebob_tokenizer")
