"""A main() ends with one line where the user or the machine is at fault, and with a traceback for a defect."""

import pytest

from engine import cli


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
