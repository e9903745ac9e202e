"""Every trained turn is answered after the row's own history, and scored as counted by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factories import TOKENIZER, write_rows
from scoring import chat, evaluate_file
from tiny_model import tiny

from dataset import LOSS, NO_LOSS, SFTDataset
from engine.score import answers
from engine.score.statistics import wilson_interval

GOOD = "<think>\n想\n</think>\n<answer>\n汪晴晴\n</answer>"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def script(monkeypatch):
    """Let the model answer each question as given; return the prompts, as texts."""

    def replace(answer_of):
        texts = []

        def complete(model, prompts, **_):
            new = [TOKENIZER.decode(ids, skip_special_tokens=False) for ids in prompts]
            texts.extend(new)
            asked = [text.split("user\n")[-1].split("</s>")[0] for text in new]
            return [TOKENIZER.encode(answer_of[question], add_special_tokens=False).ids for question in asked]

        monkeypatch.setattr(answers, "complete", complete)
        return texts

    return replace


def test_each_turn_is_answered_after_the_rows_own_history(tmp_path, script):
    rows = [
        chat("甲", "一"),
        chat("乙", "二", task="last"),
        chat("问", "答", "丙", "三", task="last"),
        chat("龘" * 300, "五"),
    ]
    prompts = script({"甲": "一", "乙": "错", "问": "答", "丙": " 三"})
    result, records = evaluate_file(tiny(), write_rows(tmp_path / "rows.jsonl", rows), max_new_tokens=100)
    metric = result["metrics"]["exact_match"]
    assert (metric["value"], metric["n"], metric["skipped"]) == (0.75, 4, 1) and result["rows"] == 4
    # Three rows of 1, 1 and 2 turns.
    assert (metric["low"], metric["high"]) == pytest.approx(wilson_interval(0.75, 16 / 6))
    assert metric["chance_level"] == 0.25  # of always giving the most frequent answer
    by_turn = {turn: metrics["exact_match"]["value"] for turn, metrics in result["by_turn"].items()}
    assert by_turn == {"1": 2 / 3, "2": 1.0}
    assert [record["groups"].get("task") for record in records] == [None, "last", None, "last", None]
    assert any("答</s>" in prompt for prompt in prompts if "丙" in prompt)


def test_file_of_prompts_that_all_fill_the_context_has_no_metric(tmp_path):
    result, records = evaluate_file(tiny(), write_rows(tmp_path / "rows.jsonl", [chat("龘" * 300, "五")]))
    assert not result["metrics"] and result["missing"]["answer_loss"] == 1 and len(records) == 1


def test_answer_loss_is_the_cross_entropy_of_trained_tokens(tmp_path):
    model, rows = tiny(), [chat("你好", "您好，林小满。"), chat("一", "二", "三", "四五六")]
    result, records = evaluate_file(model, write_rows(tmp_path / "rows.jsonl", rows))
    total = num_tokens = 0
    for document in SFTDataset(TOKENIZER).encode([row["conversations"] for row in rows]):
        ids = torch.from_numpy(document.ids.astype("int64"))
        has_loss = torch.from_numpy(document.classes[1:] == LOSS)
        with torch.no_grad():
            losses = F.cross_entropy(model(ids[None, :-1]).logits[0], ids[1:], reduction="none")
        total += losses[has_loss].sum().item()
        num_tokens += int(has_loss.sum())
    metric = result["metrics"]["answer_loss"]
    assert metric["value"] == pytest.approx(total / num_tokens, rel=1e-5)
    assert metric["chance_level"] == pytest.approx(math.log(6400))
    assert sum(record["sums"]["answer_loss"][1] for record in records) == num_tokens


def test_answers_are_grouped_by_where_they_begin(tmp_path, script):
    script({"甲": "一", "乙": "二"})
    path = write_rows(tmp_path / "rows.jsonl", [chat("甲", "龘" * 400, "乙", "二")])
    result, _ = evaluate_file(tiny(max_seq_len=2048), path)
    by_start = {start: metrics["exact_match"]["value"] for start, metrics in result["by_start"].items()}
    assert by_start == {"0": 0.0, "512": 1.0}


def test_thoughts_are_scored_by_form_answer_length_and_limit(tmp_path, script):
    letter = GOOD.replace("汪晴晴", "(B)")
    rows = [chat("甲", GOOD), chat("乙", GOOD), chat("丙", letter), chat("丁", GOOD)]
    script({"甲": GOOD, "乙": "汪晴晴", "丙": GOOD.replace("汪晴晴", "B"), "丁": "<think>\n" + "想" * 80})
    result, records = evaluate_file(tiny(), write_rows(tmp_path / "r1.jsonl", rows), max_new_tokens=40)
    values = {name: metric["value"] for name, metric in result["metrics"].items()}
    assert (values["well_formed"], values["correct"], values["cut_off"]) == (0.5, 0.75, 0.25)
    assert result["metrics"]["correct"]["chance_level"] == 0.75
    lengths = [record["sums"]["thinking_tokens"][0] for record in records]
    assert lengths[0] == len(TOKENIZER.encode("\n想\n").ids) == lengths[2] and lengths[1] == 0 and lengths[3] > 30
    assert "exact_match" not in values


MASKED = [
    {"role": "user", "content": "甲"},
    {"role": "assistant", "content": "一", "train": False},
    {"role": "user", "content": "乙"},
    {"role": "assistant", "content": "二"},
    {"role": "user", "content": "丙"},
    {"role": "assistant", "content": "三", "train": False},
]


def test_split_turns_skips_untrained_turns():
    (turn,) = answers.split_turns(7, MASKED, "fact")
    assert (turn.row, turn.turn, turn.reference, turn.task) == (7, 1, "二", "fact")
    assert [message["content"] for message in turn.messages] == ["甲", "一", "乙", "二"]


@pytest.mark.parametrize("name", ["weight", "train"])
def test_scored_tokens_are_those_that_training_learns(name, tmp_path):
    row = [{key: value for key, value in turn.items() if key != "train"} for turn in MASKED]
    for turn in (row[1], row[5]):
        turn[name] = 0
    path = write_rows(tmp_path / "rows.jsonl", [{"conversations": row}])
    _, records = evaluate_file(tiny(), path)
    messages = SFTDataset.read({"conversations": row})
    num_trained = np.count_nonzero(SFTDataset(TOKENIZER).encode([messages])[0].classes != NO_LOSS)
    assert sum(record["sums"]["answer_loss"][1] for record in records) == num_trained == 2
