"""A stopped run continues where it was; other weights, rows or settings have records of their own."""

import pytest
from factories import write_rows
from scoring import chat, evaluate_file
from tiny_model import tiny

from engine.generate.engine import complete
from engine.score import answers

ROWS = [{"text": "海风" * n} for n in (3, 90, 9)] + [chat(f"你好\u2028{n}", "好" * n) for n in range(1, 8)]
pytestmark = pytest.mark.usefixtures("one_thread")


def test_stopped_run_continues_and_ends_with_the_same_records(tmp_path, monkeypatch):
    model, path = tiny(), write_rows(tmp_path / "rows.jsonl", ROWS)
    whole, whole_records = evaluate_file(model, path, batch=2, folder=tmp_path / "whole")
    calls = []

    def stop_at_third(model, prompts, **options):
        calls.append(len(prompts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return complete(model, prompts, **options)

    monkeypatch.setattr(answers, "complete", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        evaluate_file(model, path, batch=2, folder=tmp_path / "part")
    (records_file,) = (tmp_path / "part").iterdir()
    with open(records_file, "a", encoding="utf-8") as file:
        file.write('{"row": 4, "tu')  # an incomplete line
    again, records = evaluate_file(model, path, batch=2, folder=tmp_path / "part")
    assert sum(calls) == 2 + 2 + 2 + 2 + 1  # the third batch was asked twice, none of the first two
    assert again | {"seconds": 0, "records": 0} == whole | {"seconds": 0, "records": 0}
    assert records == whole_records
    assert evaluate_file(model, path, batch=2, folder=tmp_path / "part")[0]["metrics"] == whole["metrics"]
    assert len(calls) == 5  # nothing was left to ask


def test_other_weights_rows_or_settings_have_records_of_their_own(tmp_path):
    path, folder = write_rows(tmp_path / "rows.jsonl", ROWS), tmp_path / "scores"
    evaluate_file(tiny(), path, folder=folder)
    evaluate_file(tiny(seed=1), path, folder=folder)
    evaluate_file(tiny(), path, folder=folder, max_new_tokens=4)
    write_rows(path, ROWS[1:])
    evaluate_file(tiny(), path, folder=folder)

    assert len(list(folder.iterdir())) == 4
