"""A main() ends with one line where the user or the machine is at fault, and with a traceback for a defect."""

import os
import sys

import pytest

from engine import cli
from engine.console import print0


@pytest.mark.parametrize(
    "message, code",
    [
        ("[enforce fail] DefaultCPUAllocator: can't allocate memory: 1 byte\ntrace", 2),
        ("InvalidCxxCompiler: no compiler\ntrace", 2),
        ("a defect", None),
    ],
)
def test_errors_of_the_machine_are_one_line_and_defects_a_traceback(message, code, capsys):
    def main():
        raise RuntimeError(message)

    with pytest.raises(SystemExit if code else RuntimeError):
        cli.run(main)
    assert capsys.readouterr().err.count("\n") == (1 if code else 0)


@pytest.fixture
def run_without_output(monkeypatch, capsys):
    """Return run(stdout, main): the code and the errors of a script whose result it is, with an unwritable stdout."""
    monkeypatch.setattr(cli.stopping, "exit_on_signals", lambda *_: None)

    def run(stdout, main):
        reader, writer = os.pipe()
        os.close(reader)
        stream = open("/dev/full" if stdout == "full" else writer, "w")  # noqa: SIM115 (closed by its name in sys)
        if stdout == "full":
            os.close(writer)
        if stdout == "closed":
            stream.close()
            stream = None
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit) as ended:
            cli.run(main, output_is_result=True)
        sys.stdout.close()
        return ended.value.code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    "stdout, code, message",
    [
        ("full", 2, "error: cannot write to stdout: [Errno 28] No space left on device\n"),
        ("closed", 2, "error: cannot write to stdout: [Errno 9] Bad file descriptor\n"),
        ("gone", 0, ""),
    ],
)
def test_script_whose_result_cannot_be_written_ends_at_once(run_without_output, stdout, code, message):
    after = []

    def main():
        print0("a result")
        after.append(1)

    assert run_without_output(stdout, main) == (code, message) and not after
    assert run_without_output(stdout, lambda: print("without a flush")) == (code, message)


def test_unwritable_stdout_leaves_a_mistake_its_own_message(run_without_output):
    def main():
        raise ValueError("--flag 9: wrong")

    assert run_without_output("full", main) == (2, "error: --flag 9: wrong\n")
