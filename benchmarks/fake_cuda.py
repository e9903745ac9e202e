"""A CUDA card that is not there: real operators, decisions and waits on fake tensors. It says nothing of numbers.

torch's FakeTensorMode follows shapes, dtypes and devices of "cuda" tensors without a GPU, but autograd asks the CUDA
build for a device guard and for hooks, which the CPU wheel has not. GUARD gives it both; it has to be loaded before
torch, so programs call `load_guard` first and run in a process of their own. Wants Linux, g++ and torch's CPU wheel.

What it finds: code that fails on CUDA (a device or dtype that does not match), waits for the GPU, breaks the compiled
graph, compiles again, or moves more bytes or holds more memory than it did. Not: wrong numbers, slow kernels.
"""

import contextlib
import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
import traceback
import types
import weakref
from collections.abc import Iterator
from pathlib import Path
from shutil import which
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]

GUARD = r"""
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
using namespace c10;
struct Guard final : impl::DeviceGuardImplInterface {
  DeviceType type() const override { return kCUDA; }
  Device exchangeDevice(Device) const override { return getDevice(); }
  Device getDevice() const override { return Device(kCUDA, 0); }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device d) const noexcept override { return Stream(Stream::DEFAULT, d); }
  Stream exchangeStream(Stream s) const noexcept override { return s; }
  DeviceIndex deviceCount() const noexcept override { return 1; }
};
static const bool guard = (impl::registerDeviceGuard(kCUDA, new Guard()), true);
namespace at {
struct Hooks final : CUDAHooksInterface {
  Hooks(CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
};
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, Hooks);
}
"""


class Card(NamedTuple):
    """The properties of a card that programs ask for."""

    name: str
    capability: tuple[int, int]
    memory: int  # GiB
    processors: int  # streaming multiprocessors
    threads: int  # of one of them
    shared: int  # KiB of its shared memory that a block may use


H100 = Card("NVIDIA H100 80GB HBM3", (9, 0), 80, 132, 2048, 227)
A100 = Card("NVIDIA A100-SXM4-40GB", (8, 0), 40, 108, 2048, 163)
RTX_4090 = Card("NVIDIA GeForce RTX 4090", (8, 9), 24, 128, 1536, 99)
RTX_3090 = Card("NVIDIA GeForce RTX 3090", (8, 6), 24, 82, 1536, 99)
T4 = Card("Tesla T4", (7, 5), 15, 40, 1024, 64)


def missing() -> str | None:
    """Return the reason why there can be no fake card here; None when there can."""
    if sys.platform != "linux" or not which("g++"):
        return "the fake card wants Linux and g++"
    if "+cpu" not in importlib.metadata.version("torch"):
        return "the fake card wants torch's CPU wheel"
    return None


def load_guard() -> None:
    """Compile GUARD, once for each torch, and load it."""
    if "torch" in sys.modules:
        raise RuntimeError("load_guard comes before the first import of torch")
    root = Path(importlib.util.find_spec("torch").submodule_search_locations[0])
    content = GUARD + importlib.metadata.version("torch") + str(root)
    folder = Path(tempfile.gettempdir()) / f"fake_cuda_{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise RuntimeError(f"{folder} belongs to somebody else")
    library = folder / f"{hashlib.blake2b(content.encode(), digest_size=8).hexdigest()}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            source, made = Path(temporary, "guard.cpp"), Path(temporary, "guard.so")
            source.write_text(GUARD)
            command = ["g++", "-O0", "-std=c++20", "-shared", "-fPIC", "-I", root / "include", source]
            subprocess.run([*command, "-L", root / "lib", "-lc10", "-ltorch_cpu", "-o", made], check=True)
            os.replace(made, library)
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(root / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library))


def always(value):
    """Return a new function that always returns `value`; Dynamo keeps a rule for each function."""

    def answer(*args, **kwargs):
        return value

    return answer


def pretend(card: Card) -> None:
    """Let torch answer as if it had the card."""
    import torch

    properties = types.SimpleNamespace(
        name=card.name,
        major=card.capability[0],
        minor=card.capability[1],
        total_memory=card.memory << 30,
        multi_processor_count=card.processors,
        max_threads_per_multi_processor=card.threads,
        max_threads_per_block=1024,
        regs_per_multiprocessor=65536,
        warp_size=32,
        shared_memory_per_multiprocessor=(card.shared + 1) << 10,
        shared_memory_per_block_optin=card.shared << 10,
        shared_memory_per_block=48 << 10,
        L2_cache_size=50 << 20,
        gcnArchName="",
        uuid="fake",
    )
    answers = {
        "get_device_capability": card.capability,
        "get_device_name": card.name,
        "get_device_properties": properties,
        "device_count": 1,
        "current_device": 0,
        "synchronize": None,
        "set_device": None,
        "is_bf16_supported": True,
    }
    for name, value in answers.items():
        setattr(torch.cuda, name, always(value))
    torch.cuda.amp.common.amp_definitely_not_available = always(False)
    torch.backends.cuda.is_flash_attention_available = always(True)
    torch._C._ensureCUDADeviceGuardSet = always(None)  # GUARD is loaded
    torch.Tensor.pin_memory = pin


def pin(tensor):
    """Mark a tensor as pinned; fake tensors have no pin_memory."""
    tensor.pinned = True
    return tensor


@contextlib.contextmanager
def tensors() -> Iterator:
    """Make all tensors fake, also those on "cuda"; NumPy is given zeros of the same shape."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
    from torch.utils._python_dispatch import _disable_current_modes

    def zeros(tensor: FakeTensor):
        with _disable_current_modes():
            return torch.zeros(tensor.shape, dtype=tensor.dtype).numpy()

    FakeTensor.numpy = zeros
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.autograd.set_multithreading_enabled(False):
        yield mode


def watch(keep: str = ""):
    """Return a mode that counts every operator on the GPU, every wait for it, and the memory it would hold.

    waits: [place, reason]; kernels and bytes: of operators that are no views; peak: bytes; calls: [name, arguments] of
    the operators whose name has `keep` in it (their tensors live on).
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    aten = torch.ops.aten
    needs_values = (aten.nonzero.default, aten.masked_select.default, aten.equal.default, aten._unique2.default)
    nothing = ("prim.", "empty", "detach")  # no kernel

    def inside(tree: object) -> list:
        leaves = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
        return [leaf for leaf in leaves if leaf.device.type == "cuda"]

    class Watch(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.waits, self.calls = [], []
            self.names, self.storages = set(), set()
            self.kernels = self.bytes = self.now = self.peak = 0

        def wait(self, why: str) -> None:
            frames = [frame for frame in traceback.extract_stack() if "site-packages" not in frame.filename]
            place = "?"
            for frame in frames:
                if ROOT in Path(frame.filename).parents and frame.filename != __file__:
                    place = f"{Path(frame.filename).relative_to(ROOT).as_posix()}:{frame.name}"
            self.waits.append([place, why])

        def hold(self, tensor: torch.Tensor) -> None:
            storage = tensor.untyped_storage()
            if storage._cdata not in self.storages:
                size = -(-storage.nbytes() // 512) * 512
                self.storages.add(storage._cdata)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.free, storage._cdata, size)

        def free(self, key: int, size: int) -> None:
            self.storages.discard(key)
            self.now -= size

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            read = inside((args, kwargs))
            unknown = isinstance(args[0], FakeTensor) and args[0].constant is None if args else False
            if func is aten._local_scalar_dense.default and unknown:
                if read:  # on the CPU there is nothing to wait for
                    self.wait("reads a number")
                if args[0].dtype == torch.bool:
                    return True
                return 1.0 if args[0].is_floating_point() else 1
            if func in needs_values and read:
                self.wait(f"needs the values of {func}")
            out = func(*args, **kwargs)
            made, name = inside(out), str(func)
            if func is aten._to_copy.default and bool(read) != bool(made) and not kwargs.get("non_blocking"):
                self.wait("copies and waits")
            to_gpu = func is aten._to_copy.default and made and not read and kwargs.get("non_blocking")
            if to_gpu and not getattr(args[0], "pinned", False):
                self.wait("copies what is not pinned")
            if func is aten.copy_.default and read and len(read) < 2 and not args[2:3]:
                self.wait("copies and waits")
            view = func.is_view or any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
            if (read or made) and not view and not any(word in name for word in nothing):
                self.kernels += 1
                self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in read + made)
                self.names.add(name)
                if keep and keep in name:
                    self.calls.append((name, args))
            for tensor in made:
                self.hold(tensor)
            return out

    return Watch()


def no_streams() -> None:
    """Give FSDP streams and events that do nothing."""
    import torch

    class Stream:
        device_index = stream_id = 0
        device_type = 1
        device = torch.device("cuda", 0)

        def __init__(self, *_, **__):
            pass

        def itself(self, *_):
            return self

        wait = wait_stream = wait_event = synchronize = record = __exit__ = always(None)
        record_event = __enter__ = query = itself

    stream = Stream()
    for name in ("current_stream", "default_stream", "stream"):
        setattr(torch.cuda, name, always(stream))
    torch.cuda.Stream = torch.cuda.Event = torch.Event = Stream
    torch.cuda.is_initialized = always(True)
    torch.cuda.device_count = always(8)
    torch.Tensor.record_stream = always(None)
