"""One HTML page on a folder of checkpoints: what each stage taught, how its loss fell, what it says, what it took.

Everything on it is read from the files the stages and eval_model.py --score left; nothing is computed anew, and the
page loads nothing from elsewhere.
"""

import json
import time
from pathlib import Path

from engine.checkpoint.weights import read_meta
from engine.files import read_log, write_whole
from engine.options import ROAD
from engine.pages.html import Line, chart, definitions, page, table, text
from engine.score.records import read_records
from engine.score.table import interval, label, number, shown

VALIDATION = {
    "val_loss": "loss (nats a token)", "val_bits_per_byte": "bits per byte", "val_tag_loss": "loss of tag tokens",
}  # fmt: skip
SAMPLES = 3  # of every scored file


def read_stages(folder: Path) -> dict[str, dict]:
    """{name: its .json} of the checkpoints in a folder, in the order of the road; ValueError where there are none."""
    found = {path.stem: read_meta(path) for path in folder.glob("*.pth")}
    found = {name: meta for name, meta in found.items() if "stage" in meta}
    if not found:
        raise ValueError(
            f"{folder}: no checkpoint with its .json there to report on; train one with: python pretrain.py"
        )
    road = list(ROAD)
    return dict(sorted(found.items(), key=lambda item: road.index(item[0]) if item[0] in road else len(road)))


def read_scores(folder: Path, name: str) -> dict[str, dict]:
    path = folder / f"{name}.scores.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def read_metrics(folder: Path, name: str) -> list[dict]:
    return read_log(folder / f"{name}.metrics.jsonl")


# ------------------------------------------------------------------------------------------------- sections


def figures(stages: dict[str, dict], scores: dict[str, dict]) -> list[list[str]]:
    """Rows of what was measured before and after every stage; a row of one cell heads those of one source.

    A file that an earlier stage was scored on shows what this stage kept of it.
    """
    rows, taught_before = [], set()
    for name, meta in stages.items():
        rows.append([f"{name}, validation rows of the training file"])
        for key, words in VALIDATION.items():
            if key in meta:
                before = meta.get("before", {}).get(key)
                rows.append([words, number(before), number(meta[key]), "", "", "", ""])
        for file, result in scores[name].items():
            rows.append([f"{name}, {file}" + (" (kept)" if file in taught_before else "")])
            changes = result.get("baseline", {}).get("figures", {})
            for figure, found in shown(result["figures"]).items():
                change = changes.get(figure, {})
                p = f"{change['p']:.4f}" if change else "-"
                before, after = number(change.get("before")), number(found["value"])
                rows.append([label(figure), before, after, number(found["chance"]), interval(found), p, found["n"]])
        taught_before |= scores[name].keys()
    return rows


def summary(folder: Path) -> str:
    """The figures of every stage before and after it, for the terminal."""
    stages = read_stages(folder)
    lines = [f"  {'':40}{'before':>10}{'after':>10}"]
    for first, *numbers in figures(stages, {name: read_scores(folder, name) for name in stages}):
        lines.append(f"  {first:40}{numbers[0]:>10}{numbers[1]:>10}" if numbers else first)
    return "\n".join(lines)


def taught(stages: dict[str, dict], scores: dict[str, dict]) -> list[str]:
    """The same as a table of the page, with what tells chance from skill."""
    head = ["figure", "before", "after", "chance", "95 % interval", "p", "n"]
    return [
        "<h2>What each stage taught</h2>",
        '<p class="quiet">Held-out rows, never trained on. Before: the checkpoint the stage started from (or the one '
        "named as baseline). Chance: who knows nothing. p: how likely a difference as large would be between equals, "
        "by a paired test on the same rows. Kept: rows of what an earlier stage taught.</p>",
        table(head, figures(stages, scores)),
    ]


def losses(stages: dict[str, dict], metrics: dict[str, list[dict]]) -> list[str]:
    """A chart a stage, all in one style."""
    charts = []
    for name in stages:
        points = lambda key, rows=metrics[name]: [(row["step"], row[key]) for row in rows if key in row]
        lines = [Line("training", points("loss")), Line("held-out", points("val_loss"), dots=True)]
        lines.append(Line("tags, training", points("tag_loss")))
        charts.append(chart(name, lines, "optimizer step", "nats a token"))
    charts = "".join(charts)
    return ["<h2>Loss</h2>", f'<div class="grid">{charts}</div>'] if charts else []


def positions(stages: dict[str, dict], scores: dict[str, dict]) -> list[str]:
    """Loss by how many tokens the model saw before."""
    charts = []
    for name in stages:
        for file, result in scores[name].items():
            for figure, curve in result.get("by_position", {}).items():
                points = [(int(position), value) for position, value in curve.items()]
                if len(points) > 2:
                    lines = [Line(label(figure), points, dots=True)]
                    charts.append(chart(f"{name} on {file}", lines, "tokens before", ""))
    if not charts:
        return []
    words = '<p class="quiet">Whether a model uses a long context: the cost of a token by how many stand before it.</p>'
    return ["<h2>By position</h2>", words, f'<div class="grid">{"".join(charts)}</div>']


def said(answer: str | None, marks: dict[str, list[float]]) -> str:
    """An answer and whether it is right."""
    if answer is None:
        return '<span class="quiet">not scored</span>'
    right = next((marks[name][0] for name in ("correct", "exact") if name in marks), None)
    verdict = "" if right is None else ' <b class="good">right</b>' if right else ' <b class="bad">wrong</b>'
    return f'<div class="said">{text(answer) or "(nothing)"}{verdict}</div>'


def samples(folder: Path, stages: dict[str, dict], scores: dict[str, dict]) -> list[str]:
    """Some answers before and after, of as many tasks as there are; for a text, how the same beginning goes on."""
    cards = []
    for name, meta in stages.items():
        if isinstance(meta.get("sample"), str):
            before, after = (said(words, {}) for words in (meta.get("before", {}).get("sample"), meta["sample"]))
            pairs = {"before": before, "after": after}
            cards.append(
                f'<div class="card"><h3>{text(name)}: a held-out row, continued</h3>{definitions(pairs)}</div>'
            )
        for result in scores[name].values():
            answered = read_records(folder / result["records"])
            earlier = read_records(folder / result["baseline"]["records"]) if "baseline" in result else {}
            answered = {key: record for key, record in answered.items() if "answer" in record}
            first_of = {record["groups"].get("task"): key for key, record in reversed(answered.items())}
            for key in [key for task, key in sorted(first_of.items(), key=lambda pair: pair[1]) if task][:SAMPLES]:
                record, other = answered[key], earlier.get(key, {})
                pairs = {"question": f'<div class="said">{text(record["question"])}</div>',
                         "wanted": f'<div class="said">{text(record["reference"])}</div>'}  # fmt: skip
                if earlier:
                    pairs["before"] = said(other.get("answer"), other.get("sums", {}))
                pairs["after"] = said(record["answer"], record["sums"])
                title = f"{name}: {record['groups']['task']}"
                cards.append(f'<div class="card"><h3>{text(title)}</h3>{definitions(pairs)}</div>')
    return ["<h2>Samples</h2>", f'<div class="grid">{"".join(cards)}</div>'] if cards else []


def groups(stages: dict[str, dict], scores: dict[str, dict]) -> list[str]:
    """Figures by language, task, turn and where the answer begins."""
    parts = []
    for name in stages:
        for file, result in scores[name].items():
            rows = [
                [f"{group.removeprefix('by_')} {value}", label(figure), number(found["value"]), interval(found),
                 number(found["chance"]), found["n"]]
                for group in ("by_language", "by_task", "by_turn", "by_start")
                for value, figures in result.get(group, {}).items()
                for figure, found in shown(figures).items()
            ]  # fmt: skip
            if rows:
                head = ["rows", "figure", "value", "95 % interval", "chance", "n"]
                title = f"<summary>{text(name)} on {text(file)}</summary>"
                parts.append(f"<details>{title}{table(head, rows, left=2)}</details>")
    return ["<h2>In detail</h2>", *parts] if parts else []


def effort(stages: dict[str, dict]) -> list[str]:
    """Size, work and time of every stage, its machine and its flags."""
    rows, settings = [], []
    for name, meta in stages.items():
        seconds, tokens = meta.get("seconds", 0), meta.get("tokens", 0)
        rate = f"{tokens / seconds:,.0f}" if seconds else "-"
        shape = meta["config"]
        size = f"{shape['n_layers']} x {shape['dim']}"
        rows.append([name, size, f"{meta.get('step', 0):,}", f"{tokens:,}", f"{seconds / 60:.1f}", rate,
                     meta.get("machine", "not recorded")])  # fmt: skip
        words = " ".join(f"--{key} {value}" for key, value in meta.get("flags", {}).items())
        summary = f"<summary>{text(name)}, from {text(meta.get('parent') or 'fresh weights')}</summary>"
        settings.append(f"<details>{summary}<p><code>{text(words)}</code></p></details>")
    total = sum(meta.get("seconds", 0) for meta in stages.values()) / 60
    rows.append(["all", "", "", f"{sum(meta.get('tokens', 0) for meta in stages.values()):,}", f"{total:.1f}", "", ""])
    head = ["stage", "layers x width", "steps", "tokens", "minutes", "tokens/s", "machine"]
    return ["<h2>Time and machine</h2>", table(head, rows), "<h2>Settings</h2>", *settings]


def write(folder: Path, path: Path) -> Path:
    """Write the page about `folder` to `path`."""
    stages = read_stages(folder)
    scores = {name: read_scores(folder, name) for name in stages}
    metrics = {name: read_metrics(folder, name) for name in stages}
    made = time.strftime("%Y-%m-%d %H:%M")
    body = [
        f"<h1>{text(' → '.join(stages))}</h1>", f'<p class="quiet">{text(folder)}, {made}</p>',
        *taught(stages, scores), *losses(stages, metrics), *samples(folder, stages, scores),
        *positions(stages, scores), *groups(stages, scores), *effort(stages),
    ]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    content = page(f"Report: {folder}", body)
    write_whole(path, lambda temporary: temporary.write_text(content, encoding="utf-8"))
    return path
