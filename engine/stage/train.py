"""A stage from its model and data to its files: everything around the loop."""

from contextlib import closing
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from torch import nn

from engine import loop, optim
from engine.checkpoint import trained_rows
from engine.console import print0
from engine.flags import Args
from engine.log.tracker import Tracker
from engine.loss import TokenLoss
from engine.machine import parallel
from engine.machine.runtime import Runtime
from engine.machine.stopping import STOPPED, StopRequest
from engine.packing import Sources
from engine.stage import plan, resume
from engine.stage.lock import run_lock
from engine.stage.prepare import Parent
from engine.stage.resume_key import check_ranks_agree, resume_key
from engine.stage.saver import Saver
from engine.tokenizer import EOS
from model import SpongeBob


def train(
    model: SpongeBob,
    sources: Sources,
    args: Args,
    rt: Runtime,
    tokenizer: Tokenizer,
    *,
    stage: str,
    parent: Parent | None,
) -> int:
    """Train a model and leave <save_dir>/<name>.pth, .json, .state/, .metrics.jsonl and .png.

    Args:
        model: The weights to start from.
        sources: What it trains on and validates with.
        args: The user's flags.
        rt: Device, dtype and ranks.
        tokenizer: The stage's tokenizer.
        stage: The stage's name.
        parent: The weights to start from; None: fresh weights.
    Returns:
        The exit code: 0, or STOPPED when a signal or --max_minutes ended the run before its last step.
    """
    with run_lock(args.output, rt):
        start = resume.begin(args, rt)
        run = make_run(model, sources, args, rt, tokenizer, start)
        key = resume_key(run, args, sources.resume_key, stage, parent and parent.weights[0])
        check_ranks_agree(key, rt)
        progress = start.restore(run, key)  # raises if the key of its state differs
        flags = args.values() | {"data_path": [str(path) for path in args.data.paths]}
        known = {"run": start.run_id, "stage": stage, "config": key["config"], "tokenizer": key["tokenizer"]}
        known |= {"parent": parent and parent.path, "ancestors": parent.weights if parent else []}
        known |= {"on_sample": args.data.on_sample, "machine": rt.hardware()}
        earlier = (parent.path, parent.weights[0]) if parent else None
        rows = trained_rows.collect(sources.trained_hashes, earlier) if rt.is_main_process else None
        known |= {"trained_rows": rows and rows.entry()}
        metadata = partial(_metadata, run, known, flags)
        if progress.step >= run.steps:
            start.finish(run, metadata(progress), rows)
            return 0

        print0(sources.description)
        print0(plan.describe(run))
        print0(plan.dry_run(run, progress))
        rt.broadcast_from_main(start.clear)  # on the main process; the others exit, too, if it fails
        if rows:
            rows.save(args.output.rows)
        tracker = Tracker(
            args.output,
            flags,
            run.steps,
            progress.step,
            start.log,
            active=rt.is_main_process,
            run_id=start.tracker_id,
        )
        # The saver's thread gathers shards while the loop uses the default group.
        group: Any = dist.new_group(backend="gloo") if parallel.is_sharded(model) else None
        saver = Saver(rt, args.output, tracker, metadata, key, resume.batch_layout(run), start.run_id, group)
        with StopRequest() as request, closing(tracker), saver:
            stopped_by = loop.train(run, progress, tracker, saver.save, request)
            saver.finish()
    print0(plan.summary(run, progress))
    if stopped_by:
        print0(f"stopped by {stopped_by}; the same command with --resume continues from step {progress.step}")
        return STOPPED
    return 0


def make_run(
    model: SpongeBob, sources: Sources, args: Args, rt: Runtime, tokenizer: Tokenizer, start: resume.Start
) -> loop.Run:
    """Make everything that the loop needs, except for the log, which is opened when the run is known to start.

    Args:
        model, sources, args, rt, tokenizer: As in `train`.
        start: Where the run starts.
    """
    training = args.training
    share = {"batch_size": training.batch_size, "rank": rt.rank, "world_size": rt.world_size}
    source = sources.make_training(rows_per_step=start.rows_per_step, seed=training.seed, **share)
    held_out = share | {"rows_per_step": training.batch_size * rt.world_size, "seed": None}
    validation = {}
    for prefix, makers in sources.make_validation.items():
        validation[prefix] = {file: make(**held_out) for file, make in makers.items()}
    steps = training.max_steps or training.epochs * source.steps_per_epoch
    warmup = start.warmup(training, steps)
    total_micro_batches = steps * start.rows_per_step // (training.batch_size * rt.world_size)
    compiling = start.compiling(args.performance.compile, total_micro_batches)
    run = loop.Run(
        runtime=rt,
        model=model,
        loss=_wrap_loss(model, tokenizer, args, rt, compile=compiling.on),
        optimizers=optim.build(model, training),
        lr=optim.schedule(training.schedule, max_lr=training.learning_rate, steps=steps, warmup=warmup),
        source=source,
        tokenizer=tokenizer,
        steps=steps,
        training=training,
        output=args.output,
        validation=validation,
        prompt=sources.prompt,
        rows_per_step=start.rows_per_step,
        warmup=warmup,
        compiling=compiling,
    )
    if rt.rank:
        torch.manual_seed(training.seed + rt.rank)  # the weights are made: from here on dropout differs between ranks
    return run


def _wrap_loss(model: SpongeBob, tokenizer: Tokenizer, args: Args, rt: Runtime, *, compile: bool) -> nn.Module:
    """Move model and loss to the device, compiled and shared between processes."""
    performance = args.performance
    model.to(rt.device)  # pyright: ignore[reportArgumentType] (transformers wraps it)
    model.recompute = performance.activation_checkpointing
    end_id = cast(int, tokenizer.token_to_id(EOS))
    loss = TokenLoss(model, end_id=end_id, z_loss=args.training.z_loss, chunk=performance.loss_chunk).to(rt.device)
    return parallel.wrap(
        loss,
        rt.device,
        rt.dtype,
        rt.world_size,
        compile=compile,
        parallel=performance.parallel,
        bf16_gradients=performance.bf16_gradients,
    )


def _metadata(run: loop.Run, known: dict, flags: dict, progress: loop.Progress) -> dict[str, Any]:
    """Return the content of the .json next to the weights; its longest part, the flags, comes last."""
    done = {
        "step": progress.step,
        "steps": run.steps,
        "tokens": progress.tokens,
        "seconds": round(progress.seconds, 1),
        "validated_at_step": progress.last_validation_step,
        "initial_validation": progress.initial_validation,
    }
    return {**known, **done, **progress.validation, "flags": flags}
