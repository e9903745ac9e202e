"""Score texts: the loss of every token, bits per byte by language and by position.

A score record, the same for every kind of row (evaluate.py aggregates them):

    {"row": 3, "turn": 1, "groups": {"language": "zh"}, "sums": {metric: [x, w, c]}, "skipped": [metric],
     "curve": {metric: {position: [x, w]}}}

`x / w` is the row's own value and `c / w` its chance level (c null: guessing has no meaning). `position` is the least
number of tokens the model saw before those it predicts: "1" holds what was predicted from 1 to POSITION_STEP tokens.
"""

import math
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch.nn.utils.rnn import pad_sequence

from dataset import PretrainDataset
from engine.score.token_f1 import words
from engine.tokenizer import token_bytes
from model import SpongeBob

POSITION_STEP = 64  # tokens


class Text(NamedTuple):
    """A pretraining row."""

    row: int
    text: str
    task: str | None

    @property
    def size(self) -> int:
        """Characters that the model reads."""
        return len(self.text)


def new_record(item, **groups) -> dict:
    """Return an empty record of an item."""
    return {"row": item.row, "groups": groups | ({"task": item.task} if item.task else {}), "sums": {}}


@torch.inference_mode()
def token_losses(model: SpongeBob, sequences: Sequence[Sequence[int]], batch: int) -> list[np.ndarray]:
    """Compute -log p in nats of every token but the first of each sequence.

    Args:
        sequences: Token ids, n each.
        batch: Sequences per forward pass.
    Returns:
        An array (n - 1,) float64 per sequence.
    Raises:
        FloatingPointError: A loss is NaN or infinite; no metric is made of it.
    """
    device = model.tok_embeddings.weight.device
    losses = []
    for start in range(0, len(sequences), batch):
        rows = [torch.tensor(ids, device=device) for ids in sequences[start : start + batch]]
        ids = pad_sequence(rows, batch_first=True)  # on the right, where causality hides it
        for hidden, row in zip(model.hidden_states(ids[:, :-1]), rows, strict=True):  # one row's logits at a time
            logits = model.output(hidden[: len(row) - 1]).float()  # (n - 1, V)
            losses.append(F.cross_entropy(logits, row[1:], reduction="none").cpu().double().numpy())
            if not np.isfinite(losses[-1]).all():
                raise FloatingPointError(
                    "the loss of a scored token is no finite number: the weights hold NaN or infinity, or they are too "
                    "large for the dtype (try --dtype float32)"
                )
    return losses


def sums_by_position(x: np.ndarray, w: np.ndarray, num_seen: np.ndarray) -> dict[str, list[float]]:
    """Sum numerators and weights by position.

    Args:
        x, w: Numerator and weight of each token, (n,) float64.
        num_seen: Tokens that the model saw before each of them, (n,) int.
    """
    positions, index = np.unique((num_seen - 1) // POSITION_STEP * POSITION_STEP + 1, return_inverse=True)
    sums = np.stack([np.bincount(index, x), np.bincount(index, w)], axis=1).tolist()
    return {str(position): pair for position, pair in zip(positions.tolist(), sums, strict=True) if pair[1]}


def detect_language(text: str) -> str:
    """Return "zh" if most words are Chinese characters, "en" if most have Latin letters, else "other"."""
    units = words(text)
    num_chinese = sum("\u3400" <= unit[0] <= "\u9fff" for unit in units)
    num_latin = sum(unit[0].isalpha() and unit[0] < "\u0250" for unit in units)
    if 2 * num_chinese > len(units):
        return "zh"
    return "en" if 2 * num_latin > len(units) else "other"


def rolling_windows(ids: list[int], context: int) -> list[tuple[list[int], int]]:
    """Split a document into [(ids, first)]: ids[first:] of each are predicted, every token but the first once.

    The last window of a document longer than the context overlaps the one before, so that its tokens see as many as
    they can (as in lm-evaluation-harness).
    """
    windows = []
    for start in range(1, len(ids), context):
        end = min(start + context, len(ids))
        begin = max(0, end - context - 1)
        windows.append((ids[begin:end], start - begin))
    return windows


def score_texts(model: SpongeBob, tokenizer: Tokenizer, texts: list[Text], batch: int) -> list[dict]:
    """Score bits per byte of raw texts; their end token is no text and is not predicted.

    Args:
        texts: Items of one file.
        batch: Windows per forward pass.
    Returns:
        A record per text.
    """
    bytes_of = token_bytes(tokenizer)
    documents = PretrainDataset(tokenizer).encode([item.text for item in texts])
    windows = [rolling_windows(document.ids[:-1].tolist(), model.config.max_seq_len) for document in documents]
    losses = iter(token_losses(model, [ids for ids, _ in chain.from_iterable(windows)], batch))
    records = []
    for item, parts in zip(texts, windows, strict=True):
        bits = np.concatenate([next(losses)[first - 1 :] for _, first in parts]) / math.log(2)
        size = np.concatenate([bytes_of[ids[first:]] for ids, first in parts]).astype(float)
        num_seen = np.concatenate([np.arange(first, len(ids)) for ids, first in parts])
        chance = math.log2(model.config.vocab_size) * len(size)
        record = new_record(item, language=detect_language(item.text))
        record["sums"]["bits_per_byte"] = [float(bits.sum()), float(size.sum()), chance]
        record["curve"] = {"bits_per_byte": sums_by_position(bits, size, num_seen)}
        records.append(record)
    return records
