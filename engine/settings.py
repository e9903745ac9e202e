"""What a user chose, as the loop and the files around it need it. flags.py makes these from the command line."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Training:
    """The numbers that decide what a run computes. Units and off-values: `python pretrain.py --help`."""

    batch_size: int
    accumulation_steps: int
    learning_rate: float
    epochs: int = 1
    max_steps: int = 0
    max_minutes: float = 0
    schedule: str = "cosine"
    warmup_iters: int | None = None  # None: optim.usual_warmup
    optimizer: str = "adamw"
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    z_loss: float = 0.0
    seed: int = 42
    tag_weight: float = 1.0
    loss_chunk: int = 0
    activation_checkpointing: bool = False
    compile: bool = False
    parallel: str = "ddp"


@dataclass(frozen=True)
class Output:
    """What a run leaves behind, and what of an earlier run it continues or replaces."""

    name: str
    save_dir: str = "results"
    resume: str | None = None  # None, "auto" or a path
    overwrite: bool = False
    keep: int = 2  # states
    log_step: int = 10
    eval_step: int = 200
    save_step: int = 200
    tracker: str = "none"
    wandb_project: str = "SelfLLM-Engine"
    on_sample: bool = False

    @property
    def weights(self) -> Path:
        return Path(self.save_dir) / f"{self.name}.pth"

    @property
    def states(self) -> Path:
        return Path(self.save_dir) / f"{self.name}.state"

    @property
    def metrics(self) -> Path:
        return Path(self.save_dir) / f"{self.name}.metrics.jsonl"
