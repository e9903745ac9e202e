"""The key-value cache is what the model and the decoder ask for."""

import ast
import inspect

import pytest
import torch

import model as model_module
from Config import LLMConfig
from engine.generate import fast_decoder as decoder_module
from engine.generate.kv_cache import KVCache, PackedPrompts

CACHE = KVCache(LLMConfig(), 1, 1, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(
    "module, real, names",
    [
        (model_module, PackedPrompts(CACHE, torch.zeros(1, 1, dtype=torch.long)), {"store"}),
        (decoder_module, CACHE, {"kv", "length", "flat_positions", "append"}),
    ],
)
def test_the_protocol_names_all_that_is_read_of_a_cache(module, real, names):
    read = {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("cache", "context.cache")
    }
    assert read == names
    assert read <= module.Cache.__annotations__.keys() | vars(module.Cache).keys()
    assert all(hasattr(real, name) for name in read)
