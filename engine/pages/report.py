"""One HTML page on a folder of checkpoints: what each stage taught and kept, its loss, its answers, what it took.

Everything on it is read from the files the stages and eval_model.py --score left (results.py), and the page loads
nothing from elsewhere. report.json holds the same as data.
"""

from pathlib import Path

from engine.files import atomic_write, read_log, write_json
from engine.pages.html import Line, chart, definitions, page, table, text
from engine.pages.results import collect, read_scores
from engine.score.table import counted, interval, label, number, plain, shown

VALIDATION = {
    "val_loss": "loss (nats a token)",
    "val_bits_per_byte": "bits per byte",
    "val_tag_loss": "loss of tag tokens",
}
TITLE = "Report: "


def read_metrics(folder: Path, name: str) -> list[dict]:
    return read_log(folder / f"{name}.metrics.jsonl")


# ------------------------------------------------------------------------------------------------- sections


def figures(stages: list[dict]) -> list[list[str]]:
    """Rows of what was measured before and after every stage; a row of one cell heads those of one source."""
    rows = []
    for stage in stages:
        rows.append([f"{stage['name']}, validation rows of the training file"])
        for key, found in stage["validation"].items():
            rows.append([VALIDATION[key], number(found["before"]), number(found["after"]), "", "", "", ""])
        for kind, ending in (("taught", ""), ("kept", " (kept)")):
            for file, result in stage[kind].items():
                rows.append([f"{stage['name']}, {file}{ending}"])
                for name, found in result["figures"].items():
                    p = f"{found['change']['p']:.4f}" if "change" in found else "-"
                    rows.append(
                        [
                            label(name),
                            number(found["before"]),
                            number(found["after"]),
                            number(found["chance"]),
                            interval(found),
                            p,
                            counted(found),
                        ]
                    )
        for file in stage["stale"]:
            rows.append([f"{stage['name']}, {file}: stale, of other weights than {stage['name']}.pth; score it again"])
    return rows


def summary(folder: Path) -> str:
    """The figures of every stage before and after it, for the terminal."""
    lines = [f"  {'':40}{'before':>10}{'after':>10}"]
    for first, *numbers in figures(collect(folder)["stages"]):
        first = plain(first)
        lines.append(f"  {first:40}{numbers[0]:>10}{numbers[1]:>10}" if numbers else first)
    return "\n".join(lines)


def taught(stages: list[dict]) -> list[str]:
    """The same as a table of the page, with what tells chance from skill."""
    head = ["figure", "before", "after", "chance", "95 % interval", "p", "n"]
    return [
        "<h2>What each stage taught, and what it kept</h2>",
        '<p class="quiet">Held-out rows, never trained on. Before: the checkpoint the stage started from (or the one '
        "named as baseline). Kept: rows that an earlier stage taught. Chance: who knows nothing. p: how likely a "
        "difference as large would be between equals, by a paired test on the same rows.</p>",
        table(head, figures(stages)),
    ]


def losses(metrics: dict[str, list[dict]]) -> list[str]:
    """A chart per stage, all in one style."""
    charts = []
    for name, logged in metrics.items():
        points = lambda key, rows=logged: [(row["step"], row[key]) for row in rows if key in row]
        lines = [Line("training", points("loss")), Line("held-out", points("val_loss"), dots=True)]
        lines.append(Line("tags, training", points("tag_loss")))
        charts.append(chart(name, lines, "optimizer step", "nats a token"))
    charts = "".join(charts)
    return ["<h2>Loss</h2>", f'<div class="grid">{charts}</div>'] if charts else []


def positions(scores: dict[str, dict]) -> list[str]:
    """Loss by how many tokens the model saw before."""
    charts = []
    for name, files in scores.items():
        for file, result in files.items():
            for figure, curve in result.get("by_position", {}).items():
                points = [(int(position), value) for position, value in curve.items()]
                if len(points) > 2:
                    lines = [Line(label(figure), points, dots=True)]
                    charts.append(chart(f"{name} on {file}", lines, "tokens before", ""))
    if not charts:
        return []
    words = '<p class="quiet">Whether a model uses a long context: the cost of a token by how many stand before it.</p>'
    return ["<h2>By position</h2>", words, f'<div class="grid">{"".join(charts)}</div>']


def said(answer: str | None, right: bool | None = None) -> str:
    """An answer and whether it is right."""
    if answer is None:
        return '<span class="quiet">not scored</span>'
    verdict = "" if right is None else ' <b class="good">right</b>' if right else ' <b class="bad">wrong</b>'
    return f'<div class="said">{text(answer) or "(nothing)"}{verdict}</div>'


def samples(stages: list[dict]) -> list[str]:
    """Some answers before and after; for a text, how the same beginning goes on."""
    cards = []
    for stage in stages:
        if "continued" in stage:
            pairs = {when: said(words) for when, words in stage["continued"].items()}
            title = f"{stage['name']}: a held-out row, continued"
            cards.append(f'<div class="card"><h3>{text(title)}</h3>{definitions(pairs)}</div>')
        for sample in stage["samples"]:
            pairs = {key: f'<div class="said">{text(sample[key])}</div>' for key in ("question", "wanted")}
            pairs |= {when: said(**sample[when]) for when in ("before", "after") if when in sample}
            title = f"{stage['name']}: {sample['task']}"
            cards.append(f'<div class="card"><h3>{text(title)}</h3>{definitions(pairs)}</div>')
    return ["<h2>Samples</h2>", f'<div class="grid">{"".join(cards)}</div>'] if cards else []


def groups(scores: dict[str, dict]) -> list[str]:
    """Figures by language, task, turn and where the answer begins."""
    parts = []
    for name, files in scores.items():
        for file, result in files.items():
            rows = [
                [
                    f"{group.removeprefix('by_')} {value}",
                    label(figure),
                    number(found["value"]),
                    interval(found),
                    number(found["chance"]),
                    found["n"],
                ]
                for group in ("by_language", "by_task", "by_turn", "by_start")
                for value, figures in result.get(group, {}).items()
                for figure, found in shown(figures).items()
            ]
            if rows:
                head = ["rows", "figure", "value", "95 % interval", "chance", "n"]
                title = f"<summary>{text(name)} on {text(file)}</summary>"
                parts.append(f"<details>{title}{table(head, rows, left=2)}</details>")
    return ["<h2>In detail</h2>", *parts] if parts else []


def effort(stages: list[dict]) -> list[str]:
    """Size, work and time of every stage, its machine, the digest of its weights, and its flags."""
    rows, settings = [], []
    for stage in stages:
        rate = f"{stage['tokens_per_second']:,.0f}" if stage["tokens_per_second"] else "-"
        rows.append(
            [
                stage["name"],
                f"{stage['layers']} x {stage['width']}",
                f"{stage['steps']:,}",
                f"{stage['tokens']:,}",
                f"{stage['minutes']:.1f}",
                rate,
                stage["weights"],
                stage["machine"] or "not recorded",
            ]
        )
        words = " ".join(f"--{key} {value}" for key, value in stage["flags"].items())
        head = f"<summary>{text(stage['name'])}, from {text(stage['parent'] or 'fresh weights')}</summary>"
        settings.append(f"<details>{head}<p><code>{text(words)}</code></p></details>")
    tokens, minutes = (sum(stage[key] for stage in stages) for key in ("tokens", "minutes"))
    rows.append(["all", "", "", f"{tokens:,}", f"{minutes:.1f}", "", "", ""])
    head = ["stage", "layers x width", "steps", "tokens", "minutes", "tokens/s", "weights", "machine"]
    return ["<h2>Time and machine</h2>", table(head, rows), "<h2>Settings</h2>", *settings]


def check(data: dict, folder: Path, path: Path) -> None:
    """ValueError where the page, or report.json, would replace a file of another kind."""
    if any(stage["name"] == "report" for stage in data["stages"]):
        raise ValueError(f"{folder / 'report.json'} belongs to a checkpoint of that name: rename it first")
    if path.exists() and f"<title>{TITLE}".encode() not in path.read_bytes()[:200]:
        raise ValueError(f"--report {path}: a file that is no report is there; name another, or remove it")


def write(folder: Path, path: Path) -> Path:
    """Write the page about `folder` to `path`, and its data to `folder`/report.json."""
    data = collect(folder)
    check(data, folder, path)
    stages = data["stages"]
    scores = {}
    for stage in stages:
        results = read_scores(folder, stage["name"])
        scores[stage["name"]] = {file: one for file, one in results.items() if file not in stage["stale"]}
    metrics = {stage["name"]: read_metrics(folder, stage["name"]) for stage in stages}
    body = [
        f"<h1>{text(' → '.join(scores))}</h1>",
        f'<p class="quiet">{text(folder)}, {data["made"]}</p>',
        *taught(stages),
        *losses(metrics),
        *samples(stages),
        *positions(scores),
        *groups(scores),
        *effort(stages),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    content = page(f"{TITLE}{folder}", body)
    atomic_write(path, lambda temporary: temporary.write_text(content, encoding="utf-8", errors="backslashreplace"))
    write_json(folder / "report.json", data)
    return path
