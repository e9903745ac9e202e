"""The keys and values of the tokens that were read already: allocated once, written in place."""

import torch
from torch import Tensor

from Config import LLMConfig


class KVCache:
    """Keys and values of every layer, (L, rows, capacity, 2, K, D), filled position by position."""

    def __init__(self, config: LLMConfig, rows: int, capacity: int, device: torch.device, dtype: torch.dtype):
        shape = config.n_layers, rows, capacity, 2, config.n_kv_heads, config.head_dim
        self.kv = torch.zeros(shape, device=device, dtype=dtype)
        self.rows = torch.arange(rows, device=device)[:, None]
        self.length = 0  # positions that may be looked at; the caller raises it before each forward pass

    def update(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v (B, T, K, D) of the first B rows at `positions` (B, T); return all theirs as (B, S, K, D)."""
        self.kv[layer][self.rows[: len(k)], positions] = torch.stack([k, v], dim=2).to(self.kv.dtype)
        seen = self.kv[layer, : len(k), : self.length].to(k.dtype)
        return seen[:, :, 0], seen[:, :, 1]

    def append(self, layer: int, kv: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The same for one token a row, kv (B, 2KD) at `positions` (B,); returns (B, K, S, D) in the cache's dtype."""
        rows, capacity = self.kv.shape[1:3]
        places = self.rows[: len(kv), 0] * capacity + positions
        self.kv[layer].view(rows * capacity, -1).index_copy_(0, places, kv.to(self.kv.dtype))
        k, v = self.kv[layer, : len(kv), : self.length].permute(2, 0, 3, 1, 4)
        return k, v

    def move(self, row: int, to: int, length: int) -> None:
        """Copy the first `length` positions of a row over another's."""
        self.kv[:, to, :length] = self.kv[:, row, :length]


class PackedPrompts:
    """The same cache for one packed row (1, T) of prompts: each token is stored in the row of its own prompt."""

    length = 0  # a prompt looks at itself alone

    def __init__(self, cache: KVCache, rows: Tensor):
        self.cache, self.rows = cache, rows  # rows (1, T): the cache's row of each token

    def update(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v (1, T, K, D) at `positions` (1, T) of their rows, and return them as they are."""
        kept = self.cache.kv
        kept[layer][self.rows, positions] = torch.stack([k, v], dim=2).to(kept.dtype)
        return k, v
