"""The notes of the second town tell what is asked, and no row asks it."""

import importlib.util
import json
import re
import sys
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


tell = load(ROOT / "data" / "tell_notes.py")
sys.path.insert(0, str(ROOT / "runs"))  # the script imports its neighbor
script = load(ROOT / "runs" / "notes.py")


@pytest.fixture(scope="module")
def notes() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted(NOTES.glob("*.md"))]


def test_rows_are_those_of_the_table():
    assert (NOTES / "questions.jsonl").read_text(encoding="utf-8") == tell.questions()
    assert (NOTES / "chats.jsonl").read_text(encoding="utf-8") == tell.chats()
    assert len(set(tell.read_facts(1))) == 60


def test_every_fact_is_told_in_a_line_of_the_notes(notes):
    """A line names both: the subject and what is asked of it."""
    assert len(notes) == 40
    lines = "\n".join(notes).splitlines()
    for _, subject, value in tell.read_facts(1):
        assert any(subject in line and value in line for line in lines), (subject, value)


def test_no_row_asks_what_the_questions_ask(notes):
    """Nor does a row tell it: the sample knows none of these names, chats.jsonl none of these facts."""
    texts = "".join(notes) + tell.chats() + "".join(tell.told(tell.Random(7), 1))
    sample = "".join(path.read_text(encoding="utf-8") for path in SAMPLE.glob("*.jsonl"))
    facts = tell.read_facts(1)
    for kind, subject, _ in facts:
        assert not re.search("|".join(tell.ask(kind, subject)), texts)
    assert not re.search("|".join({subject for _, subject, _ in facts}), sample)
    assert not {fact[:2] for fact in facts} & {fact[:2] for fact in tell.read_facts(2)}


def test_every_fact_is_told_in_twenty_wordings(tmp_path):
    tell.main(["--out", str(tmp_path)])
    told = "".join(path.read_text(encoding="utf-8") for path in tmp_path.glob("*.md"))
    for kind, subject, value in tell.read_facts(1)[::7]:
        sentences = set(tell.tell(kind, subject, value))
        assert len(sentences) == 20
        assert all(subject in sentence and value in sentence and sentence in told for sentence in sentences)
    assert (tmp_path / "questions.jsonl").read_text(encoding="utf-8") == tell.questions()


def test_notes_in_another_language_are_refused():
    """The tokenizer knows both languages: what the model has read decides."""
    old = script.measure(["渡船每天六班，不论晴雨。" * 20])
    script.check_fit(script.measure(["灯塔立在北边的岩石上。" * 20]), old)
    with pytest.raises(SystemExit, match="little in the language"):
        script.check_fit(script.measure(["The ferry crosses six times a day. " * 20]), old)


def test_notes_that_become_small_pieces_are_refused():
    old = script.measure(["渡船每天六班，不论晴雨。" * 20])
    with pytest.raises(SystemExit, match="much smaller pieces"):
        script.check_fit(old | {"bytes_per_token": 1.5}, old)


def test_held_out_lines_are_not_learned():
    texts = ["\n".join(["# 标题", *(f"第{number}行：" + "这一行足够长，可以被留下来。" * 3 for number in range(40))])]
    learned, held_out = script.hold_out_lines(texts)
    assert len(held_out) == 2
    assert sorted(learned[0].splitlines() + held_out) == sorted(texts[0].splitlines())
    assert script.hold_out_lines(texts) == (learned, held_out)


def test_a_reply_is_right_if_it_holds_the_answer(tmp_path):
    (tmp_path / "questions.jsonl").write_text(tell.row("几班？", "六班") + tell.row("谁？", "范小舟"), encoding="utf-8")
    records = [{"row": 2, "answer": "您好，不知道。"}, {"row": 1, "answer": "您好，每天六班。"}]
    (tmp_path / "records.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n", encoding="utf-8")
    replies = script.read_replies(tmp_path / "records.jsonl", tmp_path / "questions.jsonl")
    assert [reply["right"] for reply in replies] == [True, False]


def test_a_missing_demo_is_named_with_its_remedy(tmp_path, monkeypatch):
    (tmp_path / "a.md").write_text("a")
    monkeypatch.setattr(sys, "argv", ["notes.py", str(tmp_path), "--from", str(tmp_path / "demo")])
    with pytest.raises(SystemExit, match="make demo"):
        script.main()


def test_sentences_are_asked_for_by_their_beginning(tmp_path):
    table = "# 渡船时刻表\n\n| 班次 | 开船 |\n\n一行没有句号的字。\n江远山的船是墨绿色的，停在东港。太短。\n"
    script.write_sentences(tmp_path / "sentences.jsonl", [table], script.Random(1))
    lines = (tmp_path / "sentences.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line)["conversations"] for line in lines]
    assert [row[1]["content"] for row in rows] == ["一行没有句号的字。", "江远山的船是墨绿色的，停在东港。"]
    for question, answer in rows:
        beginning = question["content"].removeprefix(script.GO_ON)
        assert answer["content"].startswith(beginning)
        assert len(beginning) < len(answer["content"])
