"""The tests that need other programs (llama.cpp, trl) run only when they are asked for."""

import os


def pytest_collection_modifyitems(items):
    if not os.environ.get("RUNTIMES"):
        items[:] = [item for item in items if not item.get_closest_marker("runtimes")]
