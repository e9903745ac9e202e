"""What a run says before its first step and after its last: size, memory, disk, time, what was gained."""

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import cast

import torch

from dataset import LOSS, TAG
from engine.console import printable
from engine.corpus.jsonl import RowCounts
from engine.loop import Progress, Run, load_step
from engine.loss import TokenLoss
from engine.machine import memory_estimate, parallel, rng
from engine.machine.gpu_specs import gpu_tflops
from engine.packing import Batch, PackedRows


def describe(run: Run, training: PackedRows, validation: PackedRows) -> str:
    """Rows, steps, memory and disk, before anything is computed. Too little disk is an error now, not in an hour."""
    rt, batches = run.runtime, run.batches
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    memory = memory_needed(parameters, rt.world_size if parallel.is_sharded(run.model) else 1)
    needed = disk_needed(parameters, run.output.keep)
    if rt.is_main_process:
        check_disk(run, needed)
    join_factor, length = batches.rows.join_factor, batches.rows.max_seq_len
    return (
        f"data   {describe_rows(training, validation)}\n"
        f"model  {parameters / 1e6:.2f} M parameters, {rt.dtype} on {rt.device}; weights, gradients and optimizer "
        f"take {memory / 2**20:,.0f} MiB, files up to {needed / 2**20:,.0f} MiB\n"
        f"plan   {run.steps:,} steps of {batches.rows_per_step * join_factor} rows x {length} tokens "
        f"({batches.micro_batches} micro-batches of {run.training.batch_size} rows on each of {rt.world_size} "
        f"processes), {run.steps / batches.steps_per_epoch:.2f} epochs, {run.warmup} steps of warm-up"
        + _compiling(run)
        + _card(run, memory)
    )


def _load(run: Run) -> memory_estimate.MicroBatchSpec:
    rows, module = run.batches.rows, cast(TokenLoss, getattr(run.loss, "module", run.loss))
    return memory_estimate.MicroBatchSpec(
        run.model.config,
        run.training.batch_size // rows.join_factor,
        rows.row_len,
        run.runtime.dtype,
        run.model.recompute,
        module.chunk,
        run.compiling.on,
    )


def _card(run: Run, held: int) -> str:
    """Describe this GPU by its data sheet, and the largest micro-batch that fits next to `held` bytes."""
    rt, spec = run.runtime, _load(run)
    if rt.device.type != "cuda":
        return ""
    total = torch.cuda.get_device_properties(rt.device).total_memory
    available = memory_estimate.USABLE_FRACTION * total - held
    fit = memory_estimate.rows_that_fit(spec, available) * run.batches.rows.join_factor
    line = f"\ncard   {torch.cuda.get_device_name(rt.device)}, {total / 2**30:.0f} GiB"
    tflops = gpu_tflops(torch.cuda.get_device_name(rt.device))
    if tflops and rt.dtype != torch.float32:
        line += f", {tflops:g} TFLOP/s by its data sheet"
    return line + f"; calculated, not measured: micro-batches of up to {fit:,} rows fit"


def _compiling(run: Run) -> str:
    on, reason = run.compiling
    return f"\ncompile {'on' if on else 'off'}: {reason}" if reason else ""


def describe_files(sources: Sequence[dict], held_out: int, loss_weights: Mapping[int, float]) -> str:
    """What was read from each file, and how much of it validation keeps."""
    lines, total = [], sum(source["documents"] for source in sources)
    for source in sources:
        counts = RowCounts(**source["counts"])
        read = [f"{rows:,} {schema}" for schema, rows in counts.notes_of("schema").items()]
        left_out = [f"{n:,} {name} left out" for name, n in (("bad", counts.bad), ("empty", counts.empty)) if n]
        lines.append(f"file   {printable(source['name'])}: {counts.rows:,} rows ({', '.join(read + left_out)})")
    lines[-1] += f"; held out: {held_out:,} of {total:,} documents (--val_fraction 0: none)"
    untagged = sum(source["counts"]["notes"].get("tags none", [0])[0] for source in sources)
    if untagged and loss_weights[TAG] != loss_weights[LOSS]:
        lines.append(f"tags   none in an answer of {untagged:,} rows, which teach to answer without a thought")
    return "\n".join(lines)


def describe_rows(training: PackedRows, validation: PackedRows) -> str:
    """How many tokens there are, how well they fill their rows, and what did not fit into one."""
    length = (
        f"{training.join_factor} x {training.max_seq_len:,}"
        if training.join_factor > 1
        else f"{training.max_seq_len:,}"
    )
    lines = [
        f"data   {training.positions:,} tokens in {len(training):,} rows of {length} ({training.fill_ratio:.1%} of the "
        f"positions are real tokens); held out: {validation.positions:,} tokens in {len(validation):,} rows"
    ]
    for name, rows in {"trained": training, "held out": validation}.items():
        if any(rows.segments.cut):
            shortened, unended, dropped = rows.segments.cut
            lines.append(
                f"cut    {name}, longer than a row: {shortened:,} conversations lost their last turns, {unended:,} end "
                f"inside an answer (they teach never to stop), {dropped:,} dropped (no answer begins in the row)"
            )
    return "\n".join(lines)


def memory_needed(parameters: int, shards: int = 1) -> int:
    """Bytes a process holds whatever the batch is: fp32 weights, gradients and AdamW's two moments, 4 each."""
    return 16 * parameters // shards


def disk_needed(parameters: int, keep: int) -> int:
    """Bytes at the worst moment: fp32 weights twice, `keep` states and the one being written, each with two moments."""
    return parameters * (4 * 2 + 12 * (keep + 1))


def check_disk(run: Run, needed: int) -> None:
    """ValueError when the files will not fit; those of the run's earlier part are there already."""
    ours = [run.output.weights, *run.output.states.rglob("*")]
    there = sum(path.stat().st_size for path in ours if path.is_file())
    folder = run.output.weights.parent
    free = shutil.disk_usage(folder).free
    if free + there < needed:
        raise ValueError(
            f"{folder}: {free / 2**20:,.0f} MiB free, but weights and states need {(needed - there) / 2**20:,.0f} MiB "
            f"(--keep {run.output.keep})"
        )


def trial(run: Run, progress: Progress) -> str:
    """One micro-batch forth and back without a step: out of memory shows now, and how long the run will take."""
    before = rng.random_states()
    micro, _ = load_step(run, progress.step)
    run.loss.train()
    try:
        seconds = _micro_batch(run, micro[0]) * len(micro)
    except torch.OutOfMemoryError as error:
        spec = _load(run)
        raise ValueError(
            f"out of GPU memory with micro-batches of {run.training.batch_size} rows, which take about "
            f"{memory_estimate.micro_batch_bytes(spec) / 2**30:.1f} GiB beside weights and optimizer (calculated): "
            f"{memory_estimate.memory_saving_flags(spec)}"
        ) from error
    rng.set_random_states(before)
    left = seconds * (run.steps - progress.step)
    memory = ""
    if run.runtime.device.type == "cuda":
        memory = f", {torch.cuda.max_memory_allocated() / 2**20:,.0f} MiB of GPU memory so far"
    return f"time   about {left / 60:.1f} minutes of training ({seconds:.2f} s a step{memory})"


def _micro_batch(run: Run, batch: Batch) -> float:
    """Seconds of one micro-batch forth and back, which leaves nothing behind."""
    for _ in range(2):  # the first one compiles and warms up
        began = time.perf_counter()
        # With a sync: FSDP keeps gradients that were not, out of zero_grad's reach.
        with parallel.gradient_sync(run.loss, last=True):
            with run.runtime.autocast():
                sums = run.loss(*batch)
            sums[0].backward()
        sums.sum().item()
        seconds = time.perf_counter() - began
        run.model.zero_grad(set_to_none=True)
    return seconds


def summary(run: Run, progress: Progress) -> str:
    lines = [
        f"wrote {run.output.weights} after {progress.step} of {run.steps} steps, {progress.tokens:,} tokens, "
        f"{progress.seconds:.0f} s"
    ]
    if progress.skipped:
        lines.append(f"  {progress.skipped} of these steps overflowed in fp16 and were skipped")
    if progress.validation and progress.last_validation_step != progress.step:
        lines.append(
            f"  held-out figures are of step {progress.last_validation_step}: a signal does not wait for new ones"
        )
    for key in ("val_loss", "val_bits_per_byte", "val_tag_loss"):
        if key in progress.validation:
            lines.append(
                f"  {key:18} {progress.initial_validation.get(key, math.nan):.4f} -> {progress.validation[key]:.4f}"
            )
    return "\n".join(lines)
