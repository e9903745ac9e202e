"""The report is one page that loads nothing, says what the files say, and shows what a model wrote as text."""

import json
from html.parser import HTMLParser

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import eval_model
from Config import LLMConfig
from engine import flags
from engine.checkpoint.weights import config_dict, full_state_dict, save_weights
from engine.pages import html, report
from engine.tokenizer import fingerprint, load_tokenizer
from model import SpongeBob

HOSTILE = "<script>alert(1)</script> & \u2028<b>"


class Page(HTMLParser):
    """What a browser would see: open tags are counted, links and scripts are noted."""

    def __init__(self, content):
        super().__init__()
        self.open, self.outside, self.lines, self.words = [], [], [], []
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        names = dict(attributes)
        if tag == "script" or names.keys() & {"src", "href", "onload", "onerror", "action"}:
            self.outside.append((tag, names))
        if tag == "polyline":
            self.lines.append([tuple(map(float, point.split(","))) for point in names["points"].split()])
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, words):
        self.words.append(words)


def leave(folder, name, stage, parent=None, **meta):
    torch.manual_seed(len(name))
    model = SpongeBob(LLMConfig(dim=32, n_layers=1, n_heads=2, n_kv_heads=1, max_seq_len=128))
    tokenizer = fingerprint(load_tokenizer(flags.ROOT / "spongebob_tokenizer"))
    meta |= {"stage": stage, "parent": parent, "config": config_dict(model.config), "tokenizer": tokenizer}
    save_weights(folder / f"{name}.pth", full_state_dict(model), meta)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two stages with all that they, and scoring, leave."""
    folder = tmp_path_factory.mktemp("results")
    before, after = {"val_loss": 8.25, "sample": "abc"}, {"val_loss": 2.5, "sample": HOSTILE}
    effort = {"seconds": 90.0, "tokens": 4500, "step": 30, "machine": "1 x Abacus", "flags": {"learning_rate": 0.5}}
    leave(folder, "SFT", "SFT", str(folder / "pretrain.pth"), initial_validation=before, **after, **effort)
    leave(folder, "pretrain", "pretrain", initial_validation=before, **after, **effort)
    metrics = [{"step": step, "loss": 8.0 - step / 10} for step in range(1, 31)]
    write_rows(folder / "SFT.metrics.jsonl", [{"step": 0, "val_loss": 8.25}, *metrics, {"step": 30, "val_loss": 2.5}])
    turns = [{"role": "user", "content": HOSTILE}, {"role": "assistant", "content": "好"}]
    rows = [{"conversations": turns, "task": "greeting"}, *({"text": "海风吹过码头。" * n} for n in (40, 9))]
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
            "--score",
            write_rows(folder / "rows.jsonl", rows),
            "--baseline",
            str(folder / "pretrain.pth"),
        ]
    )
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
        "bits per byte",
        f"{change['before']:.4f}",
        f"{figure['value']:.4f}",
        f"{figure['chance']:.4f}",
        f"[{figure['low']:.4f}, {figure['high']:.4f}]",
    ]
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


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_few_round_numbers_inside_the_range(low, width):
    found = html.ticks(low, low + width)
    assert 2 <= len(found) <= 6
    assert all(low - 1e-3 * width <= tick <= low + 1.001 * width for tick in found)


@pytest.mark.parametrize("points", [[(3, 1.0)], [(0, 2.0), (1, 2.0)], [(n, n * n) for n in range(5000)]])
def test_a_chart_of_few_equal_or_many_points_is_drawn(points):
    (line,) = Page(html.chart("t", [html.Line("l", points)], "x", "y")).lines
    assert len(line) <= 302 and len(line) >= min(len(points), 2)
    assert all(0 <= x <= html.WIDTH and 0 <= y <= html.HEIGHT for x, y in line)
