"""Score conversations: the loss on the assistant's answers, and generated answers compared with them.

Every assistant turn of a row is one item, except for turns that the row excludes from training. The prompt holds the
turns before it as they are in the row; answers are generated greedily, in batches.
"""

import math
from collections import Counter
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from dataset import NO_LOSS, SFTDataset
from engine.generate.engine import complete
from engine.reasoning import split_reasoning
from engine.schemas import is_trained
from engine.score import answer_matching
from engine.score.loglikelihood import new_record, sums_by_position, token_losses
from model import SpongeBob

START_STEP = 512  # tokens; answers are grouped by the position where they begin


class Turn(NamedTuple):
    """The `turn`th answer of a row, counted from 1; `messages` end with it."""

    row: int
    turn: int
    messages: list[dict]
    task: str | None

    @property
    def size(self) -> int:
        """Characters that the model reads."""
        return sum(len(message["content"]) for message in self.messages)

    @property
    def reference(self) -> str:
        """Return the row's own answer."""
        return self.messages[-1]["content"]


def split_turns(row: int, messages: list[dict], task: str | None) -> list[Turn]:
    """Split a conversation into its answers; the row's task is that of the last one."""
    ends = [end for end, message in enumerate(messages, 1) if is_trained(message)]
    return [Turn(row, turn, messages[:end], task if end == ends[-1] else None) for turn, end in enumerate(ends, 1)]


def most_frequent_answer(items: list[Turn]) -> str:
    """Return the answer that scores best without reading the question."""
    return Counter(answer_matching.answer_key(item.reference) for item in items).most_common(1)[0][0]


def score_turns(
    model: SpongeBob, tokenizer: Tokenizer, items: list[Turn], batch: int, *, max_new_tokens: int, most_frequent: str
) -> list[dict]:
    """Score the loss on each answer and a greedy answer; a turn whose prompt fills the context is skipped.

    Args:
        items: Answers of one file.
        batch: Answers per forward pass of the loss.
        max_new_tokens: Longest generated answer in tokens.
        most_frequent: Key of the answer that defines the chance level.
    Returns:
        A record per answer.
    """
    dataset, context = SFTDataset(tokenizer), model.config.max_seq_len
    records: list[dict] = [{"turn": item.turn, **new_record(item, turn=item.turn)} for item in items]
    jobs = [(item, dataset.prompt(item.messages[:-1]), record) for item, record in zip(items, records, strict=True)]
    fitting = [job for job in jobs if len(job[1]) < context]
    for item, prompt, record in jobs:
        if len(prompt) >= context:
            record["skipped"] = ["answer_loss", *answer_matching.score_answer("", item.reference), "cut_off"]
    add_losses(model, dataset, fitting, batch)
    prompts = [prompt for _, prompt, _ in fitting]
    limits = [min(max_new_tokens, context - len(prompt)) for prompt in prompts]
    outputs = complete(model, prompts, max_new_tokens=limits, end_id=dataset.eos, temperature=0)
    for (item, _, record), limit, ids in zip(fitting, limits, outputs, strict=True):
        answer = tokenizer.decode(ids, skip_special_tokens=False)
        chance = float(answer_matching.answer_key(item.reference) == most_frequent)
        for name, score in answer_matching.score_answer(answer, item.reference).items():
            record["sums"][name] = [score, 1.0, chance if name in ("exact_match", "correct") else None]
        record["sums"]["cut_off"] = [float(len(ids) >= limit), 1.0, None]
        if answer_matching.has_thought(item.reference):
            record["sums"]["thinking_tokens"] = [len(tokenizer.encode(split_reasoning(answer)[0]).ids), 1.0, None]
        question = item.messages[-2]["content"] if len(item.messages) > 1 else ""
        record |= {"question": question, "reference": item.reference, "answer": answer}
    return records


def add_losses(model: SpongeBob, dataset: SFTDataset, jobs: list[tuple[Turn, list[int], dict]], batch: int) -> None:
    """Add the loss on each answer's tokens and end token to its record, as in training, up to the context length.

    Args:
        jobs: (answer, prompt's ids, record) of each.
        batch: Answers per forward pass.
    """
    sequences = []
    documents = dataset.encode([item.messages for item, _, _ in jobs])
    for document, (_, prompt, _) in zip(documents, jobs, strict=True):
        end = len(prompt) + int(np.count_nonzero(document.classes[len(prompt) :] != NO_LOSS))
        sequences.append(document.ids[: min(end, model.config.max_seq_len + 1)].tolist())
    for losses, (_, prompt, record) in zip(token_losses(model, sequences, batch), jobs, strict=True):
        losses = losses[len(prompt) - 1 :]
        chance = math.log(model.config.vocab_size) * len(losses)
        record["groups"]["start"] = len(prompt) // START_STEP * START_STEP
        record["sums"]["answer_loss"] = [float(losses.sum()), float(len(losses)), chance]
        num_seen = len(prompt) + np.arange(len(losses))
        record["curve"] = {"answer_loss": sums_by_position(losses, np.ones(len(losses)), num_seen)}
