"""compile, DDP or FSDP2 around the loss module, and what a sharded module needs besides."""

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

# Micro-batches of a process that pay for the minute in which a GPU's code is compiled. Calculated for 32 x 512 tokens
# of the 26M model: each then takes 14 ms less on an H100, 44 on an RTX 3090.
MIN_MICRO_BATCHES_TO_COMPILE = 4000


class CompileDecision(NamedTuple):
    """Whether torch.compile is used, and why."""

    on: bool
    reason: str


def decide_compile(device: torch.device, micro_batches: int) -> CompileDecision:
    """What suits a run that nobody told: on where it pays and can be done, from what is there, never from a clock."""
    if device.type != "cuda":
        return CompileDecision(False, "")
    if micro_batches < MIN_MICRO_BATCHES_TO_COMPILE:
        return CompileDecision(
            False, f"{micro_batches:,} micro-batches, it pays from {MIN_MICRO_BATCHES_TO_COMPILE:,} on; --compile"
        )
    if torch.cuda.get_device_capability(device) < (7, 0):
        return CompileDecision(False, "Triton does not serve this card")
    if importlib.util.find_spec("triton") is None:
        return CompileDecision(
            False, "about twice as slow as with Triton: pip install triton (Windows: triton-windows)"
        )
    if not any(which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang", "cl")):
        return CompileDecision(
            False, "about twice as slow as with a C compiler, which Triton needs: install gcc or clang"
        )
    return CompileDecision(
        True, f"{micro_batches:,} micro-batches, it pays from {MIN_MICRO_BATCHES_TO_COMPILE:,} on; --no-compile"
    )


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
    """The loss module as it is called in training; its weights stay those of `module`."""
    if device.type == "mps" and module.model.recompute and (dropout := module.model.config.dropout):
        raise ValueError(  # checkpoint() keeps no random state of mps: backward would drop other elements than forward
            f"dropout {dropout} with --activation_checkpointing gives wrong gradients on mps; leave out one of them"
        )
    if compile:
        use_inductor_cache_per_cpu()
        if device.type == "cpu" and module.model.recompute:
            for layer in module.model.layers:  # each cut at attention, where checkpoint() would leave it uncompiled
                layer.compile(dynamic=False)
        if module.chunk:  # by itself, once for all lengths of a chunk
            module.sums = torch.compile(module.sums, dynamic=True)
        module.compile(dynamic=False)
    if world_size == 1:
        return module
    if bf16_gradients and device.type != "cuda":
        raise ValueError(f"--bf16_gradients: torch sums bf16 only between GPUs, and this is {device.type}")
    if parallel == "ddp":
        ids = [device.index] if device.type == "cuda" else None
        copies = DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True)
        if bf16_gradients:
            from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

            copies.register_comm_hook(None, bf16_compress_hook)
        return copies
    if dtype == torch.float16:
        raise ValueError("--parallel fsdp needs --dtype bfloat16 or float32: each process would scale fp16 its own way")
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # Blocks travel in the dtype they compute in, gradients are summed in fp32. Inputs stay as they are: cos and sin of
    # late positions do not fit into bf16. Embedding and last norm stay fp32, as under autocast.
    low = dtype if dtype != torch.float32 else None
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in module.model.layers:
        fully_shard(layer, mp_policy=policy)
    return fully_shard(module)


def use_inductor_cache_per_cpu() -> None:
    """A folder of compiled code for each kind of CPU: torch's own hands what it made for one to all, where it crashes.

    ATEN_CPU_CAPABILITY changes the kind, and so does a folder that is copied or shared. Never over what the user set.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # takes a second

    shared, kind = default_cache_dir(), torch.backends.cpu.get_cpu_capability().replace(" ", "_")
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", shared) == shared:  # torch itself puts it there sooner or later
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{shared}_{kind}"


def is_sharded(module: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def reshard(module: Any) -> None:
    """Free the weights that FSDP gathered for a backward pass that does not come (after validation)."""
    if hasattr(module, "reshard"):
        module.reshard()


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor that FSDP may have sharded; every rank has to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@contextlib.contextmanager
def gradient_sync(module: Any, last: bool) -> Iterator[None]:
    """Gradients travel between ranks once a step, with its last micro-batch. Must enclose forward too (DDP)."""
    if isinstance(module, DistributedDataParallel):
        with contextlib.nullcontext() if last else module.no_sync():
            yield
        return
    if hasattr(module, "set_requires_gradient_sync"):  # FSDP2
        module.set_requires_gradient_sync(last)
    yield
