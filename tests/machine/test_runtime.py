"""Device, dtype, seed and ranks of a run, or an error that names them."""

import platform
import subprocess
import sys

import pytest
import torch
from factories import CPU, ROOT
from forked import run_ranks

from engine import console, options
from engine.machine import runtime
from engine.options import Precision


def test_gpu_that_does_not_exist_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="cuda:9: there are 2 GPUs"):
        runtime.start(Precision(device="cuda:9"), 0)


@pytest.mark.parametrize("name", options.DTYPES)
def test_matrix_products_run_in_the_dtype_of_the_run(name):
    rt = runtime.start(Precision(device="cpu", dtype=name), 0)
    weight = torch.eye(8, requires_grad=True)
    with rt.autocast():
        product = weight @ weight
    assert product.dtype == getattr(torch, name) and weight.dtype == torch.float32
    assert rt.scaler().is_enabled() == (name == "float16")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_memory_of_freed_tensors_is_reused_without_page_faults():
    program = (
        "import resource, torch; from engine.machine import runtime; from engine.options import Precision;"
        "runtime.start(Precision(device='cpu'), 0);"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt;"
        "counts = [faults() for _ in range(16) if torch.ones(2**24) is not None];"
        # Which memory that is takes up to six allocations to settle; from then on none may cost a page.
        "print(max(after - before for before, after in zip(counts[-5:], counts[-4:])))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(done.stdout) < 1000  # of the 16,384 pages that it has


def test_processes_wait_for_the_main_one_without_a_limit(tmp_path):
    output = run_ranks(tmp_path, ROOT / "tests/machine/waiting_ranks.py")
    assert sorted(output.splitlines()) == [f"{rank} has what was made by the main process" for rank in range(2)]


def test_random_numbers_depend_on_the_seed_alone():
    def drawn(seed: int) -> float:
        runtime.start(CPU, seed)
        return torch.rand(()).item()

    assert drawn(7) == drawn(7) != drawn(8)


@pytest.mark.parametrize("stale", [{"RANK": "1"}, {"WORLD_SIZE": "2"}, {"RANK": ""}, {"RANK": "2", "WORLD_SIZE": "2"}])
def test_rank_that_a_shell_left_behind_is_named(stale, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in stale.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="in the environment"):
        runtime.rank_and_world_size()
    assert console.is_main_process() in (True, False)  # the error itself can be printed
