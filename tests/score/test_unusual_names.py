"""Names and fields that no UTF-8 text can hold: figures, records and the report are written all the same."""

import json
import os

from factories import save
from tiny_model import tiny

import eval_model


def test_scores_and_report_of_a_folder_whose_name_is_not_utf8(tmp_path, capsys):
    folder = tmp_path / os.fsdecode(b"out\xff")
    folder.mkdir()
    save(tiny(), folder / "SFT.pth", flags={"save_dir": str(folder)})
    turns = [{"role": "user", "content": "甲"}, {"role": "assistant", "content": "一"}]
    path = folder / os.fsdecode(b"ro\xfews.jsonl")
    path.write_text(json.dumps({"conversations": turns, "task": "half \ud83d"}) + "\n")  # as an escape
    where = ["--save_dir", str(folder)]
    eval_model.main([*where, *"--device cpu --dtype float32 --max_new_tokens 2 --score".split(), str(path)])
    (records,) = (folder / "SFT.scores").iterdir()
    assert json.loads(records.read_text("utf-8"))["groups"]["task"] == "half \ud83d"
    eval_model.main([*where, "--report"])
    assert "out\\udcff" in (folder / "report.html").read_text("utf-8")
    assert os.fsencode(path.name) in [
        os.fsencode(name) for name in json.loads((folder / "SFT.scores.json").read_text())
    ]


def test_a_question_with_half_a_surrogate_pair_is_named_by_its_line(tmp_path, capsys):
    save(tiny(), tmp_path / "SFT.pth")
    good = {"question": "?", "choices": ["a", "b"], "answer": 0}
    rows = [good, good | {"choices": ["a", "\ud83d"]}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    eval_model.main(["--save_dir", str(tmp_path), *"--device cpu --dtype float32 --score".split(), str(path)])
    assert "rows.jsonl:2: a text of the question holds half a surrogate pair" in capsys.readouterr().err
