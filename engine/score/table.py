"""Format scores as text: a table for the terminal, one Markdown row per checkpoint."""

from collections.abc import Iterable

from engine.console import printable

LABELS = {
    "val_loss": "loss (nats per token)",
    "val_bits_per_byte": "bits per byte",
    "val_tag_loss": "loss of tag tokens",
    "val_text_loss": "loss of texts (nats per token)",
    "val_text_bits_per_byte": "bits per byte of texts",
    "bits_per_byte": "bits per byte",
    "answer_loss": "answer loss (nats per token)",
    "exact_match": "exact match",
    "f1": "token F1",
    "well_formed": "well-formed",
    "correct": "correct answers",
    "cut_off": "cut off",
    "thinking_tokens": "tokens of thinking",
    "acc_letter": "accuracy by letter",
    "acc": "accuracy by text",
    "acc_norm": "accuracy by text per character",
}
WHY_SKIPPED = "the prompt with its examples does not fit into the context, or there are too few examples"


def label(name: str) -> str:
    """Return a metric's name in words: acc_norm_5shot is "accuracy by text per character, 5-shot"."""
    form, _, shots = name.rpartition("_")
    if shots.endswith("shot") and form in LABELS:
        return f"{LABELS[form]}, {shots.removesuffix('shot')}-shot"
    return LABELS.get(name, name)


def format_count(metric: dict) -> str:
    """Format the number of answers, and of how many if some lack the metric."""
    return f"{metric['n']} of {metric['n'] + metric['skipped']}" if metric.get("skipped") else str(metric["n"])


def format_number(value: float | None) -> str:
    """Format a value with four decimals, a large one with one."""
    if value is None:
        return "-"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.4f}"


def format_interval(metric: dict) -> str:
    """Format the interval; that of a single row is "-"."""
    if metric["low"] is None:
        return "-"
    return f"[{format_number(metric['low'])}, {format_number(metric['high'])}]"


def format_overlap(overlap: dict | None) -> str:
    """Format how many scored rows are among those that training drew from (trained_rows.TrainedRows.overlap)."""
    if overlap is None:
        return "not compared (no .rows.npy that belongs to the checkpoint)"
    if not overlap["of"]:
        return "not compared (multiple-choice questions are not trained on)"
    limit = "" if overlap["is_complete"] else ", by the stages whose rows are known"
    return f"{overlap['trained_on']} of {overlap['of']}{limit}"


def format_scores(results: dict[str, dict]) -> str:
    """Format every file's metrics with interval and chance level, then by group and by position."""
    lines = []
    for file, result in results.items():
        lines.append(f"{printable(file)}: {result['rows']} rows, {result['seconds']:.0f} s")
        if "trained_rows" in result:
            lines.append(f"  {'rows that the model was trained on':42}{format_overlap(result['trained_rows'])}")
        lines.append(f"  {'':42}{'value':>9}  {'95 % interval':^19}{'chance':>9}{'n':>8}")
        for name, metric in result["metrics"].items():
            numbers = f"{format_number(metric['value']):>9}  {format_interval(metric):^19}"
            numbers += f"{format_number(metric['chance_level']):>9} {format_count(metric):>7}"
            lines.append(f"  {label(name):42}{numbers}")
        for name, count in result.get("missing", {}).items():
            lines.append(f"  {label(name):42}no metric, {count} rows skipped: {WHY_SKIPPED}")
        if partial := [label(name) for name, metric in result["metrics"].items() if metric.get("skipped")]:
            lines.append(f"  not of all rows ({WHY_SKIPPED}): {'; '.join(partial)}")
        for group in (key for key in result if key.startswith("by_") and key != "by_position"):
            for value, metrics in result[group].items():
                values = ", ".join(f"{name} {format_number(metric['value'])}" for name, metric in metrics.items())
                lines.append(f"  {group.replace('_', ' ')} {printable(value)}: {values or 'no metric'}")
        for name, curve in result.get("by_position", {}).items():
            if len(curve) > 1:
                points = ", ".join(f"{position}..: {value:.3f}" for position, value in curve.items())
                lines.append(f"  {label(name)} by tokens seen before, from {points}")
    return "\n".join(lines)


def format_comparison(results: dict[str, dict[str, dict]], baseline: str) -> str:
    """Format the changes from `baseline` to the checkpoint, on the same rows."""
    lines = [f"compared with {baseline}, on the same rows (p: how likely so large a difference is between equals)"]
    for file, metrics in results.items():
        lines.append(printable(file))
        lines.append(f"  {'':42}{'before':>9}{'after':>9}{'change':>10}  {'95 % interval':^19}{'p':>9}{'rows':>7}")
        for name, change in metrics.items():
            numbers = f"{format_number(change['before']):>9}{format_number(change['after']):>9}"
            numbers += f"{change['difference']:>+10.4f}  {format_interval(change):^19}"
            lines.append(f"  {label(name):42}{numbers}{change['p']:>9.4f}{change['n']:>7}")
    return "\n".join(lines)


def short_names(files: Iterable[str]) -> dict[str, str]:
    """Return {file name: its part before the first dot}, or the whole name where two begin alike."""
    first = {file: file.split(".")[0] for file in files}
    return {file: part if list(first.values()).count(part) == 1 else file for file, part in first.items()}


def format_markdown(checkpoint: str, results: dict[str, dict]) -> str:
    """Format a table of one row, to be pasted: metric, interval and chance level of every file."""
    names = short_names(results)
    cells = {}
    for file, result in results.items():
        for name, metric in result["metrics"].items():
            chance = "" if metric["chance_level"] is None else f", chance {format_number(metric['chance_level'])}"
            count = f", {format_count(metric)} rows" if metric.get("skipped") else ""
            numbers = f"{format_number(metric['value'])} {format_interval(metric)}{chance}{count}"
            cells[f"{printable(names[file])}: {label(name)}"] = numbers
    rows = ["checkpoint", *cells], ["---"] * (1 + len(cells)), [checkpoint, *cells.values()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
