"""Tracking services in addition to the log file: wandb, swanlab and tensorboard behind one interface."""

import os
from pathlib import Path
from typing import Any

from engine.console import print0
from engine.files import first_line


class NoOpTracker:
    """No service, and the interface of those that follow."""

    def __init__(self, run_id: str | None = None):
        self.run_id = run_id  # of the run at the service that a resumed run continues; kept while there is none

    def log(self, values: dict[str, Any], step: int) -> None:
        """Log numbers and sample texts of one step."""

    def close(self) -> None:
        """End the run at the service."""


class Wandb(NoOpTracker):
    """wandb: online with an account and a network, else offline with a hint on how to upload later."""

    def __init__(self, name: str, folder: Path, project: str, config: dict | None, run_id: str | None, step: int):
        import wandb

        settings = wandb.Settings(init_timeout=30, silent=True)
        options: dict[str, Any] = {"project": project, "name": name, "dir": str(folder), "config": config}
        options |= {"id": run_id, "resume": "allow", "settings": settings}
        try:
            # wandb knows where an account can be: environment, token file, its settings, the netrc entry of its server.
            # Silent and without `verify` it sends nothing, and without `prompt` it waits for no key.
            if wandb.setup(settings).settings.mode == "online" and not wandb.login(prompt=False, verify=False):
                options["mode"] = "offline"
            self.run = wandb.init(**options)
        except Exception as error:  # no network, a wrong key, a full project: the run must not depend on them
            print0(f"wandb: {first_line(error)}")
            options["mode"] = "offline"
            self.run = wandb.init(**options)
        if getattr(self.run, "offline", False):
            path = Path(self.run.dir).parent
            print0(f"wandb: offline, the run is in {path}; upload it later with: wandb sync {path}")
        self.run_id = self.run.id

    def log(self, values: dict[str, Any], step: int) -> None:
        """Log numbers and sample texts of one step."""
        self.run.log(values, step=step)

    def close(self) -> None:
        """End the run at the service."""
        self.run.finish()


class Swanlab(NoOpTracker):
    """swanlab: with an account and a network, else in a local folder."""

    def __init__(self, name: str, folder: Path, project: str, config: dict | None, run_id: str | None, step: int):
        import swanlab  # pyright: ignore[reportMissingImports] (optional)

        self.swanlab = swanlab
        mode = "cloud" if os.environ.get("SWANLAB_API_KEY") else "local"
        options = {"experiment_name": name, "config": config, "logdir": str(folder / "swanlog"), "mode": mode}
        # A local run cannot be continued.
        resume = {"id": run_id, "resume": "allow"} if run_id and mode == "cloud" else {}
        try:
            run = swanlab.init(project=project, **options, **resume)
        except Exception as error:  # as for wandb
            print0(f"swanlab: {first_line(error)}; the run is in {options['logdir']}")
            run = swanlab.init(project=project, **options | {"mode": "local"})
        self.run_id = run_id or getattr(run, "id", None)

    def log(self, values: dict[str, Any], step: int) -> None:
        """Log the numbers of one step; swanlab receives no texts."""
        self.swanlab.log({key: value for key, value in values.items() if not isinstance(value, str)}, step=step)

    def close(self) -> None:
        """End the run at the service."""
        self.swanlab.finish()


class Tensorboard(NoOpTracker):
    """tensorboard: files next to the log, without the steps that a resumed run repeats."""

    def __init__(self, name: str, folder: Path, project: str, config: dict | None, run_id: str | None, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.run_id = run_id
        # Hide later steps of a killed run, or of an earlier run of this name.
        self.writer = SummaryWriter(str(folder / "tensorboard" / name), purge_step=step + 1 if step else 0)

    def log(self, values: dict[str, Any], step: int) -> None:
        """Log numbers and sample texts of one step."""
        for key, value in values.items():
            if isinstance(value, str):
                self.writer.add_text(key, value, step)
            else:
                self.writer.add_scalar(key, value, step)

    def close(self) -> None:
        """Close the files."""
        self.writer.close()


SERVICES = {"wandb": Wandb, "swanlab": Swanlab, "tensorboard": Tensorboard}


def open_service(
    service: str, path: Path, project: str, config: dict | None, run_id: str | None, step: int
) -> NoOpTracker:
    """Open a tracking service.

    Args:
        service: Its name, or "none".
        path: The log file; local copies of a service are next to it.
        project: Name of the project at the service.
        config: Flags of the run.
        run_id: Id of the run to continue at the service.
        step: Steps that are done.
    Raises:
        ValueError: The service is not installed, or refuses the project.
    """
    if service == "none":
        return NoOpTracker(run_id)
    try:
        return SERVICES[service](path.name.removesuffix(".metrics.jsonl"), path.parent, project, config, run_id, step)
    except ImportError:
        raise ValueError(f"--tracker {service}: not installed; pip install {service}, or --tracker none") from None
    except Exception as error:  # for one, a project name that the service does not accept
        raise ValueError(f"--tracker {service}, --wandb_project {project}: {first_line(error)}") from None
