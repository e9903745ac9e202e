"""Decoding with a cache is the full forward pass."""

import ast
import inspect

import pytest
import torch

import model as model_module
from Config import LLMConfig
from engine.generate.kv_cache import KVCache
from model import Cache

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("chunks", [[20], [1] * 20, [7, 1, 5, 7]])
def test_cached_decoding_equals_the_full_forward_also_in_chunks(model, chunks):
    ids = torch.randint(6400, (3, 20), generator=torch.Generator().manual_seed(0))
    cache, parts, start = KVCache(model.config, 3, 32, torch.device("cpu"), torch.float32), [], 0
    with torch.no_grad():
        for size in chunks:
            cache.length = start + size
            positions = torch.arange(start, start + size).expand(3, size)
            parts.append(model.hidden_states(ids[:, start : start + size], positions=positions, cache=cache))
            start += size
        assert (torch.cat(parts, 1) - model.hidden_states(ids)).abs().max() < 1e-4


def test_a_longer_cache_than_needed_changes_nothing(model):
    ids, positions = torch.arange(10, 20)[None], torch.arange(10)[None]
    cache = KVCache(model.config, 1, 32, torch.device("cpu"), torch.float32)
    cache.length = 32
    with torch.no_grad():
        found = model.hidden_states(ids, positions=positions, cache=cache)
        assert (found - model.hidden_states(ids)).abs().max() < 1e-4


def test_the_protocol_names_all_that_the_model_reads_of_a_cache():
    read = {
        node.attr for node in ast.walk(ast.parse(inspect.getsource(model_module)))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("cache", "context.cache")
    }  # fmt: skip
    assert read == {"length", "update"}
    assert read <= Cache.__annotations__.keys() | vars(Cache).keys()
    assert all(hasattr(KVCache(LLMConfig(), 1, 1, torch.device("cpu"), torch.float32), name) for name in read)
