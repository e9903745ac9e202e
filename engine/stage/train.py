"""What every recipe does around the loop: find the start, open the data, state the plan, train, leave the files."""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from torch import nn

from engine import loop, optim
from engine.checkpoint.weights import config_dict, open_checkpoint, weights_hash
from engine.console import print0
from engine.corpus.source import files_of
from engine.corpus.token_cache import Dataset, TokenCache, open_or_build
from engine.flags import Args
from engine.generate.sample_text import choose_prompt
from engine.log.tracker import Tracker
from engine.loss import TokenLoss
from engine.machine import parallel
from engine.machine.runtime import Runtime
from engine.machine.stopping import STOPPED, StopRequest
from engine.options import Data, weights_of
from engine.packing import Batches, PackedRows, Segments, pack_dense
from engine.packing import pack as pack_rows
from engine.stage import lock, plan, resume
from engine.stage.saver import Saver
from engine.tokenizer import fingerprint, token_bytes
from model import SpongeBob, supports_varlen_attention


@dataclass(frozen=True)
class Rows:
    """What a stage reads: its token cache, packed rows to train on and to validate with."""

    cache: TokenCache
    training: PackedRows
    validation: PackedRows
    prompt: list[int]  # the beginning of a held-out document: what a run is asked to continue now and then
    held_out: int  # documents that validation keeps


# ------------------------------------------------------------------------------------- what a recipe does first


def load_parent(args: Args, tokenizer: Tokenizer) -> tuple[SpongeBob, str]:
    """The model of the stage before, with this stage's max_seq_len, and the path of its weights."""
    start = args.init_from
    path = Path(start.init_from) if start.init_from else weights_of(args.output.save_dir, start.parent)
    model, meta = open_checkpoint(
        path,
        tokenizer,
        args.data.tokenizer_dir,
        max_seq_len=args.data.max_seq_len,
        n_heads=start.n_heads,
        rope_theta=start.rope_theta,
        rope_scaling=args.data.rope_scaling,
        flag="--init_from",
    )
    if meta.get("on_sample") and not args.data.on_sample:
        print0(f"note: {path} was trained on the bundled sample; for a real model run the earlier stages on real data")
    return model, str(path)


def open_documents(dataset: type[Dataset], tokenizer: Tokenizer, data: Data, rt: Runtime) -> TokenCache:
    """The documents of the stage's files as token ids on disk: the main process encodes them, the others wait."""
    make = lambda: open_or_build(
        files_of(data),
        dataset,
        tokenizer,
        cache_dir=data.cache_dir,
        num_workers=data.num_workers,
        strict=data.strict_data,
    )
    return rt.main_process_first(make)


def pack(documents: TokenCache, fit: Callable[..., Segments], args: Args, rt: Runtime, model: SpongeBob) -> Rows:
    """Split off the held-out documents and pack both parts into rows; `fit` makes documents fit a row (packing.py)."""
    length, seed = args.data.max_seq_len, args.training.seed
    if length > model.config.max_seq_len:  # model.attention would compute such documents wrongly, without an error
        raise ValueError(f"--max_seq_len {length} is more than the {model.config.max_seq_len} of the model")
    training, validation = documents.split(args.data.val_fraction)
    # A mask over a whole row costs the square of its length.
    max_join = args.training.batch_size if supports_varlen_attention(rt.device, rt.dtype, model.config.head_dim) else 1
    rows = pack_dense(fit(documents, training, length), length, max_join, seed)
    held_out = pack_rows(fit(documents, validation, length), rows.row_len, seed, length)
    return Rows(documents, rows, held_out, choose_prompt(documents, validation, length), len(validation))


# ---------------------------------------------------------------------------------------------------- the run


def train(
    model: SpongeBob,
    rows: Rows,
    loss_weights: Mapping[int, float],
    args: Args,
    rt: Runtime,
    tokenizer: Tokenizer,
    *,
    stage: str,
    parent: str | None,
) -> int:
    """Train `model` on `rows` and leave <save_dir>/<name>.pth, .json, .state/, .metrics.jsonl and .png.

    `cost` is what a label costs by its class. Returns the exit code: 0, or STOPPED when a signal or --max_minutes ended
    the run before its last step.
    """
    output = args.output
    from_weights = weights_hash(model.state_dict()) if parent else None
    with lock.run_lock(output, rt):
        saved = resume.find(output, rt)
        run = _assemble(model, rows, loss_weights, args, rt, tokenizer, saved)
        identity = _identity(run, rows, loss_weights, stage, args.data) | {"parent": from_weights}
        _refuse_differences(identity, rt)
        name = saved.info.run if saved else rt.broadcast_from_main(lambda: uuid4().hex)
        about = _about(args, rt, identity, parent, name)
        progress = loop.Progress()
        if saved:
            resume.check_unchanged(saved, identity)
            progress = resume.restore(saved, run)
            print0(f"resuming after step {progress.step} of {run.steps}")
            if progress.step >= run.steps:
                resume.finish(saved, run, _meta(about, run, progress))
                return 0

        print0(plan.describe_files(rows.cache.meta["sources"], rows.held_out, loss_weights))
        print0(plan.describe(run, rows.training, rows.validation))
        print0(plan.trial(run, progress))
        rt.broadcast_from_main(lambda: resume.clear(output, saved))
        run_id, log = (saved.info.run_id, resume.log_of(saved, output)) if saved else (None, output.metrics)
        tracker = Tracker(
            output, about["flags"], run.steps, progress.step, log, active=rt.is_main_process, run_id=run_id
        )
        group: Any = dist.new_group(backend="gloo") if parallel.is_sharded(model) else None
        describe = lambda progress: _meta(about, run, progress)
        saver = Saver(rt, output, tracker, describe, identity, resume.batch_of(run), name, group)
        with StopRequest() as request, closing(tracker), saver:
            stopped = loop.train(run, progress, tracker, saver.save, request)
            saver.finish()
    print0(plan.summary(run, progress))
    if stopped:
        print0(f"stopped by {stopped}; the same command with --resume goes on from step {progress.step}")
    return STOPPED if stopped else 0


def _assemble(
    model: SpongeBob,
    rows: Rows,
    loss_weights: Mapping[int, float],
    args: Args,
    rt: Runtime,
    tokenizer: Tokenizer,
    saved: resume.ResumePoint | None,
) -> loop.Run:
    """Everything the loop needs, except for the log, which is opened when the run is known to start."""
    training = args.training
    share = {"batch_size": training.batch_size, "rank": rt.rank, "world_size": rt.world_size}
    rows_per_step = resume.rows_per_step(saved, training, rt.world_size)
    batches = Batches(rows.cache, rows.training, loss_weights, rows_per_step=rows_per_step, seed=training.seed, **share)
    validation = None
    if len(rows.validation):
        together = training.batch_size * rt.world_size
        validation = Batches(rows.cache, rows.validation, loss_weights, rows_per_step=together, seed=None, **share)
    steps = training.max_steps or training.epochs * batches.steps_per_epoch
    warmup = training.warmup_iters
    if warmup is None:  # the usual share of the run as it was first planned, also of one that was made longer
        warmup = saved.info.identity["warmup_iters"] if saved else optim.default_warmup_steps(steps)
    lr = optim.schedule(training.schedule, max_lr=training.learning_rate, steps=steps, warmup=warmup)
    end_id = rows.cache.meta["end_id"]
    compiling = resume.compiling(saved, args.performance, rt, steps * batches.micro_batches)
    loss = _with_loss(model, end_id, args, rt, compile=compiling.on)
    run = loop.Run(
        runtime=rt,
        model=model,
        loss=loss,
        optimizers=optim.build(model, training),
        scaler=rt.scaler(),
        lr=lr,
        batches=batches,
        validation=validation,
        tokenizer=tokenizer,
        token_bytes=torch.from_numpy(token_bytes(tokenizer)),
        prompt=rows.prompt,
        end_id=end_id,
        steps=steps,
        warmup=warmup,
        compiling=compiling,
        training=training,
        output=args.output,
    )
    if rt.rank:
        torch.manual_seed(training.seed + rt.rank)  # the weights are made: from here on dropout differs between ranks
    return run


def _with_loss(model: SpongeBob, end_id: int, args: Args, rt: Runtime, *, compile: bool) -> nn.Module:
    """The model and what is made of its logits, on the device, compiled and shared between processes."""
    performance = args.performance
    model.to(rt.device)  # pyright: ignore[reportArgumentType] (transformers wraps it)
    model.recompute = performance.activation_checkpointing
    loss = TokenLoss(model, end_id=end_id, z_loss=args.training.z_loss, chunk=performance.loss_chunk).to(rt.device)
    ways = {"parallel": performance.parallel, "bf16_gradients": performance.bf16_gradients}
    return parallel.wrap(loss, rt.device, rt.dtype, rt.world_size, compile=compile, **ways)


def _identity(run: loop.Run, rows: Rows, loss_weights: Mapping[int, float], stage: str, data: Data) -> dict[str, Any]:
    """The settings that must be equal for a run to be resumed."""
    training, sources = run.training, rows.cache.meta["sources"]
    names = ("learning_rate", "schedule", "optimizer", "weight_decay", "grad_clip", "z_loss", "seed")
    held_out = rows.cache.hashes[rows.cache.split(data.val_fraction)[1]]
    content = hashlib.blake2b(held_out.tobytes(), digest_size=8).hexdigest()
    return {
        "stage": stage,
        "config": config_dict(run.model.config),
        "data": [{name: source[name] for name in ("content", "documents")} for source in sources],
        "tokenizer": fingerprint(run.tokenizer),
        "cost": {str(number): float(price) for number, price in loss_weights.items()},
        "rows_per_step": run.batches.rows_per_step * rows.training.join_factor,
        "steps": run.steps,
        "warmup_iters": run.warmup,
        "row_len": rows.training.row_len,
        "dtype": str(run.runtime.dtype),
        "held_out": {"documents": len(held_out), "content": content},
    } | {name: getattr(training, name) for name in names}


def _refuse_differences(identity: dict, rt: Runtime) -> None:
    """Refuse to start when processes would train on different data or settings, as when one machine lacks the file."""
    for rank, theirs in enumerate(rt.gather(identity)):
        if differ := [name for name, value in identity.items() if theirs[name] != value]:
            raise ValueError(
                f"processes {rt.rank} and {rank} differ in {', '.join(differ)}: every machine needs the same command, "
                "code and files"
            )


def _about(args: Args, rt: Runtime, identity: dict, parent: str | None, run: str) -> dict[str, Any]:
    """What the .json beside the weights says of a run from its beginning on."""
    known = {"run": run} | {name: identity[name] for name in ("stage", "config", "tokenizer")}
    flags = args.values() | {"data_path": [str(path) for path in args.data.paths]}
    return known | {"parent": parent, "on_sample": args.data.on_sample, "machine": rt.hardware(), "flags": flags}


def _meta(about: dict, run: loop.Run, progress: loop.Progress) -> dict[str, Any]:
    """The .json beside the weights; its longest part, the flags, comes last."""
    done = {
        "step": progress.step,
        "steps": run.steps,
        "tokens": progress.tokens,
        "seconds": round(progress.seconds, 1),
        "validated_at_step": progress.last_validation_step,
        "initial_validation": progress.initial_validation,
    }
    start = {name: value for name, value in about.items() if name != "flags"}
    return {**start, **done, **progress.validation, "flags": about["flags"]}
