"""Score multiple choice: is the right choice the most likely, by its letter, its text, its text per character?

    {"question": "...", "choices": ["...", "..."], "answer": 1 or "B", "subject": "..."}

The prompts equal those of the tasks in data/harness, so that lm-evaluation-harness gets the same metrics.
"""

from collections.abc import Sequence
from itertools import chain, product
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer

from dataset import PretrainDataset, SFTDataset
from engine.schemas import BadRow, text_of
from engine.score.loglikelihood import new_record, token_losses
from model import SpongeBob

LETTERS = "ABCDEFGHIJ"
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


def read_question(number: int, row: dict) -> Question:
    """Read a row's content, or raise BadRow."""
    question = text_of(row.get("question"), '"question"', may_be_empty=True)
    choices, answer = row.get("choices"), row.get("answer")
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(LETTERS):
        raise BadRow(f'"choices" is no list of 2 to {len(LETTERS)} texts')
    choices = [text_of(choice, 'a text in "choices"', may_be_empty=True) for choice in choices]
    if not question.strip() or not all(choices):
        raise BadRow('"question" or a text in "choices" is empty')
    if isinstance(answer, str) and len(answer) == 1:
        answer = LETTERS.find(answer)
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise BadRow(f'"answer" is {row.get("answer")!r}, expected an index from 0, or a letter, of {len(choices)}')
    subject = row.get("subject", row.get("task"))
    return Question(number, question, tuple(choices), answer, None if subject is None else str(subject))


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
