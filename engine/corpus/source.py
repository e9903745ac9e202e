"""The files a stage reads: those that --data_path names, the stage's own (fetched by --download), or the sample."""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

from engine.console import print0
from engine.files import resolve_download_path
from engine.options import DOWNLOAD, Data


def files_of(data: Data) -> list[Path]:
    """Return the JSONL files or the finished cache that a run reads; fetch the stage's file where --download says so.

    Raises:
        ValueError: --download in a run of several processes, or it failed.
    """
    if data.download and not resolve_download_path(Path(data.data_file)).is_file():
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            command = DOWNLOAD.format(data.data_file)
            raise ValueError(f"--download: not by several processes at once; before them run {command}")
        download(data.data_file)
    for path in data.paths:
        if path.name == path.parent.name:
            print0(f"{path.parent} is a folder: reading {path.name} in it")
    return data.paths


def download(name: str) -> None:
    """Fetch one file of the corpus with the modelscope package, which resumes and checks sizes and hashes.

    Raises:
        ValueError: The package is missing, or it failed.
    """
    # In the folder of this Python's programs, too: a virtual environment need not be activated.
    folders = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    program = shutil.which("modelscope", path=folders)
    if program is None:
        raise ValueError("--download needs the modelscope package: pip install modelscope")
    try:
        subprocess.run([program, *DOWNLOAD.format(name).split()[1:]], check=True)
    except subprocess.CalledProcessError as error:
        raise ValueError(
            f"modelscope ended with code {error.returncode}; run it again, it continues where it stopped"
        ) from None
    if not Path(name).is_file():
        raise ValueError(f"{name} is not there after the download")
