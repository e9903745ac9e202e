"""A user's mistake is one line and an exit code; a defect keeps its traceback."""

import pytest

import pretrain
from engine import cli


@pytest.mark.parametrize("message, code", [
    ("[enforce fail] DefaultCPUAllocator: can't allocate memory: 1 byte\ntrace", 2),
    ("InvalidCxxCompiler: no compiler\ntrace", 2), ("a defect", None)
])  # fmt: skip
def test_out_of_memory_and_no_compiler_are_one_line_and_a_defect_keeps_its_traceback(message, code, capsys):
    def main():
        raise RuntimeError(message)

    with pytest.raises(SystemExit if code else RuntimeError):
        cli.run(main)
    assert capsys.readouterr().err.count("\n") == (1 if code else 0)


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
