"""compile, DDP and FSDP change where and how a step is computed, not what comes out."""

import math

import pytest
import torch
from making import WAY_NAMES, WAYS, a_run, tiny, torchrun

from engine import loop
from engine.flags import ROOT
from engine.loss import TokenLoss
from engine.machine import parallel


@pytest.fixture
def counted(monkeypatch):
    """counted(module) -> (it compiled, matrix products of every graph made, and of every graph run)."""
    made, runs, real = [], [], torch.compile

    def counting(graph, _):
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
    ids = torch.randint(3, 100, (1, 20))
    ends = torch.tensor([0, 20], dtype=torch.int32)
    loss(ids, ids, torch.ones(1, 20, dtype=torch.uint8), torch.ones(1, 20), ends)
    assert sum(runs) == 3 * 7 + 1


def test_every_chunk_of_logits_is_compiled_however_many_there_are(counted):
    """torch compiles a function anew for what differs, but after eight times it gives up and runs it as it is."""
    loss, made, runs = counted(TokenLoss(tiny(dim=16, n_layers=1, max_seq_len=4096), chunk=100))
    ids, graphs = torch.randint(3, 100, (1, 4096)), []
    for learned in range(256, 256 * 13, 256):
        classes = (torch.arange(4096) < learned).to(torch.uint8)[None]
        runs.clear()
        loss(ids, ids, classes, classes.float(), torch.arange(0, 4097, 64, dtype=torch.int32))[0].backward()
        chunks = math.ceil(learned / 100)
        assert sum(runs) == 7 + 2 * chunks, learned  # each once forth, and once again on the way back
        graphs.append(len(made))
    assert graphs[-1] == graphs[1]


@pytest.mark.parametrize("way", WAYS, ids=WAY_NAMES)
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_match_one_in_loss_and_gradient_norm(folder, kind, way):
    run, expected = a_run(folder, batch_size=3, rows_per_step=12, **way), []
    for step in range(2):
        batches, counts = loop.load_step(run, step)
        sums, norm, _ = loop.train_step(run, batches, counts.cost)
        expected += [sums[0].item() / counts.cost, norm.item()]
    said = torchrun(ROOT / "tests/machine/two_ranks.py", folder, kind, WAYS.index(way))
    figures = next(line for line in said.splitlines() if line.startswith("figures ")).split()[1:]
    # Sharded matrices are orthogonalised by torch's own loop, in bf16: the second step begins from its rounding.
    assert list(map(float, figures)) == pytest.approx(expected, rel=1e-2 if way and kind == "fsdp" else 1e-3)
