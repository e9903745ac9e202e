"""The only training loop: train_step, validate, train.

Run holds everything a step needs, Progress everything it changes except for the weights. train_step is a step, train
everything around it: when to log, to validate, to save and to stop.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, cast

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from engine import optim
from engine.generate.sample_text import sample
from engine.log.tracker import Tracker
from engine.loss import LOSS_NAMES, Counts, count_tokens
from engine.machine import flops, nan_checks
from engine.machine.parallel import CompileDecision, full_tensor, gradient_sync, reshard
from engine.machine.runtime import Runtime
from engine.machine.stopping import StopRequest
from engine.options import Output, Training
from engine.packing import Batch, Source, prefetch
from engine.tokenizer import token_bytes
from model import SpongeBob


@dataclass(frozen=True)
class Run:
    """Everything that training needs and, except for the weights, does not change.

    Args:
        runtime: Device, dtype and ranks.
        model: The decoder.
        loss: Module that sums the losses of a micro-batch, wrapped for compile and several processes.
        optimizers: Together they update every parameter once.
        lr: step -> learning rate.
        source: Makes the micro-batches of a step.
        tokenizer: Decodes the sample in the log.
        steps: Optimizer steps in all.
        rows_per_step: Rows of max_seq_len tokens in an optimizer step, over all ranks.
        training, output: The user's flags.
        validation: {prefix of the metrics: {file: Source of its held-out micro-batches}} (packing.Sources).
        prompt: Ids of the beginning of a held-out document, continued in the log.
        warmup: Steps of warm-up.
        compiling: Whether torch.compile is used, and why.
    """

    runtime: Runtime
    model: SpongeBob
    loss: nn.Module
    optimizers: list[torch.optim.Optimizer]
    lr: Callable[[int], float]
    source: Source
    tokenizer: Tokenizer
    steps: int
    rows_per_step: int
    training: Training
    output: Output
    validation: Mapping[str, Mapping[str, Source]] = field(default_factory=dict)
    prompt: list[int] = field(default_factory=list)
    warmup: int = 0
    compiling: CompileDecision = CompileDecision(False, "")

    @cached_property
    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaler of fp16; switched off for other dtypes."""
        return self.runtime.scaler()

    @cached_property
    def token_bytes(self) -> Tensor:
        """Bytes of text of each token, (V,) int32."""
        return torch.from_numpy(token_bytes(self.tokenizer))

    @property
    def micro_batches(self) -> int:
        """Micro-batches of each rank in an optimizer step."""
        return self.rows_per_step // (self.training.batch_size * self.runtime.world_size)


@dataclass
class Progress:
    """Position of a run. All of it is saved, so that a resumed run continues as if it had not been stopped."""

    step: int = 0  # optimizer steps done
    tokens: int = 0  # real tokens read
    seconds: float = 0.0  # spent training, not validating or saving
    initial_validation: dict = field(default_factory=dict)  # before the first step
    validation: dict = field(default_factory=dict)  # metrics of the latest validation
    last_validation_step: int = 0  # the step of that validation
    skipped: int = 0  # steps skipped because fp16 overflowed
    consecutive_skips: int = 0  # skips in a row up to now
    # Since the last log row:
    window_sums: Tensor = field(default_factory=lambda: torch.zeros(len(LOSS_NAMES)))
    window_counts: Counts = field(default_factory=Counts)
    window_seconds: float = 0.0
    window_data_wait: float = 0.0  # the part of them in which the step waited for its batches


class StepResult(NamedTuple):
    """Outcome of a step, all on the device: nothing waits for it, except for fp16's scaler."""

    sums: Tensor  # (4,) of this rank, in the order of LOSS_NAMES
    norm: Tensor  # of the gradient before clipping, ()
    finite: Tensor  # loss and gradient norm are finite, () bool
    skipped: bool  # by fp16's scaler


def train_step(run: Run, batches: list[Batch], weight_sum: float) -> StepResult:
    """Take one optimizer step.

    Args:
        run: The run.
        batches: This rank's micro-batches.
        weight_sum: Sum of the loss weights of all labels of the step, over all ranks.
    """
    sums = add_gradients(run, batches, weight_sum)
    for optimizer in run.optimizers:
        run.scaler.unscale_(optimizer)
    parameters = [parameter for parameter in run.loss.parameters() if parameter.grad is not None]
    norm = full_tensor(nn.utils.clip_grad_norm_(parameters, run.training.grad_clip or math.inf))
    loss_finite = torch.isfinite(sums[0])
    norm_finite = torch.isfinite(norm)
    take_step = True
    if run.scaler.is_enabled():
        # fp16 overflows now and then by design. GradScaler would skip only the optimizer whose own gradients
        # overflowed; skip both.
        take_step = bool(norm_finite)
        is_finite = loss_finite
    else:
        # Ranks share one norm, but each has a loss of its own: with several of them the norm decides.
        is_finite = norm_finite if run.runtime.world_size > 1 else norm_finite & loss_finite
        is_bad = ~is_finite
        for parameter in parameters:
            cast(Tensor, parameter.grad).masked_fill_(is_bad, 0.0)
    for optimizer in run.optimizers:
        if take_step:
            run.scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    run.scaler.update()
    return StepResult(sums, norm, is_finite, skipped=not take_step)


def add_gradients(run: Run, batches: list[Batch], weight_sum: float) -> Tensor:
    """Run forward and backward of every micro-batch and return the summed losses of this rank, (4,) float32.

    Args:
        run: The run.
        batches: This rank's micro-batches.
        weight_sum: As in `train_step`.
    """
    sums = torch.zeros(len(LOSS_NAMES), device=run.runtime.device)
    for number, batch in enumerate(batches, 1):
        with gradient_sync(run.loss, last=number == len(batches)):
            with run.runtime.autocast():
                losses = run.loss(*batch)
            # DDP and FSDP average over ranks; multiply by world_size to get the sum. Without a weight the loss is 0.
            run.scaler.scale(losses[0] * (run.runtime.world_size / (weight_sum or 1.0))).backward()
        sums += losses.detach()
    return sums


def load_step(run: Run, step: int) -> tuple[list[Batch], Counts]:
    """Make a step's micro-batches on the device, and this rank's counts."""
    batches = run.source.step(step)
    counts = count_tokens(batches, run.token_bytes, run.source.positions(step))
    return [batch.to(run.runtime.device) for batch in batches], counts


@torch.no_grad()
def validate(run: Run, after: int = 0) -> dict:
    """Compute held-out loss per token and bits per byte of text, and continue the held-out prompt.

    Texts next to conversations have metrics of their own: those of the answers are the same rows with and without them.

    Raises:
        ValueError: The loss is not finite; the message names the step `after` which it was computed.
    """
    metrics = {}
    run.loss.eval()
    for prefix, sources in run.validation.items():
        if sources:
            metrics |= {f"{prefix}_{key}": value for key, value in measure(run, sources, after).items()}
    if metrics:
        metrics["sample"] = sample(run.model, run.runtime, run.tokenizer, run.prompt)
    run.loss.train()
    return metrics


def held_out_losses(run: Run, source: Source) -> tuple[dict, Counts]:
    """Return the summed losses of all that a source holds, by LOSS_NAMES, and its counts, both over all ranks."""
    module = getattr(run.loss, "module", run.loss)  # DDP would wait for gradients
    sums = torch.zeros(len(LOSS_NAMES), device=run.runtime.device)
    counts = Counts()
    for step in range(source.steps_per_epoch):
        for batch in source.step(step):
            counts += count_tokens([batch], run.token_bytes)
            with run.runtime.autocast():
                sums += module(*batch.to(run.runtime.device))
    reshard(run.loss)
    losses = dict(zip(LOSS_NAMES, run.runtime.all_reduce(sums).tolist(), strict=True))
    return losses, counts.over_ranks(run.runtime)[0]


def measure(run: Run, sources: Mapping[str, Source], after: int) -> dict:
    """Compute {"loss", "bits_per_byte"} of held-out rows, and "tag_loss" if they hold tags.

    Args:
        run: The run.
        sources: Held-out micro-batches of each file; of several there is "bits_per_byte/FILE", too.
        after: Steps done, which the message names.
    Raises:
        ValueError: The loss is not finite.
    """
    parts = {file: held_out_losses(run, source) for file, source in sources.items()}
    losses = {name: sum(part[name] for part, _ in parts.values()) for name in LOSS_NAMES}
    counts = sum((part for _, part in parts.values()), Counts())
    if not math.isfinite(losses["plain"]):
        raise ValueError(nan_checks.NOT_FINITE_AFTER_STEP.format(after, "the held-out loss is"))
    metrics = {"loss": losses["plain"] / counts.loss_tokens}
    metrics["bits_per_byte"] = losses["text"] / math.log(2) / counts.bytes
    for file, (part, part_counts) in parts.items():
        if len(parts) > 1:
            metrics[f"bits_per_byte/{file}"] = part["text"] / math.log(2) / part_counts.bytes
    if counts.tags:
        metrics["tag_loss"] = losses["tags"] / counts.tags
    return metrics


def log_row(run: Run, progress: Progress, norm: Tensor) -> dict:
    """Make the log row of the steps since the last one.

    Args:
        run: The run.
        progress: Position of the run, with the window's sums and counts.
        norm: Gradient norm of the newest step, ().
    """
    losses = dict(zip(LOSS_NAMES, run.runtime.all_reduce(progress.window_sums.clone()).tolist(), strict=True))
    counts = progress.window_counts
    row = {
        "step": progress.step,
        "epoch": round(progress.step / run.source.steps_per_epoch, 4),
        "loss": losses["plain"] / counts.loss_tokens,
        "grad_norm": norm.item(),
        "learning_rate": run.lr(progress.step - 1),
        "tokens": progress.tokens,
        "seconds": round(progress.seconds, 3),
        "tokens_per_second": round(counts.positions / max(progress.window_seconds, 1e-9), 1),
        "data_wait_fraction": round(progress.window_data_wait / max(progress.window_seconds, 1e-9), 5),
    }
    if run.scaler.is_enabled():
        row["skipped_steps"] = progress.skipped
    if counts.tags and counts.weight_sum:
        row["weighted_loss"] = losses["weighted"] / counts.weight_sum
    if counts.tags:
        row["tag_loss"] = losses["tags"] / counts.tags
    if mfu := flops.model_flops_utilization(run.runtime, run.model, row["tokens_per_second"]):
        row["mfu"] = round(mfu, 4)
    return row


def is_due(step: int, interval: int, last: int) -> bool:
    """Return whether something is due after a step.

    Args:
        step: Steps done.
        interval: Steps between two times (0: only after the last).
        last: Steps of the run.
    """
    return step == last or (interval > 0 and step % interval == 0)


def train(
    run: Run, progress: Progress, tracker: Tracker, save: Callable[[Run, Progress], None], request: StopRequest
) -> str | None:
    """Train from `progress` to the last step: step, then log, validate and save if due, and all of it at the end.

    Args:
        run: The run.
        progress: Changed in place.
        tracker: Gets a row for each log step and each validation.
        save: Called with run and progress if a save is due.
        request: Asks the run to stop after its step.
    Returns:
        None, or what stopped the run early: the name of a signal, or --max_minutes. The step is finished and saved
        then; a stop adds no log row.
    Raises:
        ValueError: A loss, gradient or weight is not finite, or fp16 does nothing but overflow.
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
    steps = range(progress.step, run.steps)
    for batches, counts, waited in prefetch(lambda step: load_step(run, step), steps, run.source.prefetchable):
        # 1. One optimizer step.
        # Ranks agree on when to stop: their clocks differ, and a signal may reach only one of them.
        votes = time.perf_counter() > deadline, request.signal is not None
        counts, (late, signals) = counts.over_ranks(run.runtime, *votes)
        optim.set_lr(run.optimizers, run.lr(progress.step))
        result = train_step(run, batches, counts.weight_sum)
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
        log_due = is_due(progress.step, run.output.log_step, run.steps)
        validation_due = is_due(progress.step, run.output.eval_step, run.steps)
        save_due = is_due(progress.step, run.output.save_step, run.steps)
        if not (log_due or validation_due or save_due or stop):
            tracker.show(progress.step)
            continue
        run.runtime.synchronize()
        seconds = time.perf_counter() - clock
        progress.window_seconds += seconds
        progress.seconds += seconds
        if not all_finite:
            first = max(0, progress.step - run.output.log_step)
            raise ValueError(nan_checks.NOT_FINITE_BETWEEN_STEPS.format(first, progress.step))

        # 3. Log and validate.
        row = log_row(run, progress, result.norm) if log_due else {"step": progress.step}
        if validation_due or (late and not signals):  # the latter: metrics for the .json, not for the log
            progress.validation = validate(run, progress.step)
            progress.last_validation_step = progress.step
        if validation_due:
            row |= progress.validation
        if len(row) > 1:
            tracker.log(row)
        if log_due:
            progress.window_sums.zero_()
            progress.window_counts = Counts()
            progress.window_seconds = progress.window_data_wait = 0.0

        # 4. Save, and stop.
        if save_due or stop:
            nan_checks.check_weights_finite(run.model, run.runtime, progress.step)
            save(run, progress)
        clock = time.perf_counter()
        if stop and progress.step < run.steps:
            return (request.signal or "a signal to another process") if signals else "--max_minutes"
    return None
