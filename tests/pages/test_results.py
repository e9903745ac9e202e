"""A stage is compared with its parent on all rows taught so far, and never shown with metrics of other weights."""

import json

import pytest
from factories import save, write_rows
from scoring import chat
from tiny_model import tiny

import eval_model
from engine.checkpoint.weights import weights_hash
from engine.pages import report, results
from engine.score import evaluate
from engine.score.records import read_records

pytestmark = pytest.mark.usefixtures("one_thread")


def save_stage(folder, name, seed, parent=None):
    meta = {"parent": parent and str(folder / f"{parent}.pth"), "seconds": 120.0, "machine": "1 x Abacus"}
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
    return {stage["name"]: stage for stage in results.collect(folder)["stages"]}


def test_files_that_an_ancestor_was_scored_on_are_retained(folder):
    files = {name: (set(stage["new"]), set(stage["retained"])) for name, stage in stages(folder).items()}
    assert files["pretrain"] == ({"texts.jsonl"}, set())
    assert files["SFT"] == ({"facts.jsonl"}, {"texts.jsonl"})
    assert files["SFT_long"] == ({"longer.jsonl"}, {"facts.jsonl"})
    # SFT_long is no ancestor of distill: what it taught is nothing distill could forget
    assert files["distill"] == ({"longer.jsonl", "r1.jsonl"}, {"texts.jsonl", "facts.jsonl"})


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
    assert result["compared_with"].endswith("SFT.pth") and result["metrics"]["answer_loss"]["before"] is not None


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
    assert "distill, r1.jsonl\n" in out


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

    save_stage(tmp_path, "pretrain", 8)  # the parent's metrics are of other weights, too: there is no value before
    score(tmp_path, "SFT", texts)
    assert stages(tmp_path)["SFT"]["retained"]["texts.jsonl"]["metrics"]["bits_per_byte"]["before"] is None


def test_report_replaces_no_file_of_another_kind(tmp_path):
    save_stage(tmp_path, "pretrain", 0)
    (tmp_path / "page.html").write_text("mine")
    with pytest.raises(ValueError, match="page.html: a file that is no report is there"):
        report.write(tmp_path, tmp_path / "page.html")
    report.write(tmp_path, tmp_path / "new.html")
    report.write(tmp_path, tmp_path / "new.html")
    save_stage(tmp_path, "report", 0)
    before = (tmp_path / "report.json").read_bytes()
    with pytest.raises(ValueError, match="report.json belongs to a checkpoint"):
        report.write(tmp_path, tmp_path / "new.html")
    assert (tmp_path / "report.json").read_bytes() == before
