"""The device and dtype that were asked for, or an error that names them."""

import platform
import subprocess
import sys

import pytest
import torch
from factories import CPU, ROOT, torchrun

from engine import options
from engine.machine import runtime
from engine.options import Precision


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="cuda:9: there are 2 GPUs"):
        runtime.start(Precision(device="cuda:9"), 0)


@pytest.mark.parametrize("name", options.DTYPES)
def test_products_run_in_the_dtype_that_was_asked_for_and_only_fp16_is_scaled(name):
    rt = runtime.start(Precision(device="cpu", dtype=name), 0)
    weight = torch.eye(8, requires_grad=True)
    with rt.autocast():
        product = weight @ weight
    assert product.dtype == getattr(torch, name) and weight.dtype == torch.float32
    assert rt.scaler().is_enabled() == (name == "float16")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_the_memory_of_a_large_tensor_is_used_again_instead_of_being_cleared_by_the_system():
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


def test_processes_wait_for_what_the_main_one_makes_as_long_as_it_takes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = torchrun(ROOT / "tests/machine/waiting_ranks.py")
    assert sorted(said.splitlines()) == [f"{rank} has what was made by the main process" for rank in range(2)]


def test_what_is_drawn_after_a_start_depends_on_its_seed_alone():
    def drawn(seed: int) -> float:
        runtime.start(CPU, seed)
        return torch.rand(()).item()

    assert drawn(7) == drawn(7) != drawn(8)
