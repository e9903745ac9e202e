"""Scores as text: a table for the terminal, one Markdown row per checkpoint."""

from collections.abc import Iterable

LABELS = {
    "bits_per_byte": "bits per byte",
    "answer_loss": "answer loss (nats a token)",
    "exact": "exact match",
    "f1": "token F1",
    "well_formed": "well-formed",
    "correct": "correct answers",
    "cut_off": "cut off",
    "too_long": "prompt too long",
    "thinking_tokens": "tokens of thinking",
}
LEFT_OUT = "their examples do not fit into the context, or there are too few"


def label(name: str) -> str:
    """A figure's name in words: text_norm_5shot is "choice by text a character, 5 examples"."""
    form, _, shots = name.rpartition("_")
    forms = {"letter": "by letter", "text": "by text", "text_norm": "by text a character"}
    if form in forms:
        return f"choice {forms[form]}, {shots.removesuffix('shot')} examples"
    return LABELS.get(name, name)


def plain(words: object) -> str:
    """Without control characters, which would reach the terminal: files and tasks are named by whoever wrote them."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(words))


def counted(figure: dict) -> str:
    """How many answers a figure is of, and of how many where some have none."""
    return f"{figure['n']} of {figure['n'] + figure['left_out']}" if figure.get("left_out") else str(figure["n"])


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if abs(value) >= 100 else f"{value:.4f}"


def interval(figure: dict) -> str:
    if figure["low"] is None:
        return "-"  # of one row
    return f"[{number(figure['low'])}, {number(figure['high'])}]"


def shown(figures: dict[str, dict]) -> dict[str, dict]:
    """Without the figure that only speaks when something went wrong."""
    return {
        name: figure
        for name, figure in figures.items()
        if name != "too_long" or figure.get("value", figure.get("after"))
    }


def table(results: dict[str, dict]) -> str:
    """Every file's figures with their interval and chance level, then those by group."""
    lines = []
    for file, result in results.items():
        lines.append(f"{plain(file)}: {result['rows']} rows, {result['seconds']:.0f} s")
        lines.append(f"  {'':38}{'value':>9}  {'95 % interval':^19}{'chance':>9}{'n':>8}")
        for name, figure in shown(result["figures"]).items():
            numbers = f"{number(figure['value']):>9}  {interval(figure):^19}{number(figure['chance']):>9}"
            lines.append(f"  {label(name):38}{numbers}{counted(figure):>8}")
        for name, count in result.get("missing", {}).items():
            lines.append(f"  {label(name):38}no figure, {count} rows left out: {LEFT_OUT}")
        if partial := [label(name) for name, figure in result["figures"].items() if figure.get("left_out")]:
            lines.append(f"  not of all rows ({LEFT_OUT}): {'; '.join(partial)}")
        for group in (key for key in result if key.startswith("by_") and key != "by_position"):
            for value, figures in result[group].items():
                words = ", ".join(f"{name} {number(figure['value'])}" for name, figure in shown(figures).items())
                lines.append(f"  {group.replace('_', ' ')} {plain(value)}: {words}")
        for name, curve in result.get("by_position", {}).items():
            if len(curve) > 1:
                seen = ", ".join(f"{at}..: {value:.3f}" for at, value in curve.items())
                lines.append(f"  {label(name)} by tokens seen before, from {seen}")
    return "\n".join(lines)


def comparison(results: dict[str, dict[str, dict]], baseline: str) -> str:
    """What changed from `baseline` to the checkpoint, on the same rows."""
    lines = [f"compared with {baseline}, on the same rows (p: how likely so large a difference is between equals)"]
    for file, figures in results.items():
        lines.append(plain(file))
        lines.append(f"  {'':38}{'before':>9}{'after':>9}{'change':>10}  {'95 % interval':^19}{'p':>9}{'rows':>7}")
        for name, found in shown(figures).items():
            numbers = f"{number(found['before']):>9}{number(found['after']):>9}{found['difference']:>+10.4f}"
            lines.append(f"  {label(name):38}{numbers}  {interval(found):^19}{found['p']:>9.4f}{found['n']:>7}")
    return "\n".join(lines)


def short(files: Iterable[str]) -> dict[str, str]:
    """{file name: its first part}, the whole name where two begin alike."""
    first = {file: file.split(".")[0] for file in files}
    return {file: part if list(first.values()).count(part) == 1 else file for file, part in first.items()}


def markdown(checkpoint: str, results: dict[str, dict]) -> str:
    """A table of one row, to be pasted: figure, interval and chance level of every file."""
    names = short(results)
    cells = {
        f"{plain(names[file])}: {label(name)}": f"{number(figure['value'])} {interval(figure)}"
        + (f", chance {number(figure['chance'])}" if figure["chance"] is not None else "")
        + (f", {counted(figure)} rows" if figure.get("left_out") else "")
        for file, result in results.items()
        for name, figure in shown(result["figures"]).items()
    }
    rows = ["checkpoint", *cells], ["---"] * (1 + len(cells)), [checkpoint, *cells.values()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
