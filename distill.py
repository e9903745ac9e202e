"""Recipe 3, chain-of-thought distillation: the chat model learns to think, from a stronger model's written thoughts.

    python distill.py --use_wandb    # results/SFT.pth      -> results/distill.pth
    python distill.py --long         # results/SFT_long.pth -> results/distill_long.pth

The same as SFT.py except for one thing. Each of <think> </think> <answer> </answer> takes four or five tokens,
so the form is hard to learn. Each of those tokens therefore has --tag_weight times the loss weight of other tokens.
In texts next to the conversations (see SFT.py) tags are text like any other.
"""

from dataclasses import dataclass

from dataset import LOSS, NO_LOSS, TAG, SFTDataset
from engine import cli, options
from engine.flags import Args, Flags, flag
from engine.machine import runtime
from engine.options import InitFrom
from engine.packing import truncate_conversations
from engine.stage.prepare import load_parent, open_documents, pack
from engine.stage.train import train
from engine.tokenizer import load_tokenizer

# The values of this stage: its data file, its parent stage, and defaults of the flags of the same name. LONG_OVERRIDES
# replaces some of them with --long, SAMPLE_OVERRIDES where the stage trains on the bundled sample.
DEFAULTS = {
    "data_file": "r1_1024.jsonl",
    "parent_stage": "SFT",
    "name": "distill",
    "max_seq_len": 1024,
    "batch_size": 16,
    "accumulation_steps": 4,  # 16 x 4 x 1,024 = 65,536 positions per step
    "learning_rate": 1e-4,
}
LONG_OVERRIDES = {"parent_stage": "SFT_long", "name": "distill_long"}
SAMPLE_OVERRIDES = {"batch_size": 4, "accumulation_steps": 1, "learning_rate": 3e-4, "max_steps": 40}


@dataclass(frozen=True)  # its docstring is the heading in --help; its flags are args.tag_loss (engine/flags.py)
class TagLoss(Flags):
    """chain of thought"""

    tag_weight: float = flag(
        10.0, "loss weight of each token of a tag; other tokens of the answer have 1", ge=0, bound_by="loss_weights"
    )


def parse_args(argv: list[str] | None = None) -> Args:
    return options.parse_args(
        __doc__, argv, DEFAULTS, long=LONG_OVERRIDES, on_sample=SAMPLE_OVERRIDES, groups=[InitFrom, TagLoss]
    )


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    rt = runtime.start(args.performance, args.training.seed)  # device, dtype, seed, processes
    tokenizer = load_tokenizer(args.data.tokenizer_dir)

    # 1. Start from the model of the stage before.
    model, parent = load_parent(args, tokenizer)

    # 2. What a line of the file means (dataset.py), and how conversations fill rows of max_seq_len tokens
    #    (engine/packing.py). One that is too long loses its last turns, a text next to them continues in another row;
    #    attention is masked between documents.
    documents = open_documents(SFTDataset, tokenizer, args.data, rt)
    rows = pack(documents, truncate_conversations, args, rt, model)

    # 3. Loss weight by label class. This line is all that distillation adds to SFT.
    loss_weights = {NO_LOSS: 0.0, LOSS: 1.0, TAG: args.tag_loss.tag_weight}

    # 4. Train (engine/loop.py); leaves results/distill.pth, .json, .state/, .metrics.jsonl, .png.
    return train(model, rows.sources(loss_weights), args, rt, tokenizer, stage="distill", parent=parent)


if __name__ == "__main__":
    cli.run(main)
