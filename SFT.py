"""Recipe 2, supervised fine-tuning: the pretrained model learns to answer. Only the assistant's words cost loss.

python SFT.py              # results/pretrain.pth -> results/SFT.pth,      rows of 512 tokens
python SFT.py --long       # results/SFT.pth      -> results/SFT_long.pth, rows of 1,024 tokens
"""

import argparse
from pathlib import Path

from dataset import SFTDataset, load_tokenizer
from engine import flags, runtime, stage


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = flags.stage_parser(__doc__)
    flags.add_parent(parser)
    parser.add_argument("--long", action="store_true", help="long-context stage: conversations of 513 to 1,024 tokens")
    parser.set_defaults(
        data_file="sft_512.jsonl", name="SFT", parent="pretrain", max_seq_len=512, batch_size=32, accumulation_steps=4,
        learning_rate=1e-4,
    )  # fmt: skip
    sample = {"batch_size": 8, "accumulation_steps": 1, "learning_rate": 3e-4, "max_steps": 40}
    if parser.parse_args(argv).long:
        parser.set_defaults(data_file="sft_1024.jsonl", name="SFT_long", parent="SFT", max_seq_len=1024, batch_size=16)
        sample |= {"batch_size": 4, "max_steps": 20}
    return flags.parse(parser, argv, sample)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    rt = runtime.start(device=args.device, dtype=args.dtype, seed=args.seed, deterministic=args.deterministic)
    tokenizer = load_tokenizer(args.tokenizer_dir)

    parent = Path(args.init_from or f"{args.save_dir}/{args.parent}.pth")
    model, _ = stage.load_parent(parent, tokenizer, **flags.start(args))
    data = stage.open_data(SFTDataset, tokenizer, rt, **flags.data(args))

    return stage.run(model, data, rt=rt, tokenizer=tokenizer, stage="SFT", parent=str(parent), **flags.training(args))


if __name__ == "__main__":
    flags.run(main)
