"""torch.compile, DDP or FSDP2 around the loss module, and helpers for sharded modules."""

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from shutil import which
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

# Micro-batches of a process that make up for the minute that compiling takes on a GPU. Calculated for 32 x 512 tokens
# of the 26M model: compiled, each takes 14 ms less on an H100, 44 on an RTX 3090.
MIN_MICRO_BATCHES_TO_COMPILE = 4000


class CompileDecision(NamedTuple):
    """Decision for or against torch.compile, with its reason."""

    on: bool
    reason: str


def decide_compile(device: torch.device, micro_batches: int) -> CompileDecision:
    """Decide whether to compile if neither --compile nor --no-compile is given.

    Measured times have no part in it: a resumed run must decide alike.

    Args:
        device: The device of this process.
        micro_batches: Micro-batches of this process in the whole run.
    """
    if device.type != "cuda":
        return CompileDecision(False, "")
    count = f"{micro_batches:,} micro-batches, it pays from {MIN_MICRO_BATCHES_TO_COMPILE:,} on"
    if micro_batches < MIN_MICRO_BATCHES_TO_COMPILE:
        return CompileDecision(False, f"{count}; --compile")
    if torch.cuda.get_device_capability(device) < (7, 0):
        return CompileDecision(False, "Triton does not support this GPU")
    slower, missing = "about twice as slow as with", ""
    if importlib.util.find_spec("triton") is None:
        missing = f"{slower} Triton: pip install triton (Windows: triton-windows)"
    elif not any(which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang", "cl")):
        missing = f"{slower} a C compiler, which Triton needs: install gcc or clang"
    return CompileDecision(not missing, missing or f"{count}; --no-compile")


def wrap(
    module: Any,
    device: torch.device,
    dtype: torch.dtype,
    world_size: int,
    *,
    compile: bool = False,
    parallel: str = "ddp",
    bf16_gradients: bool = False,
) -> nn.Module:
    """Compile the loss module and wrap it for several processes; the weights stay those of `module`.

    Args:
        module: A TokenLoss.
        device, dtype: Of the forward and backward pass.
        world_size: Number of processes; one is not wrapped.
        compile: Use torch.compile.
        parallel: "ddp" (each process holds all weights) or "fsdp" (each holds a part).
        bf16_gradients: Send gradients in bf16 (DDP only).
    Raises:
        ValueError: These flags give wrong results or cannot be combined on this device.
    """
    if device.type == "mps" and module.model.recompute and (dropout := module.model.config.dropout):
        # checkpoint() does not save the random state of mps: backward would drop other elements than forward.
        raise ValueError(
            f"dropout {dropout} with --activation_checkpointing gives wrong gradients on mps; leave out one of them"
        )
    if compile:
        use_inductor_cache_per_cpu()
        if device.type == "cpu" and module.model.recompute:
            for layer in module.model.layers:  # each breaks at attention, where checkpoint() leaves it uncompiled
                layer.compile(dynamic=False)
        if module.chunk:  # a graph of its own, compiled once for all lengths of a chunk
            module.sums = torch.compile(module.sums, dynamic=True)
        module.compile(dynamic=False)
    if world_size == 1:
        return module
    if bf16_gradients and device.type != "cuda":
        raise ValueError(f"--bf16_gradients: torch sums bf16 only between GPUs, and this is {device.type}")
    if parallel == "ddp":
        ids = [device.index] if device.type == "cuda" else None
        replica = DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True)
        if bf16_gradients:
            from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

            replica.register_comm_hook(None, bf16_compress_hook)
        return replica
    if dtype == torch.float16:
        raise ValueError("--parallel fsdp needs --dtype bfloat16 or float32: each process would scale fp16 its own way")
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # Blocks are sent in the dtype they compute in, gradients are summed in fp32. Inputs are not cast: cos and sin of
    # late positions do not fit into bf16. Embedding and last norm stay fp32, as under autocast.
    param_dtype = dtype if dtype != torch.float32 else None
    policy = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in module.model.layers:
        fully_shard(layer, mp_policy=policy)
    return fully_shard(module)


def use_inductor_cache_per_cpu() -> None:
    """Give each kind of CPU a compile cache of its own: code that torch's shared cache has for another kind crashes.

    ATEN_CPU_CAPABILITY changes the kind, and so does a folder that is copied or shared. A folder that the user set is
    left alone.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # takes a second

    shared = default_cache_dir()
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", shared) == shared:  # torch itself sets it to the default at some time
        capability = torch.backends.cpu.get_cpu_capability().replace(" ", "_")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{shared}_{capability}"


def is_sharded(module: nn.Module) -> bool:
    """Return whether FSDP has sharded the module's weights."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def reshard(module: Any) -> None:
    """Free the weights that FSDP gathered for a backward pass, if none follows (after validation)."""
    if hasattr(module, "reshard"):
        module.reshard()


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return the whole of a tensor that FSDP may have sharded; every rank must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@contextlib.contextmanager
def gradient_sync(module: Any, last: bool) -> Iterator[None]:
    """Sum gradients over ranks only in the `last` micro-batch of a step. Must enclose forward, too (DDP)."""
    if isinstance(module, DistributedDataParallel):
        with contextlib.nullcontext() if last else module.no_sync():
            yield
        return
    if hasattr(module, "set_requires_gradient_sync"):  # FSDP2
        module.set_requires_gradient_sync(last)
    yield
