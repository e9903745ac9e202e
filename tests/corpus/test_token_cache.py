"""Rows become one token cache, and never a stale or a half one."""

import json
import os
import shutil

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


def test_a_stale_folder_is_removed_and_a_growing_one_is_not(build):
    folder = build(ROWS).folder
    shutil.rmtree(folder)
    stale, growing = (folder.with_name(f"{folder.name}.tmp-{name}") for name in (os.getpid(), "other"))
    for unfinished in (stale, growing):
        unfinished.mkdir()
        (unfinished / "ids.bin").write_bytes(b"0")
    for path in (stale / "ids.bin", stale, growing):  # a folder's own time does not change while its files grow
        os.utime(path, (1, 1))
    assert len(build(ROWS)) == 200 and growing.is_dir() and not stale.exists()


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
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == ["digests.json"]


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


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"path": 5}', b"\xff\xfe", b'{"a": [1, 2, {}]}', b"null"])
def test_an_index_that_cannot_be_read_is_written_again(build, tmp_path, content):
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
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == ["digests.json"]
    assert token_cache.content_digest(path, tmp_path / "cache").startswith(f"{2 * size}:")
