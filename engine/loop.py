"""The only training loop in the repository: train_step, validate, train.

Everything a step needs is in Run, everything it changes beside the weights is in Progress. What happens in a step, and
in which order, is read in train_step; what happens around it, in train.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from engine import checkpoint, flops, generate, optim
from engine.loss import SUMS, Counts, count
from engine.packing import Batch, Batches, prefetch
from engine.runtime import Runtime, gradient_sync, is_sharded, reshard, whole
from engine.settings import Output, Training
from engine.signals import StopRequest
from engine.tracker import Tracker
from model import SpongeBob

OUT_OF_TIME, SIGNAL = 1, 2  # why a run stops early
WALL_CLOCK = (
    "seconds",
    "tokens_per_second",
    "loader_share",
    "mfu",
)  # what may differ between the logs of two equal runs


@dataclass
class Run:
    """What training needs and does not change, but for the weights."""

    runtime: Runtime
    model: SpongeBob
    loss: nn.Module  # model -> sums, wrapped for compile and several processes
    optimizers: list[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    rate: Callable[[int], float]
    batches: Batches
    validation: Batches | None
    tracker: Tracker
    tokenizer: Tokenizer
    token_bytes: Tensor  # (V,) bytes of text a token stands for
    prompt: list[int]
    end_id: int
    steps: int
    training: Training
    output: Output


@dataclass
class Progress:
    """Where a run stands: all of it is saved, so a resumed run goes on as if nothing had happened."""

    step: int = 0  # optimizer steps done
    tokens: int = 0  # real tokens read
    seconds: float = 0.0  # spent training, not validating or saving
    before: dict = field(default_factory=dict)  # validation before the first step
    validation: dict = field(default_factory=dict)  # the newest
    # Since the last row of the log:
    window_sums: Tensor = field(default_factory=lambda: torch.zeros(len(SUMS)))
    window_counts: Counts = field(default_factory=Counts)
    window_seconds: float = 0.0
    window_waiting: float = 0.0  # of them for the next batch


class Save(Protocol):
    """Puts a run on disk (saving.Saver)."""

    problem: str | None  # why the last try failed

    def __call__(self, run: Run, progress: Progress) -> None: ...


def train_step(run: Run, batches: list[Batch], weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """One optimizer step on this rank's micro-batches; `weight` is the loss weight of all of them on all ranks.

    Returns the summed losses (4,) of this rank, the gradient norm before clipping, and whether both were finite, all on
    the device: nothing here waits for it, but for fp16's scaler.
    """
    sums = torch.zeros(len(SUMS), device=run.runtime.device)
    for number, batch in enumerate(batches, 1):
        with gradient_sync(run.loss, last=number == len(batches)):
            with run.runtime.autocast():
                part = run.loss(*batch)
            # Ranks are averaged by DDP and FSDP; the sum is wanted.
            run.scaler.scale(part[0] * (run.runtime.world / weight)).backward()
        sums += part.detach()
    for optimizer in run.optimizers:
        run.scaler.unscale_(optimizer)
    parameters = [parameter for parameter in run.loss.parameters() if parameter.grad is not None]
    norm = whole(nn.utils.clip_grad_norm_(parameters, run.training.grad_clip or math.inf))
    finite, step = torch.isfinite(sums[0]), True
    if run.scaler.is_enabled():
        # fp16 overflows now and then by design. The scaler would skip only the optimizer whose own gradients did.
        step = bool(torch.isfinite(norm))
    else:
        finite = torch.isfinite(norm) & (finite | (run.runtime.world > 1))  # ranks have sums of their own, but one norm
        for parameter in parameters:
            parameter.grad.masked_fill_(~finite, 0.0)
    for optimizer in run.optimizers:
        if step:
            run.scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    run.scaler.update()
    return sums, norm, finite


def load_step(run: Run, step: int) -> tuple[list[Batch], Counts]:
    """A step's micro-batches on the device, and this rank's counts."""
    batches = run.batches.step(step)
    return [batch.to(run.runtime.device) for batch in batches], count(batches, run.training.tag_weight, run.token_bytes)


@torch.no_grad()
def validate(run: Run) -> dict:
    """Held-out loss a token, bits per byte of text, and a continuation of the fixed held-out prompt."""
    if run.validation is None:
        return {}
    run.loss.eval()
    module = getattr(run.loss, "module", run.loss)  # DDP would wait for gradients
    sums, counts = torch.zeros(len(SUMS), device=run.runtime.device), Counts()
    for step in range(run.validation.steps_per_epoch):
        for batch in run.validation.step(step):
            counts += count([batch], run.training.tag_weight, run.token_bytes)
            with run.runtime.autocast():
                sums += module(*batch.to(run.runtime.device))
    reshard(run.loss)
    nats = dict(zip(SUMS, run.runtime.all_reduce(sums).tolist(), strict=True))
    counts = run.runtime.total(counts)
    figures = {
        "val_loss": nats["plain"] / counts.tokens,
        "val_bits_per_byte": nats["text"] / math.log(2) / counts.bytes,
    }
    if counts.tags:
        figures["val_tag_loss"] = nats["tags"] / counts.tags
    figures["sample"] = sample(run)
    run.loss.train()
    return figures


def sample(run: Run) -> str:
    """A continuation of the fixed held-out prompt, by the main process; the others only help to collect shards."""
    model = checkpoint.whole_copy(run.model, kept=run.runtime.main) if is_sharded(run.model) else run.model
    if not run.runtime.main:
        return ""
    seeded = torch.Generator(run.runtime.device).manual_seed(0)
    options = {"max_new_tokens": 48, "end_id": run.end_id, "temperature": 0.7, "top_p": 0.9, "generator": seeded}
    with run.runtime.autocast():
        return run.tokenizer.decode(generate.complete(model, [run.prompt], **options)[0])


def report(run: Run, progress: Progress, norm: Tensor, finite: Tensor) -> dict:
    """The row of a log step. Reading it waits for the device; a step that was not finite ends the run here."""
    if not finite:
        raise ValueError(
            f"a loss or gradient between steps {progress.step - run.output.log_step} and {progress.step} was not "
            "finite; it was kept from the weights and nothing was saved since. Try a lower --learning_rate, more "
            "--warmup_iters, or --dtype float32; --resume goes on from the last state"
        )
    nats = dict(zip(SUMS, run.runtime.all_reduce(progress.window_sums.clone()).tolist(), strict=True))
    counts = progress.window_counts
    row = {
        "step": progress.step,
        "epoch": round(progress.step / run.batches.steps_per_epoch, 4),
        "loss": nats["plain"] / counts.tokens,
        "grad_norm": norm.item(),
        "learning_rate": run.rate(progress.step - 1),
        "tokens": progress.tokens,
        "seconds": round(progress.seconds, 3),
        "tokens_per_second": round(counts.positions / max(progress.window_seconds, 1e-9), 1),
        "loader_share": round(progress.window_waiting / max(progress.window_seconds, 1e-9), 5),
    }
    if counts.tags:
        row |= {"weighted_loss": nats["weighted"] / counts.weight, "tag_loss": nats["tags"] / counts.tags}
    if peak := flops.peak(run.runtime.device, run.runtime.dtype):
        parameters = sum(parameter.numel() for parameter in run.model.parameters())
        achieved = row["tokens_per_second"] * flops.per_token(run.model.config, parameters)
        row["mfu"] = round(achieved / (peak * run.runtime.world), 4)
    return row


def train(run: Run, progress: Progress, save: Save, request: StopRequest) -> str | None:
    """From `progress` to the last step: step, then log, validate and save if due, and all of it at the end.

    Returns None, or what stopped the run early: a signal or --max_minutes. The step is finished and saved then, and
    nothing is logged that a run which was not stopped would not log.
    """
    started = clock = time.perf_counter()
    progress.window_sums = progress.window_sums.to(run.runtime.device)
    all_finite = torch.tensor(True, device=run.runtime.device)
    if progress.step == 0:
        progress.before = progress.validation = validate(run)
        run.tracker.log({"step": 0, **progress.before})
        clock = time.perf_counter()
    run.loss.train()
    for batches, counts, waited in prefetch(lambda step: load_step(run, step), range(progress.step, run.steps)):
        counts = run.runtime.total(counts)
        optim.set_rate(run.optimizers, run.rate(progress.step))
        sums, norm, finite = train_step(run, batches, counts.weight)
        progress.step += 1
        progress.tokens += counts.positions
        progress.window_sums += sums
        progress.window_counts += counts
        progress.window_waiting += waited
        all_finite &= finite

        minutes = (time.perf_counter() - started) / 60
        out_of_time = run.training.max_minutes and minutes > run.training.max_minutes
        # Clocks differ and a signal may reach one process only, but ranks that stop alone leave the others waiting.
        stop = run.runtime.largest(SIGNAL if request.signal else OUT_OF_TIME if out_of_time else 0)
        every = {"log": run.output.log_step, "validate": run.output.eval_step, "save": run.output.save_step}
        due = {name: progress.step == run.steps or (n and progress.step % n == 0) for name, n in every.items()}
        if not any(due.values()) and not stop:
            run.tracker.show(progress.step)
            continue
        all_finite.item()  # the clock is read when the device is done
        progress.window_seconds += time.perf_counter() - clock
        progress.seconds += time.perf_counter() - clock
        row = report(run, progress, norm, all_finite) if due["log"] or not all_finite else {"step": progress.step}
        if due["validate"]:
            progress.validation = validate(run)
            row |= progress.validation
        if len(row) > 1:
            run.tracker.log(row)
        if due["log"]:
            if save.problem:
                run.tracker.say(f"warning: {save.problem}")
            progress.window_sums.zero_()
            progress.window_counts, progress.window_seconds, progress.window_waiting = Counts(), 0.0, 0.0
        if stop == OUT_OF_TIME and not due["validate"]:
            progress.validation = validate(run)  # for the .json
        if due["save"] or stop:
            save(run, progress)
        clock = time.perf_counter()
        if stop and progress.step < run.steps:
            return "--max_minutes" if stop == OUT_OF_TIME else request.signal or "a signal to another process"
    return None
