"""Export a checkpoint for other programs, and import theirs.

python export.py --format hf exported                 # results/SFT.pth as a folder for transformers
python export.py --format hf exported --model_mode 2  # results/distill.pth
python export.py --format gguf mine.gguf --dtype q8_0 # one file for llama.cpp, and mine.Modelfile for Ollama
python export.py --format page talk.html              # one web page that contains results/SFT.pth and chats
python export.py --format page talk.html --stages     # every stage in --save_dir, with a slider between them
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from engine import cli
from engine.checkpoint.weights import open_chosen
from engine.console import print0
from engine.export import gguf, hugging_face, page
from engine.export.imported import import_folder
from engine.flags import Args, Flags, check_flags_used, check_path, flag, flag_names, parse
from engine.options import MODES, Checkpoint
from engine.tokenizer import load_tokenizer


def export_model(args: Args, target: Path, write: Callable) -> None:
    """Export the chosen checkpoint.

    Args:
        args: The flags.
        target: File or folder to write.
        write: Called with model, tokenizer folder, target, dtype and content of the .json.
    """
    checkpoint = args.checkpoint
    model, meta = open_chosen(checkpoint, load_tokenizer(checkpoint.tokenizer_dir))
    meta["stage"] = meta.get("stage") or MODES[checkpoint.model_mode]
    write(model, checkpoint.tokenizer_dir, target, args.export.dtype, meta)


def export_page(args: Args, target: Path) -> None:
    """Export the chosen checkpoint, or those of --stages, as one page."""
    checkpoint, flags = args.checkpoint, args.page
    shape = {name: getattr(checkpoint, name) for name in page.SHAPE_FLAGS}
    if flags.stages is None:
        paths, stage = {checkpoint.path.stem: checkpoint.path}, MODES[checkpoint.model_mode]
    else:
        paths, stage = page.find_stages(checkpoint.save_dir, flags.stages), None
    page.write_page(paths, checkpoint.tokenizer_dir, target, flags.weight_dtype, stage, **shape)


@dataclass(frozen=True)
class Format:
    """A value of --format: the writer, the flags that are read next to the checkpoint's, and the help."""

    write: Callable[[Args, Path], None]
    flags: frozenset[str]
    help: str


FORMATS = {
    "hf": Format(partial(export_model, write=hugging_face.to_hf), frozenset({"dtype"}), "folder for transformers"),
    "gguf": Format(partial(export_model, write=gguf.to_gguf), frozenset({"dtype"}), "file for llama.cpp"),
    "page": Format(export_page, frozenset({"weight_dtype", "stages"}), "web page that chats"),
}


@dataclass(frozen=True)
class Export(Flags):
    """export"""

    target: str = flag(
        "", "folder, .gguf, .html or .pth to write", called="target", metavar="TARGET", nargs="?", path="any"
    )
    format: str = flag("", "; ".join(f"{name}: {row.help}" for name, row in FORMATS.items()), choices=tuple(FORMATS))
    dtype: str = flag("float32", "of the exported weights; q8_0: 8 bits, only gguf", choices=tuple(gguf.DTYPES))
    import_hf: str | None = flag(
        None, "folder of a LlamaForCausalLM, or Meta's, that becomes a .pth and its .json", path="folder"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.format) == bool(self.import_hf):
            raise ValueError(f"pass exactly one of --format {{{','.join(FORMATS)}}} and --import_hf")
        if self.format and not self.target:
            raise ValueError(f"--format {self.format}: TARGET is missing, the folder or file to write")
        if self.target:
            check_path("TARGET", Path(self.target), "folder" if self.format == "hf" else "file")


@dataclass(frozen=True)
class Page(Flags):
    """page"""

    weight_dtype: str = flag("int8", "8-bit rows with scales, or float16: twice the size", choices=page.WEIGHT_DTYPES)
    stages: list[str] | None = flag(
        None, "several checkpoints of --save_dir; without names: every stage there", nargs="*", metavar="NAME", type=str
    )


COMMON = {"target", "format", *flag_names(Checkpoint)}
READS = {f"--format {name}": COMMON | row.flags for name, row in FORMATS.items()} | {
    "--format page --stages": COMMON - {"model_mode", "long", "ckpt"} | FORMATS["page"].flags,
    "--import_hf": {"import_hf", "target", "save_dir", "max_seq_len"},
}


def parse_args(argv: list[str] | None = None) -> Args:
    args = parse(__doc__, argv, Export, Page, Checkpoint)
    mode = f"--format {args.export.format}" if args.export.format else "--import_hf"
    if mode == "--format page" and args.page.stages is not None:
        mode += " --stages"
    check_flags_used(args.explicit, mode, READS)
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    target = Path(args.export.target)
    if args.export.format:
        FORMATS[args.export.format].write(args, target)
    else:
        folder = Path(args.export.import_hf)
        if not args.export.target:
            target = Path(args.checkpoint.save_dir) / f"{folder.resolve().name}.pth"
        import_folder(folder, target, args.checkpoint.max_seq_len)
    print0(f"wrote {target}")


if __name__ == "__main__":
    cli.run(main, output_is_result=True)
