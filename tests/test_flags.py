"""Every flag changes something: none is only stored.

Each flag is typed in a tiny run beside one without it, and the part of the outcome that it is for must differ: weights,
log, files, answer, error. What needs a GPU, several processes, a compiler or a network is recorded at the door where
the value arrives. A flag without an entry here fails.
"""

import contextlib
import io
import json
import os
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from making import actions_of, log_of, save_checkpoint, tiny

import distill
import eval_model
import export
import pretrain
import SFT
import train_tokenizer
from dataset import fingerprint, load_tokenizer
from engine import loss
from engine.corpus import bpe, token_cache
from engine.flags import ROOT
from engine.log import services, tracker
from engine.machine import parallel, runtime
from engine.score import answers
from engine.stage import plan

STAGES = (pretrain, SFT, distill)
SCRIPTS = {script.__name__: script for script in (*STAGES, train_tokenizer, eval_model, export)}
ROAD = ["pretrain", "SFT", "SFT_long", "distill", "distill_long"]
LEFT_BY_EARLIER = {"SFT": ["pretrain"], "distill": ["SFT"], "eval_model": ROAD, "export": ROAD}
TRAINING_WORDS = (
    "--tokenizer_dir tokenizer --device cpu --dtype float32 --num_workers 1 --batch_size 2 --accumulation_steps 1 "
    "--max_seq_len 96 --val_fraction 0 --max_steps 3 --warmup_iters 1 --log_step 1 --eval_step 0 --save_step 0"
)
WORDS = {
    "pretrain": f"{TRAINING_WORDS} --dim 32 --n_layers 1 --n_heads 4 --n_kv_heads 2",
    "SFT": TRAINING_WORDS,
    "distill": TRAINING_WORDS,
    "train_tokenizer": "--save_dir learned --vocab_size 280",
    "eval_model": "--tokenizer_dir tokenizer --device cpu --dtype float32 --max_new_tokens 8",  # a chat
    "export": "exported --tokenizer_dir tokenizer",
}


class Case(NamedTuple):
    """How a flag is shown to change something, and what.

    "--keep": Case("1", "files", given="--save_step 1") means: a run with `--save_step 1 --keep 1` leaves other files
    than a run with `--save_step 1`.
    """

    value: str  # what is typed after the flag
    changes: str  # the part of the outcome that must differ
    given: str = ""  # typed both times
    earlier: str | None = None  # typed in a run before, in the same folder
    words: str | None = None  # in place of WORDS
    processes: int = 1  # that torchrun is said to have started


TRAINING = {
    "--data_path": Case("other.jsonl", "weights"),
    "--download": Case("", "error", given="--data_path other.jsonl"),
    "--strict_data": Case("", "error", given="--data_path broken.jsonl"),
    "--val_fraction": Case("0.2", "log"),
    "--max_seq_len": Case("200", "weights"),
    "--tokenizer_dir": Case("larger", "weights"),
    "--cache_dir": Case("mine", "files"),
    "--num_workers": Case("2", "workers", given="--cache_dir mine"),
    "--epochs": Case("2", "steps", given="--max_steps 0"),
    "--max_steps": Case("2", "steps"),
    "--max_minutes": Case("1e-9", "steps"),
    "--batch_size": Case("4", "weights"),
    "--accumulation_steps": Case("2", "weights"),
    "--optimizer": Case("muon", "weights"),
    "--learning_rate": Case("0.5", "weights"),
    "--schedule": Case("linear", "weights"),
    "--warmup_iters": Case("2", "weights"),
    "--weight_decay": Case("0.5", "weights"),
    "--z_loss": Case("0.1", "weights"),
    "--grad_clip": Case("0.001", "weights"),
    "--seed": Case("7", "weights"),
    "--save_dir": Case("elsewhere", "files"),
    "--name": Case("mine", "files"),
    "--resume": Case("", "steps", given="--name mine", earlier="--max_minutes 1e-9"),
    "--overwrite": Case("", "error", given="--name mine", earlier=""),
    "--log_step": Case("2", "log"),
    "--eval_step": Case("2", "log", given="--val_fraction 0.2"),
    "--save_step": Case("1", "files"),
    "--keep": Case("1", "files", given="--save_step 1"),
    "--use_wandb": Case("", "service"),
    "--tracker": Case("tensorboard", "service"),
    "--wandb_project": Case("mine", "project", given="--use_wandb"),
    "--device": Case("meta", "error"),  # which nobody trains on
    "--dtype": Case("bfloat16", "weights"),
    "--loss_chunk": Case("16", "chunks"),
    "--activation_checkpointing": Case("", "recomputed"),
    "--compile": Case("", "compiled"),
    "--parallel": Case("fsdp", "parallel", processes=2),
    "--deterministic": Case("", "deterministic"),
}
SHAPE = {
    "--dim": Case("16", "weights"),
    "--n_layers": Case("2", "weights"),
    "--n_heads": Case("2", "weights"),
    "--n_kv_heads": Case("4", "weights"),
    "--hidden_dim": Case("24", "weights"),
    "--rope_theta": Case("100", "weights"),
    "--dropout": Case("0.5", "weights"),
    "--preset": Case("1B", "weights"),  # its hidden_dim is not typed
}
PARENT = {
    "--init_from": Case("other.pth", "weights"),
    "--n_heads": Case("4", "weights", given="--init_from bare.pth"),
    "--rope_theta": Case("100", "weights", given="--init_from bare.pth"),
    "--long": Case("", "files", given="--init_from other.pth"),
    "--save_dir": Case("elsewhere", "files", given="--init_from other.pth"),
    "--tokenizer_dir": Case("larger", "error"),
}
CASES = {
    "pretrain": TRAINING | SHAPE,
    "SFT": TRAINING | PARENT,
    "distill": TRAINING | PARENT | {"--tag_weight": Case("1", "weights")},
    "train_tokenizer": {
        "--data_path": Case("other.jsonl", "vocabulary"),
        "--save_dir": Case("elsewhere", "files"),
        "--overwrite": Case("", "error", given="--save_dir tokenizer"),
        "--vocab_size": Case("270", "vocabulary"),
        "--max_bytes": Case("300", "vocabulary"),
        "--tag_tokens": Case("", "vocabulary"),
        "--val_fraction": Case("0.5", "vocabulary", given="--data_path many.jsonl"),
        "--strict_data": Case("", "error", given="--data_path broken.jsonl"),
    },
    "eval_model": {
        "--model_mode": Case("2", "answer"),
        "--long": Case("", "answer"),
        "--ckpt": Case("other.pth", "answer"),
        "--save_dir": Case("others", "answer"),
        "--tokenizer_dir": Case("larger", "error"),
        "--n_heads": Case("4", "answer", given="--ckpt bare.pth"),
        "--rope_theta": Case("100", "answer", given="--ckpt bare.pth"),
        "--max_seq_len": Case("16", "answer"),
        "--temperature": Case("0", "answer"),
        "--top_p": Case("0.1", "answer", given="--temperature 3"),
        "--top_k": Case("1", "answer", given="--temperature 3"),
        "--repetition_penalty": Case("100", "answer", given="--temperature 0 --max_new_tokens 32"),
        "--max_new_tokens": Case("2", "answer"),
        "--history_cnt": Case("0", "answer", given="--temperature 0"),
        "--system": Case("hi", "answer", given="--temperature 0"),
        "--no-stream": Case("", "flushes"),
        "--seed": Case("7", "answer"),
        "--device": Case("meta", "error"),
        "--dtype": Case("bfloat16", "answer", given="--max_new_tokens 32"),
        "--prompt": Case("hi", "answer"),
        "--export": Case("hf exported", "error"),  # moved to export.py
        "--score": Case("sft_512.jsonl", "files"),
        "--report": Case("page.html", "files", words=""),
        "--score_rows": Case("1", "answer", given="--score sft_512.jsonl"),
        "--score_batch": Case("2", "prompts", given="--score sft_512.jsonl"),
        "--shots": Case("1", "answer", given="--score questions.jsonl"),
        "--baseline": Case("other.pth", "answer", given="--score sft_512.jsonl"),
    },
    "export": {
        "target": Case("elsewhere", "files", words="--tokenizer_dir tokenizer"),
        "--format": Case("unknown", "error"),  # there is one, so far
        "--model_mode": Case("2", "exported"),
        "--long": Case("", "exported"),
        "--ckpt": Case("other.pth", "exported"),
        "--save_dir": Case("others", "exported"),
        "--tokenizer_dir": Case("larger", "error"),
        "--max_seq_len": Case("16", "exported"),
        "--n_heads": Case("4", "exported", given="--ckpt bare.pth"),
        "--rope_theta": Case("100", "exported", given="--ckpt bare.pth"),
    },
}


# ------------------------------------------------------------------------------------------ what a user has


def rows(count, word):
    """Rows that every stage can read."""
    for number in range(count):
        answer = f"<think>\n{word}\n</think>\n<answer>\n{number}\n</answer>"
        turns = [("system", "s"), ("user", f"{word} {number}?"), ("assistant", answer)]
        conversations = [{"role": role, "content": content} for role, content in turns]
        yield json.dumps({"text": f"{word} {number} " + "the sea " * (number % 5), "conversations": conversations})


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The folder a user starts from: data, two tokenizers, weights."""
    home = tmp_path_factory.mktemp("home")
    for name in ("pretrain", "sft_512", "sft_1024", "r1_1024"):
        (home / f"{name}.jsonl").write_text("\n".join(rows(24, "snail")))
    (home / "other.jsonl").write_text("\n".join(rows(24, "jellyfish")))
    (home / "many.jsonl").write_text("\n".join([*rows(100, "snail"), *rows(100, "jellyfish")]))
    questions = [json.dumps({"question": f"{n}?", "choices": ["a", "b"], "answer": n % 2}) for n in range(9)]
    (home / "questions.jsonl").write_text("\n".join(questions))
    (home / "broken.jsonl").write_text("\n".join([*rows(24, "snail"), "{broken"]))
    learned = bpe.train(rows(50, "snail"), 300, tag_tokens=False)
    bpe.save(learned, home / "tokenizer")
    learned.add_tokens(["jellyfish"])
    bpe.save(learned, home / "larger")
    known = fingerprint(load_tokenizer(home / "tokenizer"))

    def leave(path, seed, stage):
        model = tiny(seed, std=0.3, dim=32, n_layers=1, vocab_size=300, max_seq_len=512)
        save_checkpoint(model, path, stage=stage, tokenizer=known)

    leave(home / "other.pth", 9, "SFT")
    leave(home / "bare.pth", 9, "SFT")
    (home / "bare.json").unlink()
    for seed, name in enumerate(ROAD):
        leave(home / f"left/{name}.pth", seed, name.removesuffix("_long"))
        leave(home / f"others/{name}.pth", seed + 100, name.removesuffix("_long"))
    return home


# ------------------------------------------------------------------------------------------------ outcomes


class Screen(io.StringIO):
    flushes = 0

    def flush(self):
        self.flushes += 1


@contextlib.contextmanager
def record_arrivals(monkeypatch, arrived):
    """Note in `arrived` what arrives where there may be nothing behind."""
    real_start, real_wrap, real_complete = runtime.start, parallel.wrap, answers.complete

    def start(*arguments, **more):  # alone, whatever torchrun is said to have started
        with pytest.MonkeyPatch.context() as alone:
            alone.delenv("WORLD_SIZE", raising=False)
            return real_start(*arguments, **more)

    def pool(workers, context, start, setup):  # threads are processes enough here
        arrived["workers"] = workers
        return ThreadPoolExecutor(workers, initializer=start, initargs=setup)

    def service(name, path, project, *_):
        arrived["service"], arrived["project"] = name, project
        return services.Silent()

    def wrap(*arguments, compile, parallel):
        arrived["parallel"] = parallel
        return real_wrap(*arguments, compile=compile, parallel=parallel)

    def chunk(function, *parts, **_):
        arrived["chunks"] = arrived.get("chunks", 0) + 1
        return function(*parts)

    def recompute(block, *inputs, **_):
        arrived["recomputed"] = True
        return block(*inputs)

    def complete(model, prompts, **options):
        arrived.setdefault("prompts", []).append(len(prompts))
        return real_complete(model, prompts, **options)

    def note(door):
        return lambda *arguments, **_: arrived.__setitem__(door, arguments[-1] if arguments else True)

    with monkeypatch.context() as patch:
        patch.setattr(token_cache, "ProcessPoolExecutor", pool)
        patch.setattr(services, "open_service", service)
        for module, slow in ((tracker, "draw"), (plan, "trial"), (os, "fsync")):  # longer than such a training
            patch.setattr(module, slow, lambda *_: None)
        patch.setattr(runtime, "start", start)
        patch.setattr(parallel, "wrap", wrap)
        patch.setattr(loss, "checkpoint", chunk)
        patch.setattr("model.checkpoint", recompute)
        patch.setattr(loss.TokenLoss, "compile", note("compiled"))
        patch.setattr(torch, "use_deterministic_algorithms", note("deterministic"))
        patch.setattr(answers, "complete", complete)
        patch.setattr(sys, "stdin", io.StringIO("sea?\nsnail?\n"))
        yield


def all_files():
    return {os.path.join(folder, file) for folder, _, files in os.walk(".") for file in files}


def outcome(name, runs, monkeypatch):
    """What a script leaves behind, and what its last run says and reaches."""
    before = all_files()
    for words in runs:
        error, screen, aside, arrived = None, Screen(), io.StringIO(), {}
        with (
            record_arrivals(monkeypatch, arrived),
            contextlib.redirect_stdout(screen),
            contextlib.redirect_stderr(aside),
        ):
            try:
                SCRIPTS[name].main(words)
            except ValueError as problem:
                error = str(problem)
            except SystemExit:
                error = aside.getvalue()
    files = sorted(all_files() - before)
    found = {"error": error, "files": files, "answer": screen.getvalue(), "flushes": screen.flushes, **arrived}
    for path in map(Path, files):
        if path.parent.name == "exported":
            found.setdefault("exported", {})[path.name] = path.read_bytes()
        elif path.name == "tokenizer.json":
            found["vocabulary"] = path.read_bytes()
        elif path.suffix == ".pth":
            weights = torch.load(path, weights_only=True)
            found["weights"] = {name: (tensor.shape, tensor.numpy().tobytes()) for name, tensor in weights.items()}
        elif path.name.endswith(".metrics.jsonl"):
            found["log"] = log_of(path)
            found["steps"] = found["log"][-1]["step"]
    return found


@pytest.fixture
def after(home, tmp_path_factory, monkeypatch):
    """after(script, words, run, run, ...) -> the outcome of the runs, each given as flags, in a new folder."""

    def after(name, words, *runs):
        folder = tmp_path_factory.mktemp(name) / "home"
        shutil.copytree(home, folder)
        for parent in LEFT_BY_EARLIER.get(name, ()):
            for ending in (".pth", ".json"):
                (folder / "results").mkdir(exist_ok=True)
                shutil.copyfile(home / f"left/{parent}{ending}", folder / f"results/{parent}{ending}")
        monkeypatch.chdir(folder)
        words = words.split()
        if SCRIPTS[name] in STAGES:
            words += ["--cache_dir", str(home.parent / "cache")]  # one for all
        return outcome(name, [[*words, *run.split()] for run in runs], monkeypatch)

    return after


ALL = [(name, flag) for name, script in SCRIPTS.items() for flag in actions_of(script)]
BASELINES = {}  # most flags are compared with the same run


@pytest.mark.parametrize("name, flag", ALL)
def test_every_flag_changes_something(name, flag, after, monkeypatch):
    assert flag in CASES[name], f"{name}.py {flag} is new: say in this file what it changes"
    case = CASES[name][flag]
    monkeypatch.setenv("WORLD_SIZE", str(case.processes))
    words = WORDS[name] if case.words is None else case.words
    earlier = [] if case.earlier is None else [f"{case.given} {case.earlier}"]
    without = (name, words, *earlier, case.given)
    if without not in BASELINES:
        BASELINES[without] = after(*without)
    what = f"{flag} {case.value}" if flag.startswith("-") else case.value
    without, typed = BASELINES[without], after(name, words, *earlier, f"{case.given} {what}")
    changed = typed.get(case.changes) != without.get(case.changes)
    assert changed, f"{what} left the {case.changes} as without it"
    if case.changes == "error":
        assert flag in (typed["error"] or without["error"])
    else:
        assert typed["error"] is None


def test_no_entry_is_left_of_a_flag_that_is_gone():
    assert {name: set(cases) for name, cases in CASES.items()} == {
        name: set(actions_of(script)) for name, script in SCRIPTS.items()
    }


# ------------------------------------------------------------------------------------------------ what is refused

MODES = {"a chat": [], "--prompt": ["--prompt", "hi"], "--score": ["--score", "rows.jsonl"], "--report": ["--report"]}
IN_MODES = [(mode, flag) for mode in MODES for flag in CASES["eval_model"] if flag not in (*MODES, "--export")]


@pytest.mark.parametrize("mode, flag", IN_MODES)
def test_a_mode_takes_the_flags_it_reads_and_refuses_the_others_by_name(mode, flag, home, monkeypatch):
    monkeypatch.chdir(home)
    name, value = flag.removeprefix("--").removeprefix("no-"), CASES["eval_model"][flag].value
    argv = [*MODES[mode], flag, *value.split()]
    if name in eval_model.READS[mode]:
        assert eval_model.choose(argv)[0] == mode
        return
    with pytest.raises(ValueError, match=f"--{name} is not read by {mode}, only by ") as refused:
        eval_model.choose(argv)
    named = str(refused.value).split(", only by ")[1].split(" and ")
    assert named == [other for other in MODES if name in eval_model.READS[other]]


@pytest.mark.parametrize("words, flag", [
    ("--epochs 2 --max_steps 5", "--epochs"),
    ("--parallel fsdp", "--parallel"),
    ("--wandb_project mine", "--wandb_project"),
    ("--wandb_project mine --tracker tensorboard", "--wandb_project"),
    ("--data_path finished --cache_dir mine", "--cache_dir"),
    ("--data_path finished --num_workers 2", "--num_workers"),
])  # fmt: skip
@pytest.mark.parametrize("script", STAGES, ids=lambda script: script.__name__)
def test_a_flag_that_would_change_nothing_in_this_run_is_refused(script, words, flag, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("finished").mkdir()
    Path("finished/meta.json").write_text("{}")
    with pytest.raises(ValueError, match=f"^{flag} would change nothing: .*leave it out"):
        script.main(words.split())


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_number_that_is_not_finite_is_refused_by_name(name, capsys):
    numeric = {flag: action for flag, action in actions_of(SCRIPTS[name]).items() if action.type in (int, float)}
    assert numeric
    for flag, action in numeric.items():
        for value in ("nan", "inf", "-inf"):
            words = [flag, value] if value[0] != "-" else [f"{flag}={value}"]
            words += ["exported"] if name == "export" else []
            with pytest.raises(ValueError if action.type is float else SystemExit) as refused:
                SCRIPTS[name].main(words)
            assert flag in (str(refused.value) if action.type is float else capsys.readouterr().err), words


# ----------------------------------------------------------------------------------------------------- help


def help_of(script, capsys, *words):
    with pytest.raises(SystemExit):
        script.main([*words, "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_help_shows_where_this_repository_lies(name, capsys):
    said = help_of(SCRIPTS[name], capsys)
    assert "--" in said
    assert str(ROOT) not in said
    assert not re.search(r"""(?:^|[\s("'])/\w""", said)


def test_the_help_of_the_long_road_shows_its_own_numbers(capsys):
    short, long = (" ".join(help_of(SFT, capsys, *words).split()) for words in ([], ["--long"]))
    assert "(default: 512)" in short
    assert "(default: SFT)" in short
    assert "(default: 1024)" in long
    assert "(default: SFT_long)" in long
