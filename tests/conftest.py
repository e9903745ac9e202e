"""Fixtures that several files share: the committed tokenizer, a working folder with data, checkpoints to talk to."""

import io
import json
import os
import signal
import sys

import pytest
import torch
from factories import save, write_corpus
from tiny_model import tiny
from tokenizers import Tokenizer

import eval_model
from engine.flags import ROOT
from engine.generate import sample_text
from engine.log import tracker
from engine.machine import stopping
from engine.tokenizer import load_tokenizer

PLOT_LOSSES = tracker.plot_losses
HANDLED_SIGNALS = stopping.available_signals("SIGINT", *stopping.STOP_SIGNALS)


def pytest_configure():
    """Hear Ctrl-C, in the processes that tests start, too: a shell lets jobs in the background ignore it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Run the tests that take minutes or need other programs only when they are asked for."""
    for marker, variable in (("faults", "ALL_FAULTS"), ("runtimes", "RUNTIMES"), ("pages", "PAGES")):
        if not os.environ.get(variable):
            items[:] = [item for item in items if not item.get_closest_marker(marker)]


@pytest.fixture(autouse=True)
def signal_handlers():
    """Leave the handlers of signals as they were: a script's main(), run in this process, sets its own."""
    before = {signum: signal.getsignal(signum) for signum in HANDLED_SIGNALS}
    yield
    for signum, handler in before.items():
        if signal.getsignal(signum) is not handler:
            signal.signal(signum, handler)


@pytest.fixture(scope="session", autouse=True)
def short_runs():
    """Draw no loss curve, and continue the held-out prompt by two tokens: both take longer than the six steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracker, "plot_losses", lambda *_: None)
        patch.setattr(sample_text, "NUM_NEW_TOKENS", 2)
        yield


@pytest.fixture
def loss_curve(monkeypatch):
    """Draw it, as outside of the tests."""
    monkeypatch.setattr(tracker, "plot_losses", PLOT_LOSSES)


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer(ROOT / "spongebob_tokenizer")


@pytest.fixture(scope="session")
def small():
    """The committed tokenizer with its first merges only: read in a millisecond."""
    content = json.loads((ROOT / "spongebob_tokenizer/tokenizer.json").read_text("utf-8"))
    merges = content["model"]["merges"][:41]
    vocabulary = sorted(content["model"]["vocab"].items(), key=lambda item: item[1])[: 3 + 256 + len(merges)]
    content["model"] |= {"vocab": dict(vocabulary), "merges": merges}
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.encode_special_tokens = True
    return tokenizer


@pytest.fixture(scope="module")
def one_thread():
    """Layers as small as the tests' lose more by waiting for each other's threads than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def quick(monkeypatch):
    """Skip what takes longer than a training of a few steps."""
    for slow in ("engine.stage.plan.dry_run", "os.fsync"):
        monkeypatch.setattr(slow, lambda *_: None)


@pytest.fixture
def fake_gpu(monkeypatch):
    """fake_gpu(name, capability): let torch answer as if it had this GPU."""

    def fake_gpu(name="", capability=None):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)

    return fake_gpu


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with the three kinds of data, as a user might have."""
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path, 200)
    return tmp_path


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def results(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    for name in ("pretrain", "SFT", "SFT_long", "distill", "distill_long"):
        save(model, folder / f"{name}.pth", stage=name.removesuffix("_long"))
    return folder


@pytest.fixture
def ask(results, capsys, monkeypatch):
    """ask(*flags): run eval_model.py on the tiny checkpoints and return its output; `ask.warned` holds its warnings."""

    def run(*argv, typed=""):
        keys = typed if isinstance(typed, bytes) else typed.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(keys), "utf-8", "surrogateescape"))
        fixed = ["--save_dir", str(results), "--device", "cpu", "--weight_dtype", "float32", "--max_new_tokens", "12"]
        eval_model.main([*fixed, *map(str, argv)])
        out, run.warned = capsys.readouterr()
        return out

    return run
