"""Every flag changes something: none is only stored.

Each flag is typed in a tiny run, compared with a run without it, and the part of the outcome that it is for must
differ: weights, log, files, answer, error. What needs a GPU, several processes, a compiler or a network is recorded
where the value arrives. A flag, or a script, without an entry here fails.
"""

import contextlib
import importlib
import io
import json
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from factories import REQUIRED, WALL_CLOCK, actions_of

import eval_model
import model as model_module
import serve
from Config import LLMConfig
from engine import cli, loss, options
from engine.checkpoint.weights import config_dict, full_state_dict, save_weights
from engine.corpus import bpe, worker_pool
from engine.corpus.cleaned_rows import line_of
from engine.corpus.rules import RULES
from engine.flags import RENAMED_FLAGS, ROOT, Flags, flag_fields
from engine.log import trackers
from engine.machine import parallel
from engine.score import answers
from engine.tokenizer import fingerprint, load_tokenizer
from model import SpongeBob

pytestmark = pytest.mark.usefixtures("quick")
SCRIPTS = {path.stem: importlib.import_module(path.stem) for path in sorted(ROOT.glob("*.py"))}
SCRIPTS = {name: module for name, module in SCRIPTS.items() if hasattr(module, "main") and name != "serve"}
# tests/serve/test_api.py types the flags of serve.py.
LEFT_BY_EARLIER = {"SFT": ["pretrain"], "distill": ["SFT"], "eval_model": [*options.ROAD], "export": [*options.ROAD]}
TRAINING_FLAGS = (
    "--tokenizer_dir tokenizer --device cpu --dtype float32 --num_workers 1 --batch_size 2 --accumulation_steps 1 "
    "--max_seq_len 96 --val_fraction 0 --max_steps 3 --warmup_iters 1 --log_step 1 --eval_step 0 --save_step 0"
)
FLAGS = {
    "pretrain": f"{TRAINING_FLAGS} --dim 32 --n_layers 1 --n_heads 4 --n_kv_heads 2",
    "SFT": TRAINING_FLAGS,
    "distill": TRAINING_FLAGS,
    "prepare_data": "--tokenizer_dir tokenizer --num_workers 1 dirty.jsonl",
    "train_tokenizer": "--save_dir learned --vocab_size 280",
    "eval_model": "--tokenizer_dir tokenizer --device cpu --max_new_tokens 8",  # a chat
    "export": "exported.html --tokenizer_dir tokenizer",
}


HF = "--format hf"


class Case(NamedTuple):
    """One flag: with `--seed 7` the weights must differ from those of a run without it."""

    value: str  # what is typed after the flag
    changes: str  # the part of the outcome that must differ
    given: str = ""  # typed both times
    earlier: str | None = None  # typed in a run before, in the same folder


TRAINING = {
    "--data_path": Case("other.jsonl", "weights"),
    "--data_epochs": Case("2 0.5", "weights", given="--data_path other.jsonl many.jsonl"),
    "--download": Case("", "error", given="--data_path other.jsonl"),
    "--strict_data": Case("", "error", given="--data_path broken.jsonl"),
    "--allow_dropped": Case("", "error", given="--data_path mostly_empty.jsonl"),
    "--val_fraction": Case("0.2", "log"),
    "--max_seq_len": Case("200", "weights"),
    "--rope_scaling": Case("2", "weights", given="--max_seq_len 600"),  # the parent's rows have 512
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
    "--device": Case("meta", "error"),  # which is only for shapes
    "--dtype": Case("bfloat16", "weights"),
    "--loss_chunk": Case("16", "chunks"),
    "--activation_checkpointing": Case("", "recomputed"),
    "--no-compile": Case("", "compiled", given="--compile"),
    "--parallel": Case("fsdp", "error"),
    "--bf16_gradients": Case("", "error"),
    "--deterministic": Case("", "deterministic"),
}
SHAPE = {
    "--split_on_special_tokens": Case("", "weights", given="--data_path marks.jsonl"),
    "--dim": Case("16", "weights"),
    "--n_layers": Case("2", "weights"),
    "--n_heads": Case("2", "weights"),
    "--n_kv_heads": Case("4", "weights"),
    "--hidden_dim": Case("24", "weights"),
    "--rope_theta": Case("100", "weights"),
    "--dropout": Case("0.5", "weights"),
    "--preset": Case("1B", "weights"),  # its hidden_dim is not typed
    "--init_from": Case("other.pth", "error"),  # the shape is typed
}
OPT_IN = [rule.name for rule in RULES if rule.on is False]
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
    "prepare_data": {
        "--out": Case("mine", "files"),
        "--overwrite": Case("", "error", earlier=""),
        "--dry_run": Case("", "files"),
        "--against": Case("against.jsonl", "prepared"),
        "--encoding": Case("big5", "prepared", given="gb18030.txt"),
        "--split_text": Case("line", "prepared", given="notes.txt"),
        "--tokenizer_dir": Case("larger", "prepared"),
        "--num_workers": Case("2", "workers"),
        **{f"--no-{rule.name}": Case("", "prepared") for rule in RULES if rule.on},
        **{f"--no-{name}": Case("", "prepared", given=f"--{name}") for name in OPT_IN},
    },
    "train_tokenizer": {
        "--data_path": Case("other.jsonl", "vocabulary"),
        "--save_dir": Case("elsewhere", "files"),
        "--overwrite": Case("", "error", given="--save_dir tokenizer"),
        "--vocab_size": Case("270", "vocabulary"),
        "--max_bytes": Case("300", "vocabulary"),
        "--tag_tokens": Case("", "vocabulary"),
        "--val_fraction": Case("0.5", "vocabulary", given="--data_path many.jsonl"),
        "--strict_data": Case("", "error", given="--data_path broken.jsonl"),
        "--split_on_special_tokens": Case("", "vocabulary", given="--data_path marks.jsonl"),
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
        "--min_p": Case("1", "answer", given="--temperature 3"),
        "--repetition_penalty": Case("100", "answer", given="--temperature 0 --max_new_tokens 32"),
        "--presence_penalty": Case("100", "answer", given="--temperature 0 --max_new_tokens 32"),
        "--max_new_tokens": Case("2", "answer"),
        "--history_cnt": Case("0", "answer", given="--temperature 0"),
        "--system": Case("hi", "answer", given="--temperature 0"),
        "--no-stream": Case("", "flushes"),
        "--seed": Case("7", "answer"),
        "--device": Case("meta", "error"),
        "--dtype": Case("bfloat16", "answer", given="--score sft_512.jsonl --dtype float32"),
        "--weight_dtype": Case("float32", "answer", given="--max_new_tokens 32"),
        "--compile": Case("", "compiled"),
        "--prompt": Case("hi", "answer"),
        "--prompt_file": Case("lines.txt", "answer"),
        "--score": Case("sft_512.jsonl", "files"),
        "--report": Case("page.html", "files"),
        "--max_eval_rows": Case("1", "answer", given="--score sft_512.jsonl"),
        "--eval_batch_size": Case("2", "prompts", given="--score sft_512.jsonl"),
        "--num_fewshot": Case("1", "answer", given="--score questions.jsonl"),
        "--baseline": Case("other.pth", "answer", given="--score sft_512.jsonl"),
    },
    "export": {
        "--format": Case("hf", "error"),
        "--dtype": Case("bfloat16", "exported", given=HF),
        "--import_hf": Case("nowhere", "error"),
        "--model_mode": Case("2", "exported", given=HF),
        "--long": Case("", "exported", given=HF),
        "--ckpt": Case("other.pth", "exported", given=HF),
        "--save_dir": Case("others", "exported", given=HF),
        "--tokenizer_dir": Case("larger", "error", given=HF),
        "--n_heads": Case("4", "exported", given=f"{HF} --ckpt bare.pth"),
        "--rope_theta": Case("100", "exported", given=f"{HF} --ckpt bare.pth"),
        "--max_seq_len": Case("16", "exported", given=HF),
        "--weight_dtype": Case("float16", "exported", given="--format page"),
        "--stages": Case("", "exported", given="--format page"),
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


def dirty_rows():
    """Yield a row for each rule of prepare_data.py."""
    for rule in RULES:
        if rule.on is not None:
            yield line_of(rule.example[0]).decode()
    sea = "The sea was calm, and the snail went home before the tide came in over the sand of the long beach. " * 3
    yield from (line_of(text).decode() for text in (sea, sea, sea.replace("calm", "rough", 1)))


def model_of(seed):
    torch.manual_seed(seed)
    model = SpongeBob(LLMConfig(dim=32, n_layers=1, n_heads=4, n_kv_heads=2, vocab_size=300))
    for parameter in model.parameters():  # a fresh model answers the same whatever it is asked
        parameter.data.normal_(std=0.3)
    return model


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The folder a user starts from: data, two tokenizers, weights."""
    home = tmp_path_factory.mktemp("home")
    for name in ("pretrain", "sft_512", "sft_1024", "r1_1024"):
        (home / f"{name}.jsonl").write_text("\n".join(rows(24, "snail")))
    (home / "other.jsonl").write_text("\n".join(rows(24, "jellyfish")))
    (home / "many.jsonl").write_text("\n".join([*rows(100, "snail"), *rows(100, "jellyfish")]))
    questions = [json.dumps({"question": f"{n}?", "choices": ["a", "b"], "answer": n % 2}) for n in range(9)]
    (home / "lines.txt").write_text("hi")
    (home / "questions.jsonl").write_text("\n".join(questions))
    marks = [json.dumps({"text": f"<s>snail {number}</s><s>the sea {number}</s>"}) for number in range(200)]
    (home / "marks.jsonl").write_text("\n".join(marks))
    (home / "broken.jsonl").write_text("\n".join([*rows(24, "snail"), "{broken"]))
    empty = json.dumps({"text": " ", "conversations": []})
    (home / "mostly_empty.jsonl").write_text("\n".join([*rows(24, "snail"), *[empty] * 25]))
    (home / "dirty.jsonl").write_text("\n".join(dirty_rows()))
    (home / "against.jsonl").write_text(next(iter(dirty_rows())))
    (home / "notes.txt").write_text("The sea was calm.\nThe snail went home.")
    (home / "gb18030.txt").write_text("\n".join(["灯塔在海边，海水很蓝。"] * 9 + ["船来了。"]), encoding="gb18030")
    learned = bpe.train_bpe(rows(50, "snail"), 300, tag_tokens=False)
    bpe.save_tokenizer(learned, home / "tokenizer")
    learned.add_tokens(["jellyfish"])
    bpe.save_tokenizer(learned, home / "larger")

    def leave(path, model, stage):
        known = {"stage": stage, "config": config_dict(model.config)}
        known["tokenizer"] = fingerprint(load_tokenizer(home / "tokenizer"))
        save_weights(path, full_state_dict(model), known)

    leave(home / "other.pth", model_of(9), "SFT")
    leave(home / "bare.pth", model_of(9), "SFT")
    (home / "bare.json").unlink()
    for seed, name in enumerate(LEFT_BY_EARLIER["eval_model"]):
        leave(home / f"left/{name}.pth", model_of(seed), name.removesuffix("_long"))
        leave(home / f"others/{name}.pth", model_of(seed + 100), name.removesuffix("_long"))
    return home


# ------------------------------------------------------------------------------------------------ outcomes


class Screen(io.StringIO):
    flushes = 0

    def flush(self):
        self.flushes += 1


@contextlib.contextmanager
def record_arrivals(monkeypatch, arrived):
    """Note in `arrived` the values that arrive where this machine may have nothing to use them."""
    real_wrap, real_complete = parallel.wrap, answers.complete

    def threads(workers, context, start, setup):  # threads are processes enough here
        arrived["workers"] = workers
        return ThreadPoolExecutor(workers, initializer=setup[1], initargs=setup[2])

    def service(name, path, project, *_):
        arrived["service"], arrived["project"] = name, project
        return trackers.NoOpTracker()

    def wrap(module, *args, compile, **parallel_options):
        arrived.update(parallel_options)
        return real_wrap(module, *args, compile=compile, **parallel_options)

    def chunk(function, *parts, **_):
        arrived["chunks"] = arrived.get("chunks", 0) + 1
        return function(*parts)

    def recompute(block, *inputs, **_):
        arrived["recomputed"] = True
        return block(*inputs)

    def complete(model, prompts, **options):
        arrived.setdefault("prompts", []).append(len(prompts))
        return real_complete(model, prompts, **options)

    def compiled(function, **_):
        arrived["compiled"] = True
        return function

    def note(name):
        return lambda *args, **_: arrived.__setitem__(name, args[-1] if args else True)

    with monkeypatch.context() as patch:
        for owner, name, fake in (
            (worker_pool, "ProcessPoolExecutor", threads),
            (trackers, "open_service", service),
            (parallel, "wrap", wrap),
            (loss, "checkpoint", chunk),
            (model_module, "checkpoint", recompute),
            (loss.TokenLoss, "compile", note("compiled")),
            (torch, "compile", compiled),
            (torch, "use_deterministic_algorithms", note("deterministic")),
            (answers, "complete", complete),
            (sys, "stdin", io.StringIO("sea?\nsnail?\n")),
        ):
            patch.setattr(owner, name, fake)
        yield


def all_files():
    return {str(path) for path in Path(".").rglob("*") if path.is_file()}


def outcome(name, runs, monkeypatch):
    """Run a script and return the files it leaves, the output of its last run and what arrived."""
    before = all_files()
    for argv in runs:
        error, arrived = None, {}
        screen = Screen()
        quiet = contextlib.redirect_stderr(io.StringIO())
        with record_arrivals(monkeypatch, arrived), contextlib.redirect_stdout(screen), quiet:
            try:
                SCRIPTS[name].main(argv)
            except ValueError as problem:
                error = str(problem)
    files = sorted(all_files() - before)
    outcome = {"error": error, "files": files, "answer": screen.getvalue(), "flushes": screen.flushes, **arrived}
    for path in map(Path, files):
        if path.name == "tokenizer.json":
            outcome["vocabulary"] = path.read_bytes()
        elif path.parent.name == "prepared" and path.suffix != ".html":
            outcome["prepared"] = outcome.get("prepared", b"") + path.read_bytes()
        elif path.suffix == ".pth":
            weights = torch.load(path, weights_only=True)
            outcome["weights"] = {name: (tensor.shape, tensor.numpy().tobytes()) for name, tensor in weights.items()}
        elif path.suffix in (".safetensors", ".html") or path.name == "config.json":
            outcome["exported"] = outcome.get("exported", b"") + path.read_bytes()
        elif path.name.endswith(".metrics.jsonl"):
            log = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            outcome["steps"] = log[-1]["step"]
            outcome["log"] = [{key: row[key] for key in row.keys() - {*WALL_CLOCK}} for row in log]
    return outcome


def move_in(name, home, folder, monkeypatch):
    """Copy what a user has into a new folder, with the checkpoints that the script needs, and work there."""
    shutil.copytree(home, folder)
    (folder / "results").mkdir(exist_ok=True)
    for parent in LEFT_BY_EARLIER.get(name, ()):
        for ending in (".pth", ".json"):
            shutil.copyfile(home / f"left/{parent}{ending}", folder / f"results/{parent}{ending}")
    monkeypatch.chdir(folder)


def argv_of(name, home, flags):
    """Return the usual flags of a script, and these."""
    argv = FLAGS[name].split() if "--report" not in flags else []  # a report reads no flag of the other modes
    if name in ("pretrain", "SFT", "distill"):
        argv += ["--cache_dir", str(home.parent / "cache")]  # one for all
    return [*argv, *flags.split()]


@pytest.fixture
def after(home, tmp_path_factory, monkeypatch):
    """after(script, run, run, ...) -> the outcome of the runs, each given as flags, in a new folder."""

    def after(name, *runs):
        move_in(name, home, tmp_path_factory.mktemp(name) / "home", monkeypatch)
        return outcome(name, [argv_of(name, home, run) for run in runs], monkeypatch)

    return after


STOPPED = {}  # (script, flags) -> the folder of a run that was stopped after a step


@pytest.fixture
def resumed(home, tmp_path_factory, monkeypatch):
    """resumed(script, flags, more flags) -> the error of a stopped run that is resumed with more flags, or None."""

    def resumed(name, flags, more):
        if (name, flags) not in STOPPED:
            STOPPED[name, flags] = tmp_path_factory.mktemp(name) / "stopped"
            move_in(name, home, STOPPED[name, flags], monkeypatch)
            outcome(name, [argv_of(name, home, f"{flags} --max_minutes 1e-9")], monkeypatch)
        folder = tmp_path_factory.mktemp(name) / "home"
        shutil.copytree(STOPPED[name, flags], folder)
        monkeypatch.chdir(folder)
        return outcome(name, [argv_of(name, home, f"{flags} {more} --resume")], monkeypatch)["error"]

    return resumed


def flags_of(name):
    return [action.option_strings[-1] for action in actions_of(SCRIPTS[name]) if action.option_strings]


ALL = []
for script in SCRIPTS:
    ALL += [(script, flag) for flag in flags_of(script)]
BASELINES = {}  # most flags are compared with the same run


@pytest.mark.parametrize("name, flag", ALL)
def test_every_flag_changes_something(name, flag, after):
    assert flag in CASES[name], f"{name}.py {flag} is new: say in this file what it changes"
    case = CASES[name][flag]
    earlier = [] if case.earlier is None else [f"{case.given} {case.earlier}"]
    without = (name, *earlier, case.given)
    if without not in BASELINES:
        BASELINES[without] = after(*without)
    without, explicit = BASELINES[without], after(name, *earlier, f"{case.given} {flag} {case.value}")
    changed = explicit.get(case.changes) != without.get(case.changes)
    assert changed, f"{flag} {case.value} left the {case.changes} as without it"
    if case.changes == "error":
        assert flag in (explicit["error"] or without["error"])
    else:
        assert explicit["error"] is None


def test_cases_name_no_flag_that_is_gone():
    assert {name: set(cases) for name, cases in CASES.items()} == {name: set(flags_of(name)) for name in SCRIPTS}


CHANGING = [
    *(("pretrain", flag) for flag, case in (TRAINING | SHAPE).items() if case.changes == "weights"),
    *(("SFT", flag) for flag, case in PARENT.items() if case.changes == "weights"),
    ("distill", "--tag_weight"),
]


@pytest.mark.parametrize("name, flag", CHANGING)
def test_resume_refuses_flag_that_changes_weights(name, flag, resumed):
    case = CASES[name][flag]
    assert "belongs to another run" in (resumed(name, case.given, f"{flag} {case.value}") or "resumed in silence")


def test_resume_refuses_another_meaning_of_as_many_documents(home, resumed):
    """Each text is one document either way: only the class of the token cache tells the two apart."""
    texts = [json.dumps({"text": f"<s>snail {number}</s>"}) for number in range(200)]
    (home / "single.jsonl").write_text("\n".join(texts))
    error = resumed("pretrain", "--data_path single.jsonl", "--split_on_special_tokens")
    assert error and "dataset was 'PretrainDataset', is 'BorderedDataset'" in error


TRAINING_GROUPS = (options.Data, options.Training, options.Output, options.Performance)
TRAINING_FIELDS = list(chain.from_iterable(map(flag_fields, TRAINING_GROUPS)))
FREE = [f"--{field.name}" for field in TRAINING_FIELDS if field.metadata["free"]]


@pytest.mark.parametrize("flag", FREE)
def test_resume_takes_another_value_of_free_flag(flag, resumed):
    case = CASES["pretrain"].get(flag) or CASES["pretrain"][f"--no-{flag[2:]}"]
    more = "" if flag in ("--resume", "--overwrite") else f"{flag} {case.value}"
    error = resumed("pretrain", case.given if case.changes != "error" else "", more)
    assert error is None or (case.changes == "error" and flag in error)


def test_flag_is_bound_by_a_key_that_exists():
    derived = {"stage", "parent", "config", "tokenizer", "rows_per_step", "steps", "warmup_iters", "dtype"}
    derived |= {"data", "dataset", "encoding", "held_out", "row_len", "loss_weights"}
    groups = chain.from_iterable(SCRIPTS[name].parse_args([]).groups for name in ("pretrain", "SFT", "distill"))
    for field in chain.from_iterable(flag_fields(type(group)) for group in groups):
        free, bound_by = field.metadata["free"], field.metadata["bound_by"]
        assert bound_by in {"", *derived} and not (free and bound_by)


def groups_below(group):
    """Yield every group of flags with the fields that are its own."""
    for child in group.__subclasses__():
        yield child, [field for field in flag_fields(child) if field.name in child.__annotations__]
        yield from groups_below(child)


PATHS = {}
for group, own_fields in groups_below(Flags):
    PATHS |= {f"{group.__name__}-{field.name}": (group, field) for field in own_fields if field.metadata["path"]}
PATH_NAME = re.compile(
    r"data_path|score|resume|report|baseline|target|paths|out|against|ckpt|init_from|import_hf|.*_(dir|file)"
)


def test_every_flag_that_names_a_path_has_the_kind_of_it():
    fields = chain.from_iterable(fields for _, fields in groups_below(Flags))
    untyped = {field.name for field in fields if PATH_NAME.fullmatch(field.name) and not field.metadata["path"]}
    assert not untyped and len(PATHS) >= 15


@pytest.mark.parametrize("group, field", PATHS.values(), ids=PATHS)
def test_path_is_expanded_and_of_the_kind_that_is_meant(group, field, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    more = {"Export-target": {"format": "gguf"}, "TokenizerTraining-data_path": {"overwrite": True}}
    more = more.get(f"{group.__name__}-{field.name}", {"paths": ["x"]} if group.__name__ == "Preparation" else {})

    def value_for(text):
        several = field.metadata["argparse"].get("nargs") in ("+", "*")
        path = Path(text) if isinstance(field.default, Path) else text
        value = getattr(group(**more | {field.name: [path] if several else path}), field.name)
        return str(value[0] if several else value)

    assert value_for("~/none") == str(tmp_path / "none")
    kind = field.metadata["path"]
    wrong = {"folder": ["~/file", "~/link"], "any": []}.get(kind, ["~/folder"])
    kwargs = field.metadata["argparse"]
    name = kwargs["metavar"] if "called" in kwargs else f"--{field.name}"
    kinds = "(file|folder|file or a folder)"
    for text in [*wrong, "~/file/inside"]:
        with pytest.raises(ValueError, match=f"^{name} {tmp_path}/.*: .*a folder; pass the path of a {kinds}$"):
            value_for(text)


EVERY_MODE = {
    "a chat": [],
    "--prompt": ["--prompt", "hi"],
    "--prompt_file": ["--prompt_file", "x"],
    "--score": ["--score", "x.jsonl"],
    "--report": ["--report"],
}


@pytest.mark.parametrize("mode", EVERY_MODE)
@pytest.mark.parametrize("flag", [flag for flag in flags_of("eval_model") if flag not in EVERY_MODE])
def test_flag_of_another_mode_is_refused_and_its_modes_are_named(flag, mode, home, monkeypatch):
    monkeypatch.chdir(home)
    value = CASES["eval_model"][flag].value
    name = flag.removeprefix("--").removeprefix("no-")
    try:
        arrived, _ = eval_model.parse_args([*EVERY_MODE[mode], flag, *value.split()])
    except ValueError as error:
        readers = [other for other, names in eval_model.READS.items() if name in names]
        assert mode not in readers and readers
        assert str(error) == f"--{name} is not read by {mode}, only by {' and '.join(readers)}"
    else:
        assert arrived == mode and name in eval_model.READS[mode]


@pytest.mark.parametrize("old, new", RENAMED_FLAGS.items())
def test_renamed_flag_is_refused_with_its_new_name(old, new, capsys):
    scripts = [script for name, script in SCRIPTS.items() if new in flags_of(name) or new.startswith("export.py")]
    for script in scripts or [serve]:
        with pytest.raises(SystemExit) as stopped:
            cli.run(lambda script=script: script.main([f"{old}=1"]))
        assert (stopped.value.code, capsys.readouterr().err) == (2, f"error: {old} is now {new}\n")


@pytest.mark.parametrize(
    "typed", ["--local-rank=1", "--local_rank", "--deepspeed", "--nproc-per-node", "--num_processes"]
)
@pytest.mark.parametrize("name", ["pretrain", "SFT", "distill"])
def test_flag_of_a_launcher_is_answered_with_the_one_to_use(name, typed):
    with pytest.raises(
        ValueError, match=rf"^{typed.partition('=')[0]}: a flag of a launcher.*torchrun --nproc_per_node"
    ):
        SCRIPTS[name].main([typed, "1"])


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_shows_every_flag_and_no_path_of_this_machine(name, capsys):
    with pytest.raises(SystemExit):
        SCRIPTS[name].main(["--help"])
    output = capsys.readouterr().out
    assert str(ROOT) not in output and all(flag in output for flag in flags_of(name))


@pytest.mark.parametrize("name", SCRIPTS)
def test_number_that_is_not_finite_is_refused_by_name(name, capsys):
    numeric = [action for action in actions_of(SCRIPTS[name]) if action.type in (int, float)]
    assert numeric
    for action in numeric:
        for value in ("nan", "inf", "-inf"):
            flag = action.option_strings[-1]
            argv = [f"{flag}={value}"] if action.nargs is None else [flag, value]
            with pytest.raises((ValueError, SystemExit)) as refused:  # argparse knows that these are no whole numbers
                SCRIPTS[name].main([*REQUIRED.get(name, []), *argv])
            assert flag in str(refused.value) + capsys.readouterr().err, argv
