"""A stage that trains on no token cache: python counting_source.py FLAG... (also under torchrun)."""

import sys

import torch

from Config import LLMConfig
from dataset import LOSS
from engine import options
from engine.flags import ROOT
from engine.machine import runtime
from engine.packing import Batch, Sources
from engine.stage.train import train
from engine.tokenizer import load_tokenizer
from model import SpongeBob


class Counting:
    """A Source of rows n, n + 1, n + 2, ... from a random n."""

    prefetchable = False
    steps_per_epoch = 3

    def __init__(self, *, batch_size, rows_per_step, seed, rank, world_size):
        self.shape = rows_per_step // (batch_size * world_size), world_size, batch_size, 1
        self.seed, self.rank = seed or 0, rank

    def step(self, step):
        generator = torch.Generator().manual_seed(1000 * self.seed + step)
        first = torch.randint(3, 6000, self.shape, generator=generator)[:, self.rank]
        tokens = first + torch.arange(33)  # (micro-batches, B, T + 1)
        weights, classes = torch.ones(tokens[0, :, 1:].shape), torch.full(tokens[0, :, 1:].shape, LOSS).byte()
        starts = torch.arange(0, classes.numel() + 1, 32, dtype=torch.int32)
        return [Batch(rows[:, :-1], rows[:, 1:], classes, weights, starts) for rows in tokens]

    def positions(self, step):
        return 32 * self.shape[0] * self.shape[2]


def main(argv: list[str]) -> int:
    args = options.parse_args(None, argv, {"data_file": "-", "name": "counting"}, on_sample={}, groups=[])
    rt = runtime.start(args.performance, args.training.seed)
    model = SpongeBob(LLMConfig(dim=32, n_layers=1, n_heads=2, n_kv_heads=1, max_seq_len=32))
    sources = Sources(Counting, {"val": {"": Counting}}, resume_key={"rows": "counting"})
    tokenizer = load_tokenizer(ROOT / "spongebob_tokenizer")
    return train(model, sources, args, rt, tokenizer, stage="pretrain", parent=None)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    runtime.finish()
    sys.exit(code)
