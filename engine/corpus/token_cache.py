"""JSONL -> a token cache on disk: built once, in parallel and in bounded memory, then memory-mapped.

    cache/<file>-<key>/  ids.bin      uint16, all documents one after another
                         classes.bin  uint8, the loss class of every token (dataset.py)
                         offsets.bin  int64 (documents + 1,), where each document begins
                         hashes.bin   uint64 (documents,), content hashes: which rows are held out
                         meta.json    what it was made from, written last

The key is made of the files' contents, the tokenizer and the encoding version, so a stale cache cannot be opened
by accident; a finished folder can be carried to another machine and given as --data_path.
"""

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from dataset import ENCODING_VERSION, PretrainDataset, SFTDataset
from engine.corpus.digests import content_digest
from engine.corpus.held_out import held_out_hashes, line_hash
from engine.corpus.jsonl import RowCounts, RowReport, blocks, lines, source_files
from engine.corpus.tiktoken_backend import fastest, print_hint
from engine.corpus.worker_pool import in_order
from engine.files import to_json
from engine.tokenizer import EOS, fingerprint

Dataset = PretrainDataset | SFTDataset  # what a row may mean
ARRAYS = {"ids": np.uint16, "classes": np.uint8, "offsets": np.int64, "hashes": np.uint64}  # files of bare numbers

# ------------------------------------------------------------------------------------------------- opening


@dataclass
class TokenCache:
    """An opened cache. Documents are numbered in file order; document d is ids[offsets[d] : offsets[d + 1]]."""

    folder: Path
    ids: np.ndarray
    classes: np.ndarray
    offsets: np.ndarray
    hashes: np.ndarray
    meta: dict

    def __len__(self) -> int:
        return len(self.hashes)

    def split(self, val_fraction: float) -> tuple[np.ndarray, np.ndarray]:
        """The document numbers of (training, validation); what one source file holds out is held out in all."""
        ends = np.cumsum([source["documents"] for source in self.meta["sources"]])
        mask = np.isin(self.hashes, held_out_hashes(np.split(self.hashes, ends[:-1]), val_fraction))
        return np.flatnonzero(~mask), np.flatnonzero(mask)


def open_cache(folder: Path, dataset_class: type, tokenizer: Tokenizer, strict: bool = False) -> TokenCache:
    """Open a finished cache folder; ValueError when it holds other rows, or was made with another tokenizer.

    With `strict` also when bad rows were left out of it: a cache that was built without --strict_data is there already.
    What was left out when it was built is said again.
    """
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    for what, expected in _identity(dataset_class, tokenizer).items():
        if meta.get(what) != expected:
            raise ValueError(
                f"{folder}: made with {what} {meta.get(what)!r}, this run has {expected!r}; "
                "give the JSONL file instead, or the --tokenizer_dir it was made with"
            )
    report = report_of(meta, strict)
    report.stop_if_strict()
    report.tell()
    ids, classes, offsets, hashes = (np.memmap(folder / f"{name}.bin", dtype, "r") for name, dtype in ARRAYS.items())
    if not len(ids) == len(classes) == meta["tokens"] == offsets[-1] or len(hashes) + 1 != len(offsets):
        raise ValueError(f"{folder}: damaged, its parts disagree in length; delete the folder to build it again")
    return TokenCache(folder, ids, classes, offsets, hashes, meta)


def report_of(meta: dict, strict: bool = False) -> RowReport:
    """What the rows of each source file were, as it was counted when the cache was built."""
    return RowReport(strict, {source["path"]: RowCounts(**source["counts"]) for source in meta["sources"]})


def open_or_build(
    data_path: Sequence[str | Path],
    dataset_class: type[Dataset],
    tokenizer: Tokenizer,
    *,
    cache_dir: str | Path = "cache",
    num_workers: int = 1,
    strict: bool = False,
) -> TokenCache:
    """The token cache of one or more JSONL files (read as `dataset_class` says), or of a finished cache folder."""
    if len(data_path) == 1 and (Path(data_path[0]) / "meta.json").is_file():
        return open_cache(Path(data_path[0]), dataset_class, tokenizer, strict)
    paths = source_files(data_path)
    digests = [content_digest(path, Path(cache_dir)) for path in paths]
    identity = _identity(dataset_class, tokenizer)
    key = hashlib.blake2b(json.dumps([digests, identity]).encode(), digest_size=6).hexdigest()
    folder = Path(cache_dir) / f"{paths[0].name.split('.')[0][:40]}-{key}"
    if not (folder / "meta.json").is_file():
        _build(folder, paths, digests, identity, dataset_class, tokenizer, num_workers, strict)
    return open_cache(folder, dataset_class, tokenizer, strict)


def _identity(dataset_class: type, tokenizer: Tokenizer) -> dict:
    return {"encoding": ENCODING_VERSION, "dataset": dataset_class.__name__, "tokenizer": fingerprint(tokenizer)}


# ------------------------------------------------------------------------------------------------ building


def _clear_left_overs(folder: Path) -> None:
    """What a killed run left of this cache an hour ago; what still grows is another run's."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left_over in folder.parent.glob(f"{folder.name}.tmp-*"):
        with suppress(FileNotFoundError):  # finished meanwhile
            newest = max(part.stat().st_mtime for part in (left_over, *left_over.iterdir()))
            if time.time() - newest > 3600:
                shutil.rmtree(left_over, ignore_errors=True)


def _refuse_changed(paths: Sequence[Path], digests: Sequence[str], cache_dir: Path) -> None:
    """ValueError for a file whose content is no longer that under whose name the cache would be kept."""
    for path, digest in zip(paths, digests, strict=True):
        if content_digest(path, cache_dir) != digest:
            raise ValueError(f"{path}: changed while it was read; start again when nothing writes to it")


def _build(folder, paths, digests, identity, dataset_class, tokenizer, num_workers, strict) -> None:
    """Encode every row into a temporary folder and rename it when it is whole."""
    _clear_left_overs(folder)
    temporary = folder.with_name(f"{folder.name}.tmp-{uuid.uuid4().hex[:8]}")
    temporary.mkdir()
    try:
        report, documents, tokens = RowReport.of(paths, strict), [0] * len(paths), 0
        with ExitStack() as stack:
            files = {name: stack.enter_context(open(temporary / f"{name}.bin", "wb")) for name in ARRAYS}
            size = sum(map(os.path.getsize, paths))
            print_hint(tokenizer, size)
            bar = stack.enter_context(tqdm(desc="tokenising", total=size, unit="B", unit_scale=True, disable=None))
            source = ((which, *block) for which, path in enumerate(paths) for block in blocks(path, bar.update))
            files["offsets"].write(np.int64(0).tobytes())
            for block in _encode_all(source, dataset_class, tokenizer, num_workers):
                report.add(paths[block.file], block.counts)
                files["ids"].write(block.ids)
                files["classes"].write(block.classes)
                files["offsets"].write((tokens + block.lengths.cumsum()).tobytes())
                files["hashes"].write(block.hashes.tobytes())
                documents[block.file] += len(block.lengths)
                tokens += int(block.lengths.sum())
        report.refuse(dataset_class.valid)
        _refuse_changed(paths, digests, folder.parent)
        sources = [
            {"name": path.name, "path": str(path), "content": digest, "documents": n, "counts": asdict(counts)}
            for path, digest, n, counts in zip(paths, digests, documents, report.files.values(), strict=True)
        ]
        end_id = tokenizer.token_to_id(EOS)
        meta = identity | {"end_id": end_id, "tokens": tokens, **report.totals(), "sources": sources}
        (temporary / "meta.json").write_bytes(to_json(meta, indent=1))
        try:
            os.rename(temporary, folder)
        except OSError:
            if not (folder / "meta.json").is_file():  # else another run was faster with the same content
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class EncodedBlock(NamedTuple):
    """What a worker makes of some lines of one file."""

    file: int
    counts: RowCounts
    ids: bytes
    classes: bytes
    lengths: np.ndarray
    hashes: np.ndarray


_dataset: Any = None  # one a process, set by _start_worker


def _start_worker(dataset_class: type, tokenizer_json: str) -> None:
    global _dataset
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.encode_special_tokens = True  # not part of the JSON
    _dataset = dataset_class(fastest(tokenizer))


def _encode_block(file: int, first: int, block: bytes) -> EncodedBlock:
    contents, hashes, counts = [], [], RowCounts()
    for number, line in lines(first, block):
        if (content := counts.read(number, line, _dataset.read)) is not None:
            parts = _dataset.parts(content)
            contents += parts
            hashes += [line_hash(line)] * len(parts)
    documents = _dataset.encode(contents)
    return EncodedBlock(
        file,
        counts,
        ids=b"".join(document.ids.tobytes() for document in documents),
        classes=b"".join(document.classes.tobytes() for document in documents),
        lengths=np.array([len(document.ids) for document in documents], dtype=np.int64),
        hashes=np.array(hashes, dtype=np.uint64),
    )


def _encode_all(
    source: Iterable, dataset_class: type, tokenizer: Tokenizer, num_workers: int
) -> Iterator[EncodedBlock]:
    """The encoded blocks in order."""
    return in_order(_encode_block, source, _start_worker, (dataset_class, tokenizer.to_str()), num_workers)
