"""A checkpoint for other programs.

python export.py --format hf exported                 # results/SFT.pth as a folder for transformers
python export.py --format hf exported --model_mode 2  # results/distill.pth
python export.py --format gguf mine.gguf --dtype q8_0 # one file for llama.cpp, and mine.Modelfile for Ollama
python export.py --format page talk.html              # one web page that holds results/SFT.pth and talks
python export.py --format page talk.html --stages     # every stage in --save_dir, with a slider between them
"""

from dataclasses import dataclass
from pathlib import Path

from dataset import load_tokenizer
from engine import cli
from engine.checkpoint import gguf, hugging_face
from engine.checkpoint.weights import open_chosen
from engine.console import say
from engine.flags import Chosen, Flags, flag, names_in, parse, refuse_unread
from engine.options import MODES, ROAD, Checkpoint
from engine.pages import chat_page


@dataclass(frozen=True)
class Export(Flags):
    """export"""

    target: str = flag("", "new or empty folder (hf), .gguf or .html file", called="target", metavar="TARGET")
    format: str = flag(
        "", "hf: a LlamaForCausalLM for transformers; gguf: one file for llama.cpp; page: a web page that talks",
        choices=("hf", "gguf", "page"),
    )  # fmt: skip
    dtype: str = flag("float32", "of the exported weights; q8_0: 8 bits, only gguf", choices=tuple(gguf.DTYPES))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.format:
            raise ValueError("--format: say which; hf for transformers, gguf for llama.cpp, page for a browser")
        if self.dtype == "q8_0" and self.format == "hf":
            raise ValueError("--dtype q8_0 is only for --format gguf; hf has float32, bfloat16 and float16")


@dataclass(frozen=True)
class Page(Flags):
    """page"""

    weights: str = flag("int8", "8-bit rows with scales, or float16: twice the size", choices=chat_page.WEIGHTS)
    stages: list[str] | None = flag(
        None, "several checkpoints of --save_dir; without names: every stage there", nargs="*", metavar="NAME", type=str
    )


COMMON = {*names_in(Export, Checkpoint)} - {"dtype"}
ONE = {"model_mode", "long", "ckpt"}  # which checkpoint is meant
READS = {  # the flags of each format
    "--format hf": {*COMMON, "dtype"},
    "--format gguf": {*COMMON, "dtype"},
    "--format page": {*COMMON, "weights", "stages"},
    "--format page --stages": {*COMMON, "weights", "stages"} - ONE,
}


def checkpoints(chosen: Chosen) -> dict[str, Path]:
    """What goes on the page: {name: .pth}."""
    if chosen.page.stages is None:
        return {chosen.checkpoint.path.stem: chosen.checkpoint.path}
    folder = Path(chosen.checkpoint.save_dir)
    found = {name: folder / f"{name}.pth" for name in chosen.page.stages or ROAD}
    if not chosen.page.stages:
        found = {name: path for name, path in found.items() if path.is_file()}
    if not found:
        raise ValueError(f"{folder}: no stage's checkpoint there; train one with: {ROAD['pretrain']}")
    return found


def main(argv: list[str] | None = None) -> None:
    chosen = parse(__doc__, argv, Export, Page, Checkpoint)
    page, several = chosen.export.format == "page", chosen.page.stages is not None
    refuse_unread(chosen.typed, f"--format {chosen.export.format}{' --stages' if page and several else ''}", READS)
    checkpoint, target = chosen.checkpoint, chosen.export.target
    if page:
        shape = {name: getattr(checkpoint, name) for name in ("max_seq_len", "n_heads", "rope_theta")}
        stage = None if several else MODES[checkpoint.model_mode]
        found = checkpoints(chosen)
        chat_page.write_page(found, checkpoint.tokenizer_dir, target, chosen.page.weights, stage, **shape)
    else:
        model, meta = open_chosen(checkpoint, load_tokenizer(checkpoint.tokenizer_dir))
        if chosen.export.format == "gguf":
            chats = (meta.get("stage") or MODES[checkpoint.model_mode]) != "pretrain"
            gguf.to_gguf(model, checkpoint.tokenizer_dir, target, chosen.export.dtype, chats)
        else:
            hugging_face.to_hf(model, checkpoint.tokenizer_dir, target, chosen.export.dtype)
    say(f"wrote {target}")


if __name__ == "__main__":
    cli.run(main)
