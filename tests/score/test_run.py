"""Scoring survives a stop, knows what it has scored, and compares row by row."""

import json

import numpy as np
import pytest
from making import chat, measure, tiny, write_rows

from engine.generate.decode import complete
from engine.score import answers, run
from engine.score.records import Settings

pytestmark = pytest.mark.usefixtures("one_thread")

MIXED = [{"text": "海风" * n} for n in (3, 90, 9)] + [chat(f"你好\u2028{n}", "好" * n) for n in range(1, 8)]


def test_a_stopped_run_goes_on_where_it_was_and_ends_with_the_same_figures(tmp_path, monkeypatch):
    model, path = tiny(), write_rows(tmp_path / "rows.jsonl", MIXED)
    whole, whole_records = measure(model, path, batch=2, folder=tmp_path / "whole")
    calls = []

    def stops(model, prompts, **options):
        calls.append(len(prompts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return complete(model, prompts, **options)

    monkeypatch.setattr(answers, "complete", stops)
    with pytest.raises(KeyboardInterrupt):
        measure(model, path, batch=2, folder=tmp_path / "part")
    (left,) = (tmp_path / "part").iterdir()
    with open(left, "a", encoding="utf-8") as file:
        file.write('{"row": 4, "tu')  # a line the stop tore off
    again, records = measure(model, path, batch=2, folder=tmp_path / "part")
    assert sum(calls) == 2 + 2 + 2 + 2 + 1  # the third batch was asked twice, none of the first two
    assert again | {"seconds": 0, "records": 0} == whole | {"seconds": 0, "records": 0}
    assert records == whole_records
    assert measure(model, path, batch=2, folder=tmp_path / "part")[0]["figures"] == whole["figures"]
    assert len(calls) == 5  # nothing was left to ask


def test_other_weights_rows_or_settings_have_records_of_their_own(tmp_path):
    path, folder = write_rows(tmp_path / "rows.jsonl", MIXED), tmp_path / "scores"
    measure(tiny(), path, folder=folder)
    measure(tiny(seed=1), path, folder=folder)
    measure(tiny(), path, folder=folder, max_new_tokens=4)
    write_rows(path, MIXED[1:])
    measure(tiny(), path, folder=folder)
    assert len(list(folder.iterdir())) == 4


def test_a_checkpoint_compared_with_itself_differs_by_nothing_and_with_another_by_their_figures(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", MIXED)
    ours, records = measure(tiny(), path)
    theirs, others = measure(tiny(seed=1), path)
    same, change = run.compare(records, records), run.compare(records, others)
    assert same["bits_per_byte"]["difference"] == 0 and same["bits_per_byte"]["p"] == 1
    for name in ("bits_per_byte", "answer_loss", "f1"):
        before, after = theirs["figures"][name]["value"], ours["figures"][name]["value"]
        assert change[name]["difference"] == pytest.approx(after - before) and change[name]["before"] == before
    assert change["answer_loss"]["n"] == 7


def test_a_baseline_with_a_shorter_context_is_compared_on_the_answers_that_both_can_give(tmp_path):
    cut = chat("丁", "龘" * 60)
    path = write_rows(tmp_path / "rows.jsonl", [chat("甲", "一", "乙" * 80, "二"), chat("丙", "三"), cut])
    _, records = measure(tiny(), path)
    _, shorter = measure(tiny(max_seq_len=64), path)
    change = run.compare(records, shorter)["answer_loss"]
    assert change["n"] == 2 and change["difference"] == pytest.approx(0, abs=1e-6)
    assert change["after"] == pytest.approx(np.mean([records[at]["sums"]["answer_loss"][0] / 2 for at in (0, 2)]))


def test_two_files_of_one_name_are_refused(tmp_path, tokenizer):
    paths = [tmp_path / name / "rows.jsonl" for name in "ab"]
    for path in paths:
        path.parent.mkdir()
        path.write_text(json.dumps(chat("甲", "乙")) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="two files have one name"):
        run.score(tiny(), tokenizer, paths, tmp_path, Settings(rows=0, max_new_tokens=4), 4)
