"""Plant one mutant at a time in a copy of the working tree, and see whether the tests named for it notice.

    python tests/mutation/run.py                    # all of them
    python tests/mutation/run.py --day              # ten, others each day of the month
    python tests/mutation/run.py causal scaler      # those whose names or files contain one of these words
    python tests/mutation/run.py --nothing          # no mutant: all these tests have to be green then

A suite that is green says little before it has been seen red. Exit code 1 when a mutant is not noticed. A test that is
red anyway would notice everything, so the suite has to be green first (make test).
"""

import argparse
import compileall
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from types import ModuleType

from mutant import ROOT, Mutant, all_mutants, of_day


def copy_tree(target: Path) -> None:
    """What git knows of the working tree, and what it would take up."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in names:
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


@dataclass
class Trial:
    """A mutant in a tree of its own, and the process that runs its tests there."""

    mutant: Mutant
    folder: tempfile.TemporaryDirectory
    process: int
    answers: int  # where the process says what it found
    began: float = field(default_factory=time.monotonic)

    def end(self) -> tuple[Mutant, float, str, str]:
        """(mutant, seconds, the test that noticed or "", what it said or why there is none)."""
        answer = (
            os.read(self.answers, 1 << 16) if select.select([self.answers], [], [], 0)[0] else b'["", "no end in time"]'
        )
        with suppress(ProcessLookupError):
            os.killpg(self.process, signal.SIGKILL)  # with all that the tests have started
        os.waitpid(self.process, 0)
        os.close(self.answers)
        self.folder.cleanup()
        return self.mutant, time.monotonic() - self.began, *json.loads(answer or b'["", "the tests broke off"]')


def begin(mutant: Mutant, tree: Path) -> Trial:
    """Plant a mutant in a new copy of `tree` and run its tests there, in a process forked from this one."""
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    copy = Path(folder.name) / "tree"
    shutil.copytree(tree, copy, copy_function=os.link)
    (copy / mutant.file).unlink()  # a link to the tree's own
    (copy / mutant.file).write_text(mutant.planted(tree), encoding="utf-8")
    answers, mouth = os.pipe()
    if process := os.fork():
        os.close(mouth)
        return Trial(mutant, folder, process, answers)
    try:
        os.setpgid(0, 0)
        os.write(mouth, json.dumps(run_tests(copy, mutant.tests)).encode())
    finally:
        os._exit(0)


def run_tests(tree: Path, tests: str) -> tuple[str, str]:
    """(The first test that fails, what it says), or ("", why there is none)."""
    for descriptor in range(3):
        os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    os.chdir(tree)
    sys.path[:] = [str(tree), *(path for path in sys.path if not Path(path).is_relative_to(ROOT / "tests"))]
    sys.modules["__main__"] = ModuleType("__main__")  # processes that the tests start would read this file again
    import pytest

    failed = []

    class Ear:
        def pytest_runtest_logreport(self, report):
            if report.failed:
                crash = getattr(report.longrepr, "reprcrash", None)
                failed.append((report.nodeid, str(crash.message if crash else report.longrepr)[:999]))

    # What is imported already cannot have its asserts rewritten: a plugin or two of which no assert is of interest.
    words = ["-x", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    code = int(pytest.main([*words, f"--basetemp={tree.parent / 'tmp'}", tests], plugins=[Ear()]))
    # Anything but red tests (1), as a file that cannot be imported, is no silent mutant.
    return failed[0] if failed and code == 1 else ("", f"pytest ended with code {code}")


def plant(mutants: Sequence[Mutant], jobs: int, limit: float) -> Iterator[tuple[Mutant, float, str, str]]:
    """Try them, `jobs` at a time and each for at most `limit` seconds; what became of each, as soon as it is known."""
    # What takes seconds to import is imported once, and nothing of ours: that is read anew from each copy.
    import torch  # noqa: F401
    import transformers  # noqa: F401

    waiting, running = list(reversed(mutants)), []
    with tempfile.TemporaryDirectory() as folder:
        copy_tree(Path(folder))
        compileall.compile_dir(folder, quiet=2)  # once for all; a planted file is newer than what was made of it here
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(begin(waiting.pop(), Path(folder)))
            ready = select.select([trial.answers for trial in running], [], [], 0.5)[0]
            for trial in list(running):
                if trial.answers in ready or time.monotonic() - trial.began > limit:
                    running.remove(trial)
                    yield trial.end()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only mutants whose names or files contain one of these")
    parser.add_argument("--day", nargs="?", type=int, const=date.today().day, help="ten mutants; default: today's")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants at a time (default: one a core)")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds in which a mutant must be noticed")
    parser.add_argument("--say", action="store_true", help="also what the test that noticed said")
    parser.add_argument("--nothing", action="store_true", help="plant nothing, and see the tests green")
    chosen = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"

    mutants = [f for f in all_mutants() if not chosen.words or any(word in f.name + f.file for word in chosen.words)]
    mutants = mutants if chosen.day is None else of_day(mutants, chosen.day)
    if chosen.nothing:
        mutants = [replace(mutant, new=mutant.old) for mutant in {mutant.tests: mutant for mutant in mutants}.values()]
    began, missed = time.monotonic(), 0
    print(f"{'mutant':62} {'file':32} {'seconds':>7}  noticed by", flush=True)
    for mutant, seconds, noticed, words in plant(mutants, chosen.jobs, chosen.limit):
        by = noticed or f"NOT NOTICED by {mutant.tests}: {words}"
        print(f"{mutant.name:62} {mutant.file:32} {seconds:7.1f}  {by}", flush=True)
        if chosen.say and noticed:
            print("    " + words.replace("\n", " ")[:300], flush=True)
        missed += not noticed
    print(f"{len(mutants) - missed} of {len(mutants)} noticed in {(time.monotonic() - began) / 60:.1f} minutes")
    return int(missed < len(mutants)) if chosen.nothing else int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
