"""Every answer of a conversation is asked for after its own history, and counted by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from making import chat, measure, read_tokenizer, tiny, write_rows

from dataset import LOSS, SFTDataset
from engine.score import answers, statistics

GOOD = "<think>\n想\n</think>\n<answer>\n汪晴晴\n</answer>"

pytestmark = pytest.mark.usefixtures("one_thread")


def script(monkeypatch, said):
    """The model says what `said` has for a question; returns the prompts it was asked, as texts."""
    seen = []

    def complete(model, prompts, **_):
        texts = [read_tokenizer().decode(ids, skip_special_tokens=False) for ids in prompts]
        seen.extend(texts)
        asked = [text.split("user\n")[-1].split("</s>")[0] for text in texts]
        return [read_tokenizer().encode(said[one], add_special_tokens=False).ids for one in asked]

    monkeypatch.setattr(answers, "complete", complete)
    return seen


def test_every_turn_is_answered_after_the_rows_own_history_and_counted_by_hand(tmp_path, monkeypatch):
    rows = [
        chat("甲", "一"),
        chat("乙", "二", task="last"),
        chat("问", "答", "丙", "三", task="last"),
        chat("龘" * 300, "五"),
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    seen = script(monkeypatch, {"甲": "一", "乙": "错", "问": "答", "丙": " 三"})
    result, records = measure(tiny(), path, max_new_tokens=100)
    exact = result["figures"]["exact"]
    assert (exact["value"], exact["n"]) == (0.75, 4) and result["rows"] == 4
    assert (exact["low"], exact["high"]) == pytest.approx(statistics.wilson(0.75, 3))  # rows, not turns
    assert exact["chance"] == 0.25  # always saying the most frequent answer
    assert {turn: found["exact"]["value"] for turn, found in result["by_turn"].items()} == {"1": 2 / 3, "2": 1.0}
    assert result["figures"]["too_long"]["value"] == 0.2
    assert [record["groups"].get("task") for record in records] == [None, "last", None, "last", None]
    assert any("答</s>" in prompt for prompt in seen if "丙" in prompt)


def test_the_loss_on_answers_is_the_cross_entropy_of_the_learned_tokens(tmp_path, tokenizer):
    model, rows = tiny(), [chat("你好", "您好，林小满。"), chat("一", "二", "三", "四五六")]
    result, records = measure(model, write_rows(tmp_path / "rows.jsonl", rows))
    nats = tokens = 0
    for document in SFTDataset(tokenizer).encode([row["conversations"] for row in rows]):
        ids, learned = torch.from_numpy(document.ids.astype("int64")), torch.from_numpy(document.classes[1:] == LOSS)
        with torch.no_grad():
            costs = F.cross_entropy(model(ids[None, :-1]).logits[0], ids[1:], reduction="none")
        nats, tokens = nats + costs[learned].sum().item(), tokens + int(learned.sum())
    found = result["figures"]["answer_loss"]
    assert found["value"] == pytest.approx(nats / tokens, rel=1e-5)
    assert found["chance"] == pytest.approx(math.log(6400))
    assert sum(record["sums"]["answer_loss"][1] for record in records) == tokens


def test_answers_are_grouped_by_where_they_begin(tmp_path, monkeypatch):
    script(monkeypatch, {"甲": "一", "乙": "二"})
    path = write_rows(tmp_path / "rows.jsonl", [chat("甲", "龘" * 400, "乙", "二")])
    result, _ = measure(tiny(max_seq_len=2048), path)
    assert {start: found["exact"]["value"] for start, found in result["by_start"].items()} == {"0": 0.0, "512": 1.0}


def test_thoughts_are_scored_by_form_answer_length_and_limit(tmp_path, monkeypatch, tokenizer):
    long = "<think>\n" + "想" * 80
    rows = [chat("甲", GOOD), chat("乙", GOOD), chat("丙", GOOD.replace("汪晴晴", "(B)")), chat("丁", GOOD)]
    script(monkeypatch, {"甲": GOOD, "乙": "汪晴晴", "丙": GOOD.replace("汪晴晴", "B"), "丁": long})
    result, records = measure(tiny(), write_rows(tmp_path / "r1.jsonl", rows), max_new_tokens=40)
    values = {name: found["value"] for name, found in result["figures"].items()}
    assert (values["well_formed"], values["correct"], values["cut_off"]) == (0.5, 0.5, 0.25)
    assert result["figures"]["correct"]["chance"] == 0.75
    lengths = [record["sums"]["thinking_tokens"][0] for record in records]
    assert lengths[0] == len(tokenizer.encode("\n想\n").ids) == lengths[2] and lengths[1] == 0 and lengths[3] > 30
    assert "exact" not in values
