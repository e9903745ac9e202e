"""A tokenizer that is read in a millisecond, and caches built without tiktoken's checks of every token."""

import json

import pytest
from tokenizers import Tokenizer

from engine.corpus import token_cache
from engine.flags import ROOT


@pytest.fixture(scope="session")
def small():
    """The committed one with its first merges only."""
    content = json.loads((ROOT / "spongebob_tokenizer/tokenizer.json").read_text("utf-8"))
    merges = content["model"]["merges"][:41]
    vocabulary = sorted(content["model"]["vocab"].items(), key=lambda item: item[1])[: 3 + 256 + len(merges)]
    content["model"] |= {"vocab": dict(vocabulary), "merges": merges}
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.encode_special_tokens = True
    return tokenizer


@pytest.fixture
def without_tiktoken(monkeypatch):
    monkeypatch.setattr(token_cache, "fastest", lambda tokenizer: tokenizer)
