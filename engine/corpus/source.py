"""The files a stage reads: those that --data_path names, the stage's own (fetched by --download), or the sample."""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

from tokenizers import Tokenizer

from engine.console import print0
from engine.corpus.file_types import GZIP
from engine.corpus.jsonl import READ_BLOCK_BYTES, parse_line, read_blocks, split_lines
from engine.files import read_json, resolve_download_path
from engine.options import DOWNLOAD, Data
from engine.schemas import BadRow
from engine.tokenizer import fingerprint


def files_of(data: Data) -> list[Path]:
    """Return the JSONL files or the finished cache that a run reads; fetch the stage's file where --download says so.

    Raises:
        ValueError: --download in a run of several processes, or it failed.
    """
    path = resolve_download_path(Path(data.data_file))
    if data.download and (problem := find_damage(path)):
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            command = DOWNLOAD.format(data.data_file)
            raise ValueError(f"--download: not by several processes at once; before them run {command}")
        if path.is_file():  # modelscope keeps what is there, whatever it holds
            print0(f"{problem}\n--download: fetching it again; the file of before is {path}.damaged now")
            path.replace(f"{path}.damaged")
        download(data.data_file)
    for path in data.paths:
        if path.name == path.parent.name:
            print0(f"{path.parent} is a folder: reading {path.name} in it")
    return data.paths


def find_damage(path: Path) -> str:
    """Return why a file that was fetched is not the whole file of rows; "" where nothing says so.

    All of a packed file is read; of another its first block and its last row.
    """
    if not path.is_file():
        return f"{path}: no such file"
    try:
        with open(path, "rb") as file:
            is_packed = file.read(len(GZIP)) == GZIP
            file.seek(max(0, path.stat().st_size - READ_BLOCK_BYTES))
            tail = file.read()
        for first, block in read_blocks(path):
            if not any(is_row(line) for _, line in split_lines(first, block)):
                return f"{path}: no row in it"
            if not is_packed:
                break
    except ValueError as error:
        return str(error)
    last = tail.rstrip(b"\n").rpartition(b"\n")[2]
    if not is_packed and not tail.endswith(b"\n") and not is_row(last):
        return f"{path}: empty, or it ends inside a row"
    return ""


def is_row(line: bytes) -> bool:
    """Return whether a line is a JSON object."""
    try:
        return bool(parse_line(line))
    except BadRow:
        return False


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


def find_other_tokenizer(path: Path, tokenizer: Tokenizer) -> str:
    """Return a warning about a file that prepare_data.py cut by the tokens of another tokenizer; "" about any other."""
    listing = path.parent / "prepared.json"
    if not listing.is_file():
        return ""
    prepared = read_json(listing)
    if "tokens" not in prepared.get("outputs", {}).get(path.name, {}):
        return ""
    if prepared.get("tokenizer") == fingerprint(tokenizer):
        return ""
    return f"{path} was cut by the tokens of another tokenizer: prepare_data.py --tokenizer_dir cuts it by this run's"
