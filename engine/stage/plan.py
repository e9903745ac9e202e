"""The plan of a run before its first step, and its summary: size, memory, disk, time, what was gained."""

import math
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch

from dataset import LOSS, TAG, begins_in_text
from engine.console import printable
from engine.corpus.jsonl import RowCounts
from engine.flags import Args
from engine.loop import Progress, Run, load_step
from engine.loss import TokenLoss
from engine.machine import memory_estimate, parallel, rng
from engine.machine.gpu_specs import gpu_tflops
from engine.packing import Batch, Documents, PackedRows, rows_per_epoch

MAX_TEXT_SHARE = 0.9  # of what SFT or distillation learns: more is rarely meant


def describe(run: Run) -> str:
    """Describe model, steps, memory and disk before anything is computed.

    Raises:
        ValueError: Too little disk, which is an error now and not in an hour.
    """
    rt = run.runtime
    num_parameters = sum(parameter.numel() for parameter in run.model.parameters())
    memory = memory_needed(num_parameters, rt.world_size if parallel.is_sharded(run.model) else 1)
    disk = disk_needed(num_parameters, run.output.keep)
    if rt.is_main_process:
        check_disk(run, disk)
    batch_size, steps = run.training.batch_size, run.steps
    lines = [
        f"model  {num_parameters / 1e6:.2f} M parameters, {rt.dtype} on {rt.device}; weights, gradients and optimizer "
        f"take {memory / 2**20:,.0f} MiB, files up to {disk / 2**20:,.0f} MiB",
        f"plan   {steps:,} steps of {run.rows_per_step} rows x {run.model.config.max_seq_len} tokens "
        f"({run.micro_batches} micro-batches of {batch_size} rows on each of "
        f"{rt.world_size} processes), {steps / run.source.steps_per_epoch:.2f} epochs, {run.warmup} steps of warm-up",
    ]
    if run.compiling.reason:
        lines.append(f"compile {'on' if run.compiling.on else 'off'}: {run.compiling.reason}")
    if rt.device.type == "cuda":
        lines.append(_describe_gpu(run, memory))
    return "\n".join(lines)


def _micro_batch(run: Run) -> memory_estimate.MicroBatchSpec:
    module = cast(TokenLoss, getattr(run.loss, "module", run.loss))
    return memory_estimate.MicroBatchSpec(
        run.model.config,
        run.training.batch_size,
        run.model.config.max_seq_len,
        run.runtime.dtype,
        run.model.recompute,
        module.chunk,
        run.compiling.on,
    )


def _describe_gpu(run: Run, held: int) -> str:
    """Describe the GPU and the micro-batches that fit next to the `held` bytes."""
    name, rt = torch.cuda.get_device_name(run.runtime.device), run.runtime
    total = torch.cuda.get_device_properties(rt.device).total_memory
    fit = memory_estimate.rows_that_fit(_micro_batch(run), memory_estimate.USABLE_FRACTION * total - held)
    line = f"card   {name}, {total / 2**30:.0f} GiB"
    tflops = gpu_tflops(name)
    if tflops and rt.dtype != torch.float32:
        line += f", {tflops:g} TFLOP/s by its data sheet"
    return f"{line}; calculated, not measured: micro-batches of up to {fit:,} rows fit"


def describe_files(files: Sequence[dict], num_held_out: int, loss_weights: Mapping[int, float]) -> str:
    """Describe what was read from each file.

    Args:
        files: Of the token cache's meta.
        num_held_out: Documents that validation keeps.
        loss_weights: {label class: loss weight} of the stage.
    """
    lines, num_documents = [], sum(file["documents"] for file in files)
    for file in files:
        counts = RowCounts(**file["counts"])
        parts = [f"{rows:,} {schema}" for schema, rows in counts.notes_of("schema").items()]
        if counts.bad:
            parts.append(f"{counts.bad:,} bad left out")
        if counts.empty:
            parts.append(f"{counts.empty:,} empty left out")
        if counts.dropped:
            parts.append(f"{counts.dropped:,} without an answer to learn left out")
        lines.append(f"file   {printable(file['name'])}: {counts.rows:,} rows ({', '.join(parts)})")
    lines[-1] += f"; held out: {num_held_out:,} of {num_documents:,} documents (--val_fraction 0: none)"
    untagged = sum(RowCounts(**file["counts"]).notes_of("tags").get("none", 0) for file in files)
    if untagged and loss_weights[TAG] != loss_weights[LOSS]:
        lines.append(f"tags   none in an answer of {untagged:,} rows, which teach to answer without a thought")
    return "\n".join(lines)


def describe_rows(training: PackedRows, validation: PackedRows) -> str:
    """Describe how many tokens there are, how well they fill their rows, and what did not fit into one."""
    length = f"{training.max_seq_len:,}"
    if training.join_factor > 1:
        length = f"{training.join_factor} x {length}"
    lines = [
        f"data   {training.positions:,} tokens in {len(training):,} rows of {length} ({training.fill_ratio:.1%} of the "
        f"positions are real tokens); held out: {validation.positions:,} tokens in {len(validation):,} rows"
    ]
    for name, rows in {"trained": training, "held out": validation}.items():
        if any(rows.segments.truncated):
            shortened, unended, dropped = rows.segments.truncated
            lines.append(
                f"cut    {name}, longer than a row: {shortened:,} conversations lost their last turns, {unended:,} end "
                f"inside an answer (they teach never to stop), {dropped:,} dropped (no answer begins in the row)"
            )
    return "\n".join(lines)


def describe_epochs(names: Sequence[str], rows: PackedRows, epochs: Sequence[float]) -> str:
    """Describe how much of each file an epoch reads.

    Args:
        names: The files.
        rows: Packed rows to train on, a part for each file.
        epochs: How often an epoch reads each file, or all of them.
    """
    lines = []
    sizes, counts = np.diff(rows.parts), rows_per_epoch(rows, epochs)
    means = np.add.reduceat(rows.segments.lengths[rows.order], rows.bounds[rows.parts[:-1]]) / sizes  # tokens a row
    total = (means * counts).sum()
    for name, size, count, mean in zip(names, sizes, counts, means, strict=True):
        lines.append(
            f"epoch  {printable(name)}: {count:,} rows of its {size:,} ({mean / rows.row_len:.1%} of the positions are "
            f"real tokens), about {mean * count:,.0f} tokens, {mean * count / total:.1%} of an epoch"
        )
    return "\n".join(lines)


def describe_next(args: Args) -> str:
    """Describe the commands that teach a model of texts to chat again, and chat with it."""
    weights, name = args.output.weights, f"{args.output.name}_SFT"
    folder = ["--save_dir", args.output.save_dir] if "save_dir" in args.explicit else []
    tokenizer = ["--tokenizer_dir", str(args.data.tokenizer_dir)] if "tokenizer_dir" in args.explicit else []
    train = ["python", "SFT.py", "--init_from", str(weights), "--name", name, *folder, *tokenizer]
    chat = ["python", "eval_model.py", "--ckpt", str(weights.with_name(f"{name}.pth")), *tokenizer]
    return f"next   {shlex.join(train)}\n       {shlex.join(chat)}"


def describe_texts(cache: Documents, training: PackedRows, epochs: Sequence[float], held_out: PackedRows) -> str:
    """Describe the texts next to conversations, and their share of what an epoch learns.

    Args:
        cache: The token cache.
        training: Rows of both.
        epochs: As in `describe_epochs`.
        held_out: Rows of the held-out texts.
    """
    starts, lengths, _ = training.segments
    sizes = np.diff(training.parts)
    of_rows = np.repeat(rows_per_epoch(training, epochs) / sizes, sizes)
    times = np.empty(len(starts))  # that an epoch reads each segment
    times[training.order] = np.repeat(of_rows, np.diff(training.bounds))
    is_text = begins_in_text(cache.classes, starts)
    learned = lengths.copy()
    for number in np.flatnonzero(~is_text):
        learned[number] = np.count_nonzero(cache.classes[starts[number] + 1 : starts[number] + lengths[number] + 1])
    texts, answers = (times * learned)[is_text].sum(), (times * learned)[~is_text].sum()
    chats = (times * lengths)[~is_text].sum()
    share = texts / max(1, texts + answers)
    line = (
        f"texts  {texts:,.0f} tokens next to {chats:,.0f} of conversations, which have {answers:,.0f} in answers: "
        f"{share:.1%} of what is learned is text; held out: {held_out.positions:,} tokens, for val_text_loss alone"
    )
    if share > MAX_TEXT_SHARE:
        line += f"\nnote: more than {MAX_TEXT_SHARE:.0%} of what is learned is text: are these the right files?"
    return line


def memory_needed(num_parameters: int, shards: int = 1) -> int:
    """Return the bytes a process holds whatever the batch is: fp32 weights, gradients and AdamW's two moments."""
    return 16 * num_parameters // shards


def disk_needed(num_parameters: int, keep: int) -> int:
    """Return the bytes at the worst moment: fp32 weights twice, `keep` states and the one being written."""
    return num_parameters * (4 * 2 + 12 * (keep + 1))  # a state: weights and two moments


def check_disk(run: Run, needed: int) -> None:
    """Refuse to start when the files will not fit; those of the run's earlier part exist already.

    Raises:
        ValueError: Names folder, free and needed space.
    """
    existing = [run.output.weights, *run.output.states.rglob("*")]
    written = sum(path.stat().st_size for path in existing if path.is_file())
    folder = run.output.weights.parent
    free = shutil.disk_usage(folder).free
    if free + written < needed:
        raise ValueError(
            f"{folder}: {free / 2**20:,.0f} MiB free, but weights and states need {(needed - written) / 2**20:,.0f} "
            f"MiB (--keep {run.output.keep})"
        )


def dry_run(run: Run, progress: Progress) -> str:
    """Run one forward/backward pass without an optimizer step, and estimate the run time.

    Raises:
        ValueError: Out of GPU memory, which shows now and not after an hour.
    """
    before = rng.random_states()
    micro_batches, _ = load_step(run, progress.step)
    run.loss.train()
    try:
        seconds = _time_micro_batch(run, micro_batches[0]) * len(micro_batches)
    except torch.OutOfMemoryError as error:
        spec = _micro_batch(run)
        raise ValueError(
            f"out of GPU memory with micro-batches of {run.training.batch_size} rows, which take about "
            f"{memory_estimate.micro_batch_bytes(spec) / 2**30:.1f} GiB next to weights and optimizer (calculated): "
            f"{memory_estimate.memory_saving_flags(spec)}"
        ) from error
    rng.set_random_states(before)
    minutes = seconds * (run.steps - progress.step) / 60
    memory = ""
    if run.runtime.device.type == "cuda":
        memory = f", {torch.cuda.max_memory_allocated() / 2**20:,.0f} MiB of GPU memory so far"
    return f"time   about {minutes:.1f} minutes of training ({seconds:.2f} s a step{memory})"


def _time_micro_batch(run: Run, batch: Batch) -> float:
    """Return the seconds of forward and backward of a micro-batch, which leaves nothing behind."""
    seconds = 0.0
    for _ in range(2):  # the first one compiles and warms up
        started = time.perf_counter()
        # With a sync: FSDP keeps gradients that were not synced out of zero_grad's reach.
        with parallel.gradient_sync(run.loss, last=True):
            with run.runtime.autocast():
                sums = run.loss(*batch)
            sums[0].backward()
        sums.sum().item()
        seconds = time.perf_counter() - started
        run.model.zero_grad(set_to_none=True)
    return seconds


def summary(run: Run, progress: Progress) -> str:
    """Describe what a run has written and gained."""
    lines = [
        f"wrote {run.output.weights} after {progress.step} of {run.steps} steps, {progress.tokens:,} tokens, "
        f"{progress.seconds:.0f} s"
    ]
    if progress.skipped:
        lines.append(f"  {progress.skipped} of these steps overflowed in fp16 and were skipped")
    if progress.validation and progress.last_validation_step != progress.step:
        lines.append(
            f"  held-out metrics are of step {progress.last_validation_step}: a signal does not wait for new ones"
        )
    for key, value in progress.validation.items():
        if key != "sample":
            before = progress.initial_validation.get(key, math.nan)
            lines.append(f"  {printable(key):22} {before:.4f} -> {value:.4f}")
    return "\n".join(lines)
