"""Every kernel of the compiled training step, made for cards that are not there: make test-inductor.

    python -m benchmarks.inductor                   # sm_75, 80, 86, 89 and 90: cubins, launches, bytes, memory
    python -m benchmarks.inductor --cards H100      # one of them

Triton is installed next to torch's CPU wheel; ptxas comes with it. Inductor writes the step's kernels for each card,
Triton and ptxas compile them, and the program that Inductor wrote runs with the kernels left out, so that launches,
bytes and memory are counted. Nothing is measured.
"""

import argparse
import collections
import contextlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import types
import weakref

from benchmarks import fake_cuda

CARDS = {
    "T4": fake_cuda.T4,
    "A100": fake_cuda.A100,
    "3090": fake_cuda.RTX_3090,
    "4090": fake_cuda.RTX_4090,
    "H100": fake_cuda.H100,
}


class Launch(types.SimpleNamespace):
    """One kernel: its kind, and the bytes that one of Triton's reads and writes."""


def bytes_of(tensor) -> int:
    size = tensor.element_size()
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        if stride:
            size *= length
    return size


def unchanged(value):
    return value


def install(card: fake_cuda.Card) -> tuple[list, list, types.SimpleNamespace]:
    """Prepare Triton and Inductor for a card that is not there; return (kernels, launches, memory), filled later."""
    import torch
    import torch._dynamo.device_interface as devices
    import torch._inductor.config as config
    from torch._inductor import select_algorithm
    from torch._inductor.runtime import triton_helpers, triton_heuristics
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    gpu, number = torch.device("cuda", 0), card.capability[0] * 10 + card.capability[1]
    torch._C._cuda_getCurrentRawStream = fake_cuda.always(0)
    answers = {
        "is_available": True,
        "get_device_properties": torch.cuda.get_device_properties(),
        "current_device": 0,
        "device_count": 1,
        "get_compute_capability": number,
        "is_triton_capable": True,
        "synchronize": None,
        "raise_if_triton_unavailable": None,
        "set_device": None,
        "exchange_device": 0,
        "maybe_exchange_device": 0,
    }
    for name, value in answers.items():
        setattr(devices.CudaInterface, name, staticmethod(fake_cuda.always(value)))
    for name in ("get_device_properties", "current_device", "set_device"):
        setattr(devices.CudaInterface.Worker, name, staticmethod(fake_cuda.always(answers[name])))
    answers = {
        "set_current_device": None,
        "get_benchmarker": None,
        "get_current_device": 0,
        "get_current_stream": 0,
        "get_active_torch_device": gpu,
        "is_active": True,
        "get_current_target": GPUTarget("cuda", number, 32),
    }
    methods = {name: fake_cuda.always(value) for name, value in answers.items()}
    driver.set_active(type("Driver", (), methods | {"map_python_to_cpp_type": staticmethod(unchanged)})())
    triton_helpers.set_driver_to_gpu = fake_cuda.always(None)

    config.joint_graph_constant_folding = config.use_static_triton_launcher = config.fx_graph_cache = False
    config.compile_threads, config.force_disable_caches = 1, True
    torch._functorch.config.enable_autograd_cache = False

    compiled, launches = [], []
    memory = types.SimpleNamespace(now=0, peak=0)

    def precompile(self, *_, **__):
        self._precompile_worker()
        name = self.inductor_meta.get("kernel_name")
        compiled.extend((name, result.kernel.asm) for result in self.compile_results)

    def launch(self, *args, **_):
        changed = self.inductor_meta.get("mutated_arg_names", [])
        given = [(name, x) for name, x in zip(self.fn.arg_names, args, strict=False) if isinstance(x, torch.Tensor)]
        moved = sum(bytes_of(x) * (2 if name in changed else 1) for name, x in given)
        launches.append(Launch(kind="triton", bytes=moved))

    triton_heuristics.CachingAutotuner.precompile = precompile
    triton_heuristics.CachingAutotuner.run = launch

    def empty(size, stride, dtype):
        tensor = torch.empty_strided(size, stride, dtype=dtype, device=gpu)
        taken = -(-tensor.untyped_storage().nbytes() // 512) * 512
        memory.now += taken
        memory.peak = max(memory.peak, memory.now)
        weakref.finalize(tensor.untyped_storage(), lambda: setattr(memory, "now", memory.now - taken))
        return tensor

    guards = torch._C._dynamo.guards
    guards.assert_size_stride = guards.assert_alignment = fake_cuda.always(None)
    guards.copy_if_misaligned = unchanged
    guards._empty_strided_cuda = empty
    guards._reinterpret_tensor = torch.as_strided
    torch.cuda._DeviceGuard = fake_cuda.always(contextlib.nullcontext())

    def product(*_, out=None, **__):
        launches.append(Launch(kind="product"))
        return out

    class Products:
        def __getattr__(self, name):
            return product

    select_algorithm.extern_kernels = Products()
    return compiled, launches, memory


def a_step(rows: int, length: int, half: str):
    """Yield after each of two compiled micro-batches of the default shape, then the number of parameters."""
    import torch

    from Config import PRESETS, LLMConfig
    from engine import loop, optim
    from engine.loss import TokenLoss
    from engine.machine import parallel, runtime
    from engine.options import Output, Training
    from engine.packing import Batch
    from model import SpongeBob

    gpu, dtype = torch.device("cuda", 0), getattr(torch, half)
    rt = runtime.Runtime(gpu, dtype)
    with gpu:
        model = SpongeBob(LLMConfig(**PRESETS["26M"], vocab_size=6400, max_seq_len=length))
        loss = TokenLoss(model)
    module = parallel.wrap(loss, gpu, dtype, 1, compile=True)
    optimizers = optim.build(model, Training())
    run = loop.Run(
        runtime=rt,
        model=model,
        loss=module,
        optimizers=optimizers,
        lr=None,
        source=None,
        tokenizer=None,
        steps=2,
        rows_per_step=1,
        compiling=parallel.CompileDecision(True, ""),
        training=Training(),
        output=Output(name="x"),
    )
    ids = torch.ones(rows, length, dtype=torch.long)
    tables = torch.arange(0, rows * length + 1, 200, dtype=torch.int32)
    batch = Batch(ids, ids, ids.to(torch.uint8), torch.ones(rows, length), tables).to(gpu)
    for _ in range(2):
        yield loop.add_gradients(run, [batch], 1.0)
    yield sum(parameter.numel() for parameter in model.parameters())


def measure_card(name: str, rows: int, length: int) -> str:
    """Compile everything for one card and return a line of the table. Runs in a process of its own."""
    fake_cuda.load_guard()
    fake_cuda.pretend(CARDS[name])
    compiled, launches, memory = install(CARDS[name])
    half = "float16" if CARDS[name].capability < (8, 0) else "bfloat16"
    with fake_cuda.tensors():
        step = a_step(rows, length, half)
        next(step)
        launches.clear()
        memory.peak = memory.now
        next(step)
        parameters = next(step)
    return row(name, half, compiled, launches, memory.peak + 16 * parameters)


def row(name, half, compiled, launches, memory) -> str:
    without = [kernel for kernel, asm in compiled if not asm.get("cubin")]
    if without or not compiled:
        raise ValueError(f"{name}: no cubin of {', '.join(without) or 'any kernel'}")
    kinds = collections.Counter(launch.kind for launch in launches)
    moved = sum(launch.bytes for launch in launches if launch.kind == "triton") / 1e9
    cells = [
        name,
        "sm_{}{}".format(*CARDS[name].capability),
        half,
        f"{len({kernel for kernel, _ in compiled})}",
        f"{len(compiled)}",
        f"{kinds['triton']}",
        f"{kinds['product']}",
        f"{moved:.1f} GB",
        f"{memory / 2**30:.2f} GiB",
    ]
    return "| " + " | ".join(cells) + " |"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cards", nargs="+", choices=CARDS, default=list(CARDS), help="for which cards")
    parser.add_argument("--rows", type=int, default=32, help="rows of 512 tokens of the micro-batch")
    args = parser.parse_args(argv)
    if reason := fake_cuda.missing() or missing_triton():
        print(f"not run: {reason}")
        return 0
    if len(args.cards) == 1:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["TORCHINDUCTOR_CACHE_DIR"], os.environ["TRITON_CACHE_DIR"] = f"{folder}/i", f"{folder}/t"
            print(measure_card(args.cards[0], args.rows, 512))
        return 0
    print("| card | | dtype | kernels | cubins | Triton launches | products | outside products | memory |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for name in args.cards:
        command = [sys.executable, "-m", "benchmarks.inductor", "--cards", name, "--rows", str(args.rows)]
        done = subprocess.run(command, cwd=fake_cuda.ROOT, text=True, capture_output=True)
        if done.returncode:
            print(done.stderr[-3000:], file=sys.stderr)
            return 1
        print(done.stdout.strip(), flush=True)
    print("\nNothing was measured: kernels, bytes and memory are counted.")
    return 0


def missing_triton() -> str | None:
    return None if importlib.util.find_spec("triton") else "triton is missing: make test-inductor"


if __name__ == "__main__":
    sys.exit(main())
