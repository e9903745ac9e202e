"""What a run tells: a live line, results/<name>.metrics.jsonl, a loss picture, and wandb or the like on request."""

import json
import netrc
import os
import sys
from pathlib import Path

from tqdm import tqdm

from engine import jsonl
from engine.checkpoint import write_whole

TRACKERS = ("none", "wandb", "swanlab", "tensorboard")


class Tracker:
    """One run's log. On processes that are not the main one everything is silent.

    Args:
        path: the .metrics.jsonl file; rows after `step` are cut off (a resumed run writes them again).
        steps: length of the run, for the progress bar.
        step: steps that are done already.
        service: one of TRACKERS; `run_id` continues a wandb run.
    """

    def __init__(self, path: Path, *, steps: int, step: int = 0, active: bool = True, service: str = "none",
                 project: str = "SelfLLM-Engine", config: dict | None = None, run_id: str | None = None):  # fmt: skip
        self.path, self.active = path, active
        self.rows: list[dict] = []
        self._log, self._close, self.run_id = _open_service(
            service if active else "none", path, project, config, run_id
        )
        if not active:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if step and path.is_file():
            self.rows = [row for row in _read_rows(path) if row["step"] <= step]
        text = "".join(map(_line, self.rows))
        write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        self._written, self._size = len(self.rows), path.stat().st_size
        # A log file wants a line now and then, a terminal a living one.
        self.bar = tqdm(total=steps, initial=step, desc=path.name.split(".")[0], unit="step", dynamic_ncols=True,
                        mininterval=0.1 if sys.stderr.isatty() else 30)  # fmt: skip

    def log(self, row: dict) -> None:
        """Append one row (it has "step") everywhere."""
        if not self.active:
            return
        self.rows.append(row)
        try:
            self._append()
        except OSError as error:  # a full disk: the next row tries again, and nothing is saved before it succeeds
            self.say(f"warning: {self.path} cannot be written ({error}), its last rows wait in memory")
        self._log({key: value for key, value in row.items() if key != "step"}, row["step"])
        self.show(row["step"], " ".join(f"{key} {_short(row[key])}" for key in _SHOWN if key in row))

    def _append(self) -> None:
        """The rows that are not in the file yet. What a failed try left of a line is written over."""
        with open(self.path, "r+b") as file:
            file.seek(self._size)
            file.truncate()
            file.write("".join(map(_line, self.rows[self._written :])).encode())
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
            if words:
                self.bar.set_postfix_str(words)

    def say(self, words: str) -> None:
        """A line above the live one."""
        if self.active:
            tqdm.write(words, file=sys.stderr)

    def close(self) -> None:
        if self.active:
            self.bar.close()
            try:
                draw(self.rows, self.path.with_name(self.path.name.replace(".metrics.jsonl", ".png")))
            except OSError as error:
                self.say(f"warning: no loss picture ({error})")
        self._close()


_SHOWN = ("loss", "weighted_loss", "tag_loss", "val_loss", "val_bits_per_byte", "learning_rate", "tokens_per_second",
          "mfu")  # fmt: skip


def _line(row: dict) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _read_rows(path: Path) -> list[dict]:
    return [row for row in jsonl.read_log(path) if isinstance(row.get("step"), int)]


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
        points = [(row["step"], row[key]) for row in rows if key in row]
        if points:
            axes.plot(
                *zip(*points, strict=True), "o-" if key == "val_loss" else "-", label=label, markersize=4, linewidth=1.3
            )
    axes.set(xlabel="optimizer step", ylabel="nats a token", title=path.stem)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _open_service(service: str, path: Path, project: str, config: dict | None, run_id: str | None):
    """(log(values, step), close(), run id) of a tracking service."""
    name = path.name.split(".")[0]
    if service == "none":
        return lambda values, step: None, lambda: None, None
    try:
        if service == "wandb":
            return _open_wandb(name, path.parent, project, config, run_id)
        if service == "swanlab":
            import swanlab

            mode = "cloud" if os.environ.get("SWANLAB_API_KEY") else "local"
            folder = str(path.parent / "swanlog")
            run = swanlab.init(project=project, experiment_name=name, config=config, logdir=folder, mode=mode)
            numbers = lambda values: {key: value for key, value in values.items() if not isinstance(value, str)}
            return (
                lambda values, step: swanlab.log(numbers(values), step=step),
                swanlab.finish,
                getattr(run, "id", None),
            )
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(path.parent / "tensorboard" / name))

        def log(values: dict, step: int) -> None:
            for key, value in values.items():
                (writer.add_text if isinstance(value, str) else writer.add_scalar)(key, value, step)

        return log, writer.close, None
    except ImportError:
        raise ValueError(f"--tracker {service}: not installed; pip install {service}, or --tracker none") from None


def _open_wandb(name: str, folder: Path, project: str, config: dict | None, run_id: str | None):
    """wandb, online with an account and a network, else offline with a word on how to upload later."""
    import wandb

    options = {"project": project, "name": name, "dir": str(folder), "config": config, "id": run_id, "resume": "allow"}
    options["settings"] = wandb.Settings(init_timeout=30, silent=True)
    mode = os.environ.get("WANDB_MODE") or ("online" if _has_wandb_account() else "offline")
    try:
        run = wandb.init(**options, mode=mode)
    except Exception as error:  # no network, a wrong key, a full project: none of them is worth a training run
        print(f"wandb: {str(error).splitlines()[0]}")
        mode, run = "offline", wandb.init(**options, mode="offline")
    if mode == "offline":
        where = Path(run.dir).parent
        print(f"wandb: offline, the run lies in {where}; upload it later with: wandb sync {where}")
    return lambda values, step: run.log(values, step=step), run.finish, run.id


def _has_wandb_account() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False
