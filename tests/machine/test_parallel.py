"""Several processes compute what one does; compiling reaches all of the model."""

import math
import os
import tempfile
from pathlib import Path

import pytest
import torch
from factories import OPTIONS, ROOT, SHAPE, SHORT, SMALL, a_run, rows, torchrun
from tiny_model import tiny
from torch._inductor.runtime import cache_dir_utils

import pretrain
from engine import loop
from engine.loss import TokenLoss
from engine.machine import parallel, runtime


@pytest.fixture
def counted(monkeypatch):
    """counted(module) -> (it compiled, matrix products of every graph made, and of every graph run)."""
    made, runs, real = [], [], torch.compile

    def counting(graph, _):  # in place of a compiler
        linear = sum(node.target is torch.nn.functional.linear for node in graph.graph.nodes)
        made.append(linear)
        return lambda *inputs: runs.append(linear) or graph(*inputs)

    def wrapped(module):
        monkeypatch.setattr(torch, "compile", lambda what, **more: real(what, **more | {"backend": counting}))
        cpu = torch.device("cpu")
        return parallel.wrap(module, cpu, torch.float32, 1, compile=True, parallel="ddp"), made, runs

    yield wrapped
    torch.compiler.reset()


@pytest.mark.parametrize("recompute", [False, True], ids=["plain", "activation checkpointing"])
def test_compiling_reaches_every_block(recompute, counted):
    model = tiny(n_layers=3)
    model.recompute = recompute
    loss, _, runs = counted(TokenLoss(model))
    ids, ones = torch.randint(3, 100, (1, 20)), torch.ones(1, 20)
    loss(ids, ids, ones.byte(), ones, torch.tensor([0, 20], dtype=torch.int32))
    assert sum(runs) == 3 * 7 + 1


def test_every_chunk_of_logits_is_compiled_however_many_there_are(counted):
    """torch compiles a function anew for what differs, but after eight times it gives up and runs it as it is."""
    loss, made, runs = counted(TokenLoss(tiny(dim=16, n_layers=1, max_seq_len=2816), chunk=200))
    ids, graphs = torch.randint(3, 100, (1, 2816)), []
    for learned in range(256, 256 * 12, 256):
        classes = (torch.arange(2816) < learned).to(torch.uint8)[None]
        runs.clear()
        loss(ids, ids, classes, classes.float(), torch.arange(0, 2817, 64, dtype=torch.int32))[0].backward()
        assert sum(runs) == 7 + 2 * math.ceil(learned / 200), learned  # each once forth, once again on the way back
        graphs.append(len(made))
    assert graphs[-1] == graphs[1]


def test_compiled_code_of_one_kind_of_cpu_is_not_handed_to_another(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that what is set below is taken back
    folders = []
    for kind in ("AVX2", "AVX512"):
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
        assert cache_dir_utils.cache_dir() == os.environ["TORCHINDUCTOR_CACHE_DIR"]  # as when torch was asked before
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda kind=kind: kind)
        parallel.wrap(TokenLoss(tiny()), torch.device("cpu"), torch.float32, 1, compile=True)
        folders.append(cache_dir_utils.cache_dir())
    assert folders[0] != folders[1]
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", explicit := folders[0] + "_mine")
    parallel.wrap(TokenLoss(tiny()), torch.device("cpu"), torch.float32, 1, compile=True)
    assert cache_dir_utils.cache_dir() == explicit


def test_two_processes_match_one_in_loss_and_gradient_norm(folder):
    said = torchrun(ROOT / "tests/machine/two_ranks.py", folder)
    found = {tuple(words[1:3]): words[3:] for line in said.splitlines() if (words := line.split())[:1] == ["figures"]}
    assert len(found) == 2 * len(OPTIONS)
    for number, options in enumerate(OPTIONS):
        run, expected = a_run(folder, batch_size=3, rows_per_step=12, **options), []
        for step in range(2):
            batches, counts = loop.load_step(run, step)
            sums, norm, *_ = loop.train_step(run, batches, counts.weight_sum)
            expected += [sums[0].item() / counts.weight_sum, norm.item()]
        for kind in ("ddp", "fsdp"):
            # Sharded matrices are orthogonalised by torch's own loop, in bf16: the second step begins from rounding.
            rel = 1e-2 if options and kind == "fsdp" else 1e-3
            assert list(map(float, found[kind, str(number)])) == pytest.approx(expected, rel=rel), (kind, options)


def test_a_run_of_two_processes_leaves_the_log_of_one_and_draws_from_a_seed_each(folder):
    words = [*SHAPE, *SHORT, *SMALL, *"--max_seq_len 64 --val_fraction 0.2 --seed 7".split()]
    torchrun(ROOT / "tests/machine/seeded_ranks.py", *words)
    assert [Path(f"seed{rank}").read_text() for rank in range(2)] == ["7", "8"]  # for dropout
    pretrain.main([*words, "--accumulation_steps", "4", "--name", "one"])
    logs = [rows(folder / f"results/{name}.metrics.jsonl", "sample") for name in ("pretrain", "one")]
    assert len(logs[0]) == len(logs[1]) > 3
    for two, one in zip(*logs, strict=True):
        assert two == pytest.approx(one, rel=1e-3)


def test_processes_that_would_train_on_different_data_are_refused(folder, monkeypatch):
    def gather(self, value):
        return [value, value | {"data": []}] if isinstance(value, dict) else [value]

    monkeypatch.setattr(runtime.Runtime, "gather", gather)
    with pytest.raises(ValueError, match="processes 0 and 1 differ in data: every machine needs the same"):
        pretrain.main([*SHAPE, *SHORT, *SMALL, "--name", "apart"])
    assert not (folder / "results/apart.pth").exists()
