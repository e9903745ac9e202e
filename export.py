"""A checkpoint for other programs, and theirs as one of ours.

python export.py --format hf exported                 # results/SFT.pth as a folder for transformers
python export.py --format hf exported --model_mode 2  # results/distill.pth
python export.py --format gguf mine.gguf --dtype q8_0 # one file for llama.cpp, and mine.Modelfile for Ollama
python export.py --format page talk.html              # one web page that holds results/SFT.pth and talks
python export.py --format page talk.html --stages     # every stage in --save_dir, with a slider between them
"""

from dataclasses import dataclass
from pathlib import Path

from engine import cli
from engine.checkpoint.weights import open_chosen
from engine.console import print0
from engine.export import gguf, hugging_face
from engine.export import page as chat_page
from engine.export.imported import import_folder
from engine.flags import Args, Flags, check_flags_used, flag, flag_names, parse
from engine.options import MODES, ROAD, Checkpoint, weights_of
from engine.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Export(Flags):
    """export"""

    target: str = flag("", "folder, .gguf, .html or .pth to write", called="target", metavar="TARGET", nargs="?")
    format: str = flag(
        "", "hf: for transformers; gguf: for llama.cpp; page: a web page", choices=("hf", "gguf", "page")
    )
    dtype: str = flag("float32", "of the exported weights; q8_0: 8 bits, only gguf", choices=tuple(gguf.DTYPES))
    import_hf: str | None = flag(None, "folder of a LlamaForCausalLM, or Meta's, that becomes a .pth and its .json")

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.format) == bool(self.import_hf):
            raise ValueError("--format hf (for transformers), gguf (llama.cpp), page (a browser), or --import_hf: one")
        if self.format and not self.target:
            raise ValueError(f"--format {self.format}: say where; TARGET is the folder or file to write")


@dataclass(frozen=True)
class Page(Flags):
    """page"""

    weight_dtype: str = flag("int8", "8-bit rows with scales, or float16: twice the size", choices=chat_page.WEIGHTS)
    stages: list[str] | None = flag(
        None, "several checkpoints of --save_dir; without names: every stage there", nargs="*", metavar="NAME", type=str
    )


COMMON = {"target", "format", *flag_names(Checkpoint)}
ONE = {"model_mode", "long", "ckpt"}  # which checkpoint is meant
READS = {  # the flags of each way
    **dict.fromkeys(("--format hf", "--format gguf"), {*COMMON, "dtype"}),
    "--format page": {*COMMON, "weight_dtype", "stages"},
    "--format page --stages": {*COMMON, "weight_dtype", "stages"} - ONE,
    "--import_hf": {"import_hf", "target", "save_dir", "max_seq_len"},
}


def checkpoints(args: Args) -> dict[str, Path]:
    """What goes on the page: {name: .pth}."""
    if args.page.stages is None:
        return {args.checkpoint.path.stem: args.checkpoint.path}
    folder = Path(args.checkpoint.save_dir)
    found = {name: weights_of(args.checkpoint.save_dir, name) for name in args.page.stages or ROAD}
    if not args.page.stages:
        found = {name: path for name, path in found.items() if path.is_file()}
    if not found:
        raise ValueError(f"{folder}: no stage's checkpoint there; train one with: {ROAD['pretrain']}")
    return found


def main(argv: list[str] | None = None) -> None:
    args = parse(__doc__, argv, Export, Page, Checkpoint)
    export, checkpoint, several = args.export, args.checkpoint, args.page.stages is not None
    page, target = export.format == "page", Path(export.target)
    way = f"--format {export.format}{' --stages' if page and several else ''}" if export.format else "--import_hf"
    check_flags_used(args.explicit, way, READS)
    if export.import_hf:
        target = target if export.target else Path(checkpoint.save_dir) / f"{Path(export.import_hf).resolve().name}.pth"
        import_folder(Path(export.import_hf), target, checkpoint.max_seq_len)
    elif page:
        shape = {name: getattr(checkpoint, name) for name in ("max_seq_len", "n_heads", "rope_theta")}
        stage = None if several else MODES[checkpoint.model_mode]
        found = checkpoints(args)
        chat_page.write_page(found, checkpoint.tokenizer_dir, target, args.page.weight_dtype, stage, **shape)
    else:
        model, meta = open_chosen(checkpoint, load_tokenizer(checkpoint.tokenizer_dir))
        meta["stage"] = meta.get("stage") or MODES[checkpoint.model_mode]
        write = {"hf": hugging_face.to_hf, "gguf": gguf.to_gguf}[export.format]
        write(model, checkpoint.tokenizer_dir, target, export.dtype, meta)
    print0(f"wrote {target}")


if __name__ == "__main__":
    cli.run(main)
