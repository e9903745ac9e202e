"""The scored tokens spell the choice, no question is its own example, and ties are shared."""

import json
import re

import numpy as np
import pytest
import torch
from factories import TOKENIZER, write_rows
from scoring import evaluate_file, question
from tiny_model import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from engine.score import multiple_choice
from engine.score.loglikelihood import token_losses
from engine.score.multiple_choice import Question
from engine.score.records import read_items

pytestmark = pytest.mark.usefixtures("one_thread")


def tokenizer_that_joins(*texts):
    """Train a tokenizer whose tokens span the boundary of prompt and choice."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special, letters = ["<unk>", "<s>", "</s>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=letters, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@pytest.mark.parametrize("encode", [multiple_choice.encode_text, multiple_choice.encode_chat])
@pytest.mark.parametrize("form", ["letter", "text"])
@pytest.mark.parametrize(
    "tokenizer",
    [
        TOKENIZER,
        tokenizer_that_joins("：C", "：C", "案：C"),
        tokenizer_that_joins("：海风", "：海风"),
        tokenizer_that_joins("\n答案：B", "\n答案：B"),
    ],
    ids=["ours", "letter", "word", "line"],
)
def test_scored_tokens_spell_the_scored_choice(tokenizer, form, encode):
    item = Question(1, "吹过码头的是？", ("海风", "船", "C", "海"), 0, None)
    spans = encode(tokenizer, form, item, [Question(2, "谁？", ("甲", "乙"), 1, None)])
    texts = [tokenizer.decode(ids[first:], skip_special_tokens=False) for ids, first in spans]
    assert texts == multiple_choice.choice_texts(form, item)
    assert len({tuple(ids[:first]) for ids, first in spans}) == 1  # all after the same prompt


def losses_by_hand(model, item, shots, form):
    """Return the summed log-probability of each choice, one forward pass each, of a model that continues texts."""

    def ask(row):
        lines = [f"{letter}. {text}" for letter, text in zip("ABCD", row["choices"], strict=False)]
        return "\n".join([row["question"], *(lines if form == "letter" else [])]) + "\n答案："

    def choices(row):
        return list("ABCD")[: len(row["choices"])] if form == "letter" else row["choices"]

    prompt = "".join(f"{ask(row)}{choices(row)[row['answer']]}\n\n" for row in shots) + ask(item)
    start = 1 + len(TOKENIZER.encode(prompt, add_special_tokens=False).ids)
    totals = []
    for choice in choices(item):
        ids = torch.tensor([[1, *TOKENIZER.encode(prompt + choice, add_special_tokens=False).ids]])
        with torch.no_grad():
            log_probs = model(ids).logits[0, :-1].log_softmax(-1)
        totals.append(log_probs.gather(1, ids[0, 1:, None])[start - 1 :].sum().item())
    return np.array(totals)


def test_accuracies_equal_a_count_by_hand(tmp_path):
    model = tiny(max_seq_len=512)
    rows = [question(n, "红", "蓝色的船", "绿色", *["灰"] * (n % 2), subject=f"s{n % 2}") for n in range(12)]
    path = write_rows(tmp_path / "choices.jsonl", rows)
    result, _ = evaluate_file(model, path, chats=False, num_fewshot=(0, 2))
    for count in (0, 2):
        right = {"acc_letter": 0, "acc": 0, "acc_norm": 0}
        for row in rows:
            shots = [other for other in rows if other is not row][:count]
            by_text = losses_by_hand(model, row, shots, "text")
            right["acc_letter"] += losses_by_hand(model, row, shots, "letter").argmax() == row["answer"]
            right["acc"] += by_text.argmax() == row["answer"]
            right["acc_norm"] += (by_text / [len(choice) for choice in row["choices"]]).argmax() == row["answer"]
        for name, hits in right.items():
            metric = result["metrics"][f"{name}_{count}shot"]
            assert metric["value"] == pytest.approx(hits / 12) and metric["n"] == 12
            assert metric["chance_level"] == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert set(result["by_task"]) == {"s0", "s1"}


@pytest.mark.parametrize("chats", [False, True])
def test_examples_are_the_first_other_rows(tmp_path, monkeypatch, chats):
    texts = []

    def spy(model, sequences, batch):
        texts.extend(TOKENIZER.decode(ids, skip_special_tokens=False) for ids in sequences)
        return [np.ones(len(ids) - 1) for ids in sequences]

    monkeypatch.setattr(multiple_choice, "token_losses", spy)
    path = write_rows(tmp_path / "choices.jsonl", [question(n, "红", "蓝") for n in range(5)])
    evaluate_file(tiny(), path, chats=chats, num_fewshot=(2,))
    orders = {tuple(re.findall("问题([0-9])", text)) for text in texts}
    assert orders == {("1", "2", "0"), ("0", "2", "1"), ("0", "1", "2"), ("0", "1", "3"), ("0", "1", "4")}


def test_examples_never_equal_the_question_by_content(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(multiple_choice, "encode_chat", lambda *call: calls.append(call) or [])
    same = {"question": "问？", "choices": ["红", "蓝"], "answer": 0}
    turned = {"question": " 问？ ", "choices": ["蓝", "红"], "answer": 1}
    rows = [same, same, turned, *({"question": f"{n}？", "choices": ["红", "蓝"], "answer": 0} for n in range(3))]
    evaluate_file(tiny(), write_rows(tmp_path / "c.jsonl", rows), num_fewshot=(2,))
    assert len(calls) == 2 * len(rows)
    for _, _, item, shots in calls:
        asked = [shot.question.strip() for shot in shots]
        assert len(set(asked)) == 2 and item.question.strip() not in asked


def test_ties_share_the_score_whatever_their_order(tmp_path):
    rows = [{"question": "谁？", "choices": ["海", "海", "山"], "answer": answer} for answer in range(3)]
    result, records = evaluate_file(tiny(), write_rows(tmp_path / "c.jsonl", rows), num_fewshot=(0,))
    scores = [record["sums"]["acc_0shot"][0] for record in records]
    assert scores in ([0.5, 0.5, 0.0], [0.0, 0.0, 1.0])
    assert sum(scores) == 1 and result["metrics"]["acc_0shot"]["value"] == pytest.approx(1 / 3)
    losses = np.array([2.0, 2.0 + 1e-6, 3.0])
    assert [multiple_choice.score_choice(losses, answer) for answer in range(3)] == [0.5, 0.5, 0.0]


def test_choices_are_scored_in_float32_under_autocast(tmp_path, monkeypatch):
    enabled = []

    def spy(model, sequences, batch):
        enabled.append(torch.is_autocast_enabled("cpu"))
        return token_losses(model, sequences, batch)

    monkeypatch.setattr(multiple_choice, "token_losses", spy)
    rows = write_rows(tmp_path / "c.jsonl", [question(0, "海", "山")])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        evaluate_file(tiny(), rows, num_fewshot=(0,))
    assert enabled == [False, False]


def test_question_that_does_not_fit_or_lacks_examples_is_skipped(tmp_path):
    rows = [question(n, "红", "蓝") for n in range(3)] + [question(3, "红" * 200, "蓝")]
    result, records = evaluate_file(tiny(), write_rows(tmp_path / "c.jsonl", rows), num_fewshot=(0, 2, 5))
    metric = result["metrics"]["acc_letter_0shot"]
    assert (metric["n"], metric["skipped"]) == (3, 1) and result["missing"]["acc_norm_5shot"] == 4
    assert not any(name.endswith("5shot") for name in result["metrics"])
    assert records[3]["sums"] == {}


@pytest.mark.parametrize(
    "row, message",
    [
        ({"question": "", "choices": ["a", "b"], "answer": 0}, "question"),
        (question(0, "a"), "list of 2 to 10"),
        ({"question": "q", "choices": ["a", "b"], "answer": 3}, '"answer" is 3'),
        ({"question": "q", "choices": ["a", "b"], "answer": 0.5}, '"answer" is 0.5'),
        ({"question": "q", "choices": ["a", "b"], "answer": True}, '"answer" is True'),
        ({"question": "q", "choices": ["a", "a", "b"], "answer": "a"}, "\"answer\" is 'a', which may be choice A or B"),
        ({"question": "q", "choices": ["1", "2", "3"], "answer": "1"}, "\"answer\" is '1', which may be choice A or B"),
        ({"question": "q", "choices": ["B", "A"], "answer": "A"}, "\"answer\" is 'A', which may be choice A or B"),
        ({"question": "q", "choices": {"text": ["a", "b"], "label": ["A"]}, "answer": "A"}, "not as many labels"),
        ({"question": "q", "prompt": "a"}, 'no list of 2 to 10 texts; the row has "question", "prompt"'),
        ({"question": "q"}, 'a valid line: {"question":'),
        ({"question": "q", "choices": ["a", "b"], "answer": "C"}, "\"answer\" is 'C'"),
        ({"question": "q", "choices": ["a", ""], "answer": 0}, "empty"),
        ({"question": "q", "choices": ["a", "b"]}, "None"),
        ({"question": "q", "choices": ["a", "\ud83d"], "answer": 0}, "holds half a surrogate pair"),
    ],
)
def test_bad_question_is_named_with_file_and_line(tmp_path, row, message):
    path = tmp_path / "choices.jsonl"
    path.write_text(json.dumps(row))  # half a surrogate pair as an escape
    with pytest.raises(ValueError, match=f"(?s)choices.jsonl:1: .*{message}"):
        read_items(path, 0)


PLAIN, LETTERED = {"choices": ["x y", "9"]}, {"choices": ["A. x y", "B. 9"]}
SPELLINGS = [PLAIN | {"answer": answer} for answer in (1, 1.0, "B", "b", "(B)", "【b】", "B.", "1", "9", " 9 ")]
SPELLINGS += [LETTERED | {"answer": answer} for answer in (1, "B", "B. 9", "9")]
SPELLINGS += [
    {"choices": ["(A) x y", "(B) 9"], "answer": "B"},
    {"choices": ["a、x y", "b、9"], "answer": "B"},
    {"choices": {"text": ["x y", "9"], "label": ["A", "B"]}, "answerKey": "B"},
    {"choices": {"text": ["x y", "9"], "label": ["1", "2"]}, "answerKey": "2"},
    {"choices": {"text": ["x y", "9"], "label": [1, 2]}, "answerKey": 2},
    {"choices": {"A": "x y", "B": "9"}, "answer": "B"},
    {"options": {"a": "x y", "b": "9"}, "label": 1.0},
    {"A": "x y", "B": "9", "C": None, "answer": "B"},
    {"options": ["x y", "9"], "answer_idx": "B"},
]


@pytest.mark.parametrize("fields", SPELLINGS, ids=str)
def test_choices_and_answers_are_read_in_every_published_form(tmp_path, fields):
    path = write_rows(tmp_path / "choices.jsonl", [{"question": "q"} | fields])
    (item,) = read_items(path, 0)
    assert (item.question, item.choices, item.answer) == ("q", ("x y", "9"), 1)


@pytest.mark.parametrize("answers", [[1, 2, 3, 4], [2] * 9, [1.0, 3.0, 2.0] * 3, ["1", "3"] * 5])
def test_answers_counted_from_1_are_refused_with_that_word(tmp_path, answers):
    rows = [
        {"question": f"q{n}", "choices": ["w", "x", "y", "z"], "answer": answer} for n, answer in enumerate(answers)
    ]
    path = write_rows(tmp_path / "choices.jsonl", rows)
    message = rf"choices.jsonl: none of {len(answers)} answers is 0, .*counted from 1"
    with pytest.raises(ValueError, match=message):
        read_items(path, 0)
    write_rows(path, [*rows, {"question": "q", "choices": ["x", "y"], "answer": 0}])
    assert len(read_items(path, 0)) == 1 + sum(float(answer) < 4 for answer in answers)
    letters = [row | {"answer": "ABCD"[int(row["answer"]) - 1]} for row in rows]
    assert len(read_items(write_rows(path, letters), 0)) == len(rows)


def test_few_answers_without_0_letters_and_one_answer_are_said(tmp_path, capsys):
    row = {"question": "q", "choices": ["A: x", "B: y", "C: z"], "answer": 1}
    path = write_rows(tmp_path / "choices.jsonl", [row | {"question": f"q{n}"} for n in range(12)])
    assert {item.choices for item in read_items(path, 0)} == {("x", "y", "z")}
    said = capsys.readouterr().err
    assert "none of 12 answers is 0, the first choice: they are taken as counted from 0" in said
    assert "B is right in all 12 questions" in said
    assert "the choices of 12 rows begin with their letters, which are cut off" in said
    assert len(said.splitlines()) == 3
