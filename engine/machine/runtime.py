"""Where a run computes: device, dtype, random seed, memory, processes and how they speak to each other."""

import ctypes
import os
import platform
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

from engine.machine import gpu_specs, stopping
from engine.machine.rendezvous import fresh_store
from engine.options import DTYPES, Device, Performance, Precision

T = TypeVar("T")


@dataclass(frozen=True)
class Runtime:
    """One process of a run."""

    device: torch.device
    dtype: torch.dtype
    rank: int = 0
    world_size: int = 1

    @property
    def is_main_process(self) -> bool:
        """Whether this process speaks and writes files."""
        return self.rank == 0

    def hardware(self) -> str:
        """What it ran on, in words."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type.upper()
        cores = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}"
        return (
            f"{self.world_size} x {name}, {cores}, torch {torch.__version__}, {str(self.dtype).removeprefix('torch.')}"
        )

    def autocast(self) -> torch.autocast:
        """The weights stay fp32; matrix products run in the dtype that was asked for."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def scaler(self) -> torch.amp.GradScaler:
        """Only fp16 needs its gradients scaled up: bf16 has the range of fp32."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def synchronize(self) -> None:
        """Wait until the device has done what it was told, so that a clock can be read."""
        if self.device.type in ("cuda", "mps"):
            getattr(torch, self.device.type).synchronize()

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each of the numbers summed over ranks. They travel on the CPU, so nothing waits for the device."""
        if self.world_size == 1:
            return list(values)
        return self.all_reduce(torch.tensor(values, dtype=torch.float64)).tolist()

    def all_reduce_max(self, number: int) -> int:
        """The largest number that any rank gives."""
        box = torch.tensor(number)
        if self.world_size > 1:
            dist.all_reduce(box, dist.ReduceOp.MAX)
        return int(box)

    def gather(self, value: object) -> list:
        """Every rank's value, on every rank."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    def broadcast_from_main(self, make: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
        """Call `make` on the main process; return its result on every process, or raise its error.

        Files may change between two reads: every process must get the same answer. `group` waits in place of all.
        """
        result, error = None, None
        if self.is_main_process:
            try:
                result = make()
            except (ValueError, OSError) as raised:
                error = raised
        if self.world_size > 1:
            box = [(result, error is not None)]
            dist.broadcast_object_list(box, group=group)
            result, has_failed = box[0]
            if has_failed and not self.is_main_process:
                raise SystemExit(2)  # the main process prints the reason
        if error:
            raise error
        return result  # pyright: ignore[reportReturnType] (None only where make() returned it)

    def main_process_first(self, make: Callable[[], T]) -> T:
        """Call `make` on the main process, then on the others: it builds the token cache, they open it.

        They wait without a limit: torch's own is 10 minutes for NCCL, and reading 20 GB takes longer.
        """
        if self.world_size == 1:
            return make()
        group = dist.new_group(backend="gloo", timeout=timedelta(days=30))
        made: list[T] = []
        self.broadcast_from_main(lambda: made.append(make()), group)  # pyright: ignore[reportArgumentType]
        return made[0] if made else make()


def resolve_device(name: str) -> torch.device:
    """`auto` is cuda, else mps, else cpu. One that was named and is not there is an error."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        if torch.version.cuda and not available["cuda"] and "too old" in (problem := gpu_specs.driver_problem()):
            raise ValueError(f"{problem}; --device cpu goes on without the GPU")
        name = next(kind for kind, there in available.items() if there)
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name}: expected auto, cuda, cuda:N, mps or cpu") from None
    if device.type == "cuda" and not available["cuda"]:
        raise ValueError(f"--device {name}: {gpu_specs.why_no_cuda()}")
    if not available.get(device.type, False):
        raise ValueError(
            f"--device {name}: not available here, but {', '.join(k for k, there in available.items() if there)}"
        )
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 where the hardware multiplies it, fp16 on older CUDA cards, else fp32."""
    if name != "auto" and name not in DTYPES:
        raise ValueError(f"{name}: expected auto, {', '.join(DTYPES)}")
    if device.type == "cuda":
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
        if name == "bfloat16" and not has_bf16:
            raise ValueError(
                f"bfloat16: {torch.cuda.get_device_name(device)} has no bf16 units; use float16 or float32"
            )
        return getattr(torch, name) if name != "auto" else torch.bfloat16 if has_bf16 else torch.float16
    if name != "auto":
        return getattr(torch, name)
    # Emulated bf16 is slower than fp32; torch says only in these private functions whether it is native.
    native = device.type == "cpu" and any(
        getattr(torch.cpu, probe, lambda: False)() for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return torch.bfloat16 if native else torch.float32


def rank_and_world_size() -> tuple[int, int]:
    """(rank, world) as torchrun gives them. A RANK that a shell has left over would make a run silent and fileless."""
    given = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    for name, value in given.items():
        if value is not None and not value.isdecimal():
            raise ValueError(
                f"{name}={value!r} in the environment: expected a number; unset it, or start with torchrun"
            )
    rank, world_size = int(given["RANK"] or 0), int(given["WORLD_SIZE"] or 1)
    if rank >= world_size or (given["RANK"] is None and world_size > 1):
        told = ", ".join(f"{name}={value}" for name, value in given.items() if value is not None)
        raise ValueError(
            f"{told} in the environment: RANK is counted from 0 up to WORLD_SIZE, and both are needed; "
            "unset them, or start with torchrun"
        )
    return rank, world_size


def start(machine: Performance | Device, seed: int) -> Runtime:
    """Join the processes torchrun started (or be the only one), choose device and dtype, seed every generator."""
    rank, world_size = rank_and_world_size()
    if isinstance(machine, Performance):
        stopping.exit_on_ctrl_c()
    chosen = resolve_device(machine.device)
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", chosen.index or 0)))
        if chosen.index >= torch.cuda.device_count():
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            of = f" (CUDA_VISIBLE_DEVICES={visible})" if visible else ""
            raise ValueError(f"{chosen}: there are {torch.cuda.device_count()} GPUs here{of}, counted from 0")
        gpu_specs.check_compute_capability(chosen)
        torch.cuda.set_device(chosen)
    if world_size > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        store = fresh_store(rank, world_size)
        joined = {"store": store, "rank": rank, "world_size": world_size} if store else {}
        dist.init_process_group(backend, **joined)
    if chosen.type == "cpu":
        keep_freed_memory()
    deterministic = isinstance(machine, Performance) and machine.deterministic
    torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (the global one is meant)
    torch.manual_seed(seed)
    dtype = machine.dtype if isinstance(machine, Precision) else "auto"
    return Runtime(chosen, resolve_dtype(dtype, chosen), rank, world_size)


def keep_freed_memory() -> None:
    """glibc only: large tensors that were freed stay with the process, for the next step's.

    malloc gives them back to the system otherwise, which clears every page again before it lends it: more than a tenth
    of a CPU step.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_max = -1, -4  # malloc.h
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, -1)  # never


def finish() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
