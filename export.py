"""A checkpoint for other programs.

python export.py --format hf exported                 # results/SFT.pth as a folder for transformers
python export.py --format hf exported --model_mode 2  # results/distill.pth
"""

from dataclasses import dataclass

from dataset import load_tokenizer
from engine import cli
from engine.checkpoint import hugging_face
from engine.checkpoint.weights import open_chosen
from engine.console import say
from engine.flags import Flags, flag, parse
from engine.options import Checkpoint


@dataclass(frozen=True)
class Export(Flags):
    """export"""

    target: str = flag("", "folder to write; it must be new or empty", called="target", metavar="TARGET")
    format: str = flag("", "hf: a LlamaForCausalLM in float32 with its tokenizer", choices=("hf",))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.format:
            raise ValueError("--format: say which; hf is what transformers reads")


def main(argv: list[str] | None = None) -> None:
    chosen = parse(__doc__, argv, Export, Checkpoint)
    tokenizer_dir = chosen.checkpoint.tokenizer_dir
    model, _ = open_chosen(chosen.checkpoint, load_tokenizer(tokenizer_dir))
    hugging_face.to_hf(model, tokenizer_dir, chosen.export.target)
    say(f"wrote {chosen.export.target}")


if __name__ == "__main__":
    cli.run(main)
