"""The tables say what they leave out, and show file names and tasks as text."""

from engine.score import table

METRIC = {"value": 0.5, "low": 0.1, "high": 0.9, "chance_level": None, "n": 3}


def test_format_scores_names_skipped_rows_and_missing_metrics():
    result = {"rows": 4, "seconds": 1.0, "metrics": {"acc_letter_0shot": METRIC | {"skipped": 1}}}
    text = table.format_scores({"c.jsonl": result | {"missing": {"acc_letter_5shot": 4}}})
    assert "3 of 4" in text and "accuracy by letter, 5-shot" in text and "no metric, 4 rows skipped" in text


def test_format_scores_separates_chance_and_count_and_names_empty_groups():
    metric = METRIC | {"chance_level": 0.25, "n": 300, "skipped": 1200}
    result = {"rows": 1500, "seconds": 1.0, "metrics": {"f1": metric}, "by_turn": {"1": {"f1": metric}, "2": {}}}
    text = table.format_scores({"a.jsonl": result})
    assert "0.2500 300 of 1500\n" in text and text.endswith("by turn 2: no metric")


def test_format_overlap_says_what_is_not_known():
    assert table.format_overlap({"trained_on": 3, "of": 9, "is_complete": True}) == "3 of 9"
    partial = table.format_overlap({"trained_on": 3, "of": 9, "is_complete": False})
    assert partial == "3 of 9, by the stages whose rows are known"
    assert table.format_overlap(None).startswith("not compared (no .rows.npy")
    assert "multiple-choice" in table.format_overlap({"trained_on": 0, "of": 0, "is_complete": True})


def test_format_markdown_keeps_columns_of_files_that_begin_alike():
    text = table.format_markdown(
        "SFT", {f"{name}.jsonl": {"metrics": {"f1": METRIC}} for name in ("a.v1", "a.v2", "b")}
    )
    assert all(f"| {name}: token F1 |" in text for name in ("a.v1.jsonl", "b")) and "a.v2.jsonl: token F1" in text


def test_format_scores_escapes_control_characters_of_a_task():
    groups = {"u\u001b[31m red": {"f1": METRIC}}
    text = table.format_scores({"a.jsonl": {"rows": 1, "seconds": 1.0, "metrics": {}, "by_task": groups}})
    assert "\u001b" not in text and r"u\x1b[31m red" in text
