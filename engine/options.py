"""What can be chosen: every flag that scripts share, once, with its default, help and bounds; the road of stages."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.console import print0
from engine.files import file_name, resolve_download_path
from engine.flags import ROOT, Args, Flags, build_groups, flag, parse_explicit, shown

SAMPLE = ROOT / "data" / "sample"
DATASET = "Harris/pretrainSpongeBob"
DOWNLOAD = f"modelscope download --dataset {DATASET} {{}} --local_dir ."

ROAD = {  # each stage's checkpoint and the command that makes it, in order
    "pretrain": "python pretrain.py",
    "SFT": "python SFT.py",
    "SFT_long": "python SFT.py --long",
    "distill": "python distill.py",
    "distill_long": "python distill.py --long",
}
MODES = ("pretrain", "SFT", "distill")  # --model_mode 0, 1, 2
ORIGINAL_NAMES = {"SFT_long": "SFT_1024"}  # what the original scripts call a checkpoint

DTYPES = ("float32", "bfloat16", "float16")
OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("cosine", "linear", "wsd")
TRACKERS = ("none", "wandb", "swanlab", "tensorboard")


@dataclass(frozen=True)
class Data(Flags):
    """data"""

    data_path: list[str] | None = flag(
        None, "JSONL files (also .gz) or a token cache; default: the stage's file, else the sample", nargs="+", type=str
    )
    download: bool = flag(False, f"fetch the stage's file from ModelScope ({DATASET}), if it is not here")
    strict_data: bool = flag(False, "stop at the first bad row instead of counting it")
    val_fraction: float = flag(0.01, "share of the rows held out for validation, 64 to 2000 rows (0: none)", ge=0)
    max_seq_len: int = flag(512, "tokens in a row", gt=0)
    rope_scaling: float | None = flag(None, "Llama 3.1's stretching of rotary positions, for longer rows: 2", gt=1)
    tokenizer_dir: Path = flag(ROOT / "spongebob_tokenizer", "folder with tokenizer.json")
    cache_dir: str = flag("cache", "folder of the token caches")
    num_workers: int = flag(os.cpu_count() or 1, "tokenising processes", ge=0)
    data_file: str = ""  # the stage's own
    uses_sample: bool = False  # to the bundled sample: neither --data_path nor the stage's file is there

    @property
    def paths(self) -> list[Path]:
        own = [(SAMPLE if self.uses_sample else Path()) / self.data_file]
        return [resolve_download_path(Path(path)) for path in self.data_path or own]

    @property
    def on_sample(self) -> bool:
        return all(SAMPLE in path.resolve().parents for path in self.paths)


@dataclass(frozen=True)
class RunLength(Flags):
    """length and batch"""

    epochs: int = flag(1, "times each row is read", gt=0)
    max_steps: int = flag(0, "optimizer steps instead of epochs; the schedule is planned for them (0: epochs)", ge=0)
    max_minutes: float = flag(0.0, "save and stop after so many minutes, exit code 75 (0: no limit)", ge=0)
    batch_size: int = flag(32, "rows a process computes at once", gt=0)
    accumulation_steps: int = flag(1, "micro-batches of one optimizer step (1: no accumulation)", gt=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_minutes and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)):
            raise ValueError("--max_minutes: torchrun would start the stopped run again; give it --max-restarts=0")


@dataclass(frozen=True)
class Training(RunLength):
    """optimisation"""

    optimizer: str = flag("adamw", "muon: for the hidden matrices; all the rest by AdamW", choices=OPTIMIZERS)
    learning_rate: float = flag(1e-3, "peak rate", gt=0)
    schedule: str = flag("cosine", "cosine to a tenth, linear to 0, or wsd: flat, then linear to 0", choices=SCHEDULES)
    warmup_iters: int | None = flag(None, "steps of warm-up (0: none); default: a tenth, at most 100", ge=0)
    weight_decay: float = flag(0.1, "decay of the matrices, times the rate (0: off)", ge=0)
    z_loss: float = flag(0.0, "weight of log(Z)^2, which keeps logits small; 1e-4 is usual (0: off)", ge=0)
    grad_clip: float = flag(1.0, "largest gradient norm (0: no clipping)", ge=0)
    seed: int = flag(42, "random seed of weights, row order and dropout", ge=0)


@dataclass(frozen=True)
class Output(Flags):
    """log and files"""

    save_dir: str = flag("results", "folder of weights, states and logs")
    name: str = flag("", "stem of the output files", type=file_name)
    resume: str | None = flag(
        None, "continue the newest state, or the one in PATH (none yet: start)", nargs="?", const="auto", metavar="PATH"
    )
    overwrite: bool = flag(False, "replace the output files that are there")
    log_step: int = flag(10, "optimizer steps between log rows", gt=0)
    eval_step: int = flag(200, "optimizer steps between validations (0: only first and last)", ge=0)
    save_step: int = flag(200, "optimizer steps between saves (0: only the last)", ge=0)
    keep: int = flag(2, "newest states that are kept", ge=1)
    use_wandb: bool = flag(False, "short for --tracker wandb")
    tracker: str = flag("none", "service beside metrics.jsonl and the picture", choices=TRACKERS)
    wandb_project: str = flag("SelfLLM-Engine", "project name at wandb or swanlab")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resume and self.overwrite:
            raise ValueError("--resume continues what is there, --overwrite starts again: choose one")
        if self.use_wandb and self.tracker not in ("none", "wandb"):
            raise ValueError(f"--use_wandb means --tracker wandb, but --tracker {self.tracker} was given: choose one")

    @property
    def service(self) -> str:
        return "wandb" if self.use_wandb else self.tracker

    @property
    def weights(self) -> Path:
        return Path(self.save_dir) / f"{self.name}.pth"

    @property
    def states(self) -> Path:
        return Path(self.save_dir) / f"{self.name}.state"

    @property
    def metrics(self) -> Path:
        return Path(self.save_dir) / f"{self.name}.metrics.jsonl"


@dataclass(frozen=True)
class Device(Flags):
    """device"""

    device: str = flag("auto", "auto, cuda, cuda:N, mps or cpu")


@dataclass(frozen=True)
class Precision(Device):
    """device"""

    dtype: str = flag("auto", "dtype of matrix products; weights stay float32", choices=("auto", *DTYPES))


@dataclass(frozen=True)
class Performance(Precision):
    """memory and speed"""

    loss_chunk: int = flag(0, "positions whose logits are in memory at once (0: all)", ge=0)
    activation_checkpointing: bool = flag(False, "compute blocks again in backward: a third slower, far less memory")
    compile: bool | None = flag(None, "torch.compile: about a minute, then faster steps; default: long runs on CUDA")
    parallel: str = flag("ddp", "under torchrun: copies of the model, or its pieces", choices=("ddp", "fsdp"))
    bf16_gradients: bool = flag(False, "DDP sends gradients in bf16: half the bytes, for GPUs without NVLink")
    deterministic: bool = flag(False, "the same bits in every run on CUDA, slower")


@dataclass(frozen=True)
class ShapeOverrides(Flags):
    """only for a checkpoint without .json"""

    n_heads: int | None = flag(None, "query heads; default: 8", gt=0)
    rope_theta: float | None = flag(None, "base of the rotary wavelengths; default: 1e6", gt=0)


@dataclass(frozen=True)
class InitFrom(ShapeOverrides):
    """start"""

    init_from: str | None = flag(None, "checkpoint (.pth) to start from; default: the stage before, in --save_dir")
    long: bool = flag(False, "the long-context road, rows of 1,024 tokens: SFT -> SFT_long -> distill_long")
    parent: str = ""  # the stage before


@dataclass(frozen=True)
class Checkpoint(ShapeOverrides):
    """checkpoint"""

    model_mode: int = flag(1, "0 pretrain, 1 SFT, 2 distill", choices=range(len(MODES)))
    long: bool = flag(False, "the long-context sibling of mode 1 or 2")
    ckpt: str | None = flag(None, "any .pth; its .json says whether it chats or continues, else --model_mode does")
    save_dir: str = flag("results", "folder of the checkpoints")
    tokenizer_dir: Path = flag(ROOT / "spongebob_tokenizer", "folder with tokenizer.json")
    max_seq_len: int | None = flag(None, "tokens of context, question and answer; default: the model's", gt=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.long and (self.ckpt or self.model_mode == 0):
            raise ValueError("--long is for --model_mode 1 and 2, without --ckpt")

    @property
    def path(self) -> Path:
        """The weights that are meant."""
        name = MODES[self.model_mode] + ("_long" if self.long else "")
        return Path(self.ckpt) if self.ckpt else weights_of(self.save_dir, name)

    def chats(self, meta: dict) -> bool:
        """Return whether a checkpoint chats rather than continues a text: its .json says so, else --model_mode."""
        return (meta.get("stage") or MODES[self.model_mode]) != "pretrain"


def weights_of(save_dir: str, name: str) -> Path:
    """A stage's checkpoint, also under the name that the original scripts give it."""
    path = Path(save_dir) / f"{name}.pth"
    original = path.with_name(f"{ORIGINAL_NAMES.get(name, name)}.pth")
    return original if not path.exists() and original.exists() else path


def parse_args(
    doc: str | None,
    argv: Sequence[str] | None,
    defaults: dict[str, Any],
    *,
    on_sample: dict[str, Any],
    groups: Sequence[type[Flags]],
    long: dict[str, Any] | None = None,
    presets: dict[str, dict[str, Any]] | None = None,
) -> Args:
    """A training stage's choices: `numbers` are its defaults; --long changes `long` of them, --preset one of `presets`.
    Without the stage's file it trains on the bundled sample, with the numbers `on_sample` that suit it, and says so.
    """
    if long and "--long" in (sys.argv[1:] if argv is None else argv):
        defaults = defaults | long
    groups = [Data, Training, Output, Performance, *groups]
    explicit = parse_explicit(doc, argv, groups, defaults)
    # Who typed --epochs does not want the sample's max_steps, which would decide the length.
    suited = {name: value for name, value in on_sample.items() if name != "max_steps" or "epochs" not in explicit}
    uses_sample = not explicit.keys() & {"data_path", "download"} and not Path(defaults["data_file"]).exists()
    defaults = defaults | (presets or {}).get(explicit.get("preset", ""), {}) | (suited if uses_sample else {})
    args = build_groups(groups, defaults | {"uses_sample": uses_sample}, explicit)
    if uses_sample:
        file, changed = defaults["data_file"], " ".join(f"--{name} {args.values()[name]}" for name in suited)
        print0(f"{file} is not here: training on the bundled sample {shown(SAMPLE / file)} with {changed}")
        print0(f"for the full corpus: {DOWNLOAD.format(file)} (or --download)")
    _refuse_unread(args)
    return args


def _refuse_unread(args: Args) -> None:
    """ValueError for a typed flag that this run would not read."""
    cached = [(path / "meta.json").is_file() for path in args.data.paths] == [True]
    unread = [
        ("download", args.data.data_path, "--data_path names what is read"),
        ("epochs", args.training.max_steps, "--max_steps is the length"),
        ("parallel bf16_gradients", int(os.environ.get("WORLD_SIZE", 1)) == 1, "it is for several torchrun processes"),
        ("bf16_gradients", args.performance.parallel == "fsdp", "it is for DDP"),
        ("wandb_project", args.output.service not in ("wandb", "swanlab"), "it is for --tracker wandb and swanlab"),
        ("cache_dir num_workers", cached, "--data_path is a finished cache"),
    ]
    for names, true, reason in unread:
        if true and (explicit := args.explicit & set(names.split())):
            raise ValueError(f"--{min(explicit)} would change nothing: {reason}; leave it out")
