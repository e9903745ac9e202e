"""The keys and values of the tokens that were read already: allocated once, written in place."""

import torch
from torch import Tensor

from Config import LLMConfig


class KVCache:
    """Keys and values of every layer, (L, rows, capacity, K, D), filled position by position."""

    def __init__(self, config: LLMConfig, rows: int, capacity: int, device: torch.device, dtype: torch.dtype):
        shape = config.n_layers, rows, capacity, config.n_kv_heads, config.head_dim
        self.k, self.v = torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype)
        self.rows = torch.arange(rows, device=device)[:, None]
        self.length = 0  # positions that may be looked at; the caller raises it before each forward pass

    def update(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v (B, T, K, D) of the first B rows at `positions` (B, T); return all theirs as (B, S, K, D)."""
        rows = self.rows[: len(k)]
        self.k[layer][rows, positions] = k.to(self.k.dtype)
        self.v[layer][rows, positions] = v.to(self.v.dtype)
        return self.k[layer][: len(k), : self.length].to(k.dtype), self.v[layer][: len(v), : self.length].to(v.dtype)

    def move(self, row: int, to: int, length: int) -> None:
        """Copy the first `length` positions of a row over another's."""
        for kept in (self.k, self.v):
            kept[:, to, :length] = kept[:, row, :length]


class PackedPrompts:
    """The same cache for one packed row (1, T) of prompts: each token is stored in the row of its own prompt."""

    length = 0  # a prompt looks at itself alone

    def __init__(self, cache: KVCache, rows: Tensor):
        self.cache, self.rows = cache, rows  # rows (1, T): the cache's row of each token

    def update(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v (1, T, K, D) at `positions` (1, T) of their rows, and return them as they are."""
        self.cache.k[layer][self.rows, positions] = k.to(self.cache.k.dtype)
        self.cache.v[layer][self.rows, positions] = v.to(self.cache.v.dtype)
        return k, v
