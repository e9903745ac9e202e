"""The notes of the second town tell what is asked, and no row asks it."""

import importlib.util
import json
from pathlib import Path

import pytest
from factories import ROOT

NOTES = ROOT / "data" / "notes"
SAMPLE = ROOT / "data" / "sample"


def load(path: Path):
    """Import a program that is in no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tell = load(NOTES / "tell.py")


@pytest.fixture(scope="module")
def notes() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted(NOTES.glob("*.md"))]


def test_questions_are_those_of_the_table():
    assert (NOTES / "questions.jsonl").read_text(encoding="utf-8") == tell.questions()
    assert len(set(tell.read_facts())) == 60


def test_every_fact_is_told_in_a_line_of_the_notes(notes):
    """A line names both: the subject and what is asked of it."""
    assert len(notes) == 40
    lines = "\n".join(notes).splitlines()
    for _, question, subject, value in tell.read_facts():
        assert any(subject in line and value in line for line in lines), question


def test_no_row_asks_a_question_about_the_second_town(notes):
    told = "".join(tell.told(tell.Random(7), 60)) + "".join(notes)
    asked = "".join(path.read_text(encoding="utf-8") for path in SAMPLE.glob("*.jsonl"))
    for _, question, subject, _ in tell.read_facts():
        assert question not in told
        assert subject not in asked


def test_every_fact_is_told_in_twenty_wordings(tmp_path):
    tell.main(["--out", str(tmp_path)])
    told = "".join(path.read_text(encoding="utf-8") for path in tmp_path.glob("*.md"))
    for kind, _, subject, value in tell.read_facts():
        wordings = {wording.format(n=subject, v=value) for wording in tell.WORDINGS[kind].splitlines()}
        assert len(wordings) == 20
        assert all(subject in wording and value in wording and wording in told for wording in wordings)
    rows = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["answer"] for row in rows} == {value for *_, value in tell.read_facts()}
