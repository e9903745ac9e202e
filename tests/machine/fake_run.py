"""The child process of test_cuda_without_one.py: trains on fake CUDA tensors and prints its results as JSON."""

import json
import sys
import tempfile
import types
from functools import partial
from unittest import mock

from benchmarks import fake_cuda, gpu

fake_cuda.load_guard()

import torch  # noqa: E402
from torch.utils._python_dispatch import _disable_current_modes  # noqa: E402

from Config import LLMConfig  # noqa: E402
from dataset import LOSS, NO_LOSS, TAG, PretrainDataset  # noqa: E402
from engine import loop, optim, packing  # noqa: E402
from engine.corpus.token_cache import open_or_build  # noqa: E402
from engine.flags import ROOT  # noqa: E402
from engine.generate import engine  # noqa: E402
from engine.generate.fast_decoder import Decoder  # noqa: E402
from engine.loss import TokenLoss, count_tokens  # noqa: E402
from engine.machine import parallel, runtime  # noqa: E402
from engine.machine.stopping import StopRequest  # noqa: E402
from engine.options import Output, Training  # noqa: E402
from engine.packing import Batch, Batches  # noqa: E402
from engine.tokenizer import load_tokenizer, token_bytes  # noqa: E402
from model import SpongeBob  # noqa: E402

GPU = torch.device("cuda", 0)
SMALL = {"dim": 64, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "vocab_size": 500, "max_seq_len": 128}
COST = {NO_LOSS: 0.0, LOSS: 1.0, TAG: 10.0}
KERNEL = "_varlen_attn.default"


def batch(rows: int, length: int, begins: list[int]) -> Batch:
    cu_seqlens = torch.tensor([*begins, rows * length], dtype=torch.int32)
    ids, classes = torch.ones(rows, length, dtype=torch.long), torch.ones(rows, length, dtype=torch.uint8)
    return Batch(ids, ids, classes, torch.ones(rows, length), cu_seqlens).to(GPU)


def a_run(
    dtype=torch.bfloat16,
    *,
    world_size=1,
    optimizer="adamw",
    z_loss=0.0,
    chunk=0,
    recompute=False,
    compile=False,
    **shape,
) -> loop.Run:
    """Make everything that train_step needs, on the fake GPU."""
    rt = runtime.Runtime(GPU, dtype, 0, world_size)
    with GPU:  # .to() cannot move fake parameters
        model = SpongeBob(LLMConfig(**SMALL | shape))
        loss = TokenLoss(model, z_loss=z_loss, chunk=chunk)
    model.recompute = recompute
    module = parallel.wrap(loss, GPU, dtype, world_size, compile=compile, parallel="fsdp")
    training = Training(optimizer=optimizer, learning_rate=1e-3)
    output = Output(name="x", log_step=2, eval_step=0, save_step=0)
    return loop.Run(
        runtime=rt,
        model=model,
        loss=module,
        optimizers=optim.build(model, training),
        lr=lambda step: 1e-3,
        source=None,
        tokenizer=None,
        prompt=[5, 6],
        steps=4,
        rows_per_step=1,
        compiling=parallel.CompileDecision(compile, ""),
        training=training,
        output=output,
    )


def steps(rows=2, length=128, keep="", micro_batches=1, **options):
    """Watch two steps; the second one finds the optimizer's state."""
    with fake_cuda.tensors():
        run = a_run(**options)
        with fake_cuda.watch(keep) as seen:
            for _ in range(2):
                loop.train_step(run, [batch(rows, length, [0, 100]) for _ in range(micro_batches)], 10.0)
                assert all(parameter.grad is None for parameter in run.model.parameters())
        seen.state = set()
        for optimizer in run.optimizers:
            for state in optimizer.state.values():
                seen.state |= {value.device.type for value in state.values()}
    return seen


def contract(calls: list) -> list[dict]:
    """Describe the arguments of the attention kernel."""
    results = []
    for _, (q, k, v, starts, _, longest, *_) in calls:
        results.append(
            {
                "dtypes": sorted({str(t.dtype) for t in (q, k, v)}),
                "starts": str(starts.dtype),
                "table": len(starts),
                "contiguous": starts.is_contiguous() and all(t.stride(-1) == 1 for t in (q, k, v)),
                "head": q.shape[2],
                "heads": [q.shape[1], k.shape[1]],
                "longest": longest,
            }
        )
    return results


def waits_in_a_step() -> dict:
    variants = {
        "adamw": {},
        "muon, many heads": {"optimizer": "muon", "n_layers": 2, "n_heads": 8, "n_kv_heads": 2},
        "z_loss, chunk, accumulation": {"z_loss": 1e-4, "chunk": 100, "micro_batches": 2},
        "dropout, recompute": {"dropout": 0.1, "recompute": True},
        "float32": {"dtype": torch.float32},
        "float16": {"dtype": torch.float16},
    }
    results = {}
    for name, options in variants.items():
        seen = steps(**options)
        results[name] = {"waits": seen.waits, "state": sorted(seen.state)}
    return results


def attention_of_cards() -> dict:
    """Return per GPU ["documents"] for the kernel, or the heads of queries and keys that SDPA got with a mask."""
    results = {}
    for card, dtype in [
        (fake_cuda.H100, "bfloat16"),
        (fake_cuda.RTX_4090, "bfloat16"),
        (fake_cuda.RTX_3090, "float16"),
        (fake_cuda.RTX_4090, "float32"),
        (fake_cuda.T4, "float16"),
    ]:
        fake_cuda.pretend(card)
        sdpa = torch.nn.functional.scaled_dot_product_attention
        with fake_cuda.tensors(), fake_cuda.watch() as seen:
            run = a_run(getattr(torch, dtype), n_heads=4, n_kv_heads=2)
            with (
                run.runtime.autocast(),
                mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", wraps=sdpa) as watched,
            ):
                run.loss(*batch(2, 128, [0, 100]))
        heads = {(call.args[0].shape[1], call.args[1].shape[1]) for call in watched.call_args_list}
        results[f"{card.name} {dtype}"] = ["documents"] if any(KERNEL in name for name in seen.names) else sorted(heads)
    fake_cuda.pretend(fake_cuda.H100)
    return results


def heads_that_take_the_kernel() -> dict:
    results = {}
    for dim, heads in [(64, 2), (160, 8), (24, 2), (528, 2), (512, 2)]:
        with fake_cuda.tensors(), fake_cuda.watch() as seen:
            run = a_run(dim=dim, n_heads=heads)
            with run.runtime.autocast():
                run.loss(*batch(2, 128, [0, 100]))
        results[str(dim // heads)] = any(KERNEL in name for name in seen.names)
    with mock.patch.object(torch.backends.cuda, "is_flash_attention_available", lambda: False):
        results["without flash"] = any(KERNEL in name for name in steps().names)
    return results


def whole_run(rows: packing.PackedRows, cache, sizes) -> dict:
    """Run loop.train on rows of the sample, without the loader's thread, which has no fake mode."""
    tables = []
    with fake_cuda.tensors() as mode, fake_cuda.watch(KERNEL) as seen:
        run = a_run(vocab_size=6400)
        object.__setattr__(run, "source", Batches(cache, rows, COST, batch_size=4, rows_per_step=8, seed=0))
        vars(run)["token_bytes"] = sizes

        def load_step(run, step):
            with _disable_current_modes():  # rows and counts are real
                batches = run.source.step(step)
                tables.extend(batch.cu_seqlens.diff().tolist() for batch in batches)
                counts = count_tokens(batches, run.token_bytes)
            return [Batch(*map(mode.from_tensor, batch)).to(GPU) for batch in batches], counts

        def prefetch(make, steps, ahead):
            for step in steps:
                yield *make(step), 0.0

        loop.load_step, loop.prefetch = load_step, prefetch
        tracker = types.SimpleNamespace(log=lambda row: None, show=lambda *_: None)
        seen.waits.clear()
        loop.train(run, loop.Progress(), tracker, lambda run, progress: None, StopRequest())
        result = {"waits": list(seen.waits), "contract": contract(seen.calls)}
        result["lengths"] = [[min(lengths), max(lengths)] for lengths in tables]
        seen.waits.clear()
        slots = engine.GenerationEngine(Decoder(run.model.eval()), num_slots=2, max_seq_len=32)
        requests = [slots.add(engine.Request([5, 6, 7], 8)) for _ in range(2)]
        while slots.busy:
            engine.GenerationEngine.step.__wrapped__(slots)
    return result | {"generate": {"tokens": len(requests[0].ids), "waits": list(seen.waits)}}


def budget() -> dict:
    """Count kernels, traffic and memory of one micro-batch of the default shape, 32 x 512."""
    with fake_cuda.tensors(), fake_cuda.watch() as seen:
        run = a_run(dim=512, n_layers=8, n_heads=8, n_kv_heads=2, vocab_size=6400, max_seq_len=512)
        before = seen.kernels, seen.bytes
        loop.add_gradients(run, [batch(32, 512, [0, 100])], 10.0)
    return {"kernels": seen.kernels - before[0], "bytes": seen.bytes - before[1], "peak": seen.peak}


def graphs(tables: list[list[int]]) -> dict:
    """List the graphs that torch.compile makes over steps with different cu_seqlens."""
    import torch._dynamo as dynamo
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd
    from torch._dynamo.utils import counters

    real, results = torch.compile, {}
    few = [[0], [0, 100], [0, 7, 128, 200]]
    for name, options, some in (
        ("plain", {}, tables),
        ("chunk, muon", {"chunk": 100, "optimizer": "muon"}, few),
        ("recompute", {"recompute": True}, few),
        ("fsdp", {"world_size": 8}, few),
    ):
        made = []

        def compiler(direction, made=made):
            return lambda graph, _: made.append(direction) or make_boxed_func(graph.forward)

        torch.compile = partial(
            real, backend=aot_autograd(fw_compiler=compiler("forward"), bw_compiler=compiler("backward"))
        )
        dynamo.reset()
        counters.clear()
        with fake_cuda.tensors():
            run = a_run(compile=True, **options)
            after = []
            for begins in some:
                loop.train_step(run, [batch(2, 128, begins)], 10.0)
                after.append(len(made))
        results[name] = {"graphs": made, "after": after, "breaks": sum(counters["graph_break"].values())}
    torch.compile = real
    return results


def fake_ranks() -> None:
    """Join eight ranks of which only this one exists."""
    import torch.distributed as dist
    import torch.distributed.fsdp._fully_shard._fully_shard as fsdp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    fake_cuda.no_streams()
    mesh = init_device_mesh("cuda", (8,))
    mock.patch.object(fsdp, "_init_default_mesh", lambda *_, **__: mesh).start()


def main() -> dict:
    fake_cuda.pretend(fake_cuda.H100)
    tokenizer = load_tokenizer(ROOT / "spongebob_tokenizer")
    with tempfile.TemporaryDirectory() as folder:
        cache = open_or_build(
            [ROOT / "data/sample/pretrain.jsonl"], PretrainDataset, tokenizer, cache_dir=folder, num_workers=1
        )
        rows = packing.pack(packing.split_documents(cache, cache.split(0)[0], 128), 128, 0)
        sizes = torch.from_numpy(token_bytes(tokenizer))
        seen = {
            "steps": waits_in_a_step(),
            "cards": attention_of_cards(),
            "heads": heads_that_take_the_kernel(),
            "contract": contract(steps(keep=KERNEL, n_heads=4, n_kv_heads=2).calls),
            "negations": len(steps(keep="bitwise_not").calls),
            "budget": budget(),
            "loop": whole_run(packing.pack(rows.segments, 256, 0, 128), cache, sizes),
        }
        # The numbers of documents that micro-batches of an epoch have, in two rows of 128.
        epoch = Batches(cache, rows, COST, batch_size=32, rows_per_step=32, seed=0)
        counts = sorted({len(epoch.step(step)[0].cu_seqlens) - 1 for step in range(epoch.steps_per_epoch)})
    with fake_cuda.tensors():
        seen["dry run"] = gpu.compared(partial(gpu.cached_and_full, 2), 0, dry=True)
    fake_ranks()
    seen["graphs"] = graphs([[0], *([0, *range(256 - n, 255)] for n in counts)])
    return seen


if __name__ == "__main__":
    sys.stdout.write("SEEN" + json.dumps(main()) + "\n")
