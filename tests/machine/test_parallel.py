"""Several processes compute what one does; compiling reaches the whole model, where it pays."""

import importlib.util
import math
import os
import tempfile
import types
from pathlib import Path

import pytest
import torch
from factories import OPTIONS, ROOT, SHAPE, SHORT, SMALL, a_run, rows, same, weights
from forked import run_ranks, run_stage
from tiny_model import tiny
from torch._inductor.runtime import cache_dir_utils
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

import pretrain
from engine import cli, loop
from engine.checkpoint.run_info import read_info
from engine.checkpoint.training_state import list_states
from engine.loss import TokenLoss
from engine.machine import parallel, runtime
from engine.machine.parallel import MIN_MICRO_BATCHES_TO_COMPILE, decide_compile
from engine.options import SAMPLE, Output
from engine.stage import resume

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def compiled_graphs(monkeypatch):
    """Function: module -> (the module compiled, matrix products of each graph made, and of each graph run)."""
    made, runs = [], []
    real = torch.compile

    def count_products(graph, _):  # in place of a compiler
        products = sum(node.target is torch.nn.functional.linear for node in graph.graph.nodes)
        made.append(products)
        return lambda *inputs: runs.append(products) or graph(*inputs)

    def wrap(module):
        monkeypatch.setattr(torch, "compile", lambda what, **more: real(what, **more | {"backend": count_products}))
        return parallel.wrap(module, CPU, torch.float32, 1, compile=True), made, runs

    yield wrap
    torch.compiler.reset()


@pytest.mark.parametrize("recompute", [False, True], ids=["plain", "activation checkpointing"])
def test_compiling_reaches_every_block(recompute, compiled_graphs):
    model = tiny(n_layers=3)
    model.recompute = recompute
    loss, _, runs = compiled_graphs(TokenLoss(model))
    ids, ones = torch.randint(3, 100, (1, 20)), torch.ones(1, 20)
    loss(ids, ids, ones.byte(), ones, torch.tensor([0, 20], dtype=torch.int32))
    assert sum(runs) == 3 * 7 + 1


def test_every_chunk_of_logits_is_compiled(compiled_graphs):
    """torch compiles a function again for inputs that differ, but after eight times it gives up."""
    loss, made, runs = compiled_graphs(TokenLoss(tiny(dim=16, n_layers=1, max_seq_len=2816, vocab_size=100), chunk=200))
    ids, graphs = torch.randint(3, 100, (1, 2816)), []
    for trained in range(256, 256 * 12, 256):
        classes = (torch.arange(2816) < trained).to(torch.uint8)[None]
        runs.clear()
        loss(ids, ids, classes, classes.float(), torch.arange(0, 2817, 64, dtype=torch.int32))[0].backward()
        assert sum(runs) == 7 + 2 * math.ceil(trained / 200), trained  # each chunk once forward, once again in backward
        graphs.append(len(made))
    assert graphs[-1] == graphs[1]


def test_each_kind_of_cpu_has_a_compile_cache_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that later values are undone
    folders = []
    for capability in ("AVX2", "AVX512"):
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
        assert cache_dir_utils.cache_dir() == os.environ["TORCHINDUCTOR_CACHE_DIR"]  # as if torch was asked before
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        parallel.wrap(TokenLoss(tiny()), CPU, torch.float32, 1, compile=True)
        folders.append(cache_dir_utils.cache_dir())
    assert folders[0] != folders[1]
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", folders[0] + "_mine")
    parallel.wrap(TokenLoss(tiny()), CPU, torch.float32, 1, compile=True)
    assert cache_dir_utils.cache_dir() == folders[0] + "_mine"


@pytest.fixture
def suitable_gpu(fake_gpu, monkeypatch):
    """A GPU that compiling pays on, with everything that it needs."""
    fake_gpu(capability=(8, 6))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(parallel, "which", lambda name: f"/usr/bin/{name}")
    return monkeypatch


def test_long_run_on_a_gpu_is_compiled_and_a_short_one_is_not(suitable_gpu):
    assert decide_compile(GPU, MIN_MICRO_BATCHES_TO_COMPILE).on
    short = decide_compile(GPU, MIN_MICRO_BATCHES_TO_COMPILE - 1)
    assert not short.on and "3,999 micro-batches, it pays from 4,000" in short.reason
    assert decide_compile(CPU, 10 * MIN_MICRO_BATCHES_TO_COMPILE) == (False, "")


def test_missing_parts_for_compiling_are_named(suitable_gpu):
    for module, name, value, reason in (
        (parallel, "which", None, "install gcc"),
        (importlib.util, "find_spec", None, "pip install triton"),
        (torch.cuda, "get_device_capability", (6, 1), "does not support this GPU"),
    ):
        suitable_gpu.setattr(module, name, lambda _, value=value: value)
        decision = decide_compile(GPU, MIN_MICRO_BATCHES_TO_COMPILE)
        assert not decision.on and reason in decision.reason


@pytest.mark.parametrize(
    "message, advice",
    [
        ("inductor raised:\nRuntimeError: Failed to find C compiler. Please specify via CC", "install gcc"),
        ("inductor raised:\nTritonMissing: Cannot find a working triton installation. Either", "triton-windows"),
        ("Found GTX 1080 which is too old to be supported by the triton GPU compiler, which", "--no-compile"),
    ],
)
def test_error_of_triton_is_one_line_with_advice(message, advice, capsys):
    def compile() -> None:
        raise RuntimeError(message)

    with pytest.raises(SystemExit) as exit:
        cli.run(compile)
    error = capsys.readouterr().err
    assert exit.value.code == 2 and error.count("\n") == 1 and advice in error and "raised:" not in error


@pytest.mark.parametrize("argv, value", [([], None), (["--compile"], True), (["--no-compile"], False)])
def test_flag_compile_has_three_states(argv, value):
    args = pretrain.parse_args([*argv, "--data_path", str(SAMPLE / "pretrain.jsonl")])
    assert args.performance.compile is value


@pytest.mark.parametrize("explicit, before, on", [(None, True, True), (None, False, False), (False, True, False)])
def test_resumed_run_compiles_like_its_first_part(explicit, before, on):
    point = types.SimpleNamespace(info=types.SimpleNamespace(compiled=before))
    start = resume.Start(Output(), runtime.Runtime(CPU, torch.float32), "run", 1, point)
    assert start.compiling(explicit, 10 * MIN_MICRO_BATCHES_TO_COMPILE).on is on


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of Dynamo, where it breaks the graph
def test_compiled_run_is_resumed_compiled_to_the_same_bits(folder, monkeypatch, capsys, one_thread):
    """On the CPU, where only --compile compiles; the graphs are real, but no code is generated."""
    real, compiled = torch.nn.Module.compile, []

    def compile(module, **options):
        compiled.append(type(module).__name__)
        real(module, backend="eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", compile)

    def train(name: str, *argv: str) -> tuple[int, list[str]]:
        compiled.clear()
        flags = [*SHAPE, *SHORT, *SMALL, "--max_seq_len", "64", "--dtype", "float32", "--name", name]
        return pretrain.main([*flags, *argv]), list(compiled)

    assert train("whole", "--compile") == (0, ["TokenLoss"])
    assert train("parts", "--compile", "--max_minutes", "1e-9")[0] == 75
    assert read_info(list_states(folder / "results/parts.state")[-1]).compiled
    capsys.readouterr()
    assert train("parts", "--resume") == (0, ["TokenLoss"])
    assert "compile on: as in the run's first part" in capsys.readouterr().out
    assert same(weights("results/whole.pth"), weights("results/parts.pth"))


def test_two_processes_match_one_in_loss_and_gradient_norm(folder):
    lines = run_ranks(folder, ROOT / "tests/machine/two_ranks.py", folder).splitlines()
    results = {}
    for line in lines:
        if line.startswith("result "):
            _, parallel_mode, number, *values = line.split()
            results[parallel_mode, int(number)] = list(map(float, values))
    assert len(results) == 2 * len(OPTIONS)
    for number, options in enumerate(OPTIONS):
        run, expected = a_run(folder, batch_size=3, rows_per_step=12, **options), []
        for step in range(2):
            batches, counts = loop.load_step(run, step)
            sums, norm, *_ = loop.train_step(run, batches, counts.weight_sum)
            expected += [sums[0].item() / counts.weight_sum, norm.item()]
        # Sharded matrices are orthogonalized by torch's own loop, in bf16: the second step begins from rounding.
        rel = 1e-2 if options else 1e-3
        assert results["ddp", number] == pytest.approx(expected, rel=1e-3), options
        assert results["fsdp", number] == pytest.approx(expected, rel=rel), options


def test_two_processes_write_one_log_and_have_a_seed_each(folder):
    argv = [*SHAPE, *SHORT, *SMALL, *"--max_seq_len 64 --val_fraction 0.2 --seed 7 --dtype float32".split()]
    two = ("--standalone", "--nproc_per_node=2")
    done = run_stage(folder, *argv, stage="tests/machine/seeded_ranks", torchrun=two)
    assert done.code == 0, done.output[-2000:]
    assert [Path(f"seed{rank}").read_text() for rank in range(2)] == ["7", "8"]  # for dropout
    pretrain.main([*argv, "--accumulation_steps", "4", "--name", "alone"])
    logs = [rows(folder / f"results/{name}.metrics.jsonl", "sample") for name in ("pretrain", "alone")]
    assert len(logs[0]) == len(logs[1]) > 3
    for of_two, alone in zip(*logs, strict=True):
        assert of_two == pytest.approx(alone, rel=1e-3)


def test_processes_with_different_data_are_refused(folder, monkeypatch):
    def gather(self, value):
        return [value, value | {"data": []}] if isinstance(value, dict) else [value]

    monkeypatch.setattr(runtime.Runtime, "gather", gather)
    with pytest.raises(ValueError, match="processes 0 and 1 differ in data: every machine needs the same"):
        pretrain.main([*SHAPE, *SHORT, *SMALL, "--name", "apart"])
    assert not (folder / "results/apart.pth").exists()


def test_dropout_with_recomputation_is_refused_on_mps():
    loss, mps = TokenLoss(tiny(dropout=0.1)), torch.device("mps")
    assert parallel.wrap(loss, mps, torch.float32, 1) is loss
    loss.model.recompute = True
    assert parallel.wrap(loss, CPU, torch.float32, 1) is loss
    with pytest.raises(ValueError, match="dropout 0.1 with --activation_checkpointing gives wrong gradients on mps"):
        parallel.wrap(loss, mps, torch.float32, 1)


def test_ddp_has_no_buffers_to_send():
    assert not list(TokenLoss(tiny()).buffers())


def test_bf16_gradients_are_rounded_by_the_hook_of_torch(monkeypatch):
    """The hook is not run: with gloo its Python part and backward may wait for each other for ever."""
    hooks = []

    class Replica:
        def __init__(self, module, **_):
            pass

        def register_comm_hook(self, state, hook):
            hooks.append((state, hook))

    monkeypatch.setattr(parallel, "DistributedDataParallel", Replica)
    for bf16 in (False, True):
        parallel.wrap(torch.nn.Linear(4, 4), GPU, torch.float32, 2, bf16_gradients=bf16)
    assert hooks == [(None, bf16_compress_hook)]


def test_bf16_gradients_are_refused_between_cpus():
    with pytest.raises(ValueError, match="--bf16_gradients: torch sums bf16 only between GPUs"):
        parallel.wrap(torch.nn.Linear(4, 4), CPU, torch.float32, 2, bf16_gradients=True)


@pytest.mark.parametrize(
    "world_size, more, reason", [("1", [], "for several torchrun processes"), ("2", ["--parallel", "fsdp"], "for DDP")]
)
def test_bf16_gradients_are_refused_if_nothing_reads_them(world_size, more, reason, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", world_size)
    with pytest.raises(ValueError, match=f"--bf16_gradients would change nothing: it is {reason}"):
        pretrain.parse_args(["--bf16_gradients", "--data_path", str(SAMPLE / "pretrain.jsonl"), *more])
