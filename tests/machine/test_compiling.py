"""When torch.compile is used: typed, or as the run's first part did, or where it pays; a resumed run is the same."""

import importlib.util
import types

import pytest
import torch

import pretrain
from engine import options
from engine.checkpoint.run_info import read_info
from engine.checkpoint.training_state import list_states
from engine.checkpoint.weights import read_tensors
from engine.machine import parallel
from engine.machine.parallel import MIN_MICRO_BATCHES_TO_COMPILE, decide_compile
from engine.machine.runtime import Runtime
from engine.options import SAMPLE
from engine.stage import resume

GPU = torch.device("cuda", 0)


@pytest.fixture
def a_card(monkeypatch):
    """One that compiling suits, with all that it needs."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 6))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(parallel, "which", lambda name: f"/usr/bin/{name}")
    return monkeypatch


def test_a_long_run_on_a_gpu_is_compiled_a_short_one_and_one_on_the_cpu_are_not(a_card):
    assert (
        decide_compile(GPU, MIN_MICRO_BATCHES_TO_COMPILE).on
        and not decide_compile(GPU, MIN_MICRO_BATCHES_TO_COMPILE - 1).on
    )
    assert decide_compile(torch.device("cpu"), 10 * MIN_MICRO_BATCHES_TO_COMPILE) == (False, "")
    assert "3,999 micro-batches, it pays from 4,000" in decide_compile(GPU, MIN_MICRO_BATCHES_TO_COMPILE - 1).reason


def test_what_compiling_lacks_is_said_instead_of_failing(a_card):
    a_card.setattr(parallel, "which", lambda name: None)
    assert (
        not decide_compile(GPU, MIN_MICRO_BATCHES_TO_COMPILE).on
        and "install gcc" in decide_compile(GPU, MIN_MICRO_BATCHES_TO_COMPILE).reason
    )
    a_card.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install triton" in decide_compile(GPU, MIN_MICRO_BATCHES_TO_COMPILE).reason
    a_card.setattr(torch.cuda, "get_device_capability", lambda device=None: (6, 1))
    assert "does not support this GPU" in decide_compile(GPU, MIN_MICRO_BATCHES_TO_COMPILE).reason


@pytest.mark.parametrize("words, value", [([], None), (["--compile"], True), (["--no-compile"], False)])
def test_the_flag_has_three_states(words, value):
    words = [*words, "--data_path", str(SAMPLE / "pretrain.jsonl")]
    chosen = options.parse_args(None, words, {"data_file": "x", "name": "x"}, on_sample={}, groups=[])
    assert chosen.performance.compile is value


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of Dynamo's own, where it cuts the graph
def test_a_compiled_run_that_was_stopped_goes_on_compiled_to_the_same_bits(tmp_path, monkeypatch, capsys, one_thread):
    """On the CPU, where nobody would compile unasked; the graphs are real, the code is not generated."""
    real, compiled = torch.nn.Module.compile, []

    def compile(module, **words):
        compiled.append(type(module).__name__)
        real(module, backend="eager", **words)

    monkeypatch.setattr(torch.nn.Module, "compile", compile)

    def train(name: str, *words: str) -> tuple[int, list[str]]:
        flags = (
            f"--data_path {SAMPLE / 'pretrain.jsonl'} --cache_dir {tmp_path} --save_dir {tmp_path} --name {name} "
            "--device cpu --dtype float32 --dim 32 --n_layers 1 --n_heads 2 --n_kv_heads 1 --max_seq_len 64 "
            "--batch_size 2 --accumulation_steps 1 --max_steps 4 --warmup_iters 1 --log_step 1 --eval_step 0 "
            "--save_step 2 --val_fraction 0 --num_workers 1"
        )
        compiled.clear()
        return pretrain.main([*flags.split(), *words]), list(compiled)

    assert train("whole", "--compile") == (0, ["TokenLoss"])
    assert train("parts", "--compile", "--max_minutes", "1e-9")[0] == 75
    assert read_info(list_states(tmp_path / "parts.state")[-1]).compiled
    capsys.readouterr()
    assert train("parts", "--resume") == (0, ["TokenLoss"])
    assert "compile on: as in the run's first part" in capsys.readouterr().out
    full_tensor, parts = (read_tensors(tmp_path / f"{name}.pth") for name in ("whole", "parts"))
    assert full_tensor.keys() == parts.keys() and all(
        torch.equal(full_tensor[name], parts[name]) for name in full_tensor
    )


@pytest.mark.parametrize("explicit, before, on", [(None, True, True), (None, False, False), (False, True, False)])
def test_a_resumed_run_does_what_its_first_part_did_unless_told(explicit, before, on):
    point = types.SimpleNamespace(info=types.SimpleNamespace(compiled=before))
    start = resume.Start(options.Output(), Runtime(torch.device("cpu"), torch.float32), "run", 1, point)
    assert start.compiling(explicit, 10 * MIN_MICRO_BATCHES_TO_COMPILE).on is on
