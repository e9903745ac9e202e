"""Score multiple choice: is the right choice the most likely, by its letter, its text, its text per character?

    {"question": "...", "choices": ["...", "..."], "answer": 1 or "B", "subject": "..."}

Choices may also be {"text": [...], "label": [...]}, {"A": "...", "B": "..."}, or the row's own columns A, B, and so on;
the answer an index from 0, a letter or label, or the text of one choice. What a single row cannot tell, as whether
indices count from 0, is checked over the file (check_answers).

The prompts equal those of the tasks in data/harness, so that lm-evaluation-harness gets the same metrics.
"""

import math
import re
from collections.abc import Sequence
from itertools import chain, product
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer

from dataset import PretrainDataset, SFTDataset
from engine.console import warn
from engine.schemas import BadRow, names_of, text_of
from engine.score.loglikelihood import new_record, token_losses
from model import SpongeBob

LETTERS = "ABCDEFGHIJ"
VALID = '{"question": "Which is larger?", "choices": ["7", "9"], "answer": 1}'
CHOICES_KEYS = ("choices", "options")
ANSWER_KEYS = ("answer", "answerKey", "answer_idx", "label", "gold")
LETTERED = "lettered choices"  # note of a row
BY_CHANCE = 0.1  # if no answer of a file is 0, and rightly so in fewer files than this, they are counted from 1
MANY = 10  # questions of which not all should have the same answer
_PREFIX = re.compile(r"[(（]?([A-Ja-j])\s*[.:)、：．）]\s*(?=\S)")
ANSWER_IS = "答案："  # the prompt's end for a model that continues texts
TIE = 1e-4  # nats; below that the difference is float32 rounding
METRICS = {"letter": ("acc_letter",), "text": ("acc", "acc_norm")}  # by the form of the choices


class Question(NamedTuple):
    """One row; `answer` is the index of the right choice."""

    row: int
    question: str
    choices: tuple[str, ...]
    answer: int
    task: str | None

    @property
    def content(self) -> tuple[str, tuple[str, ...]]:
        """Return what equal questions share, whatever the order of their choices."""
        return " ".join(self.question.split()), tuple(sorted(choice.strip() for choice in self.choices))

    @property
    def size(self) -> int:
        """Characters that the model reads."""
        return len(self.question) + sum(map(len, self.choices))


Span = tuple[list[int], int]  # (ids, first): ids[first:] spell a choice


def holds_question(row: dict) -> bool:
    """Return whether a row is meant as a question with choices."""
    return "choices" in row or ("question" in row and "text" not in row)


def read_question(number: int, row: dict, notes: set[str], indices: list[tuple[int, int]]) -> Question:
    """Read a row.

    Args:
        number: Its line.
        row: Its content.
        notes: LETTERED is added if the choices begin with their letters, which are cut off.
        indices: (answer, number of choices) is added for an answer that is an index, also one out of range.
    Raises:
        BadRow: It is no question with one right choice.
    """
    question = text_of(row.get("question"), '"question"', may_be_empty=True)
    labels, choices = read_choices(row)
    if not question.strip() or not all(choices):
        raise BadRow('"question" or a text in "choices" is empty')
    texts = choices
    if all(map(starts_with_label, choices, labels)):
        notes.add(LETTERED)
        texts = [_PREFIX.sub("", choice, count=1) for choice in choices]
    key = next((key for key in ANSWER_KEYS if row.get(key) is not None), ANSWER_KEYS[0])
    spellings = [{choice.strip(), text.strip()} for choice, text in zip(choices, texts, strict=True)]
    answer = find_answer(key, row.get(key), labels, spellings, indices)
    subject = row.get("subject", row.get("task"))
    return Question(number, question, tuple(texts), answer, None if subject is None else str(subject))


def read_choices(row: dict) -> tuple[list[str], list[str]]:
    """Return the labels of a row's choices and their texts."""
    choices = next((row[key] for key in CHOICES_KEYS if row.get(key) is not None), None)
    if choices is None:
        choices = {letter: row[letter] for letter in LETTERS if row.get(letter) is not None}
    labels = LETTERS
    if isinstance(choices, dict) and choices.keys() >= {"text", "label"}:
        labels, choices = choices["label"], choices["text"]
    elif isinstance(choices, dict):
        labels, choices = list(choices), list(choices.values())
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(LETTERS):
        raise BadRow(f'"choices" is no list of 2 to {len(LETTERS)} texts; the row has {names_of(row)}')
    if labels is not LETTERS and (not isinstance(labels, list) or len(labels) != len(choices)):
        raise BadRow(f'"choices" has {len(choices)} texts, but not as many labels')
    texts = [text_of(choice, 'a text in "choices"', may_be_empty=True) for choice in choices]
    return [str(label) for label in labels[: len(texts)]], texts


def starts_with_label(choice: str, label: str) -> bool:
    """Return whether a choice is written with its letter: "B. 7", "(B) 7"."""
    prefix = _PREFIX.match(choice)
    return prefix is not None and prefix[1].casefold() == label.casefold()


def find_answer(
    key: str, answer: object, labels: list[str], spellings: list[set[str]], indices: list[tuple[int, int]]
) -> int:
    """Return the index of the right choice.

    Args:
        key: The answer's field, for the message.
        answer: A label in any case and brackets, an index from 0, or the text of one choice.
        labels: Of the choices.
        spellings: Texts of each choice.
        indices: As in `read_question`.
    Raises:
        BadRow: The answer is none of them, or of several choices.
    """
    name, count = answer, len(labels)
    if isinstance(answer, (int, float)) and not isinstance(answer, bool) and float(answer).is_integer():
        name = str(int(answer))
    meant: set[int] = set()
    if isinstance(name, str):
        bare = name.strip(" ()[]【】（）.:：。").casefold()
        meant = {index for index, label in enumerate(labels) if label.casefold() == bare}
        is_label = bool(meant)
        if isinstance(answer, str):
            meant |= {index for index, texts in enumerate(spellings) if name.strip() in texts}
        if bare.isdecimal() and len(bare) < 4 and not is_label:
            if not meant:
                indices.append((int(bare), count))
            meant |= {int(bare)} & set(range(count))
    if len(meant) > 1:
        letters = " or ".join(LETTERS[index] for index in sorted(meant))
        raise BadRow(f'"{key}" is {answer!r}, which may be choice {letters}: give its letter')
    if not meant:
        expected = f"expected an index from 0, a letter, or the text of one, of {count} choices"
        raise BadRow(f'"{key}" is {answer!r}, {expected}')
    return meant.pop()


def check_answers(name: str, questions: Sequence[Question], indices: Sequence[tuple[int, int]]) -> None:
    """Check what shows only over a file.

    Args:
        name: Of the file, for messages.
        questions: Its questions.
        indices: (answer, number of choices) of those whose answer is an index.
    Raises:
        ValueError: The indices count from 1.
    """
    if indices and all(answer for answer, _ in indices):
        fact = f"{name}: none of {len(indices)} answers is 0, the first choice"
        chance = math.prod(1 - 1 / count for _, count in indices)
        is_unlikely = chance < BY_CHANCE and any(answer > 1 for answer, _ in indices)  # nothing but 1 says too little
        if is_unlikely or any(answer == count for answer, count in indices):
            raise ValueError(f"{fact}: they are counted from 1. Count them from 0, or write letters (A is the first)")
        warn(f"{fact}: they are taken as counted from 0")
    answers = {question.answer for question in questions}
    if len(answers) == 1 and len(questions) >= MANY:
        letter = LETTERS[answers.pop()]
        warn(
            f"{name}: {letter} is right in all {len(questions)} questions, so a model that always says {letter} is, too"
        )


def render_question(form: str, item: Question) -> str:
    """Return the question's text; the form "letter" lists the choices."""
    listed = zip(LETTERS, item.choices, strict=False) if form == "letter" else ()
    return "\n".join([item.question, *(f"{letter}. {choice}" for letter, choice in listed)])


def choice_texts(form: str, item: Question) -> list[str]:
    """Return the texts that are scored: letters, or the choices themselves."""
    return list(LETTERS[: len(item.choices)]) if form == "letter" else list(item.choices)


def encode_chat(tokenizer: Tokenizer, form: str, item: Question, shots: list[Question]) -> list[Span]:
    """Encode a question for a chat model, a span per choice; the examples are earlier turns."""
    messages = []
    for example in shots:
        messages += [
            {"role": "user", "content": render_question(form, example)},
            {"role": "assistant", "content": choice_texts(form, example)[example.answer]},
        ]
    prompt = SFTDataset(tokenizer).prompt([*messages, {"role": "user", "content": render_question(form, item)}])
    encodings = tokenizer.encode_batch_fast(choice_texts(form, item), add_special_tokens=False)
    return [(prompt + encoding.ids, len(prompt)) for encoding in encodings]


def encode_text(tokenizer: Tokenizer, form: str, item: Question, shots: list[Question]) -> list[Span]:
    """Encode a question for a model that continues texts, a span per choice; the examples are earlier paragraphs.

    Prompt and choice are encoded together, as such a model read its texts (and as lm-evaluation-harness does). If a
    token spans the boundary, what is scored would not be the choice: then every choice of the question is encoded
    separately from its prompt.
    """
    choices = choice_texts(form, item)
    prompt = ""
    for example in shots:
        prompt += f"{render_question(form, example)}\n{ANSWER_IS}{choice_texts(form, example)[example.answer]}\n\n"
    prompt += f"{render_question(form, item)}\n{ANSWER_IS}"
    documents = PretrainDataset(tokenizer).encode([prompt, *(prompt + choice for choice in choices), *choices])
    context, *rest = (document.ids[:-1].tolist() for document in documents)
    joint, separate = rest[: len(choices)], rest[len(choices) :]
    first = len(context)
    if all(ids[:first] == context for ids in joint):
        return [(ids, first) for ids in joint]
    return [(context + ids[1:], first) for ids in separate]  # without the <s>


def distinct_questions(questions: Sequence[Question], count: int) -> list[Question]:
    """Return the first `count` questions that differ by content."""
    distinct: dict[tuple, Question] = {}
    for question in questions:
        distinct.setdefault(question.content, question)
    return list(distinct.values())[:count]


def score_choice(losses: np.ndarray, answer: int) -> float:
    """Return 1 if the right choice has the lowest loss; ties share the 1, whatever their order.

    Args:
        losses: Loss of each choice in nats, (choices,).
        answer: Index of the right choice.
    """
    is_best = losses <= losses.min() + TIE
    return float(is_best[answer]) / int(is_best.sum())


def score_questions(
    model: SpongeBob,
    tokenizer: Tokenizer,
    items: list[Question],
    batch: int,
    *,
    chats: bool,
    num_fewshot: Sequence[int],
    examples: list[Question],
) -> list[dict]:
    """Score each question by every form and number of examples: acc_letter_0shot, acc_0shot, acc_norm_0shot and so on.

    Losses are computed in float32: in bfloat16, letters often tie.

    Args:
        items: Questions of one file.
        batch: Choices per forward pass.
        chats: Whether to ask with roles.
        num_fewshot: Numbers of examples.
        examples: Candidates; the first ones that differ by content from the question are its examples. With too few
            of them, or if the question does not fit into the context with them, its metric is skipped.
    Returns:
        A record per question.
    """
    encode = encode_chat if chats else encode_text
    records = list(map(new_record, items))
    for form, count in product(METRICS, num_fewshot):
        questions = []
        for item in items:
            shots = [example for example in examples if example.content != item.content][:count]
            spans = encode(tokenizer, form, item, shots) if len(shots) == count else []
            questions.append(spans if all(len(ids) <= model.config.max_seq_len + 1 for ids, _ in spans) else [])
        with torch.autocast(model.tok_embeddings.weight.device.type, enabled=False):
            losses = iter(token_losses(model, [ids for ids, _ in chain.from_iterable(questions)], batch))
        names = [f"{metric}_{count}shot" for metric in METRICS[form]]
        for item, record, spans in zip(items, records, questions, strict=True):
            if not spans:
                record["skipped"] = record.get("skipped", []) + names
                continue
            by_text = np.array([next(losses)[first - 1 :].sum() for _, first in spans])
            by_character = by_text / [len(choice) for choice in item.choices]
            for name, choice_losses in zip(names, (by_text, by_character), strict=False):
                record["sums"][name] = [score_choice(choice_losses, item.answer), 1.0, 1 / len(item.choices)]
    return records
