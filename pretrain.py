"""Recipe 1, pretraining: a fresh model reads packed documents and learns to predict the next token.

    python pretrain.py                                   # ./pretrain.jsonl, or the bundled sample
    python pretrain.py --data_path mine.jsonl --dim 256 --n_layers 6 --batch_size 16
    torchrun --nproc_per_node=8 pretrain.py --compile

Leaves results/pretrain.pth, which SFT.py starts from.
"""

import argparse

from Config import LLMConfig
from dataset import PretrainDataset, load_tokenizer
from engine import flags, runtime, stage
from model import SpongeBob


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = flags.stage_parser(__doc__)
    flags.add_shape(parser)
    parser.set_defaults(
        data_file="pretrain.jsonl", name="pretrain", max_seq_len=512, batch_size=32, accumulation_steps=8,
        learning_rate=1e-3,
    )  # fmt: skip
    sample = {"batch_size": 8, "accumulation_steps": 1, "learning_rate": 1e-3, "max_steps": 40}
    return flags.parse(parser, argv, sample)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    rt = runtime.start(device=args.device, dtype=args.dtype, seed=args.seed, deterministic=args.deterministic)
    tokenizer = load_tokenizer(args.tokenizer_dir)
    data = stage.open_data(PretrainDataset, tokenizer, rt, **flags.data(args))

    shape = flags.select(
        args, "dim", "n_layers", "n_heads", "n_kv_heads", "hidden_dim", "rope_theta", "dropout", "max_seq_len"
    )
    model = SpongeBob(LLMConfig(vocab_size=tokenizer.get_vocab_size(), **shape))

    return stage.run(model, data, rt=rt, tokenizer=tokenizer, stage="pretrain", parent=None, **flags.training(args))


if __name__ == "__main__":
    flags.run(main)
