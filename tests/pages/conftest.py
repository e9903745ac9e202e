"""The tests that open a browser run only when they are asked for."""

import os


def pytest_collection_modifyitems(items):
    if not os.environ.get("PAGES"):
        items[:] = [item for item in items if not item.get_closest_marker("pages")]
