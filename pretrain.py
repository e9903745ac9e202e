"""Recipe 1, pretraining: a model, fresh or trained before, reads texts and learns to predict the next token.

    python pretrain.py                                   # ./pretrain.jsonl, or the bundled sample
    python pretrain.py --data_path mine.jsonl --dim 256 --n_layers 6 --batch_size 16
    torchrun --nproc_per_node=8 pretrain.py --compile
    python pretrain.py --init_from results/pretrain.pth --name notes --data_path notes.jsonl pretrain.jsonl \\
        --data_epochs 8 0.3                              # learns notes, and keeps what it knows

Leaves results/pretrain.pth, which SFT.py starts from.
"""

from dataclasses import dataclass
from functools import partial

from tokenizers import Tokenizer

from Config import PRESETS, LLMConfig, scale_rope
from dataset import LOSS, NO_LOSS, TAG, BorderedDataset, PretrainDataset
from engine import cli, options
from engine.console import print0
from engine.flags import Args, Flags, flag
from engine.machine import runtime
from engine.packing import split_documents
from engine.stage.plan import describe_next
from engine.stage.prepare import load_parent, open_documents, pack
from engine.stage.train import train
from engine.tokenizer import load_tokenizer
from model import SpongeBob

# The values of this stage: its data file, and defaults of the flags of the same name. SAMPLE_OVERRIDES replaces some of
# them where the stage trains on the bundled sample, INIT_FROM_OVERRIDES with --init_from.
DEFAULTS = {
    "data_file": "pretrain.jsonl",
    "name": "pretrain",
    "max_seq_len": 512,
    "batch_size": 32,
    "accumulation_steps": 8,  # 32 x 8 x 512 = 131,072 positions per step
    "learning_rate": 1e-3,
}
INIT_FROM_OVERRIDES = {"warmup_parts": 4}  # a trained model forgets less with a longer warm-up
SAMPLE_OVERRIDES = {"batch_size": 8, "accumulation_steps": 1, "learning_rate": 1e-3, "max_steps": 40}


shape_flag = partial(flag, bound_by="config")


@dataclass(frozen=True)  # its docstring is the heading in --help; its flags are args.shape (engine/flags.py)
class Shape(Flags):
    """model"""

    preset: str | None = shape_flag(
        None, "a shape by name; the other flags of this group change it", choices=tuple(PRESETS)
    )
    dim: int = shape_flag(512, "width of the residual stream", gt=0)
    n_layers: int = shape_flag(8, "blocks", gt=0)
    n_heads: int = shape_flag(8, "query heads", gt=0)
    n_kv_heads: int = shape_flag(2, "key-value heads", gt=0)
    hidden_dim: int | None = shape_flag(None, "inner width of SwiGLU; default: 8/3 x dim, rounded up to 64", gt=0)
    rope_theta: float = shape_flag(1e6, "base of the rotary wavelengths", gt=0)
    dropout: float = shape_flag(0.0, "share of each block's output dropped in training (0: none)", ge=0)


@dataclass(frozen=True)
class InitFrom(Flags):
    """start"""

    init_from: str | None = flag(
        None,
        "checkpoint (.pth) that learns these texts, too, under a --name of its own, with a quarter of the steps as "
        "warm-up, at most 100; default: fresh weights",
        bound_by="parent",
        path="file",
    )
    n_heads: int | None = None  # as typed: only for a checkpoint without .json
    rope_theta: float | None = None


@dataclass(frozen=True)
class Texts(Flags):
    """texts"""

    split_on_special_tokens: bool = flag(
        False, "<s> and </s> in the texts separate documents instead of being text", bound_by="dataset"
    )


def parse_args(argv: list[str] | None = None) -> Args:
    args = options.parse_args(
        __doc__,
        argv,
        DEFAULTS,
        on_sample=SAMPLE_OVERRIDES,
        on_init_from=INIT_FROM_OVERRIDES,
        groups=[Shape, InitFrom, Texts],
        presets=PRESETS,
    )
    if args.init_from.init_from and "name" not in args.explicit:
        raise ValueError(
            "--init_from: the model that it makes needs a --name, as pretrain.pth is that of fresh weights"
        )
    return args


def make_model(args: Args, tokenizer: Tokenizer) -> SpongeBob:
    """Make a model of random weights in the shape of the flags."""
    shape = {name: value for name, value in vars(args.shape).items() if name != "preset"}
    config = LLMConfig(**shape, vocab_size=tokenizer.get_vocab_size(), max_seq_len=args.data.max_seq_len)
    if factor := args.data.rope_scaling:  # as if made for rows `factor` times shorter
        config.rope_parameters = scale_rope(config.rope_parameters, factor, max(1, round(config.max_seq_len / factor)))
    return SpongeBob(config)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    rt = runtime.start(args.performance, args.training.seed)  # device, dtype, seed, processes
    tokenizer = load_tokenizer(args.data.tokenizer_dir)

    # 1. Start from fresh weights, or from a model that is there.
    if args.init_from.init_from:
        model, parent = load_parent(args, tokenizer)
        if parent.stage not in ("", "pretrain"):
            print0(
                f"note: {parent.path} is of stage {parent.stage}; with texts alone it forgets to answer, until SFT.py"
            )
    else:
        model, parent = make_model(args, tokenizer), None

    # 2. What a line of the file means (dataset.py), and how documents fill rows of max_seq_len tokens
    #    (engine/packing.py). A longer one continues in another row; attention is
    #    masked between documents.
    dataset_class = BorderedDataset if args.texts.split_on_special_tokens else PretrainDataset
    documents = open_documents(dataset_class, tokenizer, args.data, rt)
    rows = pack(documents, split_documents, args, rt, model)

    # 3. Loss weight by label class: every token of a text counts the same.
    loss_weights = {NO_LOSS: 0.0, LOSS: 1.0, TAG: 1.0}

    # 4. Train (engine/loop.py); leaves results/pretrain.pth, .json, .state/, .metrics.jsonl, .png.
    code = train(model, rows.sources(loss_weights), args, rt, tokenizer, stage="pretrain", parent=parent)
    if parent and code == 0:
        print0(describe_next(args))
    return code


if __name__ == "__main__":
    cli.run(main)
