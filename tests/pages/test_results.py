"""A stage is compared with its parent on all rows taught so far, and never shown with metrics of other weights."""

import json
import os
import shutil
from pathlib import Path

import pytest
from factories import save, write_rows
from scoring import chat
from tiny_model import tiny

import eval_model
from engine.checkpoint.weights import load_model, weights_hash
from engine.pages import report, results
from engine.score import evaluate
from engine.score.records import read_records

pytestmark = pytest.mark.usefixtures("one_thread")


def save_stage(folder, name, seed, parent=None):
    """Save a stage as train.py does; `parent` is a path or a name in the folder."""
    meta = {"seconds": 120.0, "machine": "1 x Abacus"}
    if parent:
        _, parent_meta = load_model(folder / f"{parent}.pth")
        ancestors = [parent_meta["weights"], *parent_meta.get("ancestors", [])]
        meta |= {"parent": str(folder / f"{parent}.pth"), "ancestors": ancestors}
    save(tiny(seed=seed), folder / f"{name}.pth", stage=name.removesuffix("_long"), **meta)


def score(folder, checkpoint, *files, baseline=None, limit=0):
    argv = ["--save_dir", folder, "--ckpt", folder / f"{checkpoint}.pth", "--score", *files, "--max_eval_rows", limit]
    if baseline:
        argv += ["--baseline", folder / f"{baseline}.pth"]
    eval_model.main([*map(str, argv), *"--device cpu --dtype float32 --max_new_tokens 4".split()])


def read_scores(folder, name, file="texts.jsonl"):
    return json.loads((folder / f"{name}.scores.json").read_text(encoding="utf-8"))[file]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make a chain of three stages and a branch; score each on its own rows and on those of its ancestors."""
    folder = tmp_path_factory.mktemp("results")
    parents = {"pretrain": None, "SFT": "pretrain", "SFT_long": "SFT", "distill": "SFT"}
    for seed, (name, parent) in enumerate(parents.items()):
        save_stage(folder, name, seed, parent)
    texts = write_rows(folder / "texts.jsonl", [{"text": "海风" * n} for n in (3, 5, 8, 13)])
    rows = [chat(f"谁{n}？", "汪晴晴" * n, task="fact") for n in (1, 2, 3)]
    facts = write_rows(folder / "facts.jsonl", rows)
    longer = write_rows(folder / "longer.jsonl", [chat(f"长{n}？", "好", task="fact") for n in (1, 2)])
    row = chat("三加四？", "<think>想</think><answer>七</answer>", task="fact")
    problems = write_rows(folder / "r1.jsonl", [row] * 2)
    score(folder, "pretrain", texts)
    score(folder, "SFT", texts, facts, limit=3)
    score(folder, "SFT_long", facts, longer)
    score(folder, "distill", texts, facts, longer, problems, baseline="SFT")
    return folder


def stages(folder):
    return {stage["name"]: stage for stage in results.collect(folder)[0]["stages"]}


def digest(seed):
    return weights_hash(tiny(seed=seed).state_dict())


def test_files_that_an_ancestor_was_scored_on_are_retained(folder):
    files = {name: (set(stage["new"]), set(stage["retained"])) for name, stage in stages(folder).items()}
    assert files["pretrain"] == ({"texts.jsonl"}, set())
    assert files["SFT"] == ({"facts.jsonl"}, {"texts.jsonl"})
    assert files["SFT_long"] == ({"longer.jsonl"}, {"facts.jsonl"})
    # SFT_long is no ancestor of distill: what it taught is nothing distill could forget
    assert files["distill"] == ({"longer.jsonl", "r1.jsonl"}, {"texts.jsonl", "facts.jsonl"})


def test_a_file_is_retained_though_no_score_of_the_parent_is_there(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "results")
    path = tmp_path / "results/SFT.scores.json"
    path.write_text(json.dumps({"facts.jsonl": read_scores(folder, "SFT", "facts.jsonl")}))
    assert stages(tmp_path / "results")["distill"]["retained"].keys() == {"facts.jsonl", "texts.jsonl"}


def test_before_is_the_parents_metric_on_the_same_rows(folder):
    result = stages(folder)["SFT"]["retained"]["texts.jsonl"]
    scores, parent_scores = (read_scores(folder, name) for name in ("SFT", "pretrain"))
    records = [list(read_records(folder / result["records"]).values()) for result in (scores, parent_scores)]
    change = evaluate.compare(*records)["bits_per_byte"]
    metric = result["metrics"]["bits_per_byte"]
    assert result["compared_with"] == "pretrain" and metric["n"] == 3 == change["n"]  # pretrain was scored on four
    assert (metric["before"], metric["after"]) == (change["before"], scores["metrics"]["bits_per_byte"]["value"])
    assert metric["change"]["p"] == change["p"]
    assert metric["before"] != parent_scores["metrics"]["bits_per_byte"]["value"]


@pytest.mark.parametrize("status, file", [("retained", "facts.jsonl"), ("new", "r1.jsonl")])
def test_named_baseline_takes_precedence_over_the_parents_scores(folder, status, file):
    result = stages(folder)["distill"][status][file]
    assert result["compared_with"] == "SFT" and result["metrics"]["answer_loss"]["before"] is not None


def test_scores_of_other_rows_or_settings_are_not_comparable(folder):
    result, other = read_scores(folder, "SFT"), read_scores(folder, "pretrain")
    assert results.are_comparable(result, other)
    assert not results.are_comparable(result, other | {"content": "other"})
    assert not results.are_comparable(result, other | {"settings": other["settings"] | {"max_new_tokens": 5}})


def test_page_and_terminal_show_the_retained_files(folder, capsys):
    eval_model.main(["--save_dir", str(folder), "--report"])
    out = capsys.readouterr().out
    page = (folder / "report.html").read_text(encoding="utf-8")
    for heading in ("SFT, texts.jsonl", "SFT_long, facts.jsonl", "distill, facts.jsonl"):
        assert f"{heading} (retained)" in out and f"{heading} (retained)" in page
    assert "distill, r1.jsonl, compared with SFT\n" in out


def test_report_json_holds_what_the_page_shows(folder):
    eval_model.main(["--save_dir", str(folder), "--report"])
    data = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    distill = data["stages"][-1]
    assert [stage["name"] for stage in data["stages"]] == ["pretrain", "SFT", "SFT_long", "distill"]
    assert (distill["minutes"], distill["machine"]) == (2.0, "1 x Abacus")
    assert distill["weights"] == weights_hash(tiny(seed=3).state_dict())
    metric = distill["retained"]["facts.jsonl"]["metrics"]["exact_match"]
    assert metric.keys() >= {"before", "after", "low", "high", "chance_level", "n", "change"}
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"{metric['change']['p']:.4f}" in page and distill["weights"] in page
    assert any(sample["file"] == "facts.jsonl" and sample["reference"] == "汪晴晴" for sample in distill["samples"])


def test_metrics_of_other_weights_are_named_as_stale_and_never_shown(tmp_path, capsys):
    save_stage(tmp_path, "pretrain", 0)
    save_stage(tmp_path, "SFT", 1, "pretrain")
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": "海风" * n} for n in (3, 5, 8)])
    score(tmp_path, "pretrain", texts)
    score(tmp_path, "SFT", texts)
    value = read_scores(tmp_path, "SFT")["metrics"]["bits_per_byte"]["value"]
    capsys.readouterr()
    save_stage(tmp_path, "SFT", 7, "pretrain")  # trained again, not scored
    eval_model.main(["--save_dir", str(tmp_path), "--report"])
    out, page = capsys.readouterr().out, (tmp_path / "report.html").read_text(encoding="utf-8")
    note = "SFT, texts.jsonl: stale, of other weights than SFT.pth; score it again"
    assert note in out and note in page
    assert f"{value:.4f}" not in out + page
    stage = stages(tmp_path)["SFT"]
    assert (stage["stale"], stage["new"], stage["retained"]) == (["texts.jsonl"], {}, {})


def test_before_is_never_of_a_namesake_of_the_parent(tmp_path):
    folder = tmp_path / "A"
    save_stage(tmp_path / "B", "pretrain", 0)
    save_stage(folder, "pretrain", 1)
    save_stage(tmp_path, "SFT", 2, "B/pretrain")
    for ending in ("pth", "json"):
        (tmp_path / f"SFT.{ending}").rename(folder / f"SFT.{ending}")
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": "海风" * n} for n in (3, 5, 8)])
    score(folder, "pretrain", texts)
    score(folder, "SFT", texts)
    stage = stages(folder)["SFT"]
    assert stage["new"]["texts.jsonl"]["metrics"]["bits_per_byte"]["before"] is None and not stage["retained"]
    assert stage["notes"] == [f"no value before: no scores here of the weights it started from, {digest(0)}"]

    score(folder, "../B/pretrain", texts)  # the parent's scores, whatever their file is called
    metric = stages(folder)["SFT"]["retained"]["texts.jsonl"]["metrics"]["bits_per_byte"]
    own = read_scores(folder, f"pretrain-{digest(0)}")["metrics"]["bits_per_byte"]
    assert metric["before"] == pytest.approx(own["value"]) and not stages(folder)["SFT"]["notes"]

    meta = json.loads((folder / "SFT.json").read_text("utf-8"))
    del meta["ancestors"]  # as an earlier version wrote it
    (folder / "SFT.json").write_text(json.dumps(meta))
    stage = stages(folder)["SFT"]
    assert not stage["retained"] and "does not say which weights" in stage["notes"][0]


def test_scores_of_a_parent_that_was_replaced_are_still_the_value_before(tmp_path, capsys):
    save_stage(tmp_path, "pretrain", 0)
    save_stage(tmp_path, "SFT", 1, "pretrain")
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": "海风" * n} for n in (3, 5, 8)])
    score(tmp_path, "pretrain", texts)
    score(tmp_path, "SFT", texts)
    before = stages(tmp_path)["SFT"]
    save_stage(tmp_path, "pretrain", 8)
    stage = stages(tmp_path)["SFT"]
    assert stage["retained"]["texts.jsonl"]["metrics"] == before["retained"]["texts.jsonl"]["metrics"]
    assert stage["retained"]["texts.jsonl"]["compared_with"] == f"weights {digest(0)}"
    assert stages(tmp_path)["pretrain"]["stale"] == ["texts.jsonl"]
    score(tmp_path, "pretrain", texts)  # of the new weights: the old scores are gone
    assert stages(tmp_path)["SFT"]["retained"] == {}


def test_loss_curve_of_another_run_is_named_and_not_drawn(tmp_path, capsys):
    rows = [{"step": step, "loss": 9.0 - step, "seconds": step / 7} for step in range(1, 9)]
    write_rows(tmp_path / "SFT.metrics.jsonl", rows)
    save(tiny(), tmp_path / "SFT.pth", step=5, log_ends=[rows[4]])
    assert results.collect(tmp_path)[1]["SFT"].log == rows[:5]  # what follows is of later weights
    write_rows(tmp_path / "SFT.metrics.jsonl", [row | {"seconds": row["step"] / 6} for row in rows])
    eval_model.main(["--save_dir", str(tmp_path), "--report"])
    assert "SFT, SFT.metrics.jsonl: of another run than SFT.pth; not drawn" in capsys.readouterr().out
    assert "<polyline" not in (tmp_path / "report.html").read_text("utf-8")


def test_figures_of_weights_that_were_replaced_are_not_shown(tmp_path, capsys):
    save(tiny(), tmp_path / "SFT.pth", step=5, val_loss=1.2345, tokens=98_765, sample="旧")
    before = (tmp_path / "SFT.json").read_bytes()
    save(tiny(seed=1), tmp_path / "SFT.pth")
    (tmp_path / "SFT.json").write_bytes(before)
    eval_model.main(["--save_dir", str(tmp_path), "--report"])
    shown = capsys.readouterr().out + (tmp_path / "report.html").read_text("utf-8")
    assert not any(figure in shown for figure in ("1.2345", "98,765", "旧"))
    assert shown.count("SFT.json: of other weights than SFT.pth; its figures are left out") == 2


def test_report_replaces_no_file_of_another_kind(tmp_path):
    save_stage(tmp_path, "pretrain", 0)
    (tmp_path / "page.html").write_text("mine")
    with pytest.raises(ValueError, match="page.html: a file that is no report is there"):
        report.write(tmp_path, tmp_path / "page.html")
    os.truncate(tmp_path / "page.html", 2**42)  # its beginning tells what it is
    for path in (tmp_path / "page.html", Path("/dev/full")):  # which never ends
        with pytest.raises(ValueError, match=f"{path}: a file that is no report is there"):
            report.write(tmp_path, path)
    report.write(tmp_path, tmp_path / "new.html")
    report.write(tmp_path, tmp_path / "new.html")
    save_stage(tmp_path, "report", 0)
    before = (tmp_path / "report.json").read_bytes()
    with pytest.raises(ValueError, match="report.json belongs to a checkpoint"):
        report.write(tmp_path, tmp_path / "new.html")
    assert (tmp_path / "report.json").read_bytes() == before
