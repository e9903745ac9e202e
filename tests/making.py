"""What many tests make (models, rows, checkpoints, a run without files) and read back (weights, states, logs)."""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from tokenizers import Tokenizer

from Config import LLMConfig
from dataset import LOSS, NO_LOSS, TAG, SFTDataset, fingerprint, load_tokenizer
from engine import loop, optim, options, packing
from engine.checkpoint import state
from engine.checkpoint.safe_reader import PlainReader
from engine.checkpoint.weights import cpu_weights, save_weights, shape_json
from engine.corpus.token_cache import TokenCache, open_or_build
from engine.flags import ROOT, Chosen
from engine.generate.decode import complete
from engine.loss import TokenLoss
from engine.machine import parallel
from engine.machine.runtime import Runtime
from engine.score import records, run
from model import SpongeBob

TOKENIZER_DIR = ROOT / "spongebob_tokenizer"

# The flags of a training of a few steps.
SHAPE = shlex.split("--dim 64 --n_layers 2 --n_heads 4 --n_kv_heads 2")
SHORT = shlex.split(
    "--batch_size 2 --max_seq_len 64 --accumulation_steps 2 --max_steps 6 --warmup_iters 2 --log_step 2 --eval_step 4 "
    "--save_step 3 --num_workers 1 --device cpu"
)
SMALL = shlex.split("--dim 32 --n_layers 1 --max_seq_len 256 --val_fraction 0")

SCALING = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
END_ID = 2  # </s> in the committed tokenizer
COST = {NO_LOSS: 0.0, LOSS: 1.0, TAG: 10.0}  # of a label, by its class: distillation's
WALL_CLOCK = {"seconds", "tokens_per_second", "loader_share", "mfu"}  # what two equal runs need not share in their logs


@cache
def read_tokenizer() -> Tokenizer:
    """The committed one, read once a process."""
    return load_tokenizer(TOKENIZER_DIR)


# ------------------------------------------------------------------------------------------------------- models


def fresh(**shape) -> SpongeBob:
    """A model as training starts from, of 100 tokens."""
    torch.manual_seed(0)
    shape = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 100} | shape
    return SpongeBob(LLMConfig(**shape))


def tiny(seed: int = 0, std: float = 0.15, **shape) -> SpongeBob:
    """A model to talk to, of the committed tokenizer: a fresh one repeats one token, whatever it is asked."""
    torch.manual_seed(seed)
    shape = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "max_seq_len": 128} | shape
    model = SpongeBob(LLMConfig(**shape)).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=std)
    return model


def greedy(model: SpongeBob, ids: list[int], count: int = 12) -> list[int]:
    """The likeliest answer."""
    return complete(model, [ids], max_new_tokens=count, end_id=END_ID, temperature=0)[0]


def save_checkpoint(model: SpongeBob, path: Path, stage: str = "SFT", **more) -> None:
    """A .pth and its .json, as a stage leaves them; `more` changes the .json."""
    known = {"stage": stage, "config": shape_json(model.config), "tokenizer": fingerprint(read_tokenizer())}
    save_weights(path, cpu_weights(model), known | more)


# --------------------------------------------------------------------------------------------------------- rows


def write_rows(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def chat(*words: str, **more) -> dict:
    """A row of questions and answers in turn."""
    roles = ("user", "assistant") * 9
    return {"conversations": [{"role": r, "content": w} for r, w in zip(roles, words, strict=False)]} | more


def cache_of(ids, classes, lengths) -> TokenCache:
    """Documents of these lengths, as an opened token cache."""
    offsets = np.concatenate([[0], lengths]).astype(np.int64).cumsum()
    return TokenCache(None, np.array(ids, np.uint16), np.array(classes, np.uint8), offsets, offsets[1:], {"end_id": 2})


def batches_of(
    cache: TokenCache, row_len: int = 16, batch_size: int = 2, rows_per_step: int = 4, seed: int | None = 0, **ranks
) -> packing.Batches:
    """All documents of a cache, split into rows."""
    rows = packing.pack(packing.split_documents(cache, np.arange(len(cache)), row_len), row_len, 0)
    return packing.Batches(cache, rows, COST, batch_size=batch_size, rows_per_step=rows_per_step, seed=seed, **ranks)


# ------------------------------------------------------------------------------------------------------- scores


def question(number: int, *choices: str, **more) -> dict:
    """A multiple-choice row."""
    return {"question": f"问题{number}？", "choices": list(choices), "answer": number % len(choices)} | more


def measure(model: SpongeBob, path: Path, *, batch: int = 4, folder: Path | None = None, **settings) -> tuple:
    """(summary, records) of one file, scored as eval_model.py does."""
    settings = records.Settings(**{"rows": 0, "max_new_tokens": 8} | settings)
    folder = folder or path.parent / "scores"
    results, found = run.score(model, read_tokenizer(), [path], folder, settings, batch)
    return results[path.name], found[path.name]


# ---------------------------------------------------------------------------------------------------------- runs

# What changes the speed or the way, not the result: every invariant holds with all of it on, too.
WAYS = [{}, {"optimizer": "muon", "chunk": 16, "recompute": True}]
WAY_NAMES = ["plain", "muon, chunked, recomputed"]


def a_run(
    folder: Path, *, batch_size: int, rows_per_step: int, grad_clip: float = 0.0, optimizer: str = "adamw",
    chunk: int = 0, recompute: bool = False, rt: Runtime | None = None, kind: str = "ddp",
) -> loop.Run:  # fmt: skip
    """A run on the chat data of conftest's `folder` (uneven masks), without files around it."""
    rt = rt or Runtime(torch.device("cpu"), torch.float32)
    tokenizer = read_tokenizer()
    cache = open_or_build([folder / "r1_1024.jsonl"], SFTDataset, tokenizer, cache_dir=folder / "cache")
    pieces = packing.cut_conversations(cache, cache.split(0.1)[0], 128)
    batches = packing.Batches(
        cache, packing.pack(pieces, 128, 0), COST, batch_size=batch_size, rows_per_step=rows_per_step, seed=3,
        rank=rt.rank, world=rt.world,
    )  # fmt: skip
    torch.manual_seed(1)
    model = SpongeBob(LLMConfig(dim=64, n_layers=2, n_heads=4))
    model.recompute = recompute
    loss = parallel.wrap(TokenLoss(model, chunk=chunk), rt.device, rt.dtype, rt.world, parallel=kind)
    return loop.Run(
        runtime=rt,
        model=model,
        loss=loss,
        optimizers=optim.build(model, name=optimizer, learning_rate=1e-2, weight_decay=0.1),
        scaler=rt.scaler(),
        rate=lambda step: 1e-2,
        batches=batches,
        validation=None,
        tokenizer=tokenizer,
        token_bytes=torch.zeros(6400, dtype=torch.int32),
        prompt=[],
        end_id=2,
        steps=5,
        warmup=0,
        training=options.Training(batch_size=batch_size, learning_rate=1e-2, grad_clip=grad_clip),
        output=options.Output(name="test", log_step=1),
    )


# ----------------------------------------------------------------------------------------------- what a run left


def weights(path: Path | str) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def same(one: dict, other: dict) -> bool:
    """Whether two dicts of tensors are bitwise the same."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def tensors(states: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer values of a folder's newest state."""
    reader = PlainReader(state.find_newest(states) / "tensors")
    found = {name: torch.empty(entry.size) for name, entry in reader.read_metadata().state_dict_metadata.items()}
    dcp.load(found, storage_reader=reader, no_dist=True)
    assert {name.split(".")[0] for name in found} == {"model", "optimizer"}
    return found


def log_of(metrics: Path) -> list[dict]:
    """The rows of a log, without what a clock decides. Not by splitlines: the U+2028 of a sample would end a line."""
    lines = [json.loads(line) for line in metrics.read_bytes().split(b"\n")[:-1]]
    return [{key: value for key, value in row.items() if key not in WALL_CLOCK} for row in lines]


# ------------------------------------------------------------------------------------------------- scripts


def actions_of(script: ModuleType) -> dict[str, argparse.Action]:
    """{flag: what argparse knows of it} of a script: its parser is caught when it would read the command line."""

    class Caught(Exception):
        pass

    def catch(parser, *_):
        raise Caught(parser)

    with mock.patch.object(argparse.ArgumentParser, "parse_args", catch), pytest.raises(Caught) as caught:
        script.main([])
    actions = caught.value.args[0]._actions
    return {(action.option_strings or [action.dest])[-1]: action for action in actions if action.dest != "help"}


def chosen_by(script: ModuleType, argv: Sequence[str]) -> Chosen:
    """What a stage's main() makes of the command line, without training."""

    class Chose(Exception):
        pass

    def choose(*arguments, **more):
        raise Chose(real(*arguments, **more))

    real = options.choose
    with mock.patch.object(options, "choose", choose), pytest.raises(Chose) as chose:
        script.main(argv)
    return chose.value.args[0]


def torchrun(program: Path, *words: object, processes: int = 2) -> str:
    """What a program prints that runs in several processes here."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", str(program),
         *map(str, words)],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
