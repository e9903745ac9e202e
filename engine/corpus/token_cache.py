"""JSONL -> a token cache on disk: built once, in parallel and in bounded memory, then memory-mapped.

    cache/<file>-<key>/  ids.bin      uint16, all documents one after another
                         classes.bin  uint8, the loss class of every token (dataset.py)
                         offsets.bin  int64 (documents + 1,), where each document begins
                         hashes.bin   uint64 (documents,), hash of each document's row: which rows are held out
                         row_starts.bin  uint8 (documents,), 1 where a document is the first of its row
                         meta.json    what it was made from, written last

The key is made of the files' contents, the tokenizer and the encoding version, so a cache of other rows is not
opened (`content_digest` says what is read to know them). A finished folder can be carried to another machine and given
as --data_path.
"""

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from dataset import ENCODING_VERSION, PretrainDataset, SFTDataset, begins_in_text
from engine.console import printable
from engine.corpus.held_out import held_out_hashes, merge_same_files, row_hash, split_kinds
from engine.corpus.jsonl import RowCounts, RowReport, find_zero_fields, read_blocks, source_files, split_lines
from engine.corpus.tiktoken_backend import print_hint, start_encoder
from engine.corpus.worker_pool import map_in_order
from engine.files import hash_file, remove_stale_folders, to_json, write_json
from engine.tokenizer import EOS, fingerprint

Dataset = PretrainDataset | SFTDataset  # what a row may mean
ARRAYS = {  # files of bare numbers
    "ids": np.uint16,
    "classes": np.uint8,
    "offsets": np.int64,
    "hashes": np.uint64,
    "row_starts": np.uint8,
}
TIKTOKEN_MIN_BYTES = 16 << 20  # below, all saves two seconds at most, and each process first checks the vocabulary
REREAD_BYTES = 256 << 20  # smaller files are read whole at each start, in a third of a second at most
NUM_BLOCKS = 16  # of a larger file, read at each start
BLOCK_BYTES = 64 << 10
CANNOT_WRITE = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM")}

# ------------------------------------------------------------------------------------------------- opening


@dataclass
class TokenCache:
    """An opened cache. Documents are numbered in file order; document d is ids[offsets[d] : offsets[d + 1]].

    Attributes:
        folder: The folder it was opened from.
        ids, classes: Token ids and loss classes, (tokens,), uint16 and uint8.
        offsets: First token of each document, and the number of tokens, (documents + 1,) int64.
        hashes: Content hash of each document's row, (documents,) uint64.
        row_starts: 1 for the first document of a row, 0 for the others, (documents,) uint8.
        meta: The content of meta.json.
        times: How often each source file is read in an epoch.
    """

    folder: Path
    ids: np.ndarray
    classes: np.ndarray
    offsets: np.ndarray
    hashes: np.ndarray
    row_starts: np.ndarray
    meta: dict
    times: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.hashes)

    def split(self, val_fraction: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the document numbers of (training, validation), (n,) int64 each.

        Rows are held out, with all of their documents. What one source file holds out is held out in all. Which
        conversations are does not depend on the texts next to them. Training has the documents of a file that is read
        several times as often.
        """
        mask = np.isin(self.hashes, held_out_hashes(self.row_hashes(), val_fraction))
        times = np.repeat(self.times, [source["documents"] for source in self.meta["sources"]])
        return np.repeat(np.arange(len(self)), times * ~mask), np.flatnonzero(mask)

    @cached_property
    def is_replay(self) -> np.ndarray:
        """Mask of the texts next to conversations, (documents,) bool; of texts without conversations none is."""
        schemas = [RowCounts(**source["counts"]).notes_of("schema").keys() for source in self.meta["sources"]]
        if "text" in set().union(*schemas) != {"text"}:
            return begins_in_text(self.classes, self.offsets[:-1])
        return np.zeros(len(self), dtype=bool)

    def row_hashes(self) -> list[np.ndarray]:
        """Return the hashes of each source file's rows, of conversations and of texts apart; (rows,) uint64 each."""
        ends = np.cumsum([source["documents"] for source in self.meta["sources"]])[:-1]
        parts = []
        for rows in np.split(np.arange(len(self)), ends):
            rows = rows[self.row_starts[rows] > 0]
            parts += split_kinds(self.hashes[rows], self.is_replay[rows])
        return parts


def open_cache(
    folder: Path, dataset_class: type, tokenizer: Tokenizer, *, strict: bool = False, allow_dropped: bool = True
) -> TokenCache:
    """Open a finished cache folder, and warn again of what was left out when it was built.

    Args:
        folder: The folder that holds meta.json.
        dataset_class: The meaning of a row.
        tokenizer: The tokenizer of this run.
        strict: Refuse a cache that bad rows were left out of: one that was built without --strict_data may be there.
        allow_dropped: Open it also if most rows of a file had nothing to learn.
    Raises:
        ValueError: It holds other rows, was made with another tokenizer, or is damaged.
    """
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    for name, expected in _identity(dataset_class, tokenizer).items():
        if meta.get(name) != expected:
            raise ValueError(
                f"{folder}: made with {name} {meta.get(name)!r}, this run has {expected!r}; "
                "give the JSONL file instead, or the --tokenizer_dir it was made with"
            )
    files = {source["path"]: RowCounts(**source["counts"]) for source in meta["sources"]}
    report = RowReport(strict, files, allow_dropped)
    report.check_strict()
    _check_rows(report, dataset_class)
    report.warn_skipped()
    arrays = {name: np.memmap(folder / f"{name}.bin", dtype, "r") for name, dtype in ARRAYS.items()}
    tokens, documents = (len(arrays[name]) for name in ("ids", "hashes"))
    lengths = {"classes": tokens, "offsets": documents + 1, "row_starts": documents}
    disagree = any(len(arrays[name]) != length for name, length in lengths.items())
    if disagree or not tokens == meta["tokens"] == arrays["offsets"][-1]:
        raise ValueError(f"{folder}: damaged, its parts disagree in length; delete the folder to build it again")
    return TokenCache(folder, **arrays, meta=meta, times=[1] * len(meta["sources"]))


def open_or_build(
    data_path: Sequence[str | Path],
    dataset_class: type[Dataset],
    tokenizer: Tokenizer,
    *,
    cache_dir: str | Path = "cache",
    num_workers: int = 1,
    strict: bool = False,
    allow_dropped: bool = True,
) -> TokenCache:
    """Open the token cache of some JSONL files, and build it first where it is missing.

    Args:
        data_path: JSONL files, or one finished cache folder.
        dataset_class: The meaning of a row.
        tokenizer: The tokenizer of this run.
        cache_dir: Folder of the caches.
        num_workers: Tokenizing processes.
        strict: Stop at the first bad row.
        allow_dropped: Train on the others where most rows of a file have nothing to learn.
    Raises:
        ValueError: A file is missing, is no JSONL or has too many bad rows, or as in `open_cache`.
    """
    if len(data_path) == 1 and (Path(data_path[0]) / "meta.json").is_file():
        return open_cache(Path(data_path[0]), dataset_class, tokenizer, strict=strict, allow_dropped=allow_dropped)
    paths = source_files(data_path)
    digests = [content_digest(path, Path(cache_dir)) for path in paths]
    paths, times = merge_same_files(paths, digests)
    digests = list(dict.fromkeys(digests))
    identity = _identity(dataset_class, tokenizer)
    key = hashlib.blake2b(json.dumps([digests, identity]).encode(), digest_size=6).hexdigest()
    folder = Path(cache_dir) / f"{paths[0].name.split('.')[0][:40]}-{key}"
    if not (folder / "meta.json").is_file():
        _build(folder, paths, digests, identity, dataset_class, tokenizer, num_workers, strict)
    cache = open_cache(folder, dataset_class, tokenizer, strict=strict, allow_dropped=allow_dropped)
    return replace(cache, times=times)


def _check_rows(report: RowReport, dataset_class: type[Dataset]) -> None:
    """Raise ValueError for a file with too many bad rows, or where a stage of conversations would learn texts alone."""
    report.check_bad_rows(dataset_class.valid)
    schemas = [counts.notes_of("schema") for counts in report.files.values()]
    texts = sum(rows.get("text", 0) for rows in schemas)
    if issubclass(dataset_class, SFTDataset) and texts == sum(sum(rows.values()) for rows in schemas):
        names = " ".join(map(printable, report.files))
        raise ValueError(
            f"{names}: {texts:,} rows are texts and none is a conversation, so no answer is learned: give the "
            f"conversations, too (--data_path CONVERSATIONS.jsonl {names}), or learn texts alone with pretrain.py"
        )


def _identity(dataset_class: type, tokenizer: Tokenizer) -> dict:
    return {"encoding": ENCODING_VERSION, "dataset": dataset_class.__name__, "tokenizer": fingerprint(tokenizer)}


# ------------------------------------------------------------------------------------------------- digests


def content_digest(path: Path, cache_dir: Path) -> str:
    """Return size and hash of a file's content.

    A file of REREAD_BYTES or more is not read again while its size, times, inode and NUM_BLOCKS blocks are those of the
    last time, which `cache_dir` keeps.
    """
    stat = path.stat()
    if stat.st_size < REREAD_BYTES:
        return _hash_content(path)
    index_path, name = cache_dir / "digests.json", str(path.resolve())
    known = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, _hash_blocks(path, stat.st_size)]
    entry = _read_index(index_path).get(name, [])
    if entry[:-1] == known:
        return entry[-1]
    digest = _hash_content(path)
    with suppress(OSError):  # a disk that is full or read-only: the file is read whole at the next start, too
        cache_dir.mkdir(parents=True, exist_ok=True)
        write_json(index_path, {**_read_index(index_path), name: [*known, digest]})
    return digest


def _hash_content(path: Path) -> str:
    return f"{path.stat().st_size}:{hash_file(path)}"


def _hash_blocks(path: Path, size: int) -> str:
    """Return the hash of blocks that are spread evenly over a file, the first and the last among them."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        for number in range(NUM_BLOCKS):
            file.seek(max(0, size - BLOCK_BYTES) * number // (NUM_BLOCKS - 1))
            digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()


def _read_index(path: Path) -> dict[str, list]:
    """Return {file: [size, mtime, ctime, inode, digest of blocks, digest]} as far as it can be read."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        return {
            name: entry for name, entry in index.items() if list(map(type, entry)) == [int, int, int, int, str, str]
        }
    except (OSError, ValueError, TypeError, AttributeError):  # not there, or written by something else
        return {}


# ------------------------------------------------------------------------------------------------ building


def _number_blocks(paths: Sequence[Path], dataset_class: type, advance: Callable[[int], object]) -> Iterator[tuple]:
    for file, path in enumerate(paths):
        zero_fields = find_zero_fields(path) if issubclass(dataset_class, SFTDataset) else frozenset()  # texts: once
        for first, block in read_blocks(path, advance):
            yield file, first, block, zero_fields


def _build(folder, paths, digests, identity, dataset_class, tokenizer, num_workers, strict) -> None:
    """Encode every row into a temporary folder, and rename it when it is whole."""
    size = sum(map(os.path.getsize, paths))
    temporary = folder.with_name(f"{folder.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        remove_stale_folders(folder, temporary.stat().st_mtime)
        report = RowReport(strict, {str(path): RowCounts() for path in paths})
        tokens, documents = _encode_files(temporary, paths, size, report, dataset_class, tokenizer, num_workers)
        _check_rows(report, dataset_class)
        sources = []
        for path, digest, count in zip(paths, digests, documents, strict=True):
            if _hash_content(path) != digest:  # no longer the content that the cache is named by
                raise ValueError(f"{path}: changed while it was read; start again when nothing writes to it")
            source = {"name": path.name, "path": str(path), "content": digest, "documents": count}
            sources.append(source | {"counts": asdict(report.files[str(path)])})
        meta = identity | {"end_id": tokenizer.token_to_id(EOS), "tokens": tokens, "sources": sources}
        (temporary / "meta.json").write_bytes(to_json(meta, indent=1))
        try:
            os.rename(temporary, folder)
        except OSError:
            if not (folder / "meta.json").is_file():  # else another run was faster with the same content
                raise
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        written = sum(file.stat().st_size for file in temporary.glob("*"))
        raise ValueError(
            f"--cache_dir {folder.parent}: {error.strerror} after {written / 2**20:,.1f} MiB of the tokens of "
            f"{', '.join(map(str, paths))}, which take about 1.3 times as much as the unpacked rows (files: "
            f"{size / 2**20:,.1f} MiB); choose another --cache_dir, or give a finished cache as --data_path"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _encode_files(temporary, paths, size, report, dataset_class, tokenizer, num_workers) -> tuple[int, list[int]]:
    """Write the arrays of all rows, count the rows in `report`, and return (tokens, documents of each file)."""
    is_large = size >= TIKTOKEN_MIN_BYTES
    if is_large:
        print_hint(tokenizer, size)
    tokens, documents = 0, [0] * len(paths)
    with ExitStack() as stack:
        files = {name: stack.enter_context(open(temporary / f"{name}.bin", "wb")) for name in ARRAYS}
        bar = stack.enter_context(tqdm(desc="tokenizing", total=size, unit="B", unit_scale=True, disable=None))
        blocks = _number_blocks(paths, dataset_class, bar.update)
        setup = (dataset_class, tokenizer.to_str(), is_large)
        files["offsets"].write(np.int64(0).tobytes())
        for file, counts, lengths, arrays in map_in_order(_encode_block, blocks, _start_worker, setup, num_workers):
            report.files[str(paths[file])].add(counts)
            report.check_strict()
            arrays["offsets"] = (tokens + lengths.cumsum()).tobytes()
            for name, array in arrays.items():
                files[name].write(array)
            documents[file] += len(lengths)
            tokens += int(lengths.sum())
    return tokens, documents


_dataset: Any = None  # one in each process, set by _start_worker


def _start_worker(dataset_class: type, tokenizer_json: str, use_tiktoken: bool) -> None:
    global _dataset
    _dataset = dataset_class(start_encoder(tokenizer_json, use_tiktoken))


def _encode_block(
    file: int, first: int, block: bytes, zero_fields: frozenset[str]
) -> tuple[int, RowCounts, np.ndarray, dict[str, bytes]]:
    """Return (`file`, counts of its lines, tokens of each document, (n,) int64, {array of the cache: its bytes})."""
    contents = []
    hashes, row_starts = [], []
    counts = RowCounts()
    for number, line in split_lines(first, block):
        if (content := counts.read(number, line, _dataset.read, zero_fields)) is not None:
            parts = _dataset.parts(content)
            contents += parts
            hashes += [row_hash(content)] * len(parts)
            row_starts += [1] + [0] * (len(parts) - 1)
    documents = _dataset.encode(contents)
    lengths = np.array([len(document.ids) for document in documents], dtype=np.int64)
    arrays = {
        "ids": b"".join(document.ids.tobytes() for document in documents),
        "classes": b"".join(document.classes.tobytes() for document in documents),
        "hashes": np.array(hashes, dtype=np.uint64).tobytes(),
        "row_starts": np.array(row_starts, dtype=np.uint8).tobytes(),
    }
    return file, counts, lengths, arrays
