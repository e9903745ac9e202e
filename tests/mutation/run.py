"""Apply one mutant at a time to a copy of the working tree, and check that the tests named for it fail.

    python tests/mutation/run.py                    # all mutants
    python tests/mutation/run.py --day              # ten, others each day of the month
    python tests/mutation/run.py causal scaler      # those whose names or files contain one of these words
    python tests/mutation/run.py --nothing          # no mutant: all these tests have to pass then

A passing suite proves little before it has been seen to fail. Exit code 1 when a mutant survives. A test that always
fails would kill every mutant, so the suite has to pass first (make test).
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
    """Copy the files of the working tree that git tracks or does not ignore."""
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
    result: int  # descriptor on which the process writes the outcome
    began: float = field(default_factory=time.monotonic)

    def end(self) -> tuple[Mutant, float, str, str]:
        """Return (mutant, seconds, the test that failed or "", its message or why none failed)."""
        in_time = select.select([self.result], [], [], 0)[0]
        content = os.read(self.result, 1 << 16) if in_time else b'["", "no end in time"]'
        with suppress(ProcessLookupError):
            os.killpg(self.process, signal.SIGKILL)  # with all that the tests have started
        os.waitpid(self.process, 0)
        os.close(self.result)
        self.folder.cleanup()
        return self.mutant, time.monotonic() - self.began, *json.loads(content or b'["", "the tests broke off"]')


def begin(mutant: Mutant, tree: Path) -> Trial:
    """Apply a mutant to a new copy of `tree` and run its tests there, in a process forked from this one."""
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    copy = Path(folder.name) / "tree"
    shutil.copytree(tree, copy, copy_function=os.link)
    (copy / mutant.file).unlink()  # a link to the tree's own
    (copy / mutant.file).write_text(mutant.apply(tree), encoding="utf-8")
    result, writer = os.pipe()
    if process := os.fork():
        os.close(writer)
        return Trial(mutant, folder, process, result)
    try:
        os.setpgid(0, 0)
        os.write(writer, json.dumps(run_tests(copy, mutant.tests)).encode())
    finally:
        os._exit(0)


def run_tests(tree: Path, tests: str) -> tuple[str, str]:
    """Return (the first test that fails, its message), or ("", why none failed)."""
    for descriptor in range(3):
        os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    os.chdir(tree)
    sys.path[:] = [str(tree), *(path for path in sys.path if not Path(path).is_relative_to(ROOT / "tests"))]
    sys.modules["__main__"] = ModuleType("__main__")  # processes that the tests start would read this file again
    import pytest

    failed = []

    class Listener:
        def pytest_runtest_logreport(self, report):
            if report.failed:
                crash = getattr(report.longrepr, "reprcrash", None)
                failed.append((report.nodeid, str(crash.message if crash else report.longrepr)[:999]))

    # Plugins that are imported already cannot have their asserts rewritten; none of those is of interest.
    argv = ["-x", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    code = int(pytest.main([*argv, f"--basetemp={tree.parent / 'tmp'}", tests], plugins=[Listener()]))
    # Any code but 1 (failed tests), as of a file that cannot be imported, is no silent mutant.
    return failed[0] if failed and code == 1 else ("", f"pytest ended with code {code}")


def run_mutants(mutants: Sequence[Mutant], jobs: int, limit: float) -> Iterator[tuple[Mutant, float, str, str]]:
    """Run `jobs` mutants at a time, each for at most `limit` seconds; yield outcomes as soon as they are known."""
    # Import once what takes seconds, and no module of ours: those are read from each copy.
    import torch  # noqa: F401
    import transformers  # noqa: F401

    waiting, running = list(reversed(mutants)), []
    with tempfile.TemporaryDirectory() as folder:
        copy_tree(Path(folder))
        compileall.compile_dir(folder, quiet=2)  # once for all; a mutated file is newer than its bytecode
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(begin(waiting.pop(), Path(folder)))
            ready = select.select([trial.result for trial in running], [], [], 0.5)[0]
            for trial in list(running):
                if trial.result in ready or time.monotonic() - trial.began > limit:
                    running.remove(trial)
                    yield trial.end()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only mutants whose names or files contain one of these")
    parser.add_argument("--day", nargs="?", type=int, const=date.today().day, help="twelve mutants; default: today's")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants at a time (default: one a core)")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds in which a mutant must be killed")
    parser.add_argument("--say", action="store_true", help="also print the message of the failed test")
    parser.add_argument("--nothing", action="store_true", help="apply no mutant, and check that the tests pass")
    args = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"

    mutants = [f for f in all_mutants() if not args.words or any(word in f.name + f.file for word in args.words)]
    if args.day is not None:
        mutants = of_day(mutants, args.day)
    if args.nothing:
        mutants = [replace(mutant, new=mutant.old) for mutant in {mutant.tests: mutant for mutant in mutants}.values()]
    began, survived = time.monotonic(), 0
    print(f"{'mutant':62} {'file':32} {'seconds':>7}  killed by", flush=True)
    for mutant, seconds, test, message in run_mutants(mutants, args.jobs, args.limit):
        by = test or f"SURVIVED {mutant.tests}: {message}"
        print(f"{mutant.name:62} {mutant.file:32} {seconds:7.1f}  {by}", flush=True)
        if args.say and test:
            print("    " + message.replace("\n", " ")[:300], flush=True)
        survived += not test
    print(f"{len(mutants) - survived} of {len(mutants)} killed in {(time.monotonic() - began) / 60:.1f} minutes")
    return int(survived < len(mutants) if args.nothing else survived > 0)


if __name__ == "__main__":
    sys.exit(main())
