"""What did not fit is counted and said, whatever is trained on; what is no number stops a run in one line."""

import json
from pathlib import Path

import numpy as np
import pytest

import pretrain
from dataset import LOSS, NO_LOSS, TAG, SFTDataset
from engine.corpus.token_cache import open_or_build
from engine.generate.sample_text import choose_prompt
from engine.packing import pack, truncate_conversations
from engine.stage import plan

TINY = (
    "--dim 32 --n_layers 1 --n_heads 4 --n_kv_heads 2 --batch_size 2 --max_seq_len 64 --accumulation_steps 1 "
    "--warmup_iters 0 --num_workers 1 --device cpu --dtype float32 --max_steps 2 --data_path rows.jsonl"
)


def chat(*contents):
    roles = ("user", "assistant")
    return {"conversations": [{"role": roles[at % 2], "content": content} for at, content in enumerate(contents)]}


@pytest.fixture
def cache(small, tmp_path, without_tiktoken):
    rows = [chat("q", "a"), chat("q", "a", "q", "b" * 400), chat("q", "c" * 400), chat("q" * 400, "d"), chat("x", "e")]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return open_or_build([path], SFTDataset, small, cache_dir=tmp_path / "cache")


def test_conversations_that_do_not_fit_are_counted_by_what_they_lose(cache):
    length = int(np.diff(cache.offsets)[0]) + 20
    pieces = truncate_conversations(cache, np.arange(5), length)
    assert pieces.cut == (1, 1, 1) and len(pieces.starts) == 4
    none = truncate_conversations(cache, np.array([0, 4]), length)
    said = plan.describe_rows(pack(pieces, length, 0), pack(none, length, 0))
    assert "trained, longer than a row: 1 conversations lost their last turns, 1 end inside an answer" in said
    assert "1 dropped" in said and "held out, longer" not in said
    assert "held out, longer than a row: 1" in plan.describe_rows(pack(none, length, 0), pack(pieces, length, 0))


def test_the_plan_says_which_schema_was_read_how_many_rows_are_held_out_and_how_to_hold_out_none(cache):
    cost = {NO_LOSS: 0.0, LOSS: 1.0, TAG: 1.0}
    said = plan.describe_files(cache.meta["sources"], 2, cost)
    assert said == "file   rows.jsonl: 5 rows (5 conversations); held out: 2 of 5 documents (--val_fraction 0: none)"
    assert "tags   none in an answer of 5 rows" in plan.describe_files(cache.meta["sources"], 2, cost | {TAG: 10.0})


def test_the_prompt_that_validation_continues_is_never_longer_than_a_row(cache):
    for order in ([3, 0], [0, 3], [3, 2, 1]):
        prompt = choose_prompt(cache, np.array(order), 200)
        first = next(document for document in order if document != 3)
        begin = cache.offsets[first]
        assert 16 <= len(prompt) <= 200 and prompt == cache.ids[begin : begin + len(prompt)].tolist()
    assert choose_prompt(cache, np.array([3]), 200) == []


@pytest.mark.parametrize("flags", [["--learning_rate", "1e38", "--eval_step", "1"], ["--learning_rate", "1e39"]])
def test_weights_that_are_no_numbers_are_one_line_and_never_saved(flags, tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"text": "the boats come home"}\n' * 3 + '{"text": "fish"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="not finite"):
        pretrain.main([*TINY.split(), *flags, "--log_step", "1", "--save_step", "1"])
    assert not Path("results/pretrain.pth").exists()


@pytest.mark.parametrize("bordered", [False, True])
def test_marks_in_the_texts_are_named_with_the_way_out_and_by_a_flag_are_borders(
    bordered, tmp_path, monkeypatch, capsys, one_thread
):
    monkeypatch.chdir(tmp_path)
    rows = [f"<s>How many? {number} boats.</s> <s>And fish? {number}.</s>" for number in range(6)]
    Path("rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows), encoding="utf-8")
    pretrain.main([*TINY.split(), *(["--split_on_special_tokens"] if bordered else [])])
    said, warned = capsys.readouterr()
    meta = json.loads(next(Path("cache").glob("*/meta.json")).read_text())
    assert meta["sources"][0]["documents"] == (12 if bordered else 6)
    way_out = "</s> in 6 rows" in warned and "<s> in 6 rows" in warned and "--split_on_special_tokens" in warned
    assert way_out != bordered and warned.count("special tokens in the texts") == (not bordered)
