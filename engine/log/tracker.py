"""What a run tells: a live line, results/<name>.metrics.jsonl, a loss picture, and wandb or the like on request."""

import os
import sys
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from engine.console import warn
from engine.files import atomic_write, first_line, nan_to_none, read_log, to_json
from engine.log import trackers
from engine.options import Output


class Tracker:
    """One run's log. On processes that are not the main one everything is silent.

    Args:
        output: where the .metrics.jsonl file lies, and which service is told, too.
        flags: of the run, for the service.
        steps: length of the run, for the progress bar.
        step: steps that are done already; rows after it are cut off (a resumed run writes them again).
        earlier: the log that is continued, where the run had another name before.
        active: whether this is the main process.
        run_id: of the run at the service that is continued.
    """

    def __init__(
        self,
        output: Output,
        flags: dict,
        steps: int,
        step: int = 0,
        earlier: Path | None = None,
        *,
        active: bool = True,
        run_id: str | None = None,
    ):
        self.path = path = output.metrics
        self.active, self.name = active, output.name
        self.rows: list[dict] = []
        self.repeated_warning: str | None = None  # a warning that every row repeats
        service = output.service if active else "none"
        self.service = trackers.open_service(service, path, output.wandb_project, flags, run_id, step)
        self.run_id = self.service.run_id
        if not active:
            return
        self.rows = continue_log(earlier or path, path, step)
        self._written, self._size = len(self.rows), path.stat().st_size
        # In a file a redrawn bar would be one endless line: there every row of the log is a line.
        self._in_lines = not sys.stderr.isatty()
        self.bar = tqdm(
            total=steps, initial=step, desc=output.name, unit="step", dynamic_ncols=True, disable=self._in_lines
        )

    def log(self, row: dict) -> None:
        """Append one row (it has "step") everywhere."""
        if not self.active:
            return
        row = nan_to_none(row)  # as a resumed run reads them
        self.rows.append(row)
        try:
            self._append()
        except OSError as error:  # a full disk: the next row tries again, and nothing is saved before it succeeds
            self.warn(f"{self.path} cannot be written ({error}), its last rows wait in memory")
        self._tell_service(row)
        shown = [key for key in CONSOLE_KEYS if row.get(key) is not None]
        self.show(row["step"], " ".join(f"{key} {_short(row[key])}" for key in shown))
        if self.repeated_warning:
            self.warn(self.repeated_warning)

    def _tell_service(self, row: dict) -> None:
        """A service that fails is left alone from then on: it is not worth a training run."""
        numbers = {key: value for key, value in row.items() if key != "step" and value is not None}
        try:
            self.service.log(numbers, row["step"])
        except Exception as error:  # each has errors of its own
            self.warn(f"the tracker failed and gets nothing more ({first_line(error)})")
            self.service = trackers.NoOpTracker(self.run_id)

    def _append(self) -> None:
        """The rows that are not in the file yet. What a failed try left of a line is written over."""
        if not self.path.exists():  # somebody removed the folder: all of it again
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
            self._written, self._size = 0, 0
        with open(self.path, "r+b") as file:
            file.seek(self._size)
            file.truncate()
            file.write(b"".join(map(to_json, self.rows[self._written :])))
            file.flush()
            self._written, self._size = len(self.rows), file.tell()

    def sync(self) -> None:
        """Every row on the disk, before a state counts on them; OSError when that fails."""
        if self.active:
            self._append()
            with open(self.path, "r+b") as file:
                os.fsync(file.fileno())

    def show(self, step: int, words: str = "") -> None:
        if self.active:
            self.bar.update(step - self.bar.n)
            if words and self._in_lines:
                warn(f"{self.name} step {step} of {self.bar.total}: {words}")
            elif words:
                self.bar.set_postfix_str(words)

    def warn(self, words: str) -> None:
        if self.active:
            warn(f"warning: {words}")

    def close(self) -> None:
        if self.active:
            self.bar.close()
            try:
                draw(self.rows, self.path.with_name(self.path.name.replace(".metrics.jsonl", ".png")))
            except Exception as error:  # a picture is not worth a finished run
                self.warn(f"no loss picture ({first_line(error)})")
        with suppress(Exception):
            self.service.close()


CONSOLE_KEYS = (
    "loss",
    "weighted_loss",
    "tag_loss",
    "val_loss",
    "val_bits_per_byte",
    "learning_rate",
    "tokens_per_second",
    "mfu",
)


def continue_log(earlier: Path, path: Path, step: int) -> list[dict]:
    """Write the log `path` with the rows of `earlier` up to `step`, none for step 0, and return them."""
    rows = (
        [row for row in read_log(earlier) if isinstance(row.get("step"), int) and row["step"] <= step] if step else []
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda temporary: temporary.write_bytes(b"".join(map(to_json, rows))))
    return rows


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 0.1 else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"


def draw(rows: list[dict], path: Path) -> None:
    """The loss picture: training loss (each point the mean since the one before) and validation loss by step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    names = {
        "loss": "training",
        "weighted_loss": "training, weighted",
        "tag_loss": "training, tags",
        "val_loss": "held-out",
    }
    for key, label in names.items():
        points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        if points:
            axes.plot(
                *zip(*points, strict=True), "o-" if key == "val_loss" else "-", label=label, markersize=4, linewidth=1.3
            )
    axes.set(xlabel="optimizer step", ylabel="nats per token")
    axes.set_title(path.stem.encode("utf-8", "backslashreplace").decode(), parse_math=False)  # a name, no formula
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
