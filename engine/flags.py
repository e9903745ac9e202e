"""argparse groups every stage shares; each stage shows its own numbers with set_defaults."""

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch

from Config import PRESETS
from engine import optim, runtime, settings, tracker

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data" / "sample"
DATASET = "Harris/pretrainSpongeBob"


def run(main: Callable[[], int | None]) -> None:
    """Run a script's main() and exit with its code; a user's mistake is one line and code 2, not a traceback."""
    if int(os.environ.get("RANK", 0)):
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # one voice; errors are on stderr
    try:
        code = main()
        runtime.finish()
        sys.exit(code)
    except (ValueError, OSError, MemoryError, torch.OutOfMemoryError) as error:
        print(f"error: {error or 'out of memory'}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:  # torch has no class of its own for these two
        advice = {"can't allocate memory": "try a smaller model or --batch_size",
                  "InvalidCxxCompiler": "install one (g++ or clang++) or leave out --compile"}  # fmt: skip
        what_to_do = next((advice[words] for words in advice if words in str(error)), None)
        if what_to_do is None:
            raise
        print(f"error: {str(error).strip().splitlines()[0]}; {what_to_do}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(130)


def parser(doc: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=doc, formatter_class=_Help, allow_abbrev=False)


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str:
        told = action.default is not None and action.default is not False  # 0 is a value
        return super()._get_help_string(action) if told else action.help


def stage_parser(doc: str) -> argparse.ArgumentParser:
    """The flags of every training stage."""
    stage = parser(doc)
    group = stage.add_argument_group("data")
    group.add_argument(
        "--data_path",
        nargs="+",
        help="JSONL files (also .gz) or one finished token cache; default: the stage's file, else the bundled sample",
    )
    group.add_argument(
        "--download",
        action="store_true",
        help=f"fetch the stage's file from ModelScope ({DATASET}) into this folder, if it is not there",
    )
    group.add_argument("--strict_data", action="store_true", help="stop at the first bad row instead of counting it")
    group.add_argument(
        "--val_fraction",
        type=float,
        default=0.01,
        help="share of the rows held out for validation, 64 to 2000 rows (0: none)",
    )
    group.add_argument("--max_seq_len", type=int, help="tokens in a row")
    group.add_argument("--tokenizer_dir", default=str(ROOT / "spongebob_tokenizer"), help="folder with tokenizer.json")
    group.add_argument("--cache_dir", default="cache", help="folder of the token caches")
    group.add_argument("--num_workers", type=int, default=os.cpu_count() or 1, help="tokenising processes")

    group = stage.add_argument_group("length and batch")
    group.add_argument("--epochs", type=int, default=1, help="times each row is read")
    group.add_argument(
        "--max_steps",
        type=int,
        default=0,
        help="optimizer steps instead of epochs; the schedule is planned for them (0: epochs)",
    )
    group.add_argument(
        "--max_minutes",
        type=float,
        default=0,
        help="save and stop after this many minutes of training, exit code 75 (0: no limit)",
    )
    group.add_argument("--batch_size", type=int, help="rows a process computes at once")
    group.add_argument(
        "--accumulation_steps", type=int, default=1, help="micro-batches of one optimizer step (1: no accumulation)"
    )

    group = stage.add_argument_group("optimisation")
    group.add_argument(
        "--optimizer",
        choices=optim.OPTIMIZERS,
        default="adamw",
        help="muon: for the hidden matrices; the rest, and all with adamw, by AdamW",
    )
    group.add_argument("--learning_rate", type=float, help="peak rate")
    group.add_argument(
        "--schedule",
        choices=optim.SCHEDULES,
        default="cosine",
        help="cosine to a tenth, linear to zero, or wsd: constant, then linear to zero",
    )
    group.add_argument(
        "--warmup_iters",
        type=int,
        help="optimizer steps until the peak rate (0: none); default: a tenth of the run, at most 100",
    )
    group.add_argument("--weight_decay", type=float, default=0.1, help="decay of the matrices, times the rate (0: off)")
    group.add_argument(
        "--z_loss", type=float, default=0.0, help="weight of log(Z)^2, which keeps logits small; 1e-4 is usual (0: off)"
    )
    group.add_argument("--grad_clip", type=float, default=1.0, help="largest gradient norm (0: no clipping)")
    group.add_argument("--seed", type=int, default=42, help="of weights, order of rows and dropout")

    group = stage.add_argument_group("log and files")
    group.add_argument("--save_dir", default="results", help="folder of weights, states and logs")
    group.add_argument("--name", help="stem of the output files; default: the stage's")
    group.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="PATH",
        help="continue this stage's newest state, or the one in PATH; a fresh start when there is none yet",
    )
    group.add_argument("--overwrite", action="store_true", help="replace the output files that are there")
    group.add_argument("--log_step", type=int, default=10, help="optimizer steps between log rows")
    group.add_argument(
        "--eval_step", type=int, default=200, help="optimizer steps between validations (0: only first and last)"
    )
    group.add_argument("--save_step", type=int, default=200, help="optimizer steps between saves (0: only the last)")
    group.add_argument("--keep", type=int, default=2, help="newest states that are kept (at least 1)")
    group.add_argument("--use_wandb", action="store_true", help="short for --tracker wandb")
    group.add_argument(
        "--tracker", choices=tracker.TRACKERS, default="none", help="service beside metrics.jsonl and the picture"
    )
    group.add_argument("--wandb_project", default="SelfLLM-Engine", help="project name at that service")

    group = stage.add_argument_group("machine")
    group.add_argument("--device", default="auto", help="auto, cuda, cuda:N, mps or cpu")
    group.add_argument(
        "--dtype", choices=["auto", *runtime.DTYPES], default="auto", help="of matrix products; weights stay float32"
    )
    group.add_argument(
        "--loss_chunk", type=int, default=0, help="positions whose logits are in memory at once (0: all)"
    )
    group.add_argument(
        "--activation_checkpointing",
        action="store_true",
        help="keep only each block's input and compute the rest again in backward: a third slower, far less memory",
    )
    group.add_argument(
        "--compile", action="store_true", help="torch.compile: about a minute at the start, faster steps"
    )
    group.add_argument(
        "--parallel", choices=["ddp", "fsdp"], default="ddp", help="under torchrun: copies of the model, or its pieces"
    )
    group.add_argument("--deterministic", action="store_true", help="the same bits in every run on CUDA, slower")
    return stage


def add_shape(stage: argparse.ArgumentParser) -> None:
    """The shape of a fresh model; later stages read it from the checkpoint they start from."""
    group = stage.add_argument_group("model")
    group.add_argument("--preset", choices=PRESETS, help="a shape by name; the other flags of this group change it")
    group.add_argument("--dim", type=int, default=512, help="width of the residual stream")
    group.add_argument("--n_layers", type=int, default=8, help="blocks")
    group.add_argument("--n_heads", type=int, default=8, help="query heads")
    group.add_argument("--n_kv_heads", type=int, default=2, help="key-value heads")
    group.add_argument(
        "--hidden_dim", type=int, default=None, help="inner width of SwiGLU; default 8/3 x dim, rounded up to 64"
    )
    group.add_argument("--rope_theta", type=float, default=1e6, help="base of the rotary wavelengths")
    group.add_argument(
        "--dropout", type=float, default=0.0, help="share of each block's output dropped in training (0: none)"
    )


def add_parent(stage: argparse.ArgumentParser) -> None:
    """Where a later stage starts from."""
    group = stage.add_argument_group("start")
    group.add_argument("--init_from", help="checkpoint (.pth) to start from; default: the stage before, in --save_dir")
    group.add_argument("--n_heads", type=int, default=None, help="of a checkpoint without .json; default 8")
    group.add_argument("--rope_theta", type=float, default=None, help="of a checkpoint without .json; default 1e6")


def parse(stage: argparse.ArgumentParser, argv: list[str] | None, sample: dict) -> argparse.Namespace:
    """Parse, and settle which data is read. Without the stage's file it is the bundled sample, said in two lines.

    `sample` holds numbers that suit the sample; they replace defaults, never what the user typed: who typed --epochs
    does not want the sample's --max_steps, which would decide the length.
    """
    args = stage.parse_args(argv)
    if getattr(args, "preset", None):
        stage.set_defaults(**PRESETS[args.preset])
        args = stage.parse_args(argv)
    for name, value in vars(args).items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and name != "seed" and value < 0:
            raise ValueError(f"--{name} {value} must not be negative")
    for name in ("batch_size", "accumulation_steps", "max_seq_len", "epochs", "learning_rate", "log_step", "keep"):
        if not getattr(args, name) > 0:
            raise ValueError(f"--{name} {getattr(args, name)} must be more than 0")
    if args.max_minutes and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)):
        raise ValueError("--max_minutes: torchrun would start the stopped run again; give it --max-restarts=0")
    if args.download and args.data_path:
        raise ValueError(f"--download fetches {args.data_file}, but --data_path names what is read: choose one")
    if args.download and not Path(args.data_file).is_file():
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            command = download_command(args.data_file)
            raise ValueError(f"--download: not by several processes at once; before them run {command}")
        download(args.data_file)
    args.on_sample = args.data_path is None and not Path(args.data_file).exists()
    if args.on_sample:
        typed = {word.split("=")[0] for word in (sys.argv[1:] if argv is None else argv)}
        sample = {name: value for name, value in sample.items() if name != "max_steps" or "--epochs" not in typed}
        stage.set_defaults(**sample)
        args = stage.parse_args(argv, argparse.Namespace(on_sample=True))
        changed = " ".join(f"--{name} {getattr(args, name)}" for name in sample)
        print(f"{args.data_file} is not here: training on the bundled sample {SAMPLE / args.data_file} with {changed}")
        print(f"for the full corpus: {download_command(args.data_file)} (or --download)")
    args.data_path = args.data_path or [SAMPLE / args.data_file if args.on_sample else Path(args.data_file)]
    args.on_sample = all(SAMPLE in Path(path).resolve().parents for path in args.data_path)  # named or not
    if args.use_wandb and args.tracker not in ("none", "wandb"):
        raise ValueError(f"--use_wandb means --tracker wandb, but --tracker {args.tracker} was given: choose one")
    args.tracker = "wandb" if args.use_wandb else args.tracker
    return args


def download_command(name: str) -> str:
    return f"modelscope download --dataset {DATASET} {name} --local_dir ."


def download(name: str) -> None:
    """Fetch one file of the corpus with the modelscope package, which resumes and checks sizes and hashes."""
    # Beside the Python that runs: a virtual environment need not be activated.
    places = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    program = shutil.which("modelscope", path=places)
    if program is None:
        raise ValueError("--download needs the modelscope package: pip install modelscope")
    try:
        subprocess.run([program, *download_command(name).split()[1:]], check=True)
    except subprocess.CalledProcessError as error:
        raise ValueError(
            f"modelscope ended with code {error.returncode}; run it again, it goes on where it stopped"
        ) from None
    if not Path(name).is_file():
        raise ValueError(f"{name} is not there after the download")


def select(args: argparse.Namespace, *names: str) -> dict:
    """Some of the flags as keyword arguments."""
    return {name: getattr(args, name) for name in names}


def data(args: argparse.Namespace) -> dict:
    """For stage.open_data."""
    return select(
        args, "data_path", "cache_dir", "num_workers", "strict_data", "max_seq_len", "batch_size",
        "val_fraction", "seed",
    )  # fmt: skip


def training(args: argparse.Namespace, tag_weight: float = 1.0) -> dict:
    """For stage.run: the numbers, the files, and all flags as they are noted in the .json."""
    shown = {
        key: [str(part) for part in value] if isinstance(value, list) else value for key, value in vars(args).items()
    }
    numbers = select(args, *(f.name for f in fields(settings.Training) if f.name != "tag_weight"))
    files = select(args, *(f.name for f in fields(settings.Output)))
    return {
        "training": settings.Training(**numbers, tag_weight=tag_weight),
        "output": settings.Output(**files),
        "flags": shown,
    }


def start(args: argparse.Namespace) -> dict:
    """For stage.load_parent."""
    return select(args, "tokenizer_dir", "on_sample", "max_seq_len", "n_heads", "rope_theta")
