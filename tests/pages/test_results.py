"""A stage is shown on what the stages before it taught, beside its parent, and never with figures of other weights."""

import json

import pytest
from tiny_model import tiny

import eval_model
from engine.checkpoint.weights import config_dict, full_state_dict, save_weights
from engine.flags import ROOT
from engine.pages import report, results
from engine.score import evaluate
from engine.score.records import read_records, weights_hash
from engine.tokenizer import fingerprint, load_tokenizer

TOKENIZER = load_tokenizer(ROOT / "spongebob_tokenizer")
pytestmark = pytest.mark.usefixtures("one_thread")


def save(folder, name, seed, parent=None):
    meta = {"stage": name.removesuffix("_long"), "parent": parent and str(folder / f"{parent}.pth"), "seconds": 120.0}
    model = tiny(seed=seed)
    meta |= {"config": config_dict(model.config), "tokenizer": fingerprint(TOKENIZER), "machine": "1 x Abacus"}
    save_weights(folder / f"{name}.pth", full_state_dict(model), meta)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def chat(question, answer):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"conversations": turns, "task": "fact"}


def score(folder, checkpoint, *files, baseline=None, limit=0):
    eval_model.main(
        [
            "--save_dir",
            str(folder),
            "--device",
            "cpu",
            "--dtype",
            "float32",
            "--max_new_tokens",
            "4",
            "--max_eval_rows",
            str(limit),
            "--ckpt",
            str(folder / f"{checkpoint}.pth"),
            "--score",
            *map(str, files),
            *(["--baseline", str(folder / f"{baseline}.pth")] if baseline else []),
        ]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three stages in a row and one beside them; each scored on its own rows and on those of its ancestors."""
    folder = tmp_path_factory.mktemp("results")
    for seed, (name, parent) in enumerate(
        [("pretrain", None), ("SFT", "pretrain"), ("SFT_long", "SFT"), ("distill", "SFT")]
    ):
        save(folder, name, seed, parent)
    texts = write_rows(folder / "texts.jsonl", [{"text": "海风" * n} for n in (3, 5, 8, 13)])
    facts = write_rows(folder / "facts.jsonl", [chat(f"谁{n}？", "汪晴晴" * n) for n in (1, 2, 3)])
    longer = write_rows(folder / "longer.jsonl", [chat(f"长{n}？", "好") for n in (1, 2)])
    problems = write_rows(folder / "r1.jsonl", [chat("三加四？", "<think>想</think><answer>七</answer>")] * 2)
    score(folder, "pretrain", texts)
    score(folder, "SFT", texts, facts, limit=3)
    score(folder, "SFT_long", facts, longer)
    score(folder, "distill", texts, facts, longer, problems, baseline="SFT")
    return folder


def stages(folder):
    return {stage["name"]: stage for stage in results.collect(folder)["stages"]}


def test_a_file_that_an_ancestor_was_scored_on_is_kept_and_the_others_are_taught(folder):
    kinds = {name: (set(stage["taught"]), set(stage["kept"])) for name, stage in stages(folder).items()}
    assert kinds["pretrain"] == ({"texts.jsonl"}, set())
    assert kinds["SFT"] == ({"facts.jsonl"}, {"texts.jsonl"})
    assert kinds["SFT_long"] == ({"longer.jsonl"}, {"facts.jsonl"})
    # SFT_long is no ancestor of distill: what it taught is nothing distill could forget
    assert kinds["distill"] == ({"longer.jsonl", "r1.jsonl"}, {"texts.jsonl", "facts.jsonl"})


def test_before_is_the_parents_own_figure_on_the_same_rows_paired_row_by_row(folder):
    found = stages(folder)["SFT"]["kept"]["texts.jsonl"]
    ours, theirs = (
        json.loads((folder / f"{name}.scores.json").read_text(encoding="utf-8"))["texts.jsonl"]
        for name in ("SFT", "pretrain")
    )
    records = [list(read_records(folder / one["records"]).values()) for one in (ours, theirs)]
    change = evaluate.compare(*records)["bits_per_byte"]
    figure = found["figures"]["bits_per_byte"]
    assert found["compared_with"] == "pretrain" and figure["n"] == 3 == change["n"]  # pretrain was scored on four
    assert (figure["before"], figure["after"]) == (change["before"], ours["figures"]["bits_per_byte"]["value"])
    assert figure["change"]["p"] == change["p"] and figure["before"] != theirs["figures"]["bits_per_byte"]["value"]


def test_a_baseline_that_was_named_goes_before_the_parents_own_scores(folder):
    for kind, file in (("kept", "facts.jsonl"), ("taught", "r1.jsonl")):
        found = stages(folder)["distill"][kind][file]
        assert found["compared_with"].endswith("SFT.pth") and found["figures"]["answer_loss"]["before"] is not None


def test_scores_of_other_rows_or_settings_are_not_taken_for_the_parents(folder):
    ours, theirs = (
        json.loads((folder / f"{name}.scores.json").read_text(encoding="utf-8"))["texts.jsonl"]
        for name in ("SFT", "pretrain")
    )
    assert results.comparable(ours, theirs)
    assert not results.comparable(ours, theirs | {"content": "other"})
    assert not results.comparable(ours, theirs | {"settings": theirs["settings"] | {"max_new_tokens": 5}})


def test_page_and_terminal_have_the_kept_rows(folder, capsys):
    eval_model.main(["--save_dir", str(folder), "--report"])
    told = capsys.readouterr().out
    page = (folder / "report.html").read_text(encoding="utf-8")
    for head in ("SFT, texts.jsonl (kept)", "SFT_long, facts.jsonl (kept)", "distill, facts.jsonl (kept)"):
        assert head in told and head in page
    assert "distill, r1.jsonl\n" in told


def test_report_json_holds_what_the_page_shows(folder):
    eval_model.main(["--save_dir", str(folder), "--report"])
    data = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    distill = data["stages"][-1]
    assert [stage["name"] for stage in data["stages"]] == ["pretrain", "SFT", "SFT_long", "distill"]
    assert (distill["minutes"], distill["machine"]) == (2.0, "1 x Abacus")
    assert distill["weights"] == weights_hash(tiny(seed=3).state_dict())
    figure = distill["kept"]["facts.jsonl"]["figures"]["exact"]
    assert figure.keys() >= {"before", "after", "low", "high", "chance", "n", "change"}
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"{figure['change']['p']:.4f}" in page and distill["weights"] in page
    assert any(sample["file"] == "facts.jsonl" and sample["wanted"] == "汪晴晴" for sample in distill["samples"])


def test_figures_of_other_weights_are_marked_and_never_shown(tmp_path, capsys):
    save(tmp_path, "pretrain", 0)
    save(tmp_path, "SFT", 1, "pretrain")
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": "海风" * n} for n in (3, 5, 8)])
    score(tmp_path, "pretrain", texts)
    score(tmp_path, "SFT", texts)
    value = json.loads((tmp_path / "SFT.scores.json").read_text())["texts.jsonl"]["figures"]["bits_per_byte"]["value"]
    capsys.readouterr()
    save(tmp_path, "SFT", 7, "pretrain")  # trained anew, not scored
    eval_model.main(["--save_dir", str(tmp_path), "--report"])
    told, page = capsys.readouterr().out, (tmp_path / "report.html").read_text(encoding="utf-8")
    words = "SFT, texts.jsonl: stale, of other weights than SFT.pth; score it again"
    assert words in told and words in page
    assert f"{value:.4f}" not in told + page
    stage = stages(tmp_path)["SFT"]
    assert (stage["stale"], stage["taught"], stage["kept"]) == (["texts.jsonl"], {}, {})

    save(tmp_path, "pretrain", 8)  # the parent's figures are of other weights, too: nothing stands before
    score(tmp_path, "SFT", texts)
    assert stages(tmp_path)["SFT"]["kept"]["texts.jsonl"]["figures"]["bits_per_byte"]["before"] is None


def test_a_file_that_is_no_report_and_another_checkpoints_json_are_not_replaced(tmp_path):
    save(tmp_path, "pretrain", 0)
    (tmp_path / "page.html").write_text("mine")
    with pytest.raises(ValueError, match="page.html: a file that is no report is there"):
        report.write(tmp_path, tmp_path / "page.html")
    report.write(tmp_path, tmp_path / "new.html")
    report.write(tmp_path, tmp_path / "new.html")
    save(tmp_path, "report", 0)
    before = (tmp_path / "report.json").read_bytes()
    with pytest.raises(ValueError, match="report.json belongs to a checkpoint"):
        report.write(tmp_path, tmp_path / "new.html")
    assert (tmp_path / "report.json").read_bytes() == before
