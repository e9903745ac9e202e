"""Multiple choice: is the right choice the likeliest? By its letter, by its words, by its words a character.

    {"question": "...", "choices": ["...", "..."], "answer": 1 or "B", "subject": "..."}

The prompts are also those of the tasks in data/harness, so that lm-evaluation-harness gets the same figures.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from dataset import BadRow, PretrainDataset, SFTDataset
from engine.score.likelihood import token_nats
from model import SpongeBob

LETTERS = "ABCDEFGHIJ"
ANSWER_IS = "答案："  # what a model that continues texts is to continue


class Question(NamedTuple):
    """One row; `answer` is the index of the right choice."""

    row: int
    question: str
    choices: tuple[str, ...]
    answer: int
    task: str | None

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
    """[(ids, first)] a choice, ids[first:] are its own tokens; the examples are earlier turns."""
    dataset, messages = SFTDataset(tokenizer), []
    for example in shots:
        answer = answers(form, example)[example.answer]
        messages += [{"role": "user", "content": asked(form, example)}, {"role": "assistant", "content": answer}]
    prompt = dataset.prompt([*messages, {"role": "user", "content": asked(form, item)}])
    encodings = tokenizer.encode_batch_fast(answers(form, item), add_special_tokens=False)
    return [(prompt + encoding.ids, len(prompt)) for encoding in encodings]


def text_ids(tokenizer: Tokenizer, form: str, item: Question, shots: list[Question]) -> list[tuple[list[int], int]]:
    """The same for a model that continues texts; the examples are earlier paragraphs.

    Prompt and choice are encoded together, as such a model read its texts.
    """
    prompt = "".join(f"{asked(form, one)}\n{ANSWER_IS}{answers(form, one)[one.answer]}\n\n" for one in shots)
    prompt += f"{asked(form, item)}\n{ANSWER_IS}"
    texts = [prompt, *(prompt + choice for choice in answers(form, item))]
    context, *whole = PretrainDataset(tokenizer).encode(texts)
    return [(document.ids[:-1].tolist(), len(context.ids) - 1) for document in whole]


def score_questions(
    model: SpongeBob, tokenizer: Tokenizer, items: list[Question], batch: int, *,
    chats: bool, shots: Sequence[int], examples: list[Question],
) -> list[dict]:  # fmt: skip
    """Right or wrong by every form and number of examples: letter_0shot, text_0shot, text_norm_0shot and so on.

    The examples are the first of `examples` that are not the question itself. Where a question does not fit into the
    context with them, it has no such figure.
    """
    encode, context = chat_ids if chats else text_ids, model.config.max_seq_len
    records = [
        {"row": item.row, "groups": {"task": item.task} if item.task else {}, "sums": {}, "chance": {}}
        for item in items
    ]
    for form, count in ((form, count) for form in ("letter", "text") for count in shots):
        spans = []
        for item in items:
            others = [one for one in examples if one.row != item.row][:count]
            spans.append(encode(tokenizer, form, item, others) if len(others) == count else [])
        spans = [span if all(len(ids) <= context + 1 for ids, _ in span) else [] for span in spans]
        costs = iter(token_nats(model, [ids for span in spans for ids, _ in span], batch))
        for item, record, span in zip(items, records, spans, strict=True):
            if not span:
                continue
            nats = np.array([next(costs)[first - 1 :].sum() for _, first in span])
            marks = {form: nats}
            if form == "text":
                marks["text_norm"] = nats / [len(choice) for choice in item.choices]
            for name, cost in marks.items():
                record["sums"][f"{name}_{count}shot"] = [float(cost.argmin() == item.answer), 1.0]
                record["chance"][f"{name}_{count}shot"] = 1 / len(item.choices)
    return records
