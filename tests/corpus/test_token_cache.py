"""Rows become one token cache, and never a stale or a half one."""

import errno
import json
import os
import resource
import shutil
import time

import numpy as np
import pytest
from factories import write_rows
from tokenizers import Tokenizer

from dataset import ENCODING_VERSION, PretrainDataset, SFTDataset
from engine.corpus import jsonl, token_cache
from engine.tokenizer import fingerprint

TEXTS = [f"row {number} 号" for number in range(200)]
ROWS = [{"text": text} for text in TEXTS]


@pytest.fixture
def extended(small):
    """A tokenizer with one token more."""
    other = Tokenizer.from_str(small.to_str())
    other.add_tokens(["<think>"])
    other.encode_special_tokens = True
    return other


@pytest.mark.parametrize("workers", [1, 2])
def test_the_cache_holds_what_the_dataset_encodes(build, small, workers):
    contents = ["</s><s>assistant\n", *TEXTS[:5], "<unk> <think>"]
    cache = build([{"text": content} for content in contents], num_workers=workers)
    documents = PretrainDataset(small).encode(contents)
    assert np.array_equal(cache.ids, np.concatenate([document.ids for document in documents]))
    assert np.array_equal(cache.classes, np.concatenate([document.classes for document in documents]))
    assert np.diff(cache.offsets).tolist() == [len(document.ids) for document in documents]
    assert np.bincount(cache.ids)[:3].tolist() == [0, 7, 7]


@pytest.mark.parametrize("name", ["rows.jsonl", "ro[w]s.jsonl", "ro*s.jsonl"])
def test_folders_of_an_hour_are_removed_and_growing_ones_are_not(build, tmp_path, monkeypatch, name):
    """The disk's clock dates the files. This machine's may be hours ahead."""
    path = write_rows(tmp_path / name, ROWS)
    folder = build(path).folder
    shutil.rmtree(folder)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 7200)
    for minutes in (70, 50, 0):
        unfinished = folder.with_name(f"{folder.name}.tmp-{minutes}")
        unfinished.mkdir()
        (unfinished / "ids.bin").write_bytes(b"0")
        os.utime(unfinished / "ids.bin", (now - 60 * minutes,) * 2)
        os.utime(unfinished, (1, 1))  # a folder's own time does not change while its files grow
    assert len(build(path)) == 200
    assert {entry.name.rpartition("-")[2] for entry in folder.parent.glob("*.tmp-*")} == {"50", "0"}


@pytest.mark.parametrize("what", ["tokenizer", "version", "dataset class"])
def test_another_tokenizer_version_or_dataset_class_builds_a_new_cache(build, monkeypatch, extended, what):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>a"}]
    rows = [{"text": "<think>", "conversations": turns}]
    first = build(rows)
    if what == "version":
        monkeypatch.setattr(token_cache, "ENCODING_VERSION", 999)
    changes = {"tokenizer": {"tokenizer": extended}, "dataset class": {"dataset_class": SFTDataset}}
    second = build(rows, **changes.get(what, {}))
    assert first.folder != second.folder and first.folder.is_dir() and second.folder.is_dir()
    assert what == "version" or len(first.ids) != len(second.ids)


def test_a_finished_cache_opens_elsewhere_alone(build, tmp_path):
    first = build(ROWS)
    ids, parts = first.ids.copy(), first.split(0.1)
    shutil.move(first.folder, tmp_path / "carried")
    (tmp_path / "0.jsonl").unlink()
    shutil.rmtree(tmp_path / "cache")
    moved = build(tmp_path / "carried")
    assert np.array_equal(moved.ids, ids) and all(map(np.array_equal, moved.split(0.1), parts))
    assert not (tmp_path / "cache").exists()


def test_a_cache_of_another_tokenizer_or_dataset_class_is_refused(build, small, extended):
    folder = build(ROWS).folder
    with pytest.raises(ValueError, match=f"{fingerprint(small)}.*{fingerprint(extended)}"):
        build(folder, tokenizer=extended)
    with pytest.raises(ValueError, match="PretrainDataset.*SFTDataset"):
        build(folder, dataset_class=SFTDataset)


def test_a_cache_of_an_older_encoding_is_refused_with_the_way_out(build):
    folder = build(ROWS).folder
    assert json.loads((folder / "meta.json").read_text("utf-8"))["encoding"] == ENCODING_VERSION
    (folder / "meta.json").write_text(json.dumps({"encoding": 2, "tokenizer": "x", "rows": 6, "bad": 0}))
    with pytest.raises(ValueError, match=f"encoding 2, this run has {ENCODING_VERSION}; give the JSONL file instead"):
        build(folder)


def test_a_cache_among_other_data_is_called_one(build):
    folder = build(ROWS).folder
    with pytest.raises(ValueError, match="a token cache, which a training stage reads alone"):
        build(folder, folder)


@pytest.mark.parametrize(
    "name, size", [("ids.bin", 10), ("ids.bin", 11), ("classes.bin", 10), ("hashes.bin", 32), ("offsets.bin", 41)]
)
def test_a_damaged_cache_is_an_error(build, name, size):
    os.truncate(build(ROWS[:5]).folder / name, size)
    with pytest.raises(ValueError):
        build(ROWS[:5])


class Interrupted(PretrainDataset):
    def encode(self, texts):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "error, dataset_class, strict, num_bad",
    [
        (ValueError, PretrainDataset, False, 11),
        (ValueError, PretrainDataset, True, 1),
        (KeyboardInterrupt, Interrupted, False, 1),
    ],
    ids=["bad rows", "strict", "interrupted"],
)
def test_a_failed_build_leaves_no_folder_behind(build, tmp_path, error, dataset_class, strict, num_bad):
    with pytest.raises(error):
        build([*ROWS[:5], *[{}] * num_bad], dataset_class=dataset_class, strict=strict)
    assert not [*(tmp_path / "cache").iterdir()]


def test_a_full_disk_names_flag_file_and_sizes(build, tmp_path):
    path, limits = write_rows(tmp_path / "rows.jsonl", ROWS), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(
            ValueError, match=r"--cache_dir .*/cache: File too large after 0.0 MiB .*/rows.jsonl.* 0.0 MiB"
        ):
            build(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [*(tmp_path / "cache").iterdir()]


def test_a_read_only_folder_without_the_cache_names_the_flag(build, monkeypatch):
    def mkdir(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(token_cache.Path, "mkdir", mkdir)
    with pytest.raises(
        ValueError, match="--cache_dir .*Read-only file system.* or give a finished cache as --data_path"
    ):
        build(ROWS)


def test_long_names_and_names_that_are_no_text_are_taken(build, tmp_path):
    for name in ("n" * 249 + ".jsonl", "船" * 80 + ".jsonl", os.fsdecode(b"da\xffta.jsonl")):
        assert build(write_rows(tmp_path / name, ROWS)).meta["sources"][0]["counts"]["rows"] == 200


# ------------------------------------------------------------------------------------------------- digests


def test_a_changed_mtime_alone_does_not_rebuild(build, tmp_path, monkeypatch):
    path = write_rows(tmp_path / "rows.jsonl", ROWS)
    first = build(path)
    before = first.folder.stat().st_mtime_ns
    monkeypatch.setattr(token_cache, "_build", None)  # would fail if called
    os.utime(path, (1, 1))
    again = build(path)
    assert again.folder == first.folder and again.folder.stat().st_mtime_ns == before


def test_changed_content_of_the_same_size_builds_a_new_cache(build, texts, tmp_path):
    path = tmp_path / "rows.jsonl"
    caches = []
    for word in ("one", "two"):
        write_rows(path, [*ROWS, {"text": word}, *ROWS])  # the change is far from the beginning
        os.utime(path, (len(caches), 1 + len(caches)))
        caches.append(build(path))
    assert [texts(cache)[200] for cache in caches] == ["one", "two"]
    assert caches[0].folder != caches[1].folder


def edit_in_place(path, content):
    path.write_bytes(content)


def replace(path, content):
    """Write a new file and rename it, as rsync does."""
    path.with_name("new").write_bytes(content)
    os.utime(path.with_name("new"), (1, 1))
    path.with_name("new").rename(path)


def unpack(path, content):
    """Delete the file and write it again, as tar does."""
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("write", [edit_in_place, replace, unpack])
@pytest.mark.parametrize("reread_bytes", [token_cache.REREAD_BYTES, 0], ids=["read whole", "known by its times"])
def test_other_words_of_the_same_size_and_mtime_are_read(build, texts, tmp_path, monkeypatch, write, reread_bytes):
    monkeypatch.setattr(token_cache, "REREAD_BYTES", reread_bytes)
    monkeypatch.setattr(token_cache, "NUM_BLOCKS", 0)
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "old town"}, *ROWS])
    os.utime(path, (1, 1))
    first = build(path)
    assert build(path).folder == first.folder
    write(path, path.read_bytes().replace(b"old town", b"new port"))
    os.utime(path, (1, 1))
    second = build(path)
    assert texts(second)[0] == "new port" and second.folder != first.folder
    shutil.copy(path, tmp_path / "rows.copy.jsonl")
    assert build(tmp_path / "rows.copy.jsonl").folder == second.folder


def test_a_large_file_is_known_by_16_blocks_where_no_time_tells(tmp_path, monkeypatch):
    for name, value in {"REREAD_BYTES": 0, "BLOCK_BYTES": 8}.items():
        monkeypatch.setattr(token_cache, name, value)
    path = tmp_path / "rows.jsonl"
    for number in range(16):
        content = bytearray(1000)
        path.write_bytes(content)
        first = token_cache.content_digest(path, tmp_path)
        content[992 * number // 15 + 7 * (number % 2)] = 1
        path.write_bytes(content)
        index, stat = json.loads((tmp_path / "digests.json").read_text()), path.stat()
        index[str(path)][1:4] = [stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]  # as on a disk without times
        (tmp_path / "digests.json").write_text(json.dumps(index))
        assert token_cache.content_digest(path, tmp_path) != first


def test_a_known_file_of_14_gb_opens_within_a_second(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.touch()
    os.truncate(path, 14 << 30)
    reads = []
    monkeypatch.setattr(token_cache, "hash_file", lambda path: reads.append(path) or "0" * 32)
    first = token_cache.content_digest(path, tmp_path)
    began = time.perf_counter()
    assert token_cache.content_digest(path, tmp_path) == first == f"{14 << 30}:{'0' * 32}" and len(reads) == 1
    assert time.perf_counter() - began < 1


def test_a_cache_on_a_read_only_disk_is_read_from_another_path(build, tmp_path, monkeypatch):
    monkeypatch.setattr(token_cache, "REREAD_BYTES", 0)
    first = build(write_rows(tmp_path / "rows.jsonl", ROWS))

    def write_json(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(token_cache, "write_json", write_json)
    (tmp_path / "other").mkdir()
    assert build(write_rows(tmp_path / "other/rows.jsonl", ROWS)).folder == first.folder


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"path": 5}', b"\xff\xfe", b'{"a": [1, 2, {}]}', b"null"])
def test_an_index_that_cannot_be_read_is_written_again(build, tmp_path, monkeypatch, content):
    monkeypatch.setattr(token_cache, "REREAD_BYTES", 0)
    path = write_rows(tmp_path / "rows.jsonl", ROWS)
    first = build(path)
    (tmp_path / "cache/digests.json").write_bytes(content)
    assert build(path).folder == first.folder
    assert list(json.loads((tmp_path / "cache/digests.json").read_text())) == [str(path)]


def test_a_file_that_grows_while_it_is_read_leaves_no_cache(build, tmp_path, monkeypatch):
    path = write_rows(tmp_path / "rows.jsonl", ROWS)
    size, read_blocks = path.stat().st_size, jsonl.read_blocks

    def growing(path, *advance):
        with open(path, "ab") as file:
            file.write(path.read_bytes())
        return read_blocks(path, *advance)

    monkeypatch.setattr(token_cache, "read_blocks", growing)
    with pytest.raises(ValueError, match="rows.jsonl: changed while it was read"):
        build(path)
    assert not [*(tmp_path / "cache").iterdir()]
    assert token_cache.content_digest(path, tmp_path / "cache").startswith(f"{2 * size}:")
