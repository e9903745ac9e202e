"""Count what one reads of this repository to follow a run: python tests/trace_recipe.py

Runs distill.py on a few rows under a profiler, and counts our files and functions (comprehensions are none) that are
entered before the first train_step, and in a step that has nothing to set up any more: from one train_step to the next,
with the thread that makes batches.
"""

import contextlib
import io
import os
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":  # pytest knows these folders
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from factories import save, write_rows  # noqa: E402
from tiny_model import tiny  # noqa: E402

import distill  # noqa: E402
from engine import loop  # noqa: E402

WARM = 3  # the step that is counted, from 1
WORDS = (
    "--init_from parent.pth --data_path rows.jsonl --cache_dir cache --num_workers 1 --device cpu --dtype float32 "
    "--batch_size 2 --accumulation_steps 2 --max_seq_len 128 --val_fraction 0 --max_steps 6 --log_step 9 --eval_step 0 "
    "--save_step 0"
)
COMPREHENSIONS = {f"<{kind}>" for kind in ("listcomp", "setcomp", "dictcomp", "genexpr", "module")}
Entered = set[tuple[str, int]]  # (file, first line) of each function


def trace(folder: Path) -> tuple[Entered, Entered]:
    """Return what is entered before the first train_step, and in the warm one."""
    thought = "<think>\n加一\n</think>\n<answer>\n{}\n</answer>"
    turns = [[("user", f"{n}加一是多少？"), ("assistant", thought.format(n + 1))] for n in range(60)]
    rows = [{"conversations": [{"role": role, "content": content} for role, content in row]} for row in turns]
    write_rows(folder / "rows.jsonl", rows)
    save(tiny(), folder / "parent.pth")
    entered: dict[int, Entered] = {}
    step, real = 0, loop.train_step

    def note(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_name not in COMPREHENSIONS and is_ours(code.co_filename):
            entered.setdefault(step, set()).add((code.co_filename, code.co_firstlineno))

    def train_step(*arguments):
        nonlocal step
        step += 1
        return real(*arguments)

    where, loop.train_step = os.getcwd(), train_step
    os.chdir(folder)
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            distill.main(WORDS.split())
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        os.chdir(where)
        loop.train_step = real
    return entered[0], entered[WARM]


@cache
def is_ours(file: str) -> bool:
    path = Path(file)
    return ROOT in path.parents and path.relative_to(ROOT).parts[0] not in (".venv", "tests")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for when, entered in zip(("before the first step", "in a warm step"), trace(Path(folder)), strict=True):
            files = sorted({Path(file).relative_to(ROOT).as_posix() for file, _ in entered})
            print(f"{when}: {len(files)} files, {len(entered)} functions: {', '.join(files)}")
