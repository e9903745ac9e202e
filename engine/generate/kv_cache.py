"""Keys and values of all tokens so far: allocated once, written in place."""

import torch
from torch import Tensor

from Config import LLMConfig


class KVCache:
    """Keys and values of every layer, (L, rows, max_seq_len, 2, K, D), filled position by position.

    Args:
        config: Shape of the model.
        num_rows: Number of rows.
        max_seq_len: Length of each row in tokens.
        device: Device of the tensor.
        dtype: Dtype of keys and values.
    """

    def __init__(self, config: LLMConfig, num_rows: int, max_seq_len: int, device: torch.device, dtype: torch.dtype):
        shape = config.n_layers, num_rows, max_seq_len, 2, config.n_kv_heads, config.head_dim
        self.kv = torch.zeros(shape, device=device, dtype=dtype)
        self.row_starts = torch.arange(num_rows, device=device) * max_seq_len  # flat position of each row's first token
        self.length = 0  # visible positions; the caller raises it before each step

    def flat_positions(self, positions: Tensor) -> Tensor:
        """Convert positions in the first B rows, (B,) int64, to indices over the positions of all rows, (B,)."""
        return self.row_starts[: len(positions)] + positions

    def append(self, layer: int, kv: Tensor, flat_positions: Tensor) -> tuple[Tensor, Tensor]:
        """Store the key and value of one token per row.

        Args:
            layer: Index of the block.
            kv: Key heads, then value heads, of each of the first B rows, (B, 2KD) of any float dtype.
            flat_positions: From `flat_positions`, (B,) int64.
        Returns:
            Keys and values of these rows, the new ones included, (B, K, S, D) each.
        """
        self.kv[layer].flatten(0, 1).flatten(1).index_copy_(0, flat_positions, kv.to(self.kv.dtype))
        k, v = self.kv[layer, : len(kv), : self.length].permute(2, 0, 3, 1, 4)
        return k, v

    def move(self, row: int, to: int, length: int) -> None:
        """Copy the beginning of a row over another one.

        Args:
            row: Index of the row to copy.
            to: Index of the row to overwrite.
            length: Number of positions to copy.
        """
        self.kv[:, to, :length] = self.kv[:, row, :length]


class PackedPrompts:
    """A KVCache that receives one packed row (1, T) of prompts from model.py.

    Args:
        cache: Cache to write to.
        rows: Row of the cache for each token, (1, T) int64.
    """

    def __init__(self, cache: KVCache, rows: Tensor):
        self.kv = cache.kv
        self.rows = rows

    def store(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> None:
        """Store the keys and values of one layer, as model.Cache describes.

        Args:
            layer: Index of the block.
            k, v: Keys and values, (1, T, K, D).
            positions: Position of each token in its prompt, (1, T) int64.
        """
        self.kv[layer][self.rows, positions] = torch.stack([k.type_as(v), v], dim=2).to(self.kv.dtype)
