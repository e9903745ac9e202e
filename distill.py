"""Recipe 3, chain-of-thought distillation: the chat model learns to think, from a stronger model's written thoughts.

    python distill.py          # results/SFT.pth      -> results/distill.pth
    python distill.py --long   # results/SFT_long.pth -> results/distill_long.pth

The same as SFT but for one thing: <think></think><answer></answer> cost several tokens each, so the tokens of
those tags weigh --tag_weight times as much as any other word of the assistant. The weighted sum is divided by the
sum of the weights, so the rate means the same as in SFT; the log shows the weighted, the plain and the tags' own loss.
"""

import argparse
from pathlib import Path

from dataset import SFTDataset, load_tokenizer
from engine import flags, runtime, stage


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = flags.stage_parser(__doc__)
    flags.add_parent(parser)
    parser.add_argument("--long", action="store_true", help="start from the long-context model")
    parser.add_argument(
        "--tag_weight", type=float, default=10.0, help="how much more a tag's tokens weigh (1: as any other)"
    )
    parser.set_defaults(
        data_file="r1_1024.jsonl", name="distill", parent="SFT", max_seq_len=1024, batch_size=16, accumulation_steps=4,
        learning_rate=1e-4,
    )  # fmt: skip
    sample = {"batch_size": 4, "accumulation_steps": 1, "learning_rate": 3e-4, "max_steps": 40}
    if parser.parse_args(argv).long:
        parser.set_defaults(name="distill_long", parent="SFT_long")
    return flags.parse(parser, argv, sample)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    rt = runtime.start(device=args.device, dtype=args.dtype, seed=args.seed, deterministic=args.deterministic)
    tokenizer = load_tokenizer(args.tokenizer_dir)

    parent = Path(args.init_from or f"{args.save_dir}/{args.parent}.pth")
    model, _ = stage.load_parent(parent, tokenizer, **flags.start(args))
    data = stage.open_data(SFTDataset, tokenizer, rt, **flags.data(args))

    return stage.run(
        model, data, rt=rt, tokenizer=tokenizer, stage="distill", parent=str(parent),
        **flags.training(args, tag_weight=args.tag_weight),
    )  # fmt: skip


if __name__ == "__main__":
    flags.run(main)
