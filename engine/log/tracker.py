"""Log of a run: progress bar, results/<name>.metrics.jsonl, loss curve, and wandb or another service on request."""

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
    """Log of one run, a row per logged step. Only the main process writes anything.

    Args:
        output: Path of the .metrics.jsonl file, and the service.
        flags: Flags of the run, for the service.
        steps: Length of the run, for the progress bar.
        step: Steps that are done; later rows are removed, since a resumed run writes them again.
        earlier: Log to continue, if the run had another name before.
        active: Whether this is the main process.
        run_id: Id of the run to continue at the service.
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
        self.plot = output.plot
        self.active, self.name = active, output.name
        self.rows: list[dict] = []
        self.repeated_warning: str | None = None  # printed again after every row
        service = output.service if active else "none"
        self.service = trackers.open_service(service, path, output.wandb_project, flags, run_id, step)
        self.run_id = self.service.run_id
        if not active:
            return
        self.rows = continue_log(earlier or path, path, step)
        self._written, self._size = len(self.rows), path.stat().st_size
        # A bar in a file would be one endless line; there, every log row is printed as a line.
        self._has_bar = getattr(sys.stderr, "isatty", bool)()  # what a notebook puts there may lack it
        self.bar = tqdm(
            total=steps, initial=step, desc=output.name, unit="step", dynamic_ncols=True, disable=not self._has_bar
        )

    def log(self, row: dict) -> None:
        """Write one row, which has a "step", to the file, the service and the console."""
        if not self.active:
            return
        row = nan_to_none(row)  # as a resumed run reads it
        self.rows.append(row)
        try:
            self._append()
        except OSError as error:  # a full disk: the next row tries again, and no state is saved before it succeeds
            self.warn(f"{self.path} cannot be written ({error}); its last rows are kept in memory")
        self._log_to_service(row)
        shown = [key for key in CONSOLE_KEYS if row.get(key) is not None]
        self.show(row["step"], " ".join(f"{key} {_format(row[key])}" for key in shown))
        if self.repeated_warning:
            self.warn(self.repeated_warning)

    def _log_to_service(self, row: dict) -> None:
        """Send a row; a service that fails receives nothing more, since it must not stop the run."""
        numbers = {key: value for key, value in row.items() if key != "step" and value is not None}
        try:
            self.service.log(numbers, row["step"])
        except Exception as error:  # each has errors of its own
            self.warn(f"the tracker failed and receives nothing more ({first_line(error)})")
            self.service = trackers.NoOpTracker(self.run_id)

    def _append(self) -> None:
        """Write the rows that are not in the file yet, over a line that a failed call left incomplete."""
        if not self.path.exists():  # the folder was removed: write all rows again
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
        """Sync every row to the disk, before a state relies on it; OSError if that fails."""
        if self.active:
            self._append()
            with open(self.path, "r+b") as file:
                os.fsync(file.fileno())

    def show(self, step: int, message: str = "") -> None:
        """Move the progress bar to `step`, with the numbers of a log row."""
        if self.active:
            self.bar.update(step - self.bar.n)
            if message and self._has_bar:
                self.bar.set_postfix_str(message)
            elif message:
                warn(f"{self.name} step {step} of {self.bar.total}: {message}")

    def warn(self, message: str) -> None:
        """Print a warning above the progress bar."""
        if self.active:
            warn(f"warning: {message}")

    def close(self) -> None:
        """Draw the loss curve and end the run at the service; neither can fail the run."""
        if self.active:
            self.bar.close()
            try:
                plot_losses(self.rows, self.plot)
            except Exception as error:  # whatever it is, the run is finished
                self.warn(f"no loss curve ({first_line(error)})")
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
    """Write the rows of `earlier` up to `step` to the log `path` and return them; step 0 starts an empty log."""
    rows = rows_until(earlier, step) if step else []
    atomic_write(path, lambda temporary: temporary.write_bytes(b"".join(map(to_json, rows))))
    return rows


def rows_until(path: Path, step: int) -> list[dict]:
    """Read the rows of a log up to `step`."""
    return [row for row in read_log(path) if isinstance(row.get("step"), int) and row["step"] <= step]


def _format(value: float) -> str:
    if abs(value) < 0.1:
        return f"{value:.3g}"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}"


def plot_losses(rows: list[dict], path: Path) -> None:
    """Plot training loss (each point the mean since the point before) and validation loss by step."""
    from matplotlib.figure import Figure  # without pyplot, which looks for a display

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    labels = {
        "loss": "training",
        "weighted_loss": "training, weighted",
        "tag_loss": "training, tags",
        "val_loss": "held-out",
    }
    for key, label in labels.items():
        points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        if points:
            style = "o-" if key == "val_loss" else "-"
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4, linewidth=1.3)
    axes.set(xlabel="optimizer step", ylabel="nats per token")
    axes.set_title(path.stem.encode("utf-8", "backslashreplace").decode(), parse_math=False)  # not as a formula
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
