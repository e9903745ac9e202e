"""Conversations: what the assistant's answers cost, and what the model says in their place.

Every assistant turn of a row is one item, except for those that the row says are only read: training does not learn
them either. The turns before it are given as they stand in the row, the model answers greedily, in batches, and the
answer is judged against the row's own.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from dataset import NO_LOSS, SFTDataset
from engine.generate.engine import complete
from engine.reasoning import split_reasoning
from engine.schemas import is_trained
from engine.score import answer_matching
from engine.score.loglikelihood import curve, token_nats
from model import SpongeBob

START_STEP = 512  # tokens; answers are grouped by where they begin


class Turn(NamedTuple):
    """The `turn`th answer of a row, counted from 1; `messages` end with it."""

    row: int
    turn: int
    messages: list[dict]
    task: str | None

    @property
    def size(self) -> int:
        return sum(len(message["content"]) for message in self.messages)

    @property
    def reference(self) -> str:
        return self.messages[-1]["content"]


def turns(row: int, messages: list[dict], task: str | None) -> list[Turn]:
    """The answers of a conversation; the row's task is that of the last one."""
    ends = [end for end, message in enumerate(messages, 1) if is_trained(message)]
    return [Turn(row, turn, messages[:end], task if end == ends[-1] else None) for turn, end in enumerate(ends, 1)]


def most_frequent(items: list[Turn]) -> str:
    """The answer a model that knows no question does best with."""
    return Counter(answer_matching.answer_key(item.reference) for item in items).most_common(1)[0][0]


def score_turns(
    model: SpongeBob, tokenizer: Tokenizer, items: list[Turn], batch: int, *, max_new_tokens: int, frequent: str
) -> list[dict]:
    """Loss on the answer, the answer itself and its marks. A prompt that fills the context has neither."""
    dataset, context = SFTDataset(tokenizer), model.config.max_seq_len
    prompts = [dataset.prompt(item.messages[:-1]) for item in items]
    records = [
        {
            "row": item.row,
            "turn": item.turn,
            "groups": {"turn": item.turn} | ({"task": item.task} if item.task else {}),
            "sums": {"too_long": [float(len(prompt) >= context), 1.0]},
            "chance": {},
        }
        for item, prompt in zip(items, prompts, strict=True)
    ]
    fitting = [at for at, prompt in enumerate(prompts) if len(prompt) < context]
    if not fitting:
        return records
    items, prompts = [items[at] for at in fitting], [prompts[at] for at in fitting]
    fits = [records[at] for at in fitting]
    losses(model, dataset, items, prompts, fits, batch)
    limits = [min(max_new_tokens, context - len(prompt)) for prompt in prompts]
    said = complete(model, prompts, max_new_tokens=limits, end_id=dataset.eos, temperature=0)
    for item, record, limit, ids in zip(items, fits, limits, said, strict=True):
        answer = tokenizer.decode(ids, skip_special_tokens=False)
        marks = answer_matching.score_answer(answer, item.reference) | {"cut_off": float(len(ids) >= limit)}
        if answer_matching.has_thought(item.reference):
            marks["thinking_tokens"] = len(tokenizer.encode(split_reasoning(answer)[0]).ids)
        record["sums"] |= {name: [float(mark), 1.0] for name, mark in marks.items()}
        luck = float(answer_matching.answer_key(item.reference) == frequent)
        record["chance"] |= {name: luck for name in ("exact", "correct") if name in marks}
        record |= {
            "question": item.messages[-2]["content"] if len(item.messages) > 1 else "",
            "reference": item.reference,
            "answer": answer,
        }
    return records


def losses(
    model: SpongeBob, dataset: SFTDataset, items: list[Turn], prompts: list[list[int]], records: list[dict], batch: int
) -> None:
    """Add the nats of each answer's tokens, its end mark included, as in training, as far as the context goes."""
    sequences = []
    for document, prompt in zip(dataset.encode([item.messages for item in items]), prompts, strict=True):
        end = len(prompt) + int(np.count_nonzero(document.classes[len(prompt) :] != NO_LOSS))
        sequences.append(document.ids[: min(end, model.config.max_seq_len + 1)].tolist())
    uniform = np.log(model.config.vocab_size)
    for nats, prompt, record in zip(token_nats(model, sequences, batch), prompts, records, strict=True):
        nats = nats[len(prompt) - 1 :]
        record["groups"]["start"] = len(prompt) // START_STEP * START_STEP
        record["sums"]["answer_loss"] = [float(nats.sum()), float(len(nats))]
        record["chance"]["answer_loss"] = float(uniform * len(nats))
        record["curve"] = {"answer_loss": curve(nats, np.ones(len(nats)), len(prompt))}
