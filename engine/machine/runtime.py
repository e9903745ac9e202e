"""Device, dtype, random seed and memory of a run, and the communication between its processes."""

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
        """Return whether this process prints and writes files."""
        return self.rank == 0

    def hardware(self) -> str:
        """Describe the devices, the host and the dtype in one line."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type.upper()
        host = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.world_size} x {name}, {host}, torch {torch.__version__}, {dtype}"

    def autocast(self) -> torch.autocast:
        """Return the context in which matrix products run in `dtype`; weights stay fp32."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def scaler(self) -> torch.amp.GradScaler:
        """Return a gradient scaler, disabled unless the dtype is fp16: bf16 has the range of fp32."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def synchronize(self) -> None:
        """Wait for all kernels that are queued on the device; call it before reading a clock."""
        if self.device.type in ("cuda", "mps"):
            getattr(torch, self.device.type).synchronize()

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor of any shape over ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sum each number over ranks. They are sent from the CPU, so nothing waits for the device."""
        if self.world_size == 1:
            return list(values)
        return self.all_reduce(torch.tensor(values, dtype=torch.float64)).tolist()

    def gather(self, value: object) -> list:
        """Return the values of all ranks, on every rank."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    def broadcast_from_main(self, make: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
        """Call `make` on the main process and return its result on every process.

        Files may change between two reads; this way every process sees the same content.

        Args:
            make: Called on the main process only.
            group: Processes that wait for the result (default: all, with torch's own time limit).
        Raises:
            ValueError, OSError: On the main process, if `make` raises them; the others exit with code 2.
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
    """Return the device of --device; `auto` is cuda, else mps, else cpu.

    Raises:
        ValueError: There is no such device here, or only the driver of the GPU is too old.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        problem = gpu_specs.driver_problem() if torch.version.cuda and not available["cuda"] else ""
        if "too old" in problem:
            raise ValueError(f"{problem}; --device cpu runs without the GPU")
        name = next(device_type for device_type, is_available in available.items() if is_available)
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name}: expected auto, cuda, cuda:N, mps or cpu") from None
    if device.type == "cuda" and not available["cuda"]:
        raise ValueError(f"--device {name}: {gpu_specs.why_no_cuda()}")
    if not available.get(device.type, False):
        others = ", ".join(device_type for device_type, is_available in available.items() if is_available)
        raise ValueError(f"--device {name} is not available here; expected {others}")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype with this name; `auto` is bf16 where the hardware multiplies it, fp16 on older GPUs, else fp32.

    Raises:
        ValueError: An unknown name, or bf16 on a GPU without units for it.
    """
    if name not in ("auto", *DTYPES):
        raise ValueError(f"{name}: expected auto, {', '.join(DTYPES)}")
    if device.type == "cuda":
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
        if name == "bfloat16" and not has_bf16:
            gpu = torch.cuda.get_device_name(device)
            raise ValueError(f"bfloat16: {gpu} has no bf16 units; use float16 or float32")
        fastest = "bfloat16" if has_bf16 else "float16"
    else:
        # Emulated bf16 is slower than fp32. Only these private functions of torch know if the CPU has units for it.
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        has_bf16 = device.type == "cpu" and any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
        fastest = "bfloat16" if has_bf16 else "float32"
    return getattr(torch, fastest if name == "auto" else name)


def rank_and_world_size() -> tuple[int, int]:
    """Return rank and world size from torchrun's environment variables.

    A stale RANK variable would make this process a non-main rank, which prints and saves nothing.

    Raises:
        ValueError: The variables are no numbers, or contradict each other.
    """
    values = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    for name, value in values.items():
        if value is not None and not value.isdecimal():
            raise ValueError(f"{name}={value!r} in the environment is no number; unset it, or start with torchrun")
    rank, world_size = int(values["RANK"] or 0), int(values["WORLD_SIZE"] or 1)
    if rank >= world_size or (values["RANK"] is None and world_size > 1):
        present = ", ".join(f"{name}={value}" for name, value in values.items() if value is not None)
        raise ValueError(
            f"{present} in the environment: RANK must be below WORLD_SIZE, and both are needed; "
            "unset them, or start with torchrun"
        )
    return rank, world_size


def start(machine: Performance | Device, seed: int) -> Runtime:
    """Join the processes of torchrun, if any, choose device and dtype, and seed every generator.

    Args:
        machine: The user's flags.
        seed: Of this process; ranks may pass different ones.
    Raises:
        ValueError: The environment, the device or the dtype cannot be used.
    """
    rank, world_size = rank_and_world_size()
    if isinstance(machine, Performance):
        stopping.exit_on_ctrl_c()
    device = resolve_device(machine.device)
    if device.type == "cuda":
        device = _select_gpu(device)
    if world_size > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        store = fresh_store(rank, world_size)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    if device.type == "cpu":
        keep_freed_memory()
    deterministic = isinstance(machine, Performance) and machine.deterministic
    torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (the global generator is meant)
    torch.manual_seed(seed)
    dtype = machine.dtype if isinstance(machine, Precision) else "auto"
    return Runtime(device, resolve_dtype(dtype, device), rank, world_size)


def _select_gpu(device: torch.device) -> torch.device:
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", device.index or 0)))
    num_gpus = torch.cuda.device_count()
    if device.index >= num_gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        note = f" (CUDA_VISIBLE_DEVICES={visible})" if visible else ""
        raise ValueError(f"{device}: there are {num_gpus} GPUs here{note}, counted from 0")
    gpu_specs.check_compute_capability(device)
    torch.cuda.set_device(device)
    return device


def keep_freed_memory() -> None:
    """Tell glibc to keep large tensors that were freed for the next step.

    Otherwise malloc returns them to the system, which clears every page before it hands it out again: more than a
    tenth of a CPU step.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_max = -1, -4  # malloc.h
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, -1)  # never


def finish() -> None:
    """Leave the group of processes, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
