"""Tracking services beside the log file: wandb, swanlab and tensorboard behind one interface, and a silent one."""

import netrc
import os
from pathlib import Path
from typing import Any

from engine.console import print0
from engine.files import first_line


class NoOpTracker:
    """No service. The others do the same elsewhere."""

    def __init__(self, run_id: str | None = None):
        self.run_id = run_id  # by which a resumed run goes on in the same place; kept while there is no service

    def log(self, values: dict[str, Any], step: int) -> None:
        """Numbers and sample texts of one step."""

    def close(self) -> None:
        """Everything has been logged."""


class Wandb(NoOpTracker):
    """wandb, online with an account and a network, else offline with a word on how to upload later."""

    def __init__(self, name: str, folder: Path, project: str, config: dict | None, run_id: str | None, step: int):
        import wandb

        options: dict[str, Any] = {"project": project, "name": name, "dir": str(folder), "config": config}
        options |= {"id": run_id, "resume": "allow", "settings": wandb.Settings(init_timeout=30, silent=True)}
        if not os.environ.get("WANDB_MODE") and not _has_wandb_account():
            options["mode"] = "offline"  # else wandb's own settings decide
        try:
            self.run = wandb.init(**options)
        except Exception as error:  # no network, a wrong key, a full project: none of them is worth a training run
            print0(f"wandb: {first_line(error)}")
            options["mode"] = "offline"
            self.run = wandb.init(**options)
        if getattr(self.run, "offline", False):
            where = Path(self.run.dir).parent
            print0(f"wandb: offline, the run lies in {where}; upload it later with: wandb sync {where}")
        self.run_id = self.run.id

    def log(self, values: dict[str, Any], step: int) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()


class Swanlab(NoOpTracker):
    """swanlab, with an account and a network, else in a local folder."""

    def __init__(self, name: str, folder: Path, project: str, config: dict | None, run_id: str | None, step: int):
        import swanlab  # pyright: ignore[reportMissingImports] (optional)

        self.swanlab = swanlab
        mode = "cloud" if os.environ.get("SWANLAB_API_KEY") else "local"
        options = {"experiment_name": name, "config": config, "logdir": str(folder / "swanlog"), "mode": mode}
        again = {"id": run_id, "resume": "allow"} if run_id and mode == "cloud" else {}  # a local run is not continued
        try:
            run = swanlab.init(project=project, **options, **again)
        except Exception as error:  # as for wandb
            print0(f"swanlab: {first_line(error)}; what it gets lies in {options['logdir']}")
            run = swanlab.init(project=project, **options | {"mode": "local"})
        self.run_id = run_id or getattr(run, "id", None)

    def log(self, values: dict[str, Any], step: int) -> None:
        self.swanlab.log({key: value for key, value in values.items() if not isinstance(value, str)}, step=step)

    def close(self) -> None:
        self.swanlab.finish()


class Tensorboard(NoOpTracker):
    def __init__(self, name: str, folder: Path, project: str, config: dict | None, run_id: str | None, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.run_id = run_id
        # What a run that was killed, or an earlier one of this name, has shown of later steps is not shown again.
        self.writer = SummaryWriter(str(folder / "tensorboard" / name), purge_step=step + 1 if step else 0)

    def log(self, values: dict[str, Any], step: int) -> None:
        for key, value in values.items():
            (self.writer.add_text if isinstance(value, str) else self.writer.add_scalar)(key, value, step)

    def close(self) -> None:
        self.writer.close()


SERVICES = {"wandb": Wandb, "swanlab": Swanlab, "tensorboard": Tensorboard}


def open_service(
    service: str, path: Path, project: str, config: dict | None, run_id: str | None, step: int
) -> NoOpTracker:
    """The service by its name; `path` is the log file, beside which local copies lie; `step`s are done already."""
    if service == "none":
        return NoOpTracker(run_id)
    try:
        return SERVICES[service](path.name.removesuffix(".metrics.jsonl"), path.parent, project, config, run_id, step)
    except ImportError:
        raise ValueError(f"--tracker {service}: not installed; pip install {service}, or --tracker none") from None
    except Exception as error:  # a project name it does not take, for one
        raise ValueError(f"--tracker {service}, --wandb_project {project}: {first_line(error)}") from None


def _has_wandb_account() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False
