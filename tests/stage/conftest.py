"""The marker `faults` means the same here as in tests/faults."""

import os

import pytest
from started import TINY, go, write_data


def pytest_collection_modifyitems(items):
    if not os.environ.get("ALL_FAULTS"):
        items[:] = [item for item in items if not item.get_closest_marker("faults")]


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A folder with data and, in whole/, what a run leaves that nothing happened to."""
    folder = tmp_path_factory.mktemp("runs")
    write_data(folder)
    done = go(folder, "--save_dir", "whole", flags=TINY)
    assert done.code == 0, done.said
    return folder
