"""Make .venv and install what the scripts need: the set-up of `make`, for any system that has Python.

    python runs/install.py          # .venv with requirements.txt
    python runs/install.py --dev    # and what the tests need

On Linux the package index has torch with CUDA, several GB. Without an NVIDIA driver the CPU build of 200 MB does the
same work: it is taken from PyTorch's own index. Variables of pip are respected (PIP_INDEX_URL for a mirror).
"""

import argparse
import platform
import re
import shutil
import subprocess
import sys
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def wants_cpu_build() -> bool:
    """Return whether torch's usual build for this system brings CUDA, and there is no NVIDIA driver to use it."""
    return (
        platform.system() == "Linux"
        and platform.machine() == "x86_64"
        and not (shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists())
    )


def answers(index: str) -> bool:
    try:
        with urllib.request.urlopen(f"{index}/torch/", timeout=10):
            return True
    except OSError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dev", action="store_true", help="also what the tests need")
    dev = parser.parse_args().dev
    if sys.version_info < (3, 11):  # noqa: UP036  # this file is what an older Python meets first
        sys.exit(f"error: Python 3.11 or newer is needed, this is {platform.python_version()}")
    folder = ROOT / ".venv"
    if not (folder / "pyvenv.cfg").exists():
        print(f"making {folder.name}/")
        venv.create(folder, with_pip=True)
    python = folder / ("Scripts/python.exe" if platform.system() == "Windows" else "bin/python")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    requirements = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    torch = re.search(r"^torch==\S+", requirements, re.MULTILINE)
    if torch and wants_cpu_build():
        if answers(CPU_INDEX):
            print("no NVIDIA driver: installing torch's CPU build (200 MB) instead of the one with CUDA (several GB)")
            subprocess.run([*pip, torch[0], "--index-url", CPU_INDEX], check=True)
        else:
            print(f"no NVIDIA driver, but {CPU_INDEX} does not answer: torch comes from pip's usual index")
    print("installing requirements" + (" and what the tests need" if dev else ""))
    subprocess.run([*pip, "-r", "requirements-dev.txt" if dev else "requirements.txt"], check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
