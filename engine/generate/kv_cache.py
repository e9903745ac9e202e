"""The keys and values of the tokens that were read already."""

import torch
from torch import Tensor

from Config import LLMConfig


class KVCache:
    """Keys and values of every layer, (L, B, S, K, D), filled position by position."""

    def __init__(self, config: LLMConfig, rows: int, capacity: int, device: torch.device, dtype: torch.dtype):
        shape = config.n_layers, rows, capacity, config.n_kv_heads, config.head_dim
        self.k, self.v = torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype)
        self.rows = torch.arange(rows, device=device)[:, None]  # (B, 1)
        self.length = 0  # positions that may be looked at; the caller raises it before each forward pass

    def update(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v (B, T, K, D) at `positions` (B, T); return the layer's first `length` as (B, S, K, D)."""
        self.k[layer][self.rows, positions] = k.to(self.k.dtype)
        self.v[layer][self.rows, positions] = v.to(self.v.dtype)
        return self.k[layer][:, : self.length].to(k.dtype), self.v[layer][:, : self.length].to(v.dtype)
