"""Plant one fault at a time in a copy of the working tree, and see whether the tests named for it notice.

    python tests/plant/run.py                    # all of them
    python tests/plant/run.py --day              # ten, others each day of the month
    python tests/plant/run.py causal scaler      # those whose names or files contain one of these words

A suite that is green says little before it has been seen red. Exit code 1 when a fault is not noticed. A test that is
red anyway would notice everything, so the suite has to be green first (make test).
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import date
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from fault import ROOT, Fault, all_faults, of_day

# Processes begin with what takes seconds to import, and with nothing of ours: that is read anew from each copy.
START = get_context("forkserver")
START.set_forkserver_preload(["torch", "transformers", "torch.distributed.checkpoint", "torch._dynamo"])


class Result(NamedTuple):
    """Of one fault."""

    noticed: str  # by which test; empty: by none
    words: str  # what that test said, or why nothing was noticed
    seconds: float


def copy_tree(target: Path) -> None:
    """What git knows of the working tree, and what it would take up."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in names:
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def plant(fault: Fault, tree: Path, limit: float) -> Result:
    """Run the tests named for a fault in a tree of their own."""
    try:
        text = fault.planted(tree)
    except ValueError as error:
        return Result("", str(error), 0.0)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        copy = Path(folder) / "tree"
        shutil.copytree(tree, copy, copy_function=os.link)
        (copy / fault.file).unlink()  # a link to the tree's own
        (copy / fault.file).write_text(text, encoding="utf-8")
        ours, theirs = START.Pipe()
        process = START.Process(target=run_tests, args=(copy, fault.tests, theirs))
        process.start()
        theirs.close()
        try:
            noticed, words = ours.recv() if ours.poll(limit) else ("", f"nothing after {limit:.0f} s")
        except EOFError:
            noticed, words = "", "the tests ended without a result"
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with all that the tests have started
        process.join()
    return Result(noticed, words, time.monotonic() - began)


def run_tests(tree: Path, tests: str, answer: Connection) -> None:
    """In a process of its own: send (the first test that fails, what it says), or ("", why there is none)."""
    os.setpgid(0, 0)
    for descriptor in range(3):
        os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    os.chdir(tree)
    sys.path[:] = [str(tree), *(path for path in sys.path if not Path(path).is_relative_to(ROOT / "tests"))]
    import pytest

    failed = []

    class Ear:
        def pytest_runtest_logreport(self, report):
            if report.failed:
                crash = getattr(report.longrepr, "reprcrash", None)
                failed.append((report.nodeid, str(crash.message if crash else report.longrepr)))

    # What is imported already cannot have its asserts rewritten: a plugin or two of which no assert is of interest.
    words = ["-x", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    code = int(pytest.main([*words, f"--basetemp={tree.parent / 'tmp'}", tests], plugins=[Ear()]))
    # Anything but red tests (1), as a file that cannot be imported, is no silent fault.
    answer.send(failed[0] if failed and code == 1 else ("", f"pytest ended with code {code}"))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only faults whose names or files contain one of these")
    parser.add_argument("--day", nargs="?", type=int, const=date.today().day, help="ten faults; default: today's")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="faults at a time (default: one a core)")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds in which a fault must be noticed")
    parser.add_argument("--say", action="store_true", help="also what the test that noticed said")
    chosen = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"

    faults = [f for f in all_faults() if not chosen.words or any(word in f.name + f.file for word in chosen.words)]
    faults = faults if chosen.day is None else of_day(faults, chosen.day)
    began, missed = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(chosen.jobs) as pool:
        copy_tree(Path(folder))
        print(f"{'fault':58} {'file':34} {'seconds':>7}  noticed by", flush=True)
        results = pool.map(lambda fault: plant(fault, Path(folder), chosen.limit), faults)
        for fault, result in zip(faults, results, strict=True):
            by = result.noticed or f"NOT NOTICED by {fault.tests}: {result.words}"
            print(f"{fault.name:58} {fault.file:34} {result.seconds:7.1f}  {by}", flush=True)
            if chosen.say and result.noticed:
                print("    " + result.words.replace("\n", " ")[:300], flush=True)
            missed += not result.noticed
    print(f"{len(faults) - missed} of {len(faults)} noticed in {(time.monotonic() - began) / 60:.1f} minutes")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
