"""Multiple choice: is the right choice the likeliest? By its letter, by its words, by its words per character.

    {"question": "...", "choices": ["...", "..."], "answer": 1 or "B", "subject": "..."}

The prompts are also those of the tasks in data/harness, so that lm-evaluation-harness gets the same figures.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer

from dataset import PretrainDataset, SFTDataset
from engine.schemas import BadRow, text_of
from engine.score.loglikelihood import token_nats
from model import SpongeBob

LETTERS = "ABCDEFGHIJ"
ANSWER_IS = "答案："  # what a model that continues texts is to continue
TIE = 1e-4  # nats; less is the rounding of float32, not an opinion


class Question(NamedTuple):
    """One row; `answer` is the index of the right choice."""

    row: int
    question: str
    choices: tuple[str, ...]
    answer: int
    task: str | None

    @property
    def content(self) -> tuple[str, tuple[str, ...]]:
        """What makes two questions one, whatever the order of their choices."""
        return " ".join(self.question.split()), tuple(sorted(choice.strip() for choice in self.choices))

    @property
    def size(self) -> int:
        return len(self.question) + sum(map(len, self.choices))


def read_question(number: int, row: dict) -> Question:
    """A row's content, or BadRow."""
    question, choices, answer = row.get("question"), row.get("choices"), row.get("answer")
    if not isinstance(question, str) or not question.strip():
        raise BadRow('"question" is no text')
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(LETTERS):
        raise BadRow(f'"choices" is no list of 2 to {len(LETTERS)} texts')
    if not all(isinstance(choice, str) and choice for choice in choices):
        raise BadRow('a text in "choices" is empty or no text')
    for words in (question, *choices):
        text_of(words, "a text of the question", may_be_empty=True)
    if isinstance(answer, str) and len(answer) == 1:
        answer = LETTERS.find(answer)
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise BadRow(f'"answer" is {row.get("answer")!r}, expected an index from 0, or a letter, of {len(choices)}')
    subject = row.get("subject", row.get("task"))
    return Question(number, question, tuple(choices), answer, None if subject is None else str(subject))


def asked(form: str, item: Question) -> str:
    """The question as it is put: with form "letter" the choices are shown."""
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, item.choices, strict=False)]
    return "\n".join([item.question, *lines]) if form == "letter" else item.question


def answers(form: str, item: Question) -> list[str]:
    """What the model may say: letters, or the choices' own words."""
    return list(LETTERS[: len(item.choices)]) if form == "letter" else list(item.choices)


def chat_ids(tokenizer: Tokenizer, form: str, item: Question, shots: list[Question]) -> list[tuple[list[int], int]]:
    """[(ids, first)] per choice, ids[first:] spell it; the examples are earlier turns."""
    dataset, messages = SFTDataset(tokenizer), []
    for example in shots:
        answer = answers(form, example)[example.answer]
        messages += [{"role": "user", "content": asked(form, example)}, {"role": "assistant", "content": answer}]
    prompt = dataset.prompt([*messages, {"role": "user", "content": asked(form, item)}])
    encodings = tokenizer.encode_batch_fast(answers(form, item), add_special_tokens=False)
    return [(prompt + encoding.ids, len(prompt)) for encoding in encodings]


def text_ids(tokenizer: Tokenizer, form: str, item: Question, shots: list[Question]) -> list[tuple[list[int], int]]:
    """The same for a model that continues texts; the examples are earlier paragraphs.

    Prompt and choice are encoded together, as such a model read its texts (and as lm-evaluation-harness does). Where
    the tokens do not part at the join, what is scored would not be the choice: then every choice of the question is
    encoded apart from its prompt.
    """
    prompt = "".join(f"{asked(form, one)}\n{ANSWER_IS}{answers(form, one)[one.answer]}\n\n" for one in shots)
    prompt += f"{asked(form, item)}\n{ANSWER_IS}"
    said = answers(form, item)
    encoded = PretrainDataset(tokenizer).encode([prompt, *(prompt + choice for choice in said), *said])
    context, *rest = (document.ids[:-1].tolist() for document in encoded)
    together, apart = rest[: len(said)], rest[len(said) :]
    first = len(context)
    if all(ids[:first] == context for ids in together):
        return [(ids, first) for ids in together]
    return [(context + ids[1:], first) for ids in apart]  # without the <s>


def examples(questions: Sequence[Question], count: int) -> list[Question]:
    """The first `count` different ones: one more than are shown, for the question itself may be among them."""
    different: dict[tuple, Question] = {}
    for one in questions:
        different.setdefault(one.content, one)
    return list(different.values())[:count]


def mark(cost: np.ndarray, answer: int) -> float:
    """1 where the right choice is the cheapest, `cost` (choices,) in nats; equals share it, whatever their order."""
    best = cost <= cost.min() + TIE
    return float(best[answer]) / int(best.sum())


def score_questions(
    model: SpongeBob,
    tokenizer: Tokenizer,
    items: list[Question],
    batch: int,
    *,
    chats: bool,
    shots: Sequence[int],
    examples: list[Question],
) -> list[dict]:
    """Right or wrong by every form and number of examples: letter_0shot, text_0shot, text_norm_0shot and so on.

    The examples are the first of `examples` that are not the question itself, by content. Where there are too few, or
    the question does not fit into the context with them, it has no such figure, and "left_out" says so. Choices are
    decided in float32: in bfloat16 letters often cost the same.
    """
    encode, context = chat_ids if chats else text_ids, model.config.max_seq_len
    device = model.tok_embeddings.weight.device.type
    records = [
        {"row": item.row, "groups": {"task": item.task} if item.task else {}, "sums": {}, "chance": {}}
        for item in items
    ]
    for form, count in ((form, count) for form in ("letter", "text") for count in shots):
        spans = []
        for item in items:
            others = [one for one in examples if one.content != item.content][:count]
            spans.append(encode(tokenizer, form, item, others) if len(others) == count else [])
        spans = [span if all(len(ids) <= context + 1 for ids, _ in span) else [] for span in spans]
        with torch.autocast(device, enabled=False):
            costs = iter(token_nats(model, [ids for span in spans for ids, _ in span], batch))
        names = [f"{name}_{count}shot" for name in ([form] if form == "letter" else [form, "text_norm"])]
        for item, record, span in zip(items, records, spans, strict=True):
            if not span:
                record["left_out"] = record.get("left_out", []) + names
                continue
            cost = np.array([next(costs)[first - 1 :].sum() for _, first in span])
            for name, nats in zip(names, (cost, cost / [len(choice) for choice in item.choices]), strict=False):
                record["sums"][name] = [mark(nats, item.answer), 1.0]
                record["chance"][name] = 1 / len(item.choices)
    return records
