"""What every recipe does around the loop: find the start, state the plan, resume, save, leave the files behind."""

from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from tokenizers import Tokenizer

from dataset import fingerprint, token_bytes
from engine import checkpoint, loop, optim, packing, plan, resume, runtime
from engine.loss import TokenLoss
from engine.packing import Batches, StageData
from engine.saving import Saver
from engine.settings import Output, Training
from engine.signals import StopRequest
from engine.tracker import Tracker
from model import SpongeBob, attends_by_document

# The command that makes each checkpoint, in the order of the road.
MADE_BY = {
    "pretrain": "python pretrain.py",
    "SFT": "python SFT.py",
    "SFT_long": "python SFT.py --long",
    "distill": "python distill.py",
    "distill_long": "python distill.py --long",
}

# The exit code of a run that was stopped early and saved; 0 is a finished run, 2 a mistake, 130 a second Ctrl-C.
STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again later


def load_parent(
    path: Path, tokenizer: Tokenizer, tokenizer_dir: str, *, on_sample: bool, max_seq_len: int,
    n_heads: int | None = None, rope_theta: float | None = None, flag: str = "--init_from",
) -> tuple[SpongeBob, dict]:  # fmt: skip
    """The model an earlier stage left, and its .json; a missing one is an error that says which command makes it."""
    if not path.is_file():
        made_by = MADE_BY.get(path.stem, "an earlier stage, or a published checkpoint")
        raise ValueError(f"{path}: no such checkpoint. Make it with: {made_by} (or name another with {flag})")
    model, meta = checkpoint.load_model(path, n_heads=n_heads, rope_theta=rope_theta, max_seq_len=max_seq_len)
    checkpoint.check_tokenizer(path, meta, fingerprint(tokenizer), tokenizer_dir)
    if model.config.vocab_size < tokenizer.get_vocab_size():
        raise ValueError(
            f"{path}: {model.config.vocab_size} tokens, but {tokenizer_dir} has {tokenizer.get_vocab_size()}"
        )
    if meta.get("on_sample") and not on_sample:
        print(f"note: {path} was trained on the bundled sample; for a real model run the earlier stages on real data")
    return model, meta


def open_data(
    dataset,
    tokenizer,
    rt,
    *,
    data_path,
    cache_dir,
    num_workers,
    strict_data,
    max_seq_len,
    batch_size,
    val_fraction,
    seed,
) -> StageData:
    """Token cache (the main process builds it, the others open it), held-out split and packed rows."""
    from engine.tokens import open_or_build

    with rt.main_first():
        cache = open_or_build(
            data_path, dataset, tokenizer, cache_dir=cache_dir, num_workers=num_workers, strict=strict_data
        )
    fit = packing.split_documents if dataset.splits else packing.cut_conversations
    # A mask over a whole row costs the square of its length.
    in_line = batch_size if attends_by_document(rt.device, rt.dtype) else 1
    return packing.prepare(
        cache, fit, max_seq_len=max_seq_len, batch_size=in_line, val_fraction=val_fraction, seed=seed
    )


def run(
    model: SpongeBob, data: StageData, *, rt: runtime.Runtime, tokenizer: Tokenizer, stage: str, parent: str | None,
    training: Training, output: Output, flags: dict,
) -> int:  # fmt: skip
    """Train `model` on `data` and leave <save_dir>/<name>.pth, .json, .state/, .metrics.jsonl and .png.

    Returns the exit code: 0, or STOPPED when a signal or --max_minutes ended the run before its last step.
    """
    saved = resume.find(output, rt)
    rows = resume.rows_per_step(saved, training, rt.world)
    batch = {"rows_per_step": rows, "batch_size": training.batch_size, "world": rt.world,
             "accumulation_steps": training.accumulation_steps}  # fmt: skip
    if saved and training.warmup_iters is None:  # the usual share of the run as it was planned, also of a longer one
        training = replace(training, warmup_iters=resume.warmup_iters(saved))
    # Of 16 rows of 1,024 tokens laid in lines of 4, a batch has 4 of 4,096: from here on that is what "rows" are.
    rows //= data.multiple
    training = replace(training, batch_size=training.batch_size // data.multiple)
    work = _assemble(model, data, rt, tokenizer, training, output, rows)
    identity = _identity(model, data, rt, tokenizer, stage, work.training, rows, work.steps)
    _refuse_differences(identity, rt)
    about = {
        "stage": stage, "parent": parent, "on_sample": output.on_sample, "config": identity["config"],
        "tokenizer": identity["tokenizer"], "steps": work.steps, "machine": rt.machine(), "flags": flags,
    }  # fmt: skip
    progress, run_id = loop.Progress(), None
    if saved:
        resume.refuse_changes(saved, identity)
        progress, run_id = resume.restore(saved, work), saved.rest["run_id"]
        rt.say(f"resuming after step {progress.step} of {work.steps}")
        if progress.step >= work.steps:
            resume.finish(saved, work, _meta(about, progress))
            return 0

    rt.say(f"data   {data.describe()}")
    rt.say(plan.describe(work))
    work.tracker = Tracker(
        output.metrics, steps=work.steps, step=progress.step, active=rt.main, service=output.tracker,
        project=output.wandb_project, config=flags, run_id=run_id,
    )  # fmt: skip
    rt.say(plan.trial(work, progress))
    constant = {"identity": identity, "batch": batch, "run_id": work.tracker.run_id}
    group = dist.new_group(backend="gloo") if runtime.is_sharded(model) else None
    saver = Saver(rt, output, lambda progress: _meta(about, progress), constant, group)
    try:
        with StopRequest() as request:
            stopped = loop.train(work, progress, saver, request)
            saver.finish()
    finally:
        saver.wait()
        work.tracker.close()
    rt.say(plan.summary(work, progress))
    if stopped:
        rt.say(f"stopped by {stopped}; the same command with --resume goes on from step {progress.step}")
    return STOPPED if stopped else 0


def _assemble(model, data, rt, tokenizer, training: Training, output: Output, rows_per_step: int) -> loop.Run:
    """Everything the loop needs, but for the log, which is opened when the run is known to start."""
    split = {"rank": rt.rank, "world": rt.world, "batch_size": training.batch_size}
    batches = Batches(data.cache, data.training, rows_per_step=rows_per_step, seed=training.seed, **split)
    validation = None
    if len(data.validation):
        together = training.batch_size * rt.world
        validation = Batches(data.cache, data.validation, rows_per_step=together, seed=None, **split)
    steps = training.max_steps or training.epochs * batches.steps_per_epoch
    if training.warmup_iters is None:
        training = replace(training, warmup_iters=optim.usual_warmup(steps))
    rate = optim.schedule(training.schedule, peak=training.learning_rate, steps=steps, warmup=training.warmup_iters)
    end_id = data.cache.meta["end_id"]
    model.to(rt.device)
    model.recompute = training.activation_checkpointing
    options = {"tag_weight": training.tag_weight, "z_loss": training.z_loss, "chunk": training.loss_chunk}
    loss = TokenLoss(model, end_id=end_id, **options)
    wrapped = runtime.wrap(loss.to(rt.device), rt, compile=training.compile, parallel=training.parallel)
    optimizers = optim.build(
        model, name=training.optimizer, learning_rate=training.learning_rate, weight_decay=training.weight_decay
    )
    if rt.rank:
        torch.manual_seed(training.seed + rt.rank)  # the weights are made: from here on dropout differs between ranks
    return loop.Run(
        rt, model, wrapped, optimizers, rt.scaler(), rate, batches, validation, None, tokenizer,
        torch.from_numpy(token_bytes(tokenizer)), data.prompt, end_id, steps, training, output,
    )  # fmt: skip


def _identity(model, data, rt, tokenizer, stage: str, training: Training, rows_per_step: int, steps: int) -> dict:
    """What makes two runs the same run: with other values a resumed run would not be the one that was stopped."""
    sources = [
        {"content": source["content"], "documents": source["documents"]} for source in data.cache.meta["sources"]
    ]
    names = ("learning_rate", "schedule", "warmup_iters", "optimizer", "weight_decay", "grad_clip", "tag_weight",
             "z_loss", "seed")  # fmt: skip
    return {
        "stage": stage, "config": checkpoint.shape_json(model.config), "data": sources,
        "tokenizer": fingerprint(tokenizer), "rows_per_step": rows_per_step, "steps": steps,
        "row_len": data.training.row_len, "dtype": str(rt.dtype), "held_out": len(data.validation),
    } | {name: getattr(training, name) for name in names}  # fmt: skip


def _refuse_differences(identity: dict, rt: runtime.Runtime) -> None:
    """ValueError where another process trains something else, say the sample because its machine lacks the file."""
    for rank, theirs in enumerate(rt.gather(identity)):
        if differ := [name for name, value in identity.items() if theirs[name] != value]:
            raise ValueError(f"processes {rt.rank} and {rank} differ in {', '.join(differ)}: every machine needs the "
                             "same command, code and files")  # fmt: skip


def _meta(about: dict, progress: loop.Progress) -> dict:
    """The .json beside the weights."""
    flags = about["flags"]
    done = {"step": progress.step, "steps": about["steps"], "tokens": progress.tokens,
            "seconds": round(progress.seconds, 1)}  # fmt: skip
    return about | done | progress.validation | {"before": progress.before, "flags": flags}
