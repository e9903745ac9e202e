"""Training through the stages' real main(), and the numbers of a step."""

import json
import math
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from making import WALL_CLOCK, chosen, cost
from tiny import tiny

import distill
import model as model_module
import pretrain
import SFT
from Config import LLMConfig
from dataset import load_tokenizer
from engine import cli, loop, optim, options, packing
from engine.checkpoint import state
from engine.checkpoint.safe_reader import PlainReader
from engine.corpus import source
from engine.corpus.token_cache import open_or_build
from engine.loss import TokenLoss
from engine.machine import parallel, runtime
from engine.options import Device
from engine.stage import run as stage
from model import SpongeBob

ROOT = Path(__file__).parents[1]
SHAPE = "--dim 64 --n_layers 2 --n_heads 4 --n_kv_heads 2".split()
SHORT = (
    "--batch_size 2 --max_seq_len 64 --accumulation_steps 2 --max_steps 6 --warmup_iters 2 --log_step 2 --eval_step 4 "
    "--save_step 3 --num_workers 1 --device cpu"
).split()
SMALL = "--dim 32 --n_layers 1 --max_seq_len 256 --val_fraction 0".split()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with the three kinds of data, as a user might have."""
    monkeypatch.chdir(tmp_path)
    texts = [
        {"text": f"第{i}天，海边的小镇下了{'雨' if i % 3 else '雪'}，" + "船都回来了。" * (i % 9)} for i in range(200)
    ]
    chats = [{"conversations": [{"role": "user", "content": f"{i}加一是多少？"},
                                {"role": "assistant", "content": f"是{i + 1}。"}]} for i in range(200)]  # fmt: skip
    thoughts = [{"conversations": [{"role": "user", "content": f"{i}加一是多少？"}, {"role": "assistant",
                "content": f"<think>\n加一\n</think>\n<answer>\n{i + 1}\n</answer>"}]} for i in range(200)]  # fmt: skip
    for name, rows in (("pretrain", texts), ("sft_512", chats), ("sft_1024", chats), ("r1_1024", thoughts)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


def weights(path) -> dict:
    return torch.load(path, weights_only=True)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def tensors(states) -> dict:
    """Weights and optimizer values of a folder's newest state."""
    reader = PlainReader(state.find_newest(states) / "tensors")
    found = {name: torch.empty(entry.size) for name, entry in reader.read_metadata().state_dict_metadata.items()}
    dcp.load(found, storage_reader=reader, no_dist=True)
    assert {name.split(".")[0] for name in found} == {"model", "optimizer"}
    return found


def rows(path, *without) -> list[dict]:
    dropped = {*WALL_CLOCK, *without}
    return [
        {k: v for k, v in json.loads(line).items() if k not in dropped} for line in path.read_text("utf-8").splitlines()
    ]


def test_all_stages_run_and_chain_without_renames(folder):
    pretrain.main([*SHAPE, *SHORT])
    SFT.main(SHORT)
    SFT.main(["--long", *SHORT])
    distill.main(SHORT)
    distill.main(["--long", *SHORT])
    for name, parent in (("SFT", "pretrain"), ("SFT_long", "SFT"), ("distill", "SFT"), ("distill_long", "SFT_long")):
        meta = json.loads((folder / f"results/{name}.json").read_text("utf-8"))
        assert Path(meta["parent"]).name == f"{parent}.pth"
        assert meta["val_loss"] < meta["before"]["val_loss"]
        assert meta["config"]["dim"] == 64
        assert (folder / f"results/{name}.png").stat().st_size > 1000
    last = rows(folder / "results/distill.metrics.jsonl")[-1]
    assert {"loss", "weighted_loss", "tag_loss", "val_tag_loss", "sample"} <= last.keys()
    assert weights("results/pretrain.pth")["tok_embeddings.weight"].dtype == torch.float32


ALL_ON = ["--optimizer", "muon", "--schedule", "wsd", "--z_loss", "1e-4", "--loss_chunk", "50", "--dtype", "bfloat16",
          "--activation_checkpointing"]  # fmt: skip


@pytest.mark.parametrize("cut, words", [("3", []), ("5", []), ("5", ALL_ON)],
                         ids=["at a save", "between log rows", "with every option on"])  # fmt: skip
def test_a_resumed_run_is_bitwise_the_one_that_was_never_stopped(folder, cut, words, monkeypatch):
    words = ["--dropout", "0.1", *words]  # draws on the random state
    pretrain.main([*SHAPE, *SHORT, *words, "--name", "whole"])
    options = [*SHAPE, *SHORT, *words, "--name", "cut", "--save_step", cut]
    real, calls = loop.train_step, []

    def dies(*arguments):
        if len(calls) == int(cut):
            raise KeyboardInterrupt
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(loop, "train_step", dies)
    with pytest.raises(KeyboardInterrupt):
        pretrain.main(options)
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    pretrain.main([*options, "--resume"])
    assert same(weights("results/whole.pth"), weights("results/cut.pth"))
    assert same(*(tensors(folder / f"results/{name}.state") for name in ("whole", "cut")))
    assert rows(folder / "results/whole.metrics.jsonl") == rows(folder / "results/cut.metrics.jsonl")


@pytest.mark.parametrize("save_step", ["0", "4", "100"])
def test_the_end_of_a_run_is_saved_also_where_no_save_is_due(folder, save_step):
    pretrain.main([*SHAPE, *SHORT, *SMALL, "--save_step", save_step])
    assert json.loads((folder / "results/pretrain.json").read_text("utf-8"))["step"] == 6
    assert state.find_newest(folder / "results/pretrain.state").name == "00000006"


def test_warm_up_is_a_tenth_of_a_short_run_and_the_plan_says_so(folder, capsys):
    at = SHORT.index("--warmup_iters")
    pretrain.main([*SHAPE, *SHORT[:at], *SHORT[at + 2 :], "--max_steps", "20", "--log_step", "1"])
    assert "2 steps of warm-up" in capsys.readouterr().out
    rates = [row["learning_rate"] for row in rows(folder / "results/pretrain.metrics.jsonl") if "learning_rate" in row]
    assert rates[:3] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3]) and max(rates) == rates[2]


def test_a_run_with_the_usual_warm_up_is_made_longer_before_its_decay(folder):
    at = SHORT.index("--warmup_iters")
    words = [*SHAPE, *SHORT[:at], *SHORT[at + 2 :], "--schedule", "wsd", "--log_step", "1", "--save_step", "10"]
    pretrain.main([*words, "--max_steps", "20"])
    pretrain.main([*words, "--max_steps", "40", "--resume", "results/pretrain.state/00000010"])
    log = rows(folder / "results/pretrain.metrics.jsonl")
    rates = {row["step"]: row["learning_rate"] for row in log if "learning_rate" in row}
    assert rates[1] == pytest.approx(1e-3 / 3) and rates[30] == 1e-3 and max(rates) == 40


def test_torchrun_is_not_asked_to_start_again_what_max_minutes_stopped(folder, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(ValueError, match="--max_minutes.*--max-restarts=0"):
        pretrain.main([*SHAPE, *SHORT, "--max_minutes", "5"])


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="cuda:9: there are 2 GPUs"):
        runtime.start(Device(device="cuda:9"), 0)


def test_the_published_weights_are_the_trained_ones_to_the_last_bit(folder, monkeypatch):
    real, trained = loop.train_step, {}

    def watched(run, *arguments):
        try:
            return real(run, *arguments)
        finally:
            trained.update({name: weight.detach().clone() for name, weight in run.model.named_parameters()})

    monkeypatch.setattr(loop, "train_step", watched)
    pretrain.main([*SHAPE, *SHORT, *SMALL])
    published = weights("results/pretrain.pth")
    assert all(torch.equal(published[name], weight) for name, weight in trained.items())
    assert published.keys() == trained.keys() | {"output.weight"}


@pytest.mark.skipif(os.name != "posix", reason="the stand-in for modelscope is a shell script")
def test_a_download_runs_the_program_beside_this_python_and_says_how_it_failed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # an environment that was not activated
    monkeypatch.setattr(source.sysconfig, "get_path", lambda _: str(tmp_path / "scripts"))
    with pytest.raises(ValueError, match="pip install modelscope"):
        source.download("sft_512.jsonl")
    program = tmp_path / "scripts/modelscope"
    program.parent.mkdir()
    for script, words in (("exit 3", "ended with code 3"), ("exit 0", "is not there after the download")):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        with pytest.raises(ValueError, match=words):
            source.download("sft_512.jsonl")
    program.write_text('#!/bin/sh\necho "$@" > sft_512.jsonl\n')
    source.download("sft_512.jsonl")
    assert Path("sft_512.jsonl").read_text().split() == options.download_command("sft_512.jsonl").split()[1:]


def test_resuming_says_what_there_is(folder, capsys):
    pretrain.main([*SHAPE, *SHORT, "--resume"])
    assert "no state" in capsys.readouterr().out
    pretrain.main([*SHAPE, *SHORT, "--resume"])
    assert "nothing left to do" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"learning_rate was 0\.001, is 0\.5"):
        pretrain.main([*SHAPE, *SHORT, "--resume", "--learning_rate", "0.5"])
    pretrain.main([*SHAPE, *SHORT, "--resume", "--log_step", "1"])  # harmless


def test_a_damaged_newest_state_is_named_and_the_one_before_used(folder, capsys):
    pretrain.main([*SHAPE, *SHORT])
    newest = sorted((folder / "results/pretrain.state").iterdir())[-1]
    content = bytearray((newest / "run.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "run.pt").write_bytes(content)
    before = weights("results/pretrain.pth")
    pretrain.main([*SHAPE, *SHORT, "--resume"])
    said, warned = capsys.readouterr()
    assert str(newest.name) in warned and "after step 3 of 6" in said
    assert same(before, weights("results/pretrain.pth"))


def test_nothing_is_overwritten_unasked(folder):
    pretrain.main([*SHAPE, *SHORT])
    with pytest.raises(ValueError, match="--resume.*--name.*--overwrite"):
        pretrain.main([*SHAPE, *SHORT])
    pretrain.main([*SHAPE, *SHORT, "--overwrite"])


def test_a_shape_flag_that_contradicts_the_checkpoint_is_refused(folder):
    pretrain.main([*SHAPE, *SHORT])
    with pytest.raises(ValueError, match="--n_heads 8.*says 4"):
        SFT.main([*SHORT, "--n_heads", "8"])


def test_a_missing_parent_says_which_command_makes_it(folder):
    for main, argv, command in (
        (SFT.main, [], "python pretrain.py"),
        (SFT.main, ["--long"], "python SFT.py"),
        (distill.main, [], "python SFT.py"),
        (distill.main, ["--long"], "python SFT.py --long"),
    ):
        with pytest.raises(ValueError, match=rf"Make it with: {command} \("):
            main([*argv, *SHORT])


@pytest.mark.parametrize("argv, words", [
    (["--data_path", "nowhere.jsonl"], "nowhere.jsonl: no such file"), (["--batch_size", "0"], "--batch_size 0"),
    (["--warmup_iters", "99", "--max_steps", "5"], "warmup_iters=99"), (["--dim", "30"], "dim=30"),
])  # fmt: skip
def test_a_users_mistake_is_one_line_and_code_2(folder, argv, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.run(lambda: pretrain.main([*argv, "--num_workers", "1"]))
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and words in last


def test_without_data_the_bundled_sample_is_used_and_announced(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = chosen(pretrain, ["--learning_rate", "0.5"])
    said = capsys.readouterr().out.splitlines()
    assert data.data.on_sample and data.data.paths == [options.SAMPLE / "pretrain.jsonl"]
    assert data.training.learning_rate == 0.5 and data.training.max_steps == 40  # what was typed stays
    assert chosen(pretrain, ["--data_path", str(options.SAMPLE / "pretrain.jsonl")]).data.on_sample  # named or not
    assert len(said) == 2 and "bundled sample" in said[0]
    assert "modelscope download --dataset Harris/pretrainSpongeBob pretrain.jsonl --local_dir . (or" in said[1]


# ------------------------------------------------------------------------------------------------ one step


@pytest.mark.parametrize("name", options.DTYPES)
def test_products_run_in_the_dtype_that_was_asked_for_and_only_fp16_is_scaled(name):
    rt = runtime.start(Device(device="cpu", dtype=name), 0)
    weight = torch.eye(8, requires_grad=True)
    with rt.autocast():
        product = weight @ weight
    assert product.dtype == getattr(torch, name) and weight.dtype == torch.float32
    assert rt.scaler().is_enabled() == (name == "float16")


# What changes the speed or the way, not the result: every invariant holds with all of it on, too.
OPTIONS = [{}, {"optimizer": "muon", "chunk": 16, "recompute": True}]
OPTION_NAMES = ["plain", "muon, chunked, recomputed"]


def a_run(
    folder, *, batch_size, rows_per_step, grad_clip=0.0, rank=0, world=1, optimizer="adamw", chunk=0, recompute=False
) -> loop.Run:
    """A run on the fixture's chat data (uneven masks), without files around it."""
    torch.manual_seed(1)
    from dataset import SFTDataset

    tokenizer = load_tokenizer(ROOT / "spongebob_tokenizer")
    cache = open_or_build([folder / "r1_1024.jsonl"], SFTDataset, tokenizer)
    documents = packing.cut_conversations(cache, cache.split(0.1)[0], 128)
    model = SpongeBob(LLMConfig(dim=64, n_layers=2, n_heads=4))
    rt = runtime.Runtime(torch.device("cpu"), torch.float32, rank, world)
    share = {"batch_size": batch_size, "rows_per_step": rows_per_step, "rank": rank, "world": world}
    batches = packing.Batches(cache, packing.pack(documents, 128, 0), cost(10.0), seed=3, **share)
    model.recompute = recompute
    optimizers = optim.build(model, options.Training(optimizer=optimizer, learning_rate=1e-2, weight_decay=0.1))
    return loop.Run(
        runtime=rt, model=model, loss=TokenLoss(model, chunk=chunk), optimizers=optimizers, scaler=rt.scaler(),
        rate=lambda step: 1e-2, batches=batches, validation=None, tokenizer=tokenizer,
        token_bytes=torch.zeros(6400, dtype=torch.int32), prompt=[], end_id=2, steps=5, warmup=0,
        training=options.Training(batch_size=batch_size, learning_rate=1e-2, grad_clip=grad_clip),
        output=options.Output(name="test", log_step=1),
    )  # fmt: skip


# In bf16 Newton-Schulz is off by up to 0.03 (test_optim), which the rate and Muon's 0.2 sqrt(m) turn into a step.
IN_BF16 = 0.03 * 1e-2 * 0.2 * math.sqrt(192)  # of the longest side of its matrices, SwiGLU's


@pytest.mark.parametrize("muon_dtype, atol", [(torch.float32, 1e-4), (torch.bfloat16, IN_BF16)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("options", OPTIONS, ids=OPTION_NAMES)
def test_accumulation_equals_one_big_batch_with_uneven_masks(folder, options, muon_dtype, atol, monkeypatch):
    monkeypatch.setattr(optim, "pick_dtype", lambda *_: muon_dtype)  # whatever this machine is fast in
    whole, parts = (a_run(folder, batch_size=size, rows_per_step=12, **options) for size in (12, 3))
    results = []
    for run in (whole, parts):
        batches, counts = loop.load_step(run, 0)
        assert len(batches) == (1 if run is whole else 4)
        sums, norm, _ = loop.train_step(run, batches, counts.cost)
        results.append((sums / counts.cost, norm, run.model.state_dict()))
    (loss, norm, one), (loss_parts, norm_parts, other) = results
    torch.testing.assert_close(loss, loss_parts, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm, norm_parts, rtol=1e-5, atol=1e-7)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=atol)


def test_an_epoch_in_one_step_logs_the_same_however_the_window_is_cut_and_however_much_of_it_is_left_over(folder):
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


COMPILER = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
HEADERS = Path(sysconfig.get_path("include"), "Python.h")


@pytest.fixture
def losses(folder, monkeypatch):
    """losses(name, flag, ...) -> the logged loss of each of 200 steps."""
    monkeypatch.setattr(stage, "can_attend_by_document", lambda *_: False)  # the same rows for all

    def losses(name: str, *words: str) -> list[float]:
        steps = ["--epochs", "100", "--max_steps", "200", "--log_step", "1", "--eval_step", "0", "--save_step", "0"]
        pretrain.main([*SHAPE, *SHORT, *SMALL, *steps, "--dtype", "float32", "--name", name, *words])
        curve = [row["loss"] for row in rows(folder / f"results/{name}.metrics.jsonl") if "loss" in row]
        assert len(curve) == 200 and curve[-1] < curve[0] - 1
        return curve

    return losses


def distance(curve: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(curve, other, strict=True))


@pytest.mark.skipif(not COMPILER or not HEADERS.is_file(), reason="torch.compile wants a C++ compiler and Python.h")
def test_two_hundred_compiled_steps_lose_the_same(losses):
    assert distance(losses("compiled", "--compile"), losses("plain")) < 1e-2


@pytest.mark.parametrize("recompute", [False, True], ids=["plain", "activation checkpointing"])
def test_compiling_reaches_every_block(recompute, monkeypatch):
    def counting(graph, _):  # in place of a compiler
        linear = sum(node.target is torch.nn.functional.linear for node in graph.graph.nodes)
        return lambda *inputs: runs.append(linear) or graph(*inputs)

    real, runs = torch.nn.Module.compile, []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **more: real(self, backend=counting, **more))
    model = tiny(n_layers=3)
    model.recompute = recompute
    rt = runtime.Runtime(torch.device("cpu"), torch.float32)
    module = parallel.wrap(TokenLoss(model), rt.device, rt.dtype, 1, compile=True, parallel="ddp")
    ids = torch.randint(3, 100, (1, 20))
    ones = torch.ones(1, 20)
    module(ids, ids, ones.byte(), ones, torch.tensor([0, 20], dtype=torch.int32))
    assert sum(runs) == 3 * 7 + 1


def test_two_hundred_steps_chunked_masked_or_not_fused_lose_the_same(losses, monkeypatch):
    plain, curves = losses("plain"), {"chunked": losses("chunked", "--loss_chunk", "50")}
    with monkeypatch.context() as patch:
        patch.setattr(model_module, "can_attend_by_document", lambda *_: False)
        curves["masked"] = losses("masked")
    adamw = torch.optim.AdamW
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", lambda *args, **more: adamw(*args, **more | {"fused": False}))
        curves["not fused"] = losses("not_fused")
    apart = {name: distance(curve, plain) for name, curve in curves.items()}
    assert max(apart.values()) < 1e-2, apart


def test_the_logged_loss_is_the_mean_over_tokens_of_the_step(folder):
    run = a_run(folder, batch_size=3, rows_per_step=12)
    batches, counts = loop.load_step(run, 0)
    nats = tokens = 0.0
    for batch in batches:
        logits = run.model(batch.inputs, batch.cu_seqlens).logits
        each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none")
        nats += each[batch.classes.flatten() > 0].sum().item()
        tokens += (batch.classes > 0).sum().item()
    sums, _, _ = loop.train_step(run, batches, counts.cost)
    assert sums[1].item() / counts.tokens == pytest.approx(nats / tokens, rel=1e-5)


def test_the_last_partial_window_is_stepped_with_its_own_divisor(folder):
    run = a_run(folder, batch_size=2, rows_per_step=1000 * 2)
    total = len(run.batches.rows)
    assert run.batches.steps_per_epoch == 1
    batches, counts = loop.load_step(run, 0)
    assert len(batches) == math.ceil(total / 2)
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    sums, norm, _ = loop.train_step(run, batches, counts.cost)
    one = a_run(folder, batch_size=total, rows_per_step=total)
    batches, counts = loop.load_step(one, 0)
    _, expected, _ = loop.train_step(one, batches, counts.cost)
    torch.testing.assert_close(norm, expected, rtol=1e-4, atol=1e-6)
    assert not same(before, run.model.state_dict())


def test_a_loss_that_is_not_finite_never_reaches_the_weights_and_stops_before_a_save(folder, monkeypatch):
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


@pytest.mark.parametrize("grad_clip", [0.0, 1.0])
def test_an_overflow_in_fp16_skips_the_step_of_both_optimizers(folder, grad_clip):
    run = a_run(folder, batch_size=4, rows_per_step=4, grad_clip=grad_clip, optimizer="muon")
    run = replace(run, scaler=torch.amp.GradScaler("cpu"))
    run.model.tok_embeddings.weight.register_hook(lambda gradient: gradient * math.inf)  # only AdamW's, not Muon's
    before, scale = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}, run.scaler.get_scale()
    batches, counts = loop.load_step(run, 0)
    loop.train_step(run, batches, counts.cost)
    assert same(before, run.model.state_dict()) and run.scaler.get_scale() < scale


def test_gradients_are_clipped_to_the_norm_that_was_asked_for(folder):
    run = a_run(folder, batch_size=4, rows_per_step=4, grad_clip=1e-3)
    clipped = []
    run.optimizers[0].register_step_pre_hook(
        lambda optimizer, *_: clipped.append(
            torch.stack([p.grad.norm() for g in optimizer.param_groups for p in g["params"]]).norm()
        )
    )
    batches, counts = loop.load_step(run, 0)
    _, norm, _ = loop.train_step(run, batches, counts.cost)
    assert norm > 1e-2 and clipped[0].item() == pytest.approx(1e-3, rel=1e-3)


def test_norms_and_embeddings_do_not_decay_and_adamw_is_torchs(folder):
    model = SpongeBob(LLMConfig(dim=64, n_layers=2, n_heads=4))
    groups = optim.build(model, options.Training(optimizer="adamw", learning_rate=1e-3, weight_decay=0.1))[
        0
    ].param_groups
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decays) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert decays[id(parameter)] == (0.0 if "norm" in name or "tok_embeddings" in name else 0.1), name


TWO_RANKS = """
import sys, torch
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from test_training import a_run
from dataclasses import replace
from engine import loop, optim
from engine.machine import parallel, runtime
from making import CPU
from engine import options
rt = runtime.start(CPU, 0)
run = a_run(Path({folder!r}), batch_size=3, rows_per_step=12, rank=rt.rank, world=rt.world, **{options!r})
wrapped = parallel.wrap(run.loss, rt.device, rt.dtype, rt.world, parallel={parallel!r})
name = {options!r}.get("optimizer", "adamw")
optimizers = optim.build(run.model, options.Training(optimizer=name, learning_rate=1e-2, weight_decay=0.1))
run = replace(run, runtime=rt, loss=wrapped, optimizers=optimizers)
figures = []
for step in range(2):
    batches, counts = loop.load_step(run, step)
    counts = counts.over_ranks(rt)
    sums, norm, _ = loop.train_step(run, batches, counts.cost)
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    figures += [rt.all_reduce(sums)[0].item() / counts.cost, norm.item()]
if rt.main:
    print("FIGURES", *figures)
runtime.finish()
"""


@pytest.mark.parametrize("options", OPTIONS, ids=OPTION_NAMES)
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_match_one_in_loss_and_gradient_norm(folder, parallel, options):
    run, expected = a_run(folder, batch_size=3, rows_per_step=12, **options), []
    for step in range(2):
        batches, counts = loop.load_step(run, step)
        sums, norm, _ = loop.train_step(run, batches, counts.cost)
        expected += [sums[0].item() / counts.cost, norm.item()]
    script = folder / "ranks.py"
    words = {"root": str(ROOT), "tests": str(ROOT / "tests"), "folder": str(folder), "parallel": parallel}
    script.write_text(TWO_RANKS.format(**words, options=options))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    figures = [
        float(word)
        for word in next(line for line in done.stdout.splitlines() if line.startswith("FIGURES")).split()[1:]
    ]
    # Sharded matrices are orthogonalised by torch's own loop, in bf16: the second step begins from its rounding.
    assert figures == pytest.approx(expected, rel=1e-2 if options and parallel == "fsdp" else 1e-3)


def test_dropout_differs_between_processes_whose_weights_are_the_same(folder):
    script = folder / "seeds.py"
    script.write_text(f"import os, sys, torch; sys.path.insert(0, {str(ROOT)!r}); import pretrain; "
                      f"pretrain.main({[*SHAPE, *SHORT, *SMALL, '--dropout', '0.1', '--seed', '7']!r}); "
                      "open('seed' + os.environ['RANK'], 'w').write(str(torch.initial_seed()))")  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [Path(f"seed{rank}").read_text() for rank in range(2)] == ["7", "8"]


def test_processes_that_would_train_on_different_data_are_refused(folder, monkeypatch):
    def gather(self, value):
        return [value, value | {"data": []}] if isinstance(value, dict) else [value]

    monkeypatch.setattr(runtime.Runtime, "gather", gather)
    with pytest.raises(ValueError, match="processes 0 and 1 differ in data: every machine needs the same"):
        pretrain.main([*SHAPE, *SHORT, *SMALL, "--name", "apart"])
    assert not (folder / "results/apart.pth").exists()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_the_memory_of_a_large_tensor_is_used_again_instead_of_being_cleared_by_the_system():
    program = (
        "import resource, torch; from engine.machine import runtime; from engine.options import Device;"
        "runtime.start(Device(device='cpu'), 0);"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt;"
        "counts = [faults() for _ in range(16) if torch.ones(2**24) is not None];"
        # Which memory that is takes up to six allocations to settle; from then on none may cost a page.
        "print(max(after - before for before, after in zip(counts[-5:], counts[-4:])))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(done.stdout) < 1000  # of the 16,384 pages that it has
