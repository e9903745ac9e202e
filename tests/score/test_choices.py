"""The right choice is the likeliest one, summed by hand."""

import re

import numpy as np
import pytest
import torch
from making import measure, question, read_tokenizer, tiny, write_rows

from engine.score import choices
from engine.score.records import read_items

pytestmark = pytest.mark.usefixtures("one_thread")


def by_hand(model, item, shots, form):
    """The summed log-probability of each choice, one forward pass each, for a model that continues texts."""
    lines = lambda one: [f"{letter}. {text}" for letter, text in zip("ABCD", one["choices"], strict=False)]
    ask = lambda one: "\n".join([one["question"], *(lines(one) if form == "letter" else [])])
    say = lambda one: list("ABCD")[: len(one["choices"])] if form == "letter" else one["choices"]
    prompt = "".join(f"{ask(one)}\n答案：{say(one)[one['answer']]}\n\n" for one in shots) + f"{ask(item)}\n答案："
    encode = lambda text: [1, *read_tokenizer().encode(text, add_special_tokens=False).ids]
    totals = []
    for choice in say(item):
        ids, start = torch.tensor([encode(prompt + choice)]), len(encode(prompt))
        with torch.no_grad():
            logs = model(ids).logits[0].log_softmax(-1)
        totals.append(sum(logs[at - 1, ids[0, at]].item() for at in range(start, ids.shape[1])))
    return np.array(totals)


def test_the_right_choice_is_the_likeliest_by_letter_by_text_and_by_text_a_character(tmp_path):
    model = tiny(max_seq_len=512)
    rows = [question(n, "红", "蓝色的船", "绿色", *["灰"] * (n % 2), subject=f"s{n % 2}") for n in range(12)]
    result, _ = measure(model, write_rows(tmp_path / "choices.jsonl", rows), chats=False, shots=(0, 2))
    for count in (0, 2):
        right = {"letter": 0, "text": 0, "text_norm": 0}
        for row in rows:
            shots = [one for one in rows if one is not row][:count]
            words = by_hand(model, row, shots, "text")
            right["letter"] += by_hand(model, row, shots, "letter").argmax() == row["answer"]
            right["text"] += words.argmax() == row["answer"]
            right["text_norm"] += (words / [len(choice) for choice in row["choices"]]).argmax() == row["answer"]
        for name, hits in right.items():
            found = result["figures"][f"{name}_{count}shot"]
            assert found["value"] == pytest.approx(hits / 12) and found["n"] == 12
            assert found["chance"] == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert set(result["by_task"]) == {"s0", "s1"}


@pytest.mark.parametrize("chats", [False, True])
def test_the_examples_are_the_first_other_rows_and_never_the_question_itself(tmp_path, monkeypatch, chats, tokenizer):
    asked = []

    def spy(model, sequences, batch):
        asked.extend(tokenizer.decode(ids, skip_special_tokens=False) for ids in sequences)
        return [np.ones(len(ids) - 1) for ids in sequences]

    monkeypatch.setattr(choices, "token_nats", spy)
    rows = [question(n, "红", "蓝") for n in range(5)]
    measure(tiny(), write_rows(tmp_path / "choices.jsonl", rows), chats=chats, shots=(2,))
    found = {tuple(re.findall("问题([0-9])", text)) for text in asked}
    assert found == {("1", "2", "0"), ("0", "2", "1"), ("0", "1", "2"), ("0", "1", "3"), ("0", "1", "4")}


def test_a_chat_model_is_asked_with_roles_and_a_question_that_does_not_fit_has_no_figure(tmp_path):
    rows = [question(n, "红", "蓝") for n in range(3)] + [question(3, "红" * 200, "蓝")]
    result, records = measure(tiny(), write_rows(tmp_path / "choices.jsonl", rows), shots=(0, 2, 5))
    assert result["figures"]["letter_0shot"]["n"] == 3  # 5 examples are more than there are, 2 long ones may not fit
    assert not any(name.endswith("5shot") for name in result["figures"])
    assert records[3]["sums"] == {}


@pytest.mark.parametrize("row, words", [
    ({"question": "", "choices": ["a", "b"], "answer": 0}, "question"), (question(0, "a"), "list of 2 to 10"),
    ({"question": "q", "choices": ["a", "b"], "answer": 2}, "'answer|\"answer\" is 2"),
    ({"question": "q", "choices": ["a", "b"], "answer": "C"}, "\"answer\" is 'C'"),
    ({"question": "q", "choices": ["a", ""], "answer": 0}, "empty"), ({"question": "q", "choices": ["a", "b"]}, "None"),
])  # fmt: skip
def test_a_bad_question_is_named_with_file_and_line(tmp_path, row, words):
    path = write_rows(tmp_path / "choices.jsonl", [row])
    with pytest.raises(ValueError, match=f"(?s)choices.jsonl:1: .*({words})"):
        read_items(path, 0)


def test_an_answer_may_be_a_letter(tmp_path):
    path = write_rows(tmp_path / "choices.jsonl", [{"question": "q", "choices": ["a", "b"], "answer": "B"}])
    assert read_items(path, 0)[0].answer == 1
