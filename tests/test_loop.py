"""One step: accumulation, divisors, clipping, numbers that are not finite."""

import json
import math
import threading
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from compile_support import needs_compiler
from factories import (
    OPTION_NAMES,
    OPTIONS,
    SHAPE,
    SHORT,
    SMALL,
    a_run,
    rows,
    same,
    weights,
)
from tiny_model import tiny
from trace_recipe import trace

import model as model_module
import pretrain
from dataset import TAG
from engine import loop, optim, packing
from engine.loss import Counts
from engine.machine import runtime
from engine.machine.stopping import StopRequest
from engine.options import Output, Training
from engine.stage import prepare

# In bf16 Newton-Schulz is off by up to 0.03 (test_optim), which the rate and Muon's 0.2 sqrt(m) turn into a step.
IN_BF16 = 0.03 * 1e-2 * 0.2 * math.sqrt(192)  # of the longest side of its matrices, SwiGLU's


@pytest.mark.parametrize("muon_dtype, atol", [(torch.float32, 1e-4), (torch.bfloat16, IN_BF16)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("options", OPTIONS, ids=OPTION_NAMES)
def test_accumulation_equals_one_big_batch_with_uneven_masks(folder, options, muon_dtype, atol, monkeypatch):
    monkeypatch.setattr(optim, "resolve_dtype", lambda *_: muon_dtype)  # whatever this machine is fast in
    whole, parts = (a_run(folder, batch_size=size, rows_per_step=12, **options) for size in (12, 3))
    results = []
    for run in (whole, parts):
        batches, counts = loop.load_step(run, 0)
        assert len(batches) == (1 if run is whole else 4)
        sums, norm, *_ = loop.train_step(run, batches, counts.weight_sum)
        results.append((sums / counts.weight_sum, norm, run.model.state_dict()))
    (loss, norm, state), (loss_parts, norm_parts, state_parts) = results
    torch.testing.assert_close(loss, loss_parts, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm, norm_parts, rtol=1e-5, atol=1e-7)
    for name in state:
        torch.testing.assert_close(state[name], state_parts[name], rtol=1e-3, atol=atol)


def test_the_log_does_not_depend_on_how_a_step_is_split(folder):
    few, logs = (folder / "pretrain.jsonl").read_text("utf-8").splitlines()[:40], []
    (folder / "pretrain.jsonl").write_text("\n".join(few), encoding="utf-8")
    for size, parts in (("8", "1"), ("2", "40"), ("4", "2")):
        name = ["--name", f"{size}_x_{parts}", "--batch_size", size, "--accumulation_steps", parts]
        pretrain.main([*SHAPE, *SHORT, *SMALL, "--max_steps", "0", "--warmup_iters", "0", *name])
        logs.append(rows(folder / f"results/{name[1]}.metrics.jsonl")[-1])
    for log in logs:
        assert log["step"] == 1 and log["tokens"] == logs[0]["tokens"]
        assert log["loss"] == pytest.approx(logs[0]["loss"], rel=1e-5)
        assert log["grad_norm"] == pytest.approx(logs[0]["grad_norm"], rel=1e-4)


@pytest.fixture
def losses(folder, monkeypatch):
    """losses(name, flag, ...) -> the logged loss of each of 40 steps."""
    monkeypatch.setattr(prepare, "supports_varlen_attention", lambda *_: False)  # the same rows for all

    def losses(name: str, *words: str) -> list[float]:
        flags = "--max_steps 40 --max_seq_len 128 --accumulation_steps 1 --log_step 1 --eval_step 0 --save_step 0"
        pretrain.main([*SHAPE, *SHORT, *SMALL, *flags.split(), "--dtype", "float32", "--name", name, *words])
        curve = [row["loss"] for row in rows(folder / f"results/{name}.metrics.jsonl") if "loss" in row]
        assert len(curve) == 40 and curve[-1] < curve[0] - 1
        return curve

    return losses


def distance(curve: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(curve, other, strict=True))


@pytest.mark.parametrize(
    "backend", ["aot_eager_decomp_partition", pytest.param("inductor", marks=[needs_compiler, pytest.mark.runtimes])]
)
def test_forty_compiled_steps_give_the_same_losses(losses, backend, monkeypatch):
    """The first backend makes the same graphs, both ways, and no code, which takes a compiler half a minute."""
    real, compiled = torch.nn.Module.compile, []

    def compile(module, **options):
        compiled.append(type(module).__name__)
        real(module, backend=backend, **options)

    monkeypatch.setattr(torch.nn.Module, "compile", compile)
    assert distance(losses("compiled", "--compile"), losses("plain")) < 1e-2
    assert compiled == ["TokenLoss"]


def test_forty_steps_chunked_masked_or_not_fused_give_the_same_losses(losses, monkeypatch):
    plain, curves = losses("plain"), {"chunked": losses("chunked", "--loss_chunk", "50")}
    with monkeypatch.context() as patch:
        patch.setattr(model_module, "supports_varlen_attention", lambda *_: False)
        curves["masked"] = losses("masked")
    adamw = torch.optim.AdamW
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", lambda *args, **more: adamw(*args, **more | {"fused": False}))
        curves["not fused"] = losses("not_fused")
    apart = {name: distance(curve, plain) for name, curve in curves.items()}
    assert max(apart.values()) < 1e-2, apart


def losses_by_hand(run, batches):
    """Return loss, class and loss weight of every label of some micro-batches."""
    columns = []
    for batch in batches:
        with torch.no_grad():
            logits = run.model(batch.inputs, batch.cu_seqlens).logits.flatten(0, 1)
        nats = torch.nn.functional.cross_entropy(logits, batch.labels.flatten(), reduction="none")
        columns.append((nats, batch.classes.flatten(), batch.loss_weights.flatten()))
    return [torch.cat(column) for column in zip(*columns, strict=True)]


def test_validation_uses_no_loss_weights_and_no_dropout(folder):
    run = a_run(folder, batch_size=4, rows_per_step=4)
    held_out = SimpleNamespace(steps_per_epoch=2, step=run.source.step)
    run = replace(run, validation={"val": {"": held_out}}, prompt=[1, 300, 301])
    vars(run)["token_bytes"] = torch.ones(6400, dtype=torch.int32)
    for block in run.model.layers:
        block.dropout.p = 0.5
    for parameter in run.model.parameters():  # of a fresh model the blocks hardly matter
        parameter.data.normal_(std=0.1)
    run.loss.train()
    found = loop.validate(run)
    assert run.loss.training
    run.loss.eval()
    nats, classes, _ = losses_by_hand(run, [*run.source.step(0), *run.source.step(1)])
    assert found["val_loss"] == pytest.approx(nats[classes > 0].mean().item(), rel=1e-5)
    assert found["val_tag_loss"] == pytest.approx(nats[classes == TAG].mean().item(), rel=1e-5)


def test_weighted_and_tag_loss_of_the_log_are_those_of_the_definition(folder):
    run = a_run(folder, batch_size=2, rows_per_step=4)
    run = replace(run, steps=1, output=replace(run.output, save_step=0, eval_step=0))
    nats, classes, loss_weights = losses_by_hand(run, run.source.step(0))
    log = []
    tracker = SimpleNamespace(log=log.append, show=lambda *_: None)
    loop.train(run, loop.Progress(), tracker, lambda *_: None, StopRequest())
    assert set(loss_weights[classes == TAG].tolist()) == {10.0}
    weighted = (nats * loss_weights).sum() / loss_weights.sum()
    assert log[-1]["weighted_loss"] == pytest.approx(weighted.item(), rel=1e-5)
    assert log[-1]["tag_loss"] == pytest.approx(nats[classes == TAG].mean().item(), rel=1e-5)
    assert log[-1]["loss"] == pytest.approx(nats[classes > 0].mean().item(), rel=1e-5)


def test_loss_that_is_not_finite_never_reaches_the_weights(folder, monkeypatch):
    real, calls = loop.train_step, []

    def poisoned(run, *arguments):
        calls.append(run.model)
        if len(calls) == 4:
            run.model.norm.register_forward_hook(lambda module, inputs, output: output * float("nan"))
        return real(run, *arguments)

    monkeypatch.setattr(loop, "train_step", poisoned)
    with pytest.raises(ValueError, match="not finite"):
        pretrain.main([*SHAPE, *SHORT, "--name", "bad", "--save_step", "1", "--log_step", "6"])
    for found in (weights("results/bad.pth"), calls[-1].state_dict()):
        assert all(torch.isfinite(tensor).all() for tensor in found.values())
    assert json.loads((folder / "results/bad.json").read_text("utf-8"))["step"] == 3


def test_step_whose_labels_all_have_weight_zero_is_taken(folder):
    """With --tag_weight 0, rows may hold no other label."""
    run = a_run(folder, batch_size=4, rows_per_step=4)
    batches, counts = loop.load_step(run, 0)
    batches = [batch._replace(loss_weights=torch.zeros_like(batch.loss_weights)) for batch in batches]
    result = loop.train_step(run, batches, 0.0)
    assert result.norm == 0 and result.finite
    progress = loop.Progress(step=1, window_sums=result.sums, window_counts=replace(counts, weight_sum=0.0))
    row = loop.log_row(run, progress, result.norm)
    assert "weighted_loss" not in row and row["tag_loss"] == pytest.approx((result.sums[2] / counts.tags).item())


def test_log_row_is_of_the_steps_since_the_row_before(folder, monkeypatch):
    """Waiting for data, seconds, losses and counts: of one step each, also in the last row."""
    run = a_run(folder, batch_size=4, rows_per_step=4)
    run = replace(run, output=replace(run.output, log_step=2, save_step=0, eval_step=0))

    def prefetch(make, steps, _):
        for step in steps:
            yield *make(step), 0.5 if step == 0 else 0.0

    monkeypatch.setattr(loop, "prefetch", prefetch)
    log, results = [], []
    real = loop.train_step

    def train_step(*arguments):
        results.append(real(*arguments))
        return results[-1]

    monkeypatch.setattr(loop, "train_step", train_step)
    tracker = SimpleNamespace(log=log.append, show=lambda *_: None)
    progress = loop.Progress()
    assert loop.train(run, progress, tracker, lambda *_: None, StopRequest()) is None
    assert [row["data_wait_fraction"] > 0 for row in log[1:]] == [True, False, False]
    tokens = [sum(int((batch.classes > 0).sum()) for batch in run.source.step(step)) for step in range(5)]
    for row, first in zip(log[1:], (0, 2, 4), strict=True):
        losses = sum(result.sums[1].item() for result in results[first : row["step"]])
        assert row["loss"] == pytest.approx(losses / sum(tokens[first : row["step"]]), rel=1e-5)


def test_time_of_validations_and_saves_is_no_time_of_training(monkeypatch):
    now, log = [0.0], []
    model = tiny()
    rt, output = runtime.Runtime(torch.device("cpu"), torch.float32), Output(log_step=1, save_step=2, eval_step=2)
    source = SimpleNamespace(steps_per_epoch=5, prefetchable=False)
    rest = {"source": source, "tokenizer": None, "steps": 5, "rows_per_step": 1}
    run = loop.Run(rt, model, model, [], lambda step: 0.1, **rest, training=Training(), output=output)
    result = loop.StepResult(torch.ones(4), torch.tensor(1.0), torch.tensor(True), skipped=False)

    def spend(seconds, result=None):
        now[0] += seconds
        return result

    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(loop, "prefetch", lambda make, steps, _: [([], Counts(loss_tokens=1), 0.0) for _ in steps])
    monkeypatch.setattr(loop, "train_step", lambda *_: spend(1, result))
    monkeypatch.setattr(loop, "validate", lambda *_: spend(50, {"val_loss": 1.0}))
    tracker = SimpleNamespace(log=log.append, show=lambda *_: None)
    loop.train(run, loop.Progress(), tracker, lambda *_: spend(700), StopRequest())
    assert [row["seconds"] for row in log[1:]] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("prefetchable", [False, True])
def test_source_that_is_not_prefetchable_is_asked_after_each_step(folder, monkeypatch, prefetchable):
    threads, real = [], loop.load_step

    def load_step(run, step):
        threads.append(threading.current_thread())
        return real(run, step)

    monkeypatch.setattr(loop, "load_step", load_step)
    monkeypatch.setattr(packing.Batches, "prefetchable", prefetchable)
    pretrain.main([*SHAPE, *SHORT, "--name", "a", "--max_steps", "3"])
    assert len(threads) == 3 and all((thread is threading.main_thread()) != prefetchable for thread in threads)


@pytest.mark.parametrize("grad_clip", [0.0, 1.0])
def test_an_overflow_in_fp16_skips_the_step_of_both_optimizers(folder, grad_clip):
    run = a_run(folder, batch_size=4, rows_per_step=4, grad_clip=grad_clip, optimizer="muon")
    vars(run)["scaler"] = torch.amp.GradScaler("cpu")
    run.model.tok_embeddings.weight.register_hook(lambda gradient: gradient * math.inf)  # only AdamW's, not Muon's
    before, scale = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}, run.scaler.get_scale()
    batches, counts = loop.load_step(run, 0)
    loop.train_step(run, batches, counts.weight_sum)
    assert same(before, run.model.state_dict()) and run.scaler.get_scale() < scale


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "with fp16's scaler"])
def test_gradients_are_clipped_to_the_norm_that_was_asked_for(folder, scaled):
    run = a_run(folder, batch_size=4, rows_per_step=4, grad_clip=1e-3)
    vars(run)["scaler"] = torch.amp.GradScaler("cpu", enabled=scaled)
    clipped = []

    def note_norm(optimizer, *_):
        parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
        clipped.append(torch.stack([parameter.grad.norm() for parameter in parameters]).norm())

    run.optimizers[0].register_step_pre_hook(note_norm)
    batches, counts = loop.load_step(run, 0)
    _, norm, *_ = loop.train_step(run, batches, counts.weight_sum)
    assert 1e-2 < norm < 1e2 and clipped[0].item() == pytest.approx(1e-3, rel=1e-3)


IDEA = {"Config.py", "dataset.py", "distill.py", "model.py", "packing.py", "loss.py", "optim.py", "loop.py"}


def test_way_to_the_first_step_and_a_warm_step_stay_short(tmp_path):
    """A reader who follows a run meets no more than these files and functions of ours."""
    before, step = trace(tmp_path)
    files, step_files = ({Path(file).name for file, _ in entered} for entered in (before, step))
    idea = [function for file, function in before if Path(file).name in IDEA]
    assert files >= IDEA and len(idea) <= 80
    assert len(files) <= 39 and len(before) <= 292
    assert step_files >= {"loop.py", "loss.py", "model.py", "packing.py"}
    assert len(step_files) <= 9 and len(step) <= 48


def test_texts_beside_conversations_are_validated_apart(folder):
    run = a_run(folder, batch_size=4, rows_per_step=4)
    chats = SimpleNamespace(steps_per_epoch=1, step=run.source.step)
    texts = SimpleNamespace(steps_per_epoch=1, step=lambda step: run.source.step(1))
    alone = loop.validate(replace(run, validation={"val": {"": chats}}, prompt=[1, 300, 301]))
    both = loop.validate(replace(run, validation={"val": {"": chats}, "val_text": {"": texts}}, prompt=[1, 300, 301]))
    assert alone.items() <= both.items()
    nats, classes, _ = losses_by_hand(run, run.source.step(1))
    assert both["val_text_loss"] == pytest.approx(nats[classes > 0].mean().item(), rel=1e-5)
    assert both["val_text_loss"] != both["val_loss"] and "val_text_bits_per_byte" in both
    assert loop.validate(run) == {}
