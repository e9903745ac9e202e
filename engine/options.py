"""Every flag that scripts share, once, with its default, help and bounds; the order of the stages."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from engine.console import print0
from engine.files import file_name, resolve_download_path
from engine.flags import ROOT, Args, Flags, arguments_of, build_groups, flag, parse_explicit, shown

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

free_flag = partial(flag, free=True)  # a resumed run may have another value


@dataclass(frozen=True)
class Data(Flags):
    """data"""

    data_path: list[str] | None = flag(
        None,
        "JSONL files (also .gz) or a token cache; default: the stage's file, else the sample",
        nargs="+",
        type=str,
        bound_by="data",
        path="data",
    )
    data_epochs: list[float] | None = flag(
        None,
        "times that an epoch reads each file, as 8 0.3, or all of them; files are then packed apart, and a fraction "
        "reads other rows in each epoch; default: once, packed together",
        nargs="+",
        type=float,
        gt=0,
    )
    download: bool = free_flag(
        False, f"fetch the stage's file from ModelScope ({DATASET}), if it is missing or damaged"
    )
    strict_data: bool = free_flag(False, "stop at the first bad row instead of counting it")
    allow_dropped: bool = free_flag(
        False, "train where most rows of a file are left out, as empty or with answers that are called bad"
    )
    val_fraction: float = flag(
        0.01, "share of the rows held out for validation, 64 to 2000 rows (0: none)", ge=0, bound_by="held_out"
    )
    max_seq_len: int = flag(512, "tokens in a row", gt=0, bound_by="row_len")
    rope_scaling: float | None = flag(
        None, "Llama 3.1's stretching of rotary positions, for longer rows: 2", gt=1, bound_by="config"
    )
    tokenizer_dir: Path = flag(
        ROOT / "spongebob_tokenizer", "folder with tokenizer.json", bound_by="tokenizer", path="folder"
    )
    cache_dir: str = free_flag("cache", "folder of the token caches", path="folder")
    num_workers: int = free_flag(os.cpu_count() or 1, "tokenizing processes", ge=0)
    data_file: str = ""  # the stage's own
    uses_sample: bool = False  # the bundled sample, as neither --data_path nor the stage's file is there

    @property
    def paths(self) -> list[Path]:
        """The files that are read."""
        default = [(SAMPLE if self.uses_sample else Path()) / self.data_file]
        return [resolve_download_path(Path(path)) for path in self.data_path or default]

    @property
    def on_sample(self) -> bool:
        """True if all of them are the bundled sample's."""
        return all(SAMPLE in path.resolve().parents for path in self.paths)


@dataclass(frozen=True)
class RunLength(Flags):
    """length and batch"""

    epochs: int = flag(1, "times each row is read", gt=0, bound_by="steps")
    max_steps: int = flag(
        0, "optimizer steps instead of epochs; the schedule is planned for them (0: epochs)", ge=0, bound_by="steps"
    )
    max_minutes: float = free_flag(0.0, "save and stop after so many minutes, exit code 75 (0: no limit)", ge=0)
    batch_size: int = flag(32, "rows a process computes at once", gt=0, bound_by="rows_per_step")
    accumulation_steps: int = flag(
        1, "micro-batches of one optimizer step (1: no accumulation)", gt=0, bound_by="rows_per_step"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_minutes and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)):
            raise ValueError("--max_minutes: torchrun would start the stopped run again; give it --max-restarts=0")


@dataclass(frozen=True)
class Training(RunLength):
    """optimization"""

    optimizer: str = flag("adamw", "muon: for the hidden matrices; all the rest by AdamW", choices=OPTIMIZERS)
    learning_rate: float = flag(1e-3, "peak rate", gt=0)
    schedule: str = flag("cosine", "cosine to a tenth, linear to 0, or wsd: flat, then linear to 0", choices=SCHEDULES)
    warmup_iters: int | None = flag(
        None, "steps of warm-up (0: none); default: a tenth, at most 100", ge=0, bound_by="warmup_iters"
    )
    weight_decay: float = flag(0.1, "decay of the matrices, times the rate (0: off)", ge=0)
    z_loss: float = flag(0.0, "weight of log(Z)^2, which keeps logits small; 1e-4 is usual (0: off)", ge=0)
    grad_clip: float = flag(1.0, "gradient norm limit (0: no clipping)", ge=0)
    seed: int = flag(42, "random seed of weights, row order and dropout", ge=0)
    warmup_parts: int = 10  # by default the first of so many parts of the steps is warm-up


@dataclass(frozen=True)
class Output(Flags):
    """log and files"""

    save_dir: str = free_flag("results", "folder of weights, states and logs", path="folder")
    name: str = free_flag("", "stem of the output files", type=file_name)
    resume: str | None = free_flag(
        None,
        "continue the newest state, or the one in PATH (none yet: start)",
        nargs="?",
        const="auto",
        metavar="PATH",
        path="any",
    )
    overwrite: bool = free_flag(False, "replace the output files that are there")
    log_step: int = free_flag(10, "optimizer steps between log rows", gt=0)
    eval_step: int = free_flag(200, "optimizer steps between validations (0: only first and last)", ge=0)
    save_step: int = free_flag(200, "optimizer steps between saves (0: only the last)", ge=0)
    keep: int = free_flag(2, "newest states that are kept", ge=1)
    use_wandb: bool = free_flag(False, "short for --tracker wandb")
    tracker: str = free_flag("none", "service that gets the log, too", choices=TRACKERS)
    wandb_project: str = free_flag("SelfLLM-Engine", "project name at wandb or swanlab")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resume and self.overwrite:
            raise ValueError("--resume continues what is there, --overwrite starts again: choose one")
        if self.use_wandb and self.tracker not in ("none", "wandb"):
            raise ValueError(f"--use_wandb means --tracker wandb, but --tracker {self.tracker} was given: choose one")

    @property
    def service(self) -> str:
        """The tracking service."""
        return "wandb" if self.use_wandb else self.tracker

    @property
    def weights(self) -> Path:
        """The checkpoint."""
        return Path(self.save_dir) / f"{self.name}.pth"

    @property
    def states(self) -> Path:
        """The folder of training states."""
        return Path(self.save_dir) / f"{self.name}.state"

    @property
    def rows(self) -> Path:
        """The hashes of the rows that the checkpoint was trained on."""
        return Path(self.save_dir) / f"{self.name}.rows.npy"

    @property
    def metrics(self) -> Path:
        """The log."""
        return Path(self.save_dir) / f"{self.name}.metrics.jsonl"

    @property
    def plot(self) -> Path:
        """The plotted losses."""
        return Path(self.save_dir) / f"{self.name}.png"


@dataclass(frozen=True)
class Device(Flags):
    """device"""

    device: str = free_flag("auto", "auto, cuda, cuda:N, mps or cpu")


@dataclass(frozen=True)
class Precision(Device):
    """precision"""

    dtype: str = flag(
        "auto", "dtype of matrix products; weights stay float32", choices=("auto", *DTYPES), bound_by="dtype"
    )


@dataclass(frozen=True)
class Performance(Precision):
    """memory and speed"""

    loss_chunk: int = free_flag(0, "positions whose logits are in memory at once (0: all)", ge=0)
    activation_checkpointing: bool = free_flag(
        False, "compute blocks again in backward: a third slower, far less memory"
    )
    compile: bool | None = free_flag(
        None, "torch.compile: about a minute, then faster steps; default: long runs on CUDA"
    )
    parallel: str = free_flag("ddp", "under torchrun: copies of the model, or its pieces", choices=("ddp", "fsdp"))
    bf16_gradients: bool = free_flag(False, "DDP sends gradients in bf16: half the bytes, for GPUs without NVLink")
    deterministic: bool = free_flag(False, "the same bits in every run on CUDA, slower")


@dataclass(frozen=True)
class ShapeOverrides(Flags):
    """only for a checkpoint without .json"""

    n_heads: int | None = flag(None, "query heads; default: 8", gt=0, bound_by="config")
    rope_theta: float | None = flag(None, "base of the rotary wavelengths; default: 1e6", gt=0, bound_by="config")


@dataclass(frozen=True)
class InitFrom(ShapeOverrides):
    """start"""

    init_from: str | None = flag(
        None,
        "checkpoint (.pth) to start from; default: the stage before, in --save_dir",
        bound_by="parent",
        path="file",
    )
    long: bool = flag(
        False, "the long-context road, rows of 1,024 tokens: SFT -> SFT_long -> distill_long", bound_by="parent"
    )
    parent_stage: str = ""  # the stage before


@dataclass(frozen=True)
class Checkpoint(ShapeOverrides):
    """checkpoint"""

    model_mode: int = flag(1, "0 pretrain, 1 SFT, 2 distill", choices=range(len(MODES)))
    long: bool = flag(False, "the long-context sibling of mode 1 or 2")
    ckpt: str | None = flag(
        None, "any .pth; its .json says whether it chats or continues, else --model_mode does", path="file"
    )
    save_dir: str = flag("results", "folder of the checkpoints", path="folder")
    tokenizer_dir: Path = flag(ROOT / "spongebob_tokenizer", "folder with tokenizer.json", path="folder")
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
    """Return a stage's checkpoint, also under the name that the original scripts give it."""
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
    on_init_from: dict[str, Any] | None = None,
    presets: dict[str, dict[str, Any]] | None = None,
) -> Args:
    """Parse the command line of a training stage.

    Without the stage's file it trains on the bundled sample, and says so.

    Args:
        doc: Description in --help.
        argv: Command line; None: that of the process.
        defaults: {flag: default} of the stage.
        on_sample: Defaults that suit the bundled sample, taken if the stage trains on it.
        groups: Flags of the stage alone.
        long: Defaults that --long changes.
        on_init_from: Defaults that suit --init_from, taken if it is typed.
        presets: {name: defaults} for --preset.
    Raises:
        ValueError: A value that cannot be, or a flag that this run would not read.
    """
    argv = arguments_of(argv)
    if long and "--long" in argv:
        defaults = defaults | long
    groups = [Data, Training, Output, Performance, *groups]
    explicit = parse_explicit(doc, argv, groups, defaults)
    uses_sample = not explicit.keys() & {"data_path", "download"} and not Path(defaults["data_file"]).exists()
    defaults = defaults | (presets or {}).get(explicit.get("preset", ""), {})
    if on_init_from and "init_from" in explicit:
        defaults = defaults | on_init_from
    if uses_sample:
        if "epochs" in explicit:  # an explicit --epochs takes precedence over the sample's default max_steps
            on_sample = {name: value for name, value in on_sample.items() if name != "max_steps"}
        defaults = defaults | on_sample
    args = build_groups(groups, defaults | {"uses_sample": uses_sample}, explicit)
    if uses_sample:
        file, values = defaults["data_file"], args.values()
        sample_flags = " ".join(f"--{name} {values[name]}" for name in on_sample)
        print0(f"{file} is not here: training on the bundled sample {shown(SAMPLE / file)} with {sample_flags}")
        print0(f"for the full corpus: {DOWNLOAD.format(file)} (or --download)")
    _check_flags_used(args)
    return args


def _check_flags_used(args: Args) -> None:
    """Refuse a typed flag that this run would not read, and numbers for other files than it reads."""
    paths, numbers = args.data.paths, args.data.data_epochs
    if numbers and len(numbers) not in (1, len(paths)):
        raise ValueError(f"--data_epochs {numbers} for {len(paths)} files: give a number for each, or one for all")
    cached = [(path / "meta.json").is_file() for path in paths] == [True]
    if numbers and cached:
        raise ValueError(f"--data_epochs: {paths[0]} is a finished cache; give the JSONL files instead")
    continues = args.values().get("init_from")
    unused = [
        ("download", args.data.data_path, "--data_path names what is read"),
        ("epochs", args.training.max_steps, "--max_steps is the length"),
        ("parallel bf16_gradients", int(os.environ.get("WORLD_SIZE", 1)) == 1, "it is for several torchrun processes"),
        ("bf16_gradients", args.performance.parallel == "fsdp", "it is for DDP"),
        ("wandb_project", args.output.service not in ("wandb", "swanlab"), "it is for --tracker wandb and swanlab"),
        ("cache_dir num_workers", cached, "--data_path is a finished cache"),
        ("preset dim n_layers n_kv_heads hidden_dim dropout", continues, "the checkpoint of --init_from has its shape"),
    ]
    for names, is_unused, reason in unused:
        typed = args.explicit & set(names.split())
        if is_unused and typed:
            raise ValueError(f"--{min(typed)} would change nothing: {reason}; leave it out")
