"""Make the loss weights of a stage, tiny models and runs, flags of a machine, rows on disk."""

import argparse
import json
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

from Config import LLMConfig
from dataset import LOSS, NO_LOSS, TAG, SFTDataset
from engine import loop, optim, options, packing
from engine.checkpoint import training_state
from engine.checkpoint.safe_reader import PlainReader
from engine.checkpoint.weights import config_dict, full_state_dict, save_weights
from engine.corpus.token_cache import open_or_build
from engine.flags import make_parser
from engine.generate.engine import complete
from engine.loss import TokenLoss
from engine.machine import runtime
from engine.options import Performance
from engine.tokenizer import fingerprint, load_tokenizer
from model import SpongeBob

ROOT = Path(__file__).parents[1]

# What may differ between the logs of two equal runs.
WALL_CLOCK = ("seconds", "tokens_per_second", "data_wait_fraction", "mfu")
REQUIRED = {
    "prepare_data": ["mine"],
    "export": ["--format", "hf", "exported"],
    "train_tokenizer": ["--overwrite"],
}  # by parse_args
CPU = Performance(device="cpu", dtype="float32")


def loss_weights(tag_weight: float = 1.0) -> dict[int, float]:
    """A recipe's table."""
    return {NO_LOSS: 0.0, LOSS: 1.0, TAG: tag_weight}


def actions_of(script) -> list[argparse.Action]:
    """Return the flags of a script as argparse's actions."""
    parsed = script.parse_args(REQUIRED.get(script.__name__, []))
    args = parsed[1] if isinstance(parsed, tuple) else parsed  # eval_model.py's mode comes first
    actions = make_parser("", [type(group) for group in args.groups])._actions
    return [action for action in actions if action.dest != "help" and action.help != argparse.SUPPRESS]


def write_rows(path: Path, rows) -> Path:
    """Rows as JSONL."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_corpus(folder: Path, count: int) -> None:
    """Write `count` rows for every stage, as a user might have."""
    texts = []
    chats, thoughts = [], []
    for i in range(count):
        weather = "雨" if i % 3 else "雪"
        texts.append({"text": f"第{i}天，海边的小镇下了{weather}，" + "船都回来了。" * (i % 9)})
        for rows, answer in (
            (chats, f"是{i + 1}。"),
            (thoughts, f"<think>\n加一\n</think>\n<answer>\n{i + 1}\n</answer>"),
        ):
            turns = [{"role": "user", "content": f"{i}加一是多少？"}, {"role": "assistant", "content": answer}]
            rows.append({"conversations": turns})
    for name, rows in (("pretrain", texts), ("sft_512", chats), ("sft_1024", chats), ("r1_1024", thoughts)):
        write_rows(folder / f"{name}.jsonl", rows)


# ---------------------------------------------------------------------------------------------- training

SHAPE = "--dim 64 --n_layers 2 --n_heads 4 --n_kv_heads 2".split()


SHORT = (
    "--batch_size 2 --max_seq_len 64 --accumulation_steps 2 --max_steps 6 --warmup_iters 2 --log_step 2 --eval_step 4 "
    "--save_step 3 --num_workers 1 --device cpu"
).split()


SMALL = "--dim 32 --n_layers 1 --max_seq_len 256 --val_fraction 0".split()


def weights(path) -> dict:
    return torch.load(path, weights_only=True)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def tensors(states) -> dict:
    """Return the weights and optimizer values of a folder's newest state."""
    reader = PlainReader(training_state.find_newest(states) / "tensors")
    state = {name: torch.empty(entry.size) for name, entry in reader.read_metadata().state_dict_metadata.items()}
    dcp.load(state, storage_reader=reader, no_dist=True)
    assert {name.split(".")[0] for name in state} == {"model", "optimizer"}
    return state


def rows(path, *without) -> list[dict]:
    dropped = {*WALL_CLOCK, *without}
    return [
        {k: v for k, v in json.loads(line).items() if k not in dropped} for line in path.read_text("utf-8").splitlines()
    ]


# What changes the speed or the way, not the result: every invariant holds with all of it on, too.
OPTIONS = [{}, {"optimizer": "muon", "chunk": 16, "recompute": True}]


OPTION_NAMES = ["plain", "muon, chunked, recomputed"]


def a_run(
    folder,
    *,
    batch_size,
    rows_per_step,
    grad_clip=0.0,
    rank=0,
    world_size=1,
    optimizer="adamw",
    chunk=0,
    recompute=False,
) -> loop.Run:
    """A run on the fixture's chat data (uneven masks), without files around it."""
    torch.manual_seed(1)
    tokenizer = load_tokenizer(ROOT / "spongebob_tokenizer")
    cache = open_or_build([folder / "r1_1024.jsonl"], SFTDataset, tokenizer)
    documents = packing.truncate_conversations(cache, cache.split(0.1)[0], 128)
    model = SpongeBob(LLMConfig(dim=64, n_layers=2, n_heads=4))
    rt = runtime.Runtime(torch.device("cpu"), torch.float32, rank, world_size)
    share = {"batch_size": batch_size, "rows_per_step": rows_per_step, "rank": rank, "world_size": world_size}
    batches = packing.Batches(cache, packing.pack(documents, 128, 0), loss_weights(10.0), seed=3, **share)
    model.recompute = recompute
    optimizers = optim.build(model, options.Training(optimizer=optimizer, learning_rate=1e-2, weight_decay=0.1))
    return loop.Run(
        runtime=rt,
        model=model,
        loss=TokenLoss(model, chunk=chunk),
        optimizers=optimizers,
        lr=lambda step: 1e-2,
        source=batches,
        tokenizer=tokenizer,
        steps=5,
        rows_per_step=rows_per_step,
        training=options.Training(batch_size=batch_size, learning_rate=1e-2, grad_clip=grad_clip),
        output=options.Output(name="test", log_step=1),
    )


# ------------------------------------------------------------------------------------ checkpoints that talk

TOKENIZER_DIR = ROOT / "spongebob_tokenizer"
TOKENIZER = load_tokenizer(TOKENIZER_DIR)
EOS = TOKENIZER.token_to_id("</s>")
CHAT = [
    {"role": "user", "content": "天空为什么是蓝色的？"},
    {"role": "assistant", "content": "因为光。"},
    {"role": "user", "content": "Why? 🐙"},
    {"role": "assistant", "content": "<think>\n嗯\n</think>\n<answer>\n蓝\n</answer>"},
]


SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def save(model, path, stage="SFT", **meta):
    meta = {"stage": stage, "config": config_dict(model.config), "tokenizer": fingerprint(TOKENIZER)} | meta
    save_weights(path, full_state_dict(model), meta)


def prompts(count=4):
    return [[1, *range(10 + n, 15 + 4 * n)] for n in range(count)]


def greedy(model, ids, count=12):
    return complete(model, [ids], max_new_tokens=count, end_id=EOS, temperature=0)[0]
