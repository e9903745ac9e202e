"""The only training loop: train_step, validate, train.
Run is what a step needs, Progress what it changes beside the weights. train_step is a step, train what is around it.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from engine import optim
from engine.generate.sample_text import sample
from engine.log.tracker import Tracker
from engine.loss import LOSS_NAMES, Counts, count
from engine.machine import flops, nan_checks
from engine.machine.parallel import CompileDecision, full_tensor, gradient_sync, reshard
from engine.machine.runtime import Runtime
from engine.machine.stopping import StopRequest
from engine.options import Output, Training
from engine.packing import Batch, Batches, prefetch
from model import SpongeBob


@dataclass(frozen=True)
class Run:
    """What training needs and does not change, except for the weights."""

    runtime: Runtime
    model: SpongeBob
    loss: nn.Module  # model -> sums, wrapped for compile and several processes
    optimizers: list[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    lr: Callable[[int], float]
    batches: Batches
    validation: Batches | None
    tokenizer: Tokenizer
    token_bytes: Tensor  # (V,) bytes of text a token stands for
    prompt: list[int]  # the beginning of a held-out document, to be continued
    end_id: int
    steps: int
    warmup: int
    compiling: CompileDecision
    training: Training
    output: Output


@dataclass
class Progress:
    """Where a run stands: all of it is saved, so a resumed run goes on as if nothing had happened."""

    step: int = 0  # optimizer steps done
    tokens: int = 0  # real tokens read
    seconds: float = 0.0  # spent training, not validating or saving
    initial_validation: dict = field(default_factory=dict)  # validation before the first step
    validation: dict = field(default_factory=dict)  # the newest
    last_validation_step: int = 0  # the step it is of
    skipped: int = 0  # steps that fp16's scaler kept from the weights
    consecutive_skips: int = 0  # the newest of them
    # Since the last row of the log:
    window_sums: Tensor = field(default_factory=lambda: torch.zeros(len(LOSS_NAMES)))
    window_counts: Counts = field(default_factory=Counts)
    window_seconds: float = 0.0
    window_data_wait: float = 0.0  # of them for the next batch


class StepResult(NamedTuple):
    """What a step leaves beside the weights, all on the device: nothing waits for it, except for fp16's scaler."""

    sums: Tensor  # (4,) of this rank, see SUMS
    norm: Tensor  # of the gradient before clipping
    finite: Tensor  # whether loss and gradient were
    skipped: bool  # by fp16's scaler


def train_step(run: Run, batches: list[Batch], loss_weights: float) -> StepResult:
    """One optimizer step on this rank's micro-batches; `cost` is that of all their labels on all ranks."""
    sums = add_gradients(run, batches, loss_weights)
    for optimizer in run.optimizers:
        run.scaler.unscale_(optimizer)
    parameters = [parameter for parameter in run.loss.parameters() if parameter.grad is not None]
    norm = full_tensor(nn.utils.clip_grad_norm_(parameters, run.training.grad_clip or math.inf))
    loss_finite, norm_finite = torch.isfinite(sums[0]), torch.isfinite(norm)
    if run.scaler.is_enabled():
        # fp16 overflows now and then by design. The scaler would skip only the optimizer whose own gradients did.
        take_step, is_finite = bool(norm_finite), loss_finite
    else:
        # Ranks share one norm, but each has a loss of its own: with several of them the norm decides.
        take_step, is_finite = True, norm_finite if run.runtime.world_size > 1 else norm_finite & loss_finite
        spoilt = ~is_finite
        for gradient in (parameter.grad for parameter in parameters if parameter.grad is not None):
            gradient.masked_fill_(spoilt, 0.0)
    for optimizer in run.optimizers:
        if take_step:
            run.scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    run.scaler.update()
    return StepResult(sums, norm, is_finite, skipped=not take_step)


def add_gradients(run: Run, batches: list[Batch], loss_weights: float) -> Tensor:
    """Forward and backward of every micro-batch; the summed losses (4,) of this rank."""
    sums = torch.zeros(len(LOSS_NAMES), device=run.runtime.device)
    for number, batch in enumerate(batches, 1):
        with gradient_sync(run.loss, last=number == len(batches)):
            with run.runtime.autocast():
                part = run.loss(*batch)
            # DDP and FSDP average over ranks; the sum is wanted.
            run.scaler.scale(part[0] * (run.runtime.world_size / loss_weights)).backward()
        sums += part.detach()
    return sums


def load_step(run: Run, step: int) -> tuple[list[Batch], Counts]:
    """A step's micro-batches on the device, and this rank's counts."""
    batches = run.batches.step(step)
    counts = count(batches, run.token_bytes, run.batches.positions(step))
    return [batch.to(run.runtime.device) for batch in batches], counts


@torch.no_grad()
def validate(run: Run, after: int = 0) -> dict:
    """Held-out loss per token, bits per byte of text, and a continuation of the fixed held-out prompt.

    ValueError, naming the step it is `after`, when the loss is no number.
    """
    if run.validation is None:
        return {}
    run.loss.eval()
    module = getattr(run.loss, "module", run.loss)  # DDP would wait for gradients
    sums, counts = torch.zeros(len(LOSS_NAMES), device=run.runtime.device), Counts()
    for step in range(run.validation.steps_per_epoch):
        for batch in run.validation.step(step):
            counts += count([batch], run.token_bytes)
            with run.runtime.autocast():
                sums += module(*batch.to(run.runtime.device))
    reshard(run.loss)
    nats = dict(zip(LOSS_NAMES, run.runtime.all_reduce(sums).tolist(), strict=True))
    if not math.isfinite(nats["plain"]):
        raise ValueError(nan_checks.NOT_FINITE_AFTER_STEP.format(after, "the held-out loss is"))
    counts, _ = counts.over_ranks(run.runtime)
    figures = {"val_loss": nats["plain"] / counts.tokens}
    figures["val_bits_per_byte"] = nats["text"] / math.log(2) / counts.bytes
    if counts.tags:
        figures["val_tag_loss"] = nats["tags"] / counts.tags
    figures["sample"] = sample(run)
    run.loss.train()
    return figures


def log_row(run: Run, progress: Progress, norm: Tensor) -> dict:
    """What the log says of the steps since its last row."""
    nats = dict(zip(LOSS_NAMES, run.runtime.all_reduce(progress.window_sums.clone()).tolist(), strict=True))
    counts = progress.window_counts
    row = {
        "step": progress.step,
        "epoch": round(progress.step / run.batches.steps_per_epoch, 4),
        "loss": nats["plain"] / counts.tokens,
        "grad_norm": norm.item(),
        "learning_rate": run.lr(progress.step - 1),
        "tokens": progress.tokens,
        "seconds": round(progress.seconds, 3),
        "tokens_per_second": round(counts.positions / max(progress.window_seconds, 1e-9), 1),
        "data_wait_fraction": round(progress.window_data_wait / max(progress.window_seconds, 1e-9), 5),
    }
    if run.scaler.is_enabled():
        row["skipped_steps"] = progress.skipped
    if counts.tags:
        row |= {"weighted_loss": nats["weighted"] / counts.loss_weights, "tag_loss": nats["tags"] / counts.tags}
    if mfu := flops.model_flops_utilization(run.runtime, run.model, row["tokens_per_second"]):
        row["mfu"] = round(mfu, 4)
    return row


def train(
    run: Run, progress: Progress, tracker: Tracker, save: Callable[[Run, Progress], None], request: StopRequest
) -> str | None:
    """From `progress` to the last step: step, then log, validate and save if due, and all of it at the end.

    Returns None, or what stopped the run early: a signal or --max_minutes. The step is finished and saved then, and
    nothing is logged that a run which was not stopped would not log.
    """
    clock = time.perf_counter()
    deadline = clock + 60 * run.training.max_minutes if run.training.max_minutes else math.inf
    progress.window_sums = progress.window_sums.to(run.runtime.device)
    all_finite = torch.tensor(True, device=run.runtime.device)
    if progress.step == 0:
        progress.initial_validation = progress.validation = validate(run)
        tracker.log({"step": 0, **progress.initial_validation})
        clock = time.perf_counter()
    run.loss.train()
    request.hold()
    for batches, counts, waited in prefetch(lambda step: load_step(run, step), range(progress.step, run.steps)):
        # 1. One optimizer step.
        # Ranks agree on when to stop: their clocks differ, and a signal may reach only one of them.
        votes = time.perf_counter() > deadline, request.signal is not None
        counts, (late, signals) = counts.over_ranks(run.runtime, *votes)
        optim.set_lr(run.optimizers, run.lr(progress.step))
        result = train_step(run, batches, counts.loss_weights)
        progress.step += 1
        progress.tokens += counts.positions
        progress.window_sums += result.sums
        progress.window_counts += counts
        progress.window_data_wait += waited
        all_finite &= result.finite
        progress.skipped += result.skipped
        progress.consecutive_skips = progress.consecutive_skips + 1 if result.skipped else 0
        if result.skipped:
            nan_checks.check_fp16_overflows(run.scaler, progress.consecutive_skips, progress.step)

        # 2. What is due after it.
        if run.runtime.world_size == 1:  # no rank to agree with: a signal during the step counts, too
            late, signals = time.perf_counter() > deadline, request.signal is not None
        stop = late or signals
        every = {"log": run.output.log_step, "validate": run.output.eval_step, "save": run.output.save_step}
        due = {name: progress.step == run.steps or (n and progress.step % n == 0) for name, n in every.items()}
        if not any(due.values()) and not stop:
            tracker.show(progress.step)
            continue
        run.runtime.synchronize()
        progress.window_seconds += time.perf_counter() - clock
        progress.seconds += time.perf_counter() - clock
        if not all_finite:
            first = max(0, progress.step - run.output.log_step)
            raise ValueError(nan_checks.NOT_FINITE_BETWEEN_STEPS.format(first, progress.step))

        # 3. Log and validate.
        row = log_row(run, progress, result.norm) if due["log"] else {"step": progress.step}
        if due["validate"] or (late and not signals):  # the latter for the .json alone
            progress.validation, progress.last_validation_step = validate(run, progress.step), progress.step
            row |= progress.validation if due["validate"] else {}
        if len(row) > 1:
            tracker.log(row)
        if due["log"]:
            progress.window_sums.zero_()
            progress.window_counts, progress.window_seconds, progress.window_data_wait = Counts(), 0.0, 0.0

        # 4. Save, and stop.
        if due["save"] or stop:
            nan_checks.check_weights_finite(run.model, run.runtime, progress.step)
            save(run, progress)
        clock = time.perf_counter()
        if stop and progress.step < run.steps:
            return (request.signal or "a signal to another process") if signals else "--max_minutes"
    return None
