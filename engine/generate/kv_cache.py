"""The keys and values of the tokens that were read already: allocated once, written in place."""

import torch
from torch import Tensor

from Config import LLMConfig


class KVCache:
    """Keys and values of every layer, (L, rows, max_seq_len, 2, K, D), filled position by position."""

    def __init__(self, config: LLMConfig, rows: int, max_seq_len: int, device: torch.device, dtype: torch.dtype):
        shape = config.n_layers, rows, max_seq_len, 2, config.n_kv_heads, config.head_dim
        self.kv = torch.zeros(shape, device=device, dtype=dtype)
        self.row_starts = torch.arange(rows, device=device) * max_seq_len  # of each row, counted over all rows
        self.length = 0  # positions that may be looked at; the caller raises it before each step

    def flat_positions(self, positions: Tensor) -> Tensor:
        """Where the first B rows' `positions` (B,) lie, counted over all rows."""
        return self.row_starts[: len(positions)] + positions

    def append(self, layer: int, kv: Tensor, flat_positions: Tensor) -> tuple[Tensor, Tensor]:
        """Store one token a row, kv (B, 2KD); return these rows' keys and values, (B, K, S, D) each."""
        self.kv[layer].flatten(0, 1).flatten(1).index_copy_(0, flat_positions, kv.to(self.kv.dtype))
        k, v = self.kv[layer, : len(kv), : self.length].permute(2, 0, 3, 1, 4)
        return k, v

    def move(self, row: int, to: int, length: int) -> None:
        """Copy the first `length` positions of a row over another's."""
        self.kv[:, to, :length] = self.kv[:, row, :length]


class PackedPrompts:
    """The same cache for one packed row (1, T) of prompts: each token is stored in the row of its own prompt."""

    def __init__(self, cache: KVCache, rows: Tensor):
        self.kv, self.rows = cache.kv, rows  # rows (1, T): the cache's row of each token

    def store(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> None:
        """Keep k and v (1, T, K, D) at `positions` (1, T) of their rows."""
        self.kv[layer][self.rows, positions] = torch.stack([k.type_as(v), v], dim=2).to(self.kv.dtype)
