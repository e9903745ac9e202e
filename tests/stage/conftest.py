"""A working folder with the results of a run that was never disturbed."""

import pytest
from factories import write_corpus
from forked import run_stage


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """Return a folder with data and, in whole/, the results of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("runs")
    write_corpus(folder, 60)
    done = run_stage(folder, "--save_dir", "whole")
    assert done.code == 0, done.output
    return folder
