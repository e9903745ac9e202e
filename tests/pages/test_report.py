"""The report is one page that loads nothing, says what the files say, and shows what a model wrote as text."""

import json

import pytest
from making import chat, save_checkpoint, tiny, write_rows
from pages.browser import Page

import eval_model
from engine.pages import report

HOSTILE = "<script>alert(1)</script> & \u2028<b>"


def leave(folder, name, stage, parent=None, **meta):
    model = tiny(seed=len(name), dim=32, n_layers=1, n_heads=2, n_kv_heads=1)
    save_checkpoint(model, folder / f"{name}.pth", stage=stage, parent=parent, **meta)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two stages with all that they, and scoring, leave."""
    folder = tmp_path_factory.mktemp("results")
    before, after = {"val_loss": 8.25, "sample": "abc"}, {"val_loss": 2.5, "sample": HOSTILE}
    effort = {"seconds": 90.0, "tokens": 4500, "step": 30, "machine": "1 x Abacus", "flags": {"learning_rate": 0.5}}
    leave(folder, "SFT", "SFT", str(folder / "pretrain.pth"), before=before, **after, **effort)
    leave(folder, "pretrain", "pretrain", before=before, **after, **effort)
    metrics = [{"step": step, "loss": 8.0 - step / 10} for step in range(1, 31)]
    write_rows(folder / "SFT.metrics.jsonl", [{"step": 0, "val_loss": 8.25}, *metrics, {"step": 30, "val_loss": 2.5}])
    rows = [chat(HOSTILE, "好", task="greeting"), {"text": "海风吹过码头。" * 40}]
    eval_model.main([
        "--save_dir", str(folder), "--device", "cpu", "--dtype", "float32", "--max_new_tokens", "4",
        "--score", str(write_rows(folder / "rows.jsonl", rows)), "--baseline", str(folder / "pretrain.pth"),
    ])  # fmt: skip
    return folder


def made(folder, *where):
    eval_model.main(["--save_dir", str(folder), "--report", *map(str, where)])
    return (where[0] if where else folder / "report.html").read_text(encoding="utf-8")


def test_the_page_is_whole_and_loads_nothing_from_elsewhere(folder):
    content = made(folder)
    page = Page(content)
    assert page.open == [] and page.outside == []
    assert "http" not in content and "url(" not in content and "@import" not in content


def test_it_says_what_the_files_say(folder, tmp_path):
    content = made(folder, tmp_path / "page.html")
    words = Page(content).words
    assert words.index("pretrain, validation rows of the training file") < words.index(
        "SFT, validation rows of the training file"
    )
    result = json.loads((folder / "SFT.scores.json").read_text(encoding="utf-8"))["rows.jsonl"]
    at = words.index("SFT, rows.jsonl")
    figure, change = result["figures"]["bits_per_byte"], result["baseline"]["figures"]["bits_per_byte"]
    row = words.index("bits per byte", at)
    told = [word for word in words[row : row + 16] if word.strip()]
    assert told[:5] == [
        "bits per byte", f"{change['before']:.4f}", f"{figure['value']:.4f}", f"{figure['chance']:.4f}",
        f"[{figure['low']:.4f}, {figure['high']:.4f}]",
    ]  # fmt: skip
    for fact in ("8.2500", "2.5000", "1 x Abacus", "--learning_rate 0.5", "1.5", "50", "SFT: greeting", "3.0"):
        assert fact in words, fact


def test_the_terminal_gets_the_figures_before_and_after_of_every_stage_in_the_order_of_the_road(folder, capsys):
    made(folder)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    heads = [lines.index(f"{name}, validation rows of the training file".split()) for name in ("pretrain", "SFT")]
    assert heads == sorted(heads)
    assert all(lines[at + 1] == ["loss", "(nats", "a", "token)", "8.2500", "2.5000"] for at in heads)
    change = json.loads((folder / "SFT.scores.json").read_text(encoding="utf-8"))["rows.jsonl"]["baseline"]["figures"]
    told = [f"{change['bits_per_byte'][key]:.4f}" for key in ("before", "after")]
    assert ["bits", "per", "byte", *told] in lines


def test_the_loss_curve_falls_as_the_log_does_and_every_stage_has_the_same_style(folder):
    training, held_out = Page(made(folder)).lines[:2]
    assert len(training) == 30 and len(held_out) == 2
    heights = [y for _, y in training]
    assert heights == sorted(heights)  # y grows downwards on a page
    assert held_out[0][0] < training[0][0] and held_out[-1][0] == training[-1][0]
    assert held_out[0][1] < heights[0] < heights[-1] < held_out[1][1]


def test_what_a_model_or_a_user_wrote_stays_text(folder):
    page = Page(made(folder))
    assert sum(HOSTILE in words for words in page.words) >= 3
    assert page.outside == []


def test_a_checkpoint_without_scores_and_log_is_reported_all_the_same(tmp_path):
    leave(tmp_path, "pretrain", "pretrain")
    assert "pretrain" in Page(made(tmp_path)).words


def test_a_folder_without_checkpoints_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path}: no checkpoint .*python pretrain.py"):
        report.write(tmp_path, tmp_path / "report.html")
