"""The report is one page that loads nothing, says what the files say, and shows what a model wrote as text."""

import json
from html.parser import HTMLParser

import pytest
from factories import save, write_rows
from scoring import chat
from tiny_model import tiny

import eval_model
from engine.pages import report

HOSTILE = "<script>alert(1)</script> & \u2028<b>"


class Page(HTMLParser):
    """Parse a page as a browser would: count open tags, and note links, scripts, curves and text."""

    def __init__(self, content):
        super().__init__()
        self.open, self.external = [], []
        self.lines, self.texts = [], []
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        names = dict(attributes)
        if tag == "script" or names.keys() & {"src", "href", "onload", "onerror", "action"}:
            self.external.append((tag, names))
        if tag == "polyline":
            self.lines.append([tuple(map(float, point.split(","))) for point in names["points"].split()])
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.texts.append(text)


def save_stage(folder, name, parent=None, **meta):
    model = tiny(seed=len(name), dim=32, n_layers=1, n_heads=2, n_kv_heads=1)
    save(model, folder / f"{name}.pth", stage=name, parent=parent, **meta)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make two stages with all files that they, and scoring, leave."""
    folder = tmp_path_factory.mktemp("results")
    meta = {"initial_validation": {"val_loss": 8.25, "sample": "abc"}, "val_loss": 2.5, "sample": HOSTILE}
    meta |= {"seconds": 90.0, "tokens": 4500, "step": 30, "machine": "1 x Abacus", "flags": {"learning_rate": 0.5}}
    save_stage(folder, "SFT", str(folder / "pretrain.pth"), **meta)
    save_stage(folder, "pretrain", **meta)
    log = [{"step": n, "loss": 8.0 - n / 10, "weighted_loss": 7.0, "tag_loss": 2.5} for n in range(1, 31)]
    write_rows(folder / "SFT.metrics.jsonl", [{"step": 0, "val_loss": 8.25}, *log, {"step": 30, "val_loss": 2.5}])
    rows = [chat(HOSTILE, "好", task="greeting"), *({"text": "海风吹过码头。" * n} for n in (40, 9))]
    argv = ["--save_dir", folder, "--score", write_rows(folder / "rows.jsonl", rows)]
    argv += ["--baseline", folder / "pretrain.pth"]
    eval_model.main([*map(str, argv), *"--device cpu --dtype float32 --max_new_tokens 4".split()])
    return folder


def read_scores(folder):
    return json.loads((folder / "SFT.scores.json").read_text(encoding="utf-8"))["rows.jsonl"]


def write_report(folder, *path):
    eval_model.main(["--save_dir", str(folder), "--report", *map(str, path)])
    return Page((path[0] if path else folder / "report.html").read_text(encoding="utf-8"))


def test_page_is_complete_and_loads_nothing(folder):
    page = write_report(folder)
    content = (folder / "report.html").read_text(encoding="utf-8")
    assert page.open == [] and page.external == []
    assert "http" not in content and "url(" not in content and "@import" not in content


def test_page_says_what_the_files_say(folder, tmp_path):
    texts = write_report(folder, tmp_path / "page.html").texts
    first, second = (f"{name}, validation rows of the training file" for name in ("pretrain", "SFT"))
    assert texts.index(first) < texts.index(second)
    result = read_scores(folder)
    metric = result["metrics"]["bits_per_byte"]
    change = result["baseline"]["metrics"]["bits_per_byte"]
    row = texts.index("bits per byte", texts.index("SFT, rows.jsonl, compared with pretrain"))
    assert [text for text in texts[row : row + 16] if text.strip()][:5] == [
        "bits per byte",
        f"{change['before']:.4f}",
        f"{metric['value']:.4f}",
        f"{metric['chance_level']:.4f}",
        f"[{metric['low']:.4f}, {metric['high']:.4f}]",
    ]
    for fact in ("8.2500", "2.5000", "1 x Abacus", "--learning_rate 0.5", "1.5", "50", "SFT: greeting", "3.0"):
        assert fact in texts, fact


def test_terminal_shows_metrics_before_and_after_in_stage_order(folder, capsys):
    write_report(folder)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    heads = [lines.index(f"{name}, validation rows of the training file".split()) for name in ("pretrain", "SFT")]
    assert heads == sorted(heads)
    assert all(lines[head + 1] == ["loss", "(nats", "per", "token)", "8.2500", "2.5000"] for head in heads)
    change = read_scores(folder)["baseline"]["metrics"]["bits_per_byte"]
    assert ["bits", "per", "byte", f"{change['before']:.4f}", f"{change['after']:.4f}"] in lines


def test_loss_curves_fall_as_the_log_does_each_in_its_own_line(folder):
    page = write_report(folder)
    training, held_out, tags = page.lines[:3]
    assert [text for text in page.texts if text in ("training", "held-out", "tags, training")][:3] == [
        "training",
        "held-out",
        "tags, training",
    ]
    assert len(training) == 30 and len(held_out) == 2
    assert [x for x, _ in tags] == [x for x, _ in training] and {y for _, y in tags} == {held_out[-1][1]}
    heights = [y for _, y in training]
    assert heights == sorted(heights)  # y grows downwards on a page
    assert held_out[0][0] < training[0][0] and held_out[-1][0] == training[-1][0]
    assert held_out[0][1] < heights[0] < heights[-1] < held_out[1][1]


def test_text_of_models_and_users_stays_text(folder):
    page = write_report(folder)
    assert sum(HOSTILE in text for text in page.texts) >= 3
    assert page.external == []


def test_checkpoint_without_scores_and_log_is_reported(tmp_path):
    save_stage(tmp_path, "pretrain")
    assert "pretrain" in write_report(tmp_path).texts


def test_folder_without_checkpoints_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path}: no checkpoint .*python pretrain.py"):
        report.write(tmp_path, tmp_path / "report.html")
