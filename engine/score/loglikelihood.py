"""What texts cost a model: the loss of every token, bits per byte by language and position.

A score record, the same for every kind of row (score.py adds them up):

    {"row": 3, "turn": 1, "groups": {"language": "zh"}, "sums": {figure: [x, w]}, "chance": {figure: x},
     "curve": {figure: {position: [x, w]}}}

`x / w` is the row's own figure, `chance` the x of one who knows nothing. `position` is the least number of tokens the
model saw before those it predicts: POSITION_STEP positions share one, "1" holds what was predicted from 1 to 64 tokens.
"""

import math
from collections.abc import Sequence
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

POSITION_STEP = 64


class Text(NamedTuple):
    """A pretraining row."""

    row: int
    text: str
    task: str | None

    @property
    def size(self) -> int:
        return len(self.text)


@torch.inference_mode()
def token_nats(model: SpongeBob, sequences: Sequence[Sequence[int]], batch: int) -> list[np.ndarray]:
    """-log p of every token but the first of each sequence, (n - 1,) float64; `batch` sequences per forward pass.

    FloatingPointError where one is no finite number: no figure is made of it.
    """
    device, nats = model.tok_embeddings.weight.device, []
    for start in range(0, len(sequences), batch):
        rows = [torch.tensor(ids, device=device) for ids in sequences[start : start + batch]]
        ids = pad_sequence(rows, batch_first=True)  # on the right, where causality hides it
        for hidden, row in zip(model.hidden_states(ids[:, :-1]), rows, strict=True):  # one row's logits at a time
            logits = model.output(hidden[: len(row) - 1]).float()  # (n - 1, V)
            nats.append(F.cross_entropy(logits, row[1:], reduction="none").cpu().double().numpy())
            if not np.isfinite(nats[-1]).all():
                raise FloatingPointError(
                    "the loss of a scored token is no finite number: the weights hold NaN or infinity, or they are too "
                    "large for the dtype (try --dtype float32)"
                )
    return nats


def curve(x: np.ndarray, w: np.ndarray, first: int) -> dict[str, list[float]]:
    """Sums of x and w (n,) by position; x[0] was predicted from `first` tokens."""
    steps = (np.arange(len(x)) + first - 1) // POSITION_STEP
    return {
        str(step * POSITION_STEP + 1): [float(x[steps == step].sum()), float(w[steps == step].sum())]
        for step in np.unique(steps).tolist()
        if w[steps == step].any()
    }


def language(text: str) -> str:
    """zh when most words are Chinese characters, en when most are of Latin letters, else other."""
    units = words(text)
    chinese = sum("\u3400" <= unit[0] <= "\u9fff" for unit in units)
    latin = sum(unit[0].isalpha() and unit[0] < "\u0250" for unit in units)
    return "zh" if 2 * chinese > len(units) else "en" if 2 * latin > len(units) else "other"


def windows(ids: list[int], context: int) -> list[tuple[list[int], int]]:
    """A document's [(ids, first)]: the tokens ids[first:] of each are predicted, every token but the first once.

    The last window of a document longer than the context reaches back over the one before it, so that its tokens see
    as many as they can. (lm-evaluation-harness cuts alike.)
    """
    parts = []
    for start in range(1, len(ids), context):
        end = min(start + context, len(ids))
        begin = max(0, end - context - 1)
        parts.append((ids[begin:end], start - begin))
    return parts


def score_texts(model: SpongeBob, tokenizer: Tokenizer, texts: list[Text], batch: int) -> list[dict]:
    """Bits per byte of raw text; its end mark stands for none and is not predicted."""
    size_of, documents = token_bytes(tokenizer), PretrainDataset(tokenizer).encode([item.text for item in texts])
    parts = [windows(document.ids[:-1].tolist(), model.config.max_seq_len) for document in documents]
    costs = iter(token_nats(model, [ids for part in parts for ids, _ in part], batch))
    records = []
    for item, part in zip(texts, parts, strict=True):
        sums, chance, curves = np.zeros(2), 0.0, {}
        for ids, first in part:
            bits = next(costs)[first - 1 :] / math.log(2)
            size = size_of[ids[first:]].astype(float)
            sums += bits.sum(), size.sum()
            chance += math.log2(model.config.vocab_size) * len(size)
            for step, values in curve(bits, size, first).items():
                curves[step] = np.add(curves.get(step, [0, 0]), values).tolist()
        groups = {"language": language(item.text)} | ({"task": item.task} if item.task else {})
        records.append(
            {
                "row": item.row,
                "groups": groups,
                "sums": {"bits_per_byte": sums.tolist()},
                "chance": {"bits_per_byte": chance},
                "curve": {"bits_per_byte": curves},
            }
        )
    return records
