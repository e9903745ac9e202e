"""The key-value cache stores every token in its own row and position."""

import torch

from Config import LLMConfig
from engine.generate.kv_cache import KVCache, PackedPrompts

CONFIG = LLMConfig(dim=8, n_layers=2, n_heads=2, n_kv_heads=1)


def test_cache_stores_appended_and_packed_tokens_at_their_positions():
    caches = [KVCache(CONFIG, 3, 5, torch.device("cpu"), torch.float32) for _ in range(2)]
    rows, positions = torch.tensor([0, 1]), torch.tensor([2, 4])
    kv = torch.randn(2, 8)
    caches[0].length = 5
    k, v = caches[0].append(1, kv, caches[0].flat_positions(positions))  # (2, 1, 5, 4) each
    assert torch.equal(torch.cat([k[rows, 0, positions], v[rows, 0, positions]], dim=1), kv)
    assert k.count_nonzero() + v.count_nonzero() == kv.numel() == caches[0].kv.count_nonzero()
    packed_k, packed_v = kv.view(1, 2, 2, 1, 4).unbind(2)  # (1, 2, 1, 4) each
    PackedPrompts(caches[1], rows[None]).store(1, packed_k, packed_v, positions[None])
    assert torch.equal(caches[0].kv, caches[1].kv)


def test_cache_moves_the_beginning_of_a_row():
    cache = KVCache(CONFIG, 3, 5, torch.device("cpu"), torch.float32)
    cache.kv.normal_()
    before = cache.kv.clone()
    cache.move(2, 0, 3)
    assert torch.equal(cache.kv[:, 0, :3], before[:, 2, :3]) and torch.equal(cache.kv[:, 0, 3:], before[:, 0, 3:])
    assert torch.equal(cache.kv[:, 1:], before[:, 1:])
