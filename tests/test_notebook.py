"""Scripts are libraries, too: main([...]) in a notebook's cell leaves the notebook's process as it was."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from types import ModuleType

import matplotlib
import pytest
from factories import save, write_corpus
from tiny_model import tiny

import pretrain
from engine.machine.stopping import StopRequest

TINY = (
    "--data_path pretrain.jsonl --dim 32 --n_layers 1 --n_heads 4 --n_kv_heads 2 --batch_size 2 --max_seq_len 64 "
    "--max_steps 1 --num_workers 1 --device cpu --dtype float32"
).split()


class Output:
    """A stream of a notebook: it has no descriptor, and is no terminal."""

    encoding = "utf-8"

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text
        return len(text)

    def flush(self):
        pass


@pytest.fixture
def cell(tmp_path, monkeypatch):
    """cell(source) -> the output of a cell, run inside the event loop of a process that looks like a kernel's."""
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path, 200)
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel-1.json"])

    def cell(source):
        output = Output()

        async def run():
            exec(compile(source, "<cell>", "exec"), vars(main))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", output)
            patch.setattr(sys, "stderr", output)
            asyncio.run(run())
        return output.text

    return cell


def test_main_without_flags_in_a_notebook_asks_for_a_list(cell):
    for script in ("pretrain", "SFT", "distill", "train_tokenizer", "eval_model", "export", "serve"):
        with pytest.raises(ValueError, match=r'a notebook has no command line: call main\(\["--flag", "value"\]\)'):
            cell(f"import {script}\n{script}.main()")


def test_serving_in_a_running_event_loop_is_refused_with_the_way(cell, tmp_path):
    save(tiny(seed=0), tmp_path / "SFT.pth", stage="SFT")
    with pytest.raises(ValueError, match=r"an event loop runs here.*!python serve\.py"):
        cell(f"import serve\nserve.main(['--save_dir', {str(tmp_path)!r}, '--port', '0', '--device', 'cpu'])")


def test_a_file_that_percent_run_starts_has_a_command_line(cell, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "pretrain.py", raising=False)
    monkeypatch.setattr(sys, "argv", ["pretrain.py", "--seed", "5"])
    assert pretrain.parse_args().training.seed == 5


@pytest.mark.usefixtures("loss_curve")
def test_training_in_a_cell_leaves_the_process_as_it_was(cell, monkeypatch):
    """Neither matplotlib nor a signal is set for the notebook, in its main thread and in another."""
    monkeypatch.setattr("engine.stage.plan.dry_run", lambda *_: None)
    monkeypatch.setattr("os.fsync", lambda _: None)
    before = {signum: signal.getsignal(signum) for signum in signal.valid_signals()}
    parameters = dict(matplotlib.rcParams)
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    train = f"import pretrain\nprint('code', pretrain.main([*{TINY}, '--save_dir', NAME]))"
    assert "code 0" in cell(f"NAME = 'main'\n{train}")
    threaded = train.replace("\n", "\n    ")
    assert "code 0" in cell(
        f"import threading\nNAME = 'other'\ndef work():\n    {threaded}\n"
        "thread = threading.Thread(target=work)\nthread.start()\nthread.join()"
    )
    assert all(Path(name, "pretrain.png").stat().st_size > 1000 for name in ("main", "other"))
    assert {signum: signal.getsignal(signum) for signum in before} == before
    assert dict(matplotlib.rcParams) == parameters and "matplotlib.pyplot" not in sys.modules


def test_flags_of_a_list_may_be_numbers_and_paths(tmp_path):
    args = pretrain.parse_args(["--seed", 5, "--learning_rate", 0.01, "--save_dir", tmp_path])
    assert (args.training.seed, args.training.learning_rate, args.output.save_dir) == (5, 0.01, str(tmp_path))


def test_flags_in_one_text_are_refused_with_the_list():
    with pytest.raises(ValueError, match=r"as a list, main\(\['--seed', '5'\]\)"):
        pretrain.main("--seed 5")


@pytest.mark.parametrize("argv", [["--sede", "5"], ["--seed", "x"], ["--seed"], ["--optimizer", "lion"]])
def test_mistyped_flag_is_a_value_error_of_one_line(argv, capsys):
    with pytest.raises(ValueError, match=rf"{argv[0]}.* \(--help lists the flags\)$"):
        pretrain.main(argv)
    assert capsys.readouterr() == ("", "")


def test_second_interrupt_of_a_cell_leaves_the_kernel_alive(monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with pytest.raises(KeyboardInterrupt), StopRequest() as request:
        request.hold()
        signal.raise_signal(signal.SIGINT)
        assert request.signal == "SIGINT"
        signal.raise_signal(signal.SIGINT)
    assert not ended
