"""A working folder with data and, for every stage, the outcome of a run that was never disturbed."""

import os
import time

import pytest
from factories import write_corpus
from forked import LONGER, new_process, run_stage
from hypothesis import HealthCheck, settings

settings.register_profile("short", max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile("faults", settings.get_profile("short"), max_examples=100)
settings.load_profile("faults" if os.environ.get("ALL_FAULTS") else "short")


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """Return the folder that every run of this session works in; each has a --save_dir of its own."""
    folder = tmp_path_factory.mktemp("faults")
    folder.chmod(0o777)
    for parent in folder.parents:
        if parent.stat().st_uid == os.getuid() and parent.stat().st_mode & 0o77 == 0:
            parent.chmod(0o711)  # one test runs as another user
    write_corpus(folder, 60)
    return folder


@pytest.fixture(scope="session")
def undisturbed(home):
    """Map a stage to its flags, the results of a run that nothing happened to, and the seconds it took."""
    runs = {}
    first = new_process(os.getpid)  # the imports before it belong to no run
    first.start()
    first.join()
    for stage, parent in (("pretrain", None), ("SFT", "pretrain"), ("distill", "SFT")):
        argv = (
            [*LONGER, "--init_from", f"whole/{parent}.pth"]
            if parent
            else [*LONGER, "--n_layers", "2", "--dropout", "0.1"]
        )
        began = time.monotonic()
        done = run_stage(home, *argv, "--save_dir", "whole", stage=stage)
        assert done.code == 0, done.output
        runs[stage] = argv, home / "whole", time.monotonic() - began
    return runs
