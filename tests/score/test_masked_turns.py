"""A turn that a row says is only read is scored no more than it is learned."""

import json

import numpy as np
import pytest
from factories import TOKENIZER, write_rows
from tiny_model import tiny

from dataset import NO_LOSS, SFTDataset
from engine.score.answers import losses, turns

MASKED = [
    {"role": "user", "content": "甲"},
    {"role": "assistant", "content": "一", "learned": False},
    {"role": "user", "content": "乙"},
    {"role": "assistant", "content": "二"},
    {"role": "user", "content": "丙"},
    {"role": "assistant", "content": "三", "learned": False},
]


def test_only_learned_turns_are_items_and_the_task_is_the_last_ones():
    (only,) = turns(7, MASKED, "fact")
    assert (only.row, only.turn, only.reference, only.task) == (7, 1, "二", "fact")
    assert [message["content"] for message in only.messages] == ["甲", "一", "乙", "二"]


@pytest.mark.parametrize("name", ["weight", "train"])
def test_the_tokens_that_cost_something_are_those_that_training_learns(name, tmp_path):
    row = [{key: value for key, value in turn.items() if key != "learned"} for turn in MASKED]
    for turn in (row[1], row[5]):
        turn[name] = 0
    path = write_rows(tmp_path / "rows.jsonl", [{"conversations": row}])
    messages, dataset = SFTDataset.read(json.loads(path.read_text("utf-8"))), SFTDataset(TOKENIZER)
    items = turns(0, messages, None)
    records = [{"groups": {}, "sums": {}, "chance": {}} for _ in items]
    losses(tiny(), dataset, items, [dataset.prompt(item.messages[:-1]) for item in items], records, 1)
    learned = np.count_nonzero(dataset.encode([messages])[0].classes != NO_LOSS)
    assert sum(record["sums"]["answer_loss"][1] for record in records) == learned == 2
