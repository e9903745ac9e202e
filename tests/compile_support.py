"""Whether torch.compile can work here, and a stand-in for it."""

import os
import shutil
import sysconfig
from pathlib import Path

import pytest

FOUND = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
HEADERS = Path(sysconfig.get_path("include"), "Python.h")
needs_compiler = pytest.mark.skipif(
    not FOUND or not HEADERS.is_file(), reason="torch.compile wants a C++ compiler and Python.h"
)


def as_written(function, **_):
    """In place of torch.compile: the function runs operation by operation."""
    return function
