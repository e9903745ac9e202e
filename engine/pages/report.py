"""Write one HTML page on a folder of checkpoints: metrics, losses, samples, and what each stage took.

All of it is read from the files that the stages and eval_model.py --score left (results.py); the page loads nothing
else. report.json holds the same as data.
"""

from pathlib import Path

from engine.console import printable
from engine.files import atomic_write, write_json
from engine.pages.html import Line, card, chart, page, section, table, text
from engine.pages.results import collect
from engine.score.table import format_count, format_interval, format_number, label

TITLE = "Report: "


# ------------------------------------------------------------------------------------------------- sections


def metric_rows(stages: list[dict]) -> list[list[str]]:
    """Return table rows of the metrics before and after every stage; a row of one cell is a heading."""
    rows = []
    for stage in stages:
        name = stage["name"]
        rows.append([f"{name}, validation rows of the training file"])
        for key, values in stage["validation"].items():
            numbers = [format_number(values[when]) for when in ("before", "after")]
            rows.append([label(key), *numbers, *[""] * 4])
        for status, ending in (("new", ""), ("retained", " (retained)")):
            for file, result in stage[status].items():
                baseline = result["compared_with"]
                rows.append([f"{name}, {file}{ending}" + (f", compared with {baseline}" if baseline else "")])
                rows += [metric_row(metric_name, metric) for metric_name, metric in result["metrics"].items()]
        rows += [[f"{name}, {note}"] for note in stage["notes"]]
    return rows


def metric_row(name: str, metric: dict) -> list[str]:
    """Return the cells of one metric: before, after, chance level, interval, p-value, number of answers."""
    numbers = [format_number(metric[key]) for key in ("before", "after", "chance_level")]
    p = f"{metric['change']['p']:.4f}" if metric["change"] else "-"
    return [label(name), *numbers, format_interval(metric), p, format_count(metric)]


def summary(stages: list[dict]) -> str:
    """Return the metrics before and after every stage, for the terminal."""
    lines = [f"  {'':42}{'before':>10}{'after':>10}"]
    for first, *numbers in metric_rows(stages):
        lines.append(f"  {first:42}{numbers[0]:>10}{numbers[1]:>10}" if numbers else printable(first))
    return "\n".join(lines)


def metrics_section(stages: list[dict]) -> str:
    """Return the table of metrics, with what tells chance from skill."""
    head = ["metric", "before", "after", "chance level", "95 % interval", "p", "n"]
    note = (
        "Held-out rows, never trained on. Before: the checkpoint named, the parent unless --baseline was another. "
        "Retained: rows of a file that an ancestor was scored on. Chance level: of a model that knows nothing. "
        "p: probability of a difference as large between equal checkpoints, by a paired test on the same rows."
    )
    return f'<h2>Metrics of each stage</h2>\n<p class="quiet">{note}</p>{table(head, metric_rows(stages))}'


def loss_section(logs: dict[str, list[dict]]) -> str:
    """Return a chart per stage, all in one style."""
    charts = ""
    for name, log in logs.items():
        lines = []
        for key, title in (("loss", "training"), ("val_loss", "held-out"), ("tag_loss", "tags, training")):
            points = [(row["step"], row[key]) for row in log if row.get(key) is not None]
            lines.append(Line(title, points, dots=key == "val_loss"))
        charts += chart(name, lines, "optimizer step", "nats per token")
    return section("Loss", charts)


def position_section(scores: dict[str, dict]) -> str:
    """Return charts of the loss by the number of tokens the model saw before."""
    charts = ""
    for title, result in scores.items():
        for metric, curve in result.get("by_position", {}).items():
            if len(curve) > 2:
                points = [(int(position), value) for position, value in curve.items()]
                charts += chart(title, [Line(label(metric), points, dots=True)], "tokens before", "")
    note = "A model that uses its context predicts a token better the more tokens it saw before."
    return section("By position", charts, note)


def format_answer(answer: str | None, correct: bool | None = None) -> str:
    """Format an answer and whether it is right."""
    if answer is None:
        return '<span class="quiet">not scored</span>'
    verdict = {None: "", True: ' <b class="good">right</b>', False: ' <b class="bad">wrong</b>'}[correct]
    return f'<div class="said">{text(answer) or "(nothing)"}{verdict}</div>'


def sample_section(stages: list[dict]) -> str:
    """Return some answers before and after; for a text, its continuations."""
    cards = ""
    for stage in stages:
        if "continued" in stage:
            pairs = {when: format_answer(answer) for when, answer in stage["continued"].items()}
            cards += card(f"{stage['name']}: a held-out row, continued", pairs)
        for sample in stage["samples"]:
            pairs = {key: format_answer(sample[key]) for key in ("question", "reference")}
            pairs |= {when: format_answer(**sample[when]) for when in ("before", "after") if when in sample}
            cards += card(f"{stage['name']}: {sample['task']}", pairs)
    return section("Samples", cards)


def group_section(scores: dict[str, dict]) -> str:
    """Return the metrics by language, task, turn and where the answer begins."""
    parts = ""
    head = ["rows", "metric", "value", "chance level", "95 % interval", "n"]
    for title, result in scores.items():
        rows = []
        for group in ("language", "task", "turn", "start"):
            for value, metrics in result.get(f"by_{group}", {}).items():
                for name, metric in metrics.items():
                    value_and_chance = [format_number(metric[key]) for key in ("value", "chance_level")]
                    rows.append(
                        [f"{group} {value}", label(name), *value_and_chance, format_interval(metric), metric["n"]]
                    )
        if rows:
            parts += f"<details><summary>{text(title)}</summary>{table(head, rows, left=2)}</details>"
    return parts and f"<h2>In detail</h2>\n{parts}"


def format_amount(value: float | None, digits: int = 0) -> str:
    """Format an amount; one that is not known is "-"."""
    return "-" if value is None else f"{value:,.{digits}f}"


def resource_section(stages: list[dict]) -> str:
    """Return size, work and time of every stage, its machine, the digest of its weights, and its flags."""
    rows, settings = [], ""
    for stage in stages:
        work = [format_amount(stage[key]) for key in ("steps", "tokens")]
        work += [format_amount(stage["minutes"], 1), format_amount(stage["tokens_per_second"])]
        machine = stage["machine"] or "not recorded"
        rows.append([stage["name"], f"{stage['layers']} x {stage['width']}", *work, stage["weights"], machine])
        flags = " ".join(f"--{key} {value}" for key, value in stage["flags"].items())
        origin = " ".join([stage["parent"] or "fresh weights", *stage["ancestors"][:1]])
        head = f"<summary>{text(stage['name'])}, from {text(origin)}</summary>"
        settings += f"<details>{head}<p><code>{text(flags)}</code></p></details>\n"
    tokens, minutes = (sum(stage[key] or 0 for stage in stages) for key in ("tokens", "minutes"))
    rows.append(["all", "", "", f"{tokens:,}", f"{minutes:.1f}", "", "", ""])
    head = ["stage", "layers x width", "steps", "tokens", "minutes", "tokens/s", "weights", "machine"]
    return f"<h2>Time and machine</h2>\n{table(head, rows)}\n<h2>Settings</h2>\n{settings}"


def is_report(path: Path) -> bool:
    """Return whether a file begins as the page does; it may be large."""
    with open(path, "rb") as file:
        return f"<title>{TITLE}".encode() in file.read(200)


def check_replaceable(data: dict, folder: Path, path: Path) -> None:
    """Raise ValueError if the page, or report.json, would replace a file of another kind."""
    if any(stage["name"] == "report" for stage in data["stages"]):
        raise ValueError(f"{folder / 'report.json'} belongs to a checkpoint of that name: rename it first")
    if path.exists() and not (path.is_file() and is_report(path)):
        raise ValueError(f"--report {path}: a file that is no report is there; name another, or remove it")


def write(folder: Path, path: Path) -> str:
    """Write the page on `folder` to `path`, and its data to `folder`/report.json; return the summary."""
    data, checkpoints = collect(folder)
    check_replaceable(data, folder, path)
    stages = data["stages"]
    scores = {}
    for name, stage in checkpoints.items():
        scores |= {f"{name} on {file}": result for file, result in stage.scores.items()}
    body = [
        f"<h1>{text(' → '.join(checkpoints))}</h1>",
        f'<p class="quiet">{text(folder)}, {data["made"]}</p>',
        metrics_section(stages),
        loss_section({name: stage.log for name, stage in checkpoints.items()}),
        sample_section(stages),
        position_section(scores),
        group_section(scores),
        resource_section(stages),
    ]
    content = page(f"{TITLE}{folder}", body).encode(errors="backslashreplace")
    atomic_write(path, lambda temporary: temporary.write_bytes(content))
    write_json(folder / "report.json", data)
    return summary(stages)
