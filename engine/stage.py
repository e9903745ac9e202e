"""What every recipe does around the loop: find the start, state the plan, resume, save, leave the files behind."""

import math
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from dataset import fingerprint, token_bytes
from engine import checkpoint, loop, optim, packing, runtime
from engine.loss import Counts, TokenLoss
from engine.packing import Batches, StageData
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


def run(
    model: SpongeBob, data: StageData, *, rt: runtime.Runtime, tokenizer: Tokenizer, stage: str, parent: str | None,
    on_sample: bool, name: str, save_dir: str, resume: bool, overwrite: bool, flags: dict,
    batch_size: int, accumulation_steps: int, epochs: int, max_steps: int, max_minutes: float,
    learning_rate: float, schedule: str, warmup_iters: int, optimizer: str, weight_decay: float, grad_clip: float,
    tag_weight: float, z_loss: float, loss_chunk: int, compile: bool, parallel: str, seed: int,
    log_step: int, eval_step: int, save_step: int, tracker: str, wandb_project: str,
) -> None:  # fmt: skip
    """Train `model` on `data` and leave <save_dir>/<name>.pth, .json, .state/, .metrics.jsonl and .png."""
    weights, states = Path(save_dir) / f"{name}.pth", Path(save_dir) / f"{name}.state"
    _check_output(weights, states, resume, overwrite)
    batch_size //= data.multiple  # of longer rows, with as many positions
    rows_per_step = batch_size * accumulation_steps * rt.world
    split = {"rank": rt.rank, "world": rt.world, "batch_size": batch_size}
    batches = Batches(data.cache, data.training, rows_per_step=rows_per_step, seed=seed, **split)
    validation = None
    if len(data.validation):
        validation = Batches(data.cache, data.validation, rows_per_step=batch_size * rt.world, seed=None, **split)
    steps = max_steps or epochs * batches.steps_per_epoch
    rate = optim.schedule(schedule, peak=learning_rate, steps=steps, warmup=warmup_iters)

    identity = {
        "stage": stage, "config": checkpoint.shape_json(model.config), "data": data.cache.meta["sources"],
        "tokenizer": fingerprint(tokenizer), "rows_per_step": rows_per_step, "steps": steps, "seed": seed,
        "row_len": data.training.row_len, "learning_rate": learning_rate, "schedule": schedule,
        "warmup_iters": warmup_iters, "optimizer": optimizer, "weight_decay": weight_decay, "grad_clip": grad_clip,
        "tag_weight": tag_weight, "z_loss": z_loss, "dtype": str(rt.dtype), "held_out": len(data.validation),
    }  # fmt: skip
    model.to(rt.device)
    core = TokenLoss(model, tag_weight=tag_weight, end_id=data.cache.meta["end_id"], z_loss=z_loss, chunk=loss_chunk)
    wrapped = runtime.wrap(core.to(rt.device), rt, compile=compile, parallel=parallel)
    optimizers = optim.build(model, name=optimizer, learning_rate=learning_rate, weight_decay=weight_decay)
    scaler = rt.scaler()

    progress, run_id = loop.Progress(), None
    saved = checkpoint.load_newest_state(states) if resume else None
    if resume and saved is None:
        rt.say(f"--resume: no state in {states} yet, starting from the beginning")
    if saved:
        _refuse_changes(saved["identity"], identity, states)
        progress, run_id = _restore(saved, core, optimizers, scaler), saved["run_id"]
        rt.say(f"resuming after step {progress.step} of {steps}")
        if progress.step >= steps:
            rt.say(f"{weights} is finished: nothing left to do")
            return

    rt.say(f"data   {data.describe()}")
    rt.say(_plan(model, rt, batches, steps, tag_weight, states.parent))
    log = Tracker(
        states.with_suffix(".metrics.jsonl"), steps=steps, step=progress.step, active=rt.main, service=tracker,
        project=wandb_project, config=flags, run_id=run_id,
    )  # fmt: skip
    training = loop.Run(
        rt, model, wrapped, optimizers, scaler, rate, batches, validation, log, tokenizer,
        torch.from_numpy(token_bytes(tokenizer)), data.prompt, data.cache.meta["end_id"],
        steps, tag_weight, grad_clip, log_step, eval_step, save_step, max_minutes,
    )  # fmt: skip
    rt.say(_trial(training, progress))

    def save(progress: loop.Progress) -> None:
        if rt.main:
            meta = {
                "stage": stage, "parent": parent, "on_sample": on_sample, "config": identity["config"],
                "tokenizer": identity["tokenizer"], "step": progress.step, "steps": steps, "tokens": progress.tokens,
                "seconds": round(progress.seconds, 1), **progress.validation, "before": progress.before,
                "machine": rt.machine(), "flags": flags,
            }  # fmt: skip
            checkpoint.save_weights(weights, checkpoint.cpu_weights(model), meta)
            checkpoint.save_state(
                states, progress.step, _state(progress, core, optimizers, scaler, identity, log.run_id)
            )
        rt.barrier()

    try:
        loop.train(training, progress, save)
    finally:
        log.close()
    rt.say(_summary(progress, weights, steps))


def _check_output(weights: Path, states: Path, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise ValueError("--resume continues what is there, --overwrite starts again: choose one")
    if not resume and (weights.exists() or states.exists()):
        if not overwrite:
            raise ValueError(
                f"{weights} is there already: --resume continues it, --name NAME keeps it, --overwrite replaces it"
            )
        shutil.rmtree(states, ignore_errors=True)  # a later --resume must not find the old run's states
    weights.parent.mkdir(parents=True, exist_ok=True)


def _state(progress, core, optimizers, scaler, identity, run_id) -> dict:
    return {
        "identity": identity,
        "run_id": run_id,
        "progress": {
            **vars(progress),
            "window_sums": progress.window_sums.cpu(),
            "window_counts": asdict(progress.window_counts),
        },
        "model": core.model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "scaler": scaler.state_dict(),
        "random": checkpoint.random_states(),
    }


def _restore(saved: dict, core: TokenLoss, optimizers: list, scaler: torch.amp.GradScaler) -> loop.Progress:
    core.model.load_state_dict(saved["model"], strict=True)
    for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    scaler.load_state_dict(saved["scaler"])
    checkpoint.set_random_states(saved["random"])
    progress = loop.Progress(**saved["progress"])
    return replace(progress, window_counts=Counts(**saved["progress"]["window_counts"]))


def _refuse_changes(before: dict, now: dict, states: Path) -> None:
    changed = [
        f"{name} was {before.get(name)!r}, is {value!r}" for name, value in now.items() if before.get(name) != value
    ]
    if changed:
        raise ValueError(
            f"{states} belongs to another run: {'; '.join(changed)}. Use the old flags, --name or --overwrite"
        )


def _plan(model: SpongeBob, rt: runtime.Runtime, batches: Batches, steps: int, tag_weight: float, folder: Path) -> str:
    """Steps, size, memory and disk, before anything is computed. Too little disk is an error now, not in an hour."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    needed = parameters * (4 + 12 * (checkpoint.KEPT_STATES + 1))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"{folder}: {free / 2**20:,.0f} MiB free, but weights and states need {needed / 2**20:,.0f} MiB"
        )
    micro = batches.rows_per_step // (batches.batch_size * rt.world)
    return (
        f"model  {parameters / 1e6:.2f} M parameters, {rt.dtype} on {rt.device}; weights, gradients and optimizer take "
        f"{parameters * 16 / 2**20:,.0f} MiB, files up to {needed / 2**20:,.0f} MiB\n"
        f"plan   {steps:,} steps of {batches.rows_per_step} rows x {batches.rows.row_len} tokens ({micro} micro-batches"
        f" of {batches.batch_size} rows on each of {rt.world} processes), {steps / batches.steps_per_epoch:.2f} epochs"
    )


def _trial(run: loop.Run, progress: loop.Progress) -> str:
    """One micro-batch forth and back without a step: out of memory shows now, and how long the run will take."""
    state = checkpoint.random_states()
    micro, _ = loop.load_step(run, progress.step)
    run.loss.train()
    for _ in range(2):  # the first one compiles and warms up
        began = time.perf_counter()
        with runtime.gradient_sync(run.loss, last=False):
            with run.runtime.autocast():
                sums = run.loss(*micro[0])
            sums[0].backward()
        sums.sum().item()
        seconds = (time.perf_counter() - began) * len(micro)
        run.model.zero_grad(set_to_none=True)
    checkpoint.set_random_states(state)
    left = seconds * (run.steps - progress.step)
    memory = ""
    if run.runtime.device.type == "cuda":
        memory = f", {torch.cuda.max_memory_allocated() / 2**20:,.0f} MiB of GPU memory so far"
    return f"time   about {left / 60:.1f} minutes of training ({seconds:.2f} s a step{memory})"


def _summary(progress: loop.Progress, weights: Path, steps: int) -> str:
    lines = [
        f"wrote {weights} after {progress.step} of {steps} steps, {progress.tokens:,} tokens, {progress.seconds:.0f} s"
    ]
    for key in ("val_loss", "val_bits_per_byte", "val_tag_loss"):
        if key in progress.validation:
            lines.append(f"  {key:18} {progress.before.get(key, math.nan):.4f} -> {progress.validation[key]:.4f}")
    return "\n".join(lines)


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
    compile,
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
    in_line = batch_size if attends_by_document(rt.device, rt.dtype, compile) else 1
    return packing.prepare(
        cache, fit, max_seq_len=max_seq_len, batch_size=in_line, val_fraction=val_fraction, seed=seed
    )
