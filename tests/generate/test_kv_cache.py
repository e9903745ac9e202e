"""The key-value cache is what the model asks for."""

import ast
import inspect

import torch

import model as model_module
from Config import LLMConfig
from engine.generate.kv_cache import KVCache
from model import Cache


def test_the_protocol_names_all_that_the_model_reads_of_a_cache():
    read = {
        node.attr for node in ast.walk(ast.parse(inspect.getsource(model_module)))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("cache", "context.cache")
    }  # fmt: skip
    assert read == {"length", "update"}
    assert read <= Cache.__annotations__.keys() | vars(Cache).keys()
    assert all(hasattr(KVCache(LLMConfig(), 1, 1, torch.device("cpu"), torch.float32), name) for name in read)
