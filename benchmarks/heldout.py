"""Measure held-out bits per byte of any model, on the segments that the stages validate with."""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from engine.corpus.token_cache import TokenCache
from engine.packing import split_documents
from engine.tokenizer import token_bytes


class HeldOut:
    """Compute the bits per byte of a model, given as a function (B, T) ids -> (B, T, V) logits.

    The loss of special tokens, which are no text, is left out, as in the stages' val_bits_per_byte.
    """

    def __init__(self, cache: TokenCache, documents: np.ndarray, tokenizer: Tokenizer, row_len: int, device: str):
        if not len(documents):
            raise ValueError("no held-out rows: --val_fraction is 0 or the file has a single row")
        segments = split_documents(cache, documents, row_len)
        spans = zip(segments.starts, segments.lengths, strict=True)
        rows = [torch.from_numpy(cache.ids[start : start + n + 1].astype(np.int64)) for start, n in spans]
        self.rows = sorted(rows, key=len)  # little padding
        self.bytes_of = torch.from_numpy(token_bytes(tokenizer)).to(device)
        self.device = device

    @torch.no_grad()
    def __call__(self, logits: Callable[[Tensor], Tensor], batch_size: int = 16) -> float:
        total, size = 0.0, 0  # nats, bytes
        for start in range(0, len(self.rows), batch_size):
            # Padding (id 0, <unk>) follows the text, where causality hides it, and has no bytes.
            ids = pad_sequence(self.rows[start : start + batch_size], batch_first=True).to(self.device)
            labels = ids[:, 1:]
            losses = F.cross_entropy(logits(ids[:, :-1]).float().flatten(0, 1), labels.flatten(), reduction="none")
            sizes = self.bytes_of[labels].flatten()
            total += losses[sizes > 0].cpu().double().sum().item()
            size += sizes.sum().item()
        return total / size / math.log(2)
