"""JSONL as it comes becomes one token cache, and never a stale or a half one."""

import gzip
import json
import os
import shutil
import time
import tracemalloc
from contextlib import nullcontext

import numpy as np
import pytest
from tokenizers import Tokenizer

from dataset import PretrainDataset, SFTDataset
from engine.corpus import jsonl, token_cache
from engine.corpus.bpe import scan_corpus
from engine.corpus.token_cache import open_or_build
from engine.tokenizer import fingerprint


@pytest.fixture
def build(tokenizer, tmp_path):
    """build(path, ...) -> TokenCache in tmp_path/cache."""

    def build(*paths, dataset_class=PretrainDataset, tokenizer=tokenizer, cache_dir="cache", **options):
        return open_or_build(paths, dataset_class, tokenizer, cache_dir=tmp_path / cache_dir, **options)

    return build


@pytest.fixture
def texts(tokenizer):
    """texts(cache) -> what its documents say."""

    def texts(cache):
        bounds = zip(cache.offsets[:-1], cache.offsets[1:], strict=True)
        return [tokenizer.decode(cache.ids[begin:end].tolist(), skip_special_tokens=True) for begin, end in bounds]

    return texts


def write(path, contents, bad=()):
    """One row a content; before row `bad[i]` stands a line that is no JSON."""
    rows = [json.dumps({"text": text}, ensure_ascii=False) for text in contents]
    for number in sorted(bad, reverse=True):
        rows.insert(number, "{broken")
    path.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
    return path


def numbered(count, word="row"):
    return [f"{word} {number} 号" for number in range(count)]


# ------------------------------------------------------------------------------------------------- reading

ROWS = [json.dumps({"text": text}, ensure_ascii=False).encode() for text in ("一 one", "二 two", "三 three")]
BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize("block", [7, jsonl.READ_BLOCK_BYTES], ids=["short reads", "one read"])
@pytest.mark.parametrize(
    "name, content",
    [
        ("plain.jsonl", b"\n".join(ROWS) + b"\n"),
        ("bom.jsonl", BOM + b"\n".join(ROWS) + b"\n"),
        ("crlf.jsonl", b"\r\n".join(ROWS) + b"\r\n"),
        ("open_end.jsonl", b"\n".join(ROWS)),
        ("blank.jsonl", b"\n \n" + b"\n\r\n\t\n".join(ROWS) + b"\n\n"),
        ("packed.jsonl.gz", gzip.compress(BOM + b"\n".join(ROWS) + b"\n")),
        ("two_members.jsonl.gz", gzip.compress(ROWS[0] + b"\n") + gzip.compress(b"\n".join(ROWS[1:]))),
    ],
    ids=lambda value: value.split(".")[0] if isinstance(value, str) else "",
)
def test_a_file_is_read_as_meant(build, texts, tmp_path, monkeypatch, name, content, block):
    monkeypatch.setattr(jsonl, "READ_BLOCK_BYTES", block)
    (tmp_path / name).write_bytes(content)
    cache = build(tmp_path / name, strict=True)
    assert texts(cache) == ["一 one", "二 two", "三 three"]
    assert cache.meta["rows"] == 3 and cache.meta["bad"] == 0


@pytest.mark.parametrize("block", [1 << 10, jsonl.READ_BLOCK_BYTES], ids=["many reads", "few reads"])
def test_a_line_of_ten_megabytes_is_one_row_and_read_in_linear_time(build, texts, tmp_path, monkeypatch, block):
    monkeypatch.setattr(jsonl, "READ_BLOCK_BYTES", block)
    long = json.dumps({"notes": "x" * (10 << 20), "text": "after the notes"}).encode()
    (tmp_path / "long.jsonl").write_bytes(b"\n".join([ROWS[0], long, ROWS[1]]))
    started = time.process_time()
    assert texts(build(tmp_path / "long.jsonl", strict=True)) == ["一 one", "after the notes", "二 two"]
    assert time.process_time() - started < 3


def test_bad_rows_are_skipped_and_counted_and_the_first_five_named(build, texts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jsonl, "READ_BLOCK_BYTES", 1000)  # line numbers go on from block to block
    path = write(tmp_path / "some.jsonl", numbered(1500), [0, 3, *range(700, 710)])
    cache = build(path)
    assert texts(cache) == numbered(1500)
    assert (cache.meta["rows"], cache.meta["bad"]) == (1512, 12)
    found = [example.split(" (")[0] for example in cache.meta["examples"]]
    assert found == [f"{path}:{line}: not JSON" for line in (1, 5, 703, 705, 707)]
    said = capsys.readouterr().err
    assert "skipped 12 bad rows of 1512" in said and all(example in said for example in cache.meta["examples"])


@pytest.mark.parametrize("good, bad, refused", [(10, 10, False), (10, 11, True), (1089, 11, False), (1088, 11, True)])
def test_more_than_one_percent_and_more_than_ten_bad_rows_are_refused(build, tmp_path, good, bad, refused):
    path = write(tmp_path / "rows.jsonl", numbered(good), [0] * bad)
    said = rf"{bad} of {good + bad} rows are bad(.|\n)*rows.jsonl:1: not JSON"
    with pytest.raises(ValueError, match=said) if refused else nullcontext():
        assert len(build(path)) == good


def test_strict_stops_at_the_first_bad_row(build, tmp_path):
    path = write(tmp_path / "rows.jsonl", numbered(20), [4, 9])
    with pytest.raises(ValueError, match=r"^\S*rows.jsonl:5: not JSON .*--strict_data"):
        build(path, strict=True)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"{broken\n", None], ids=["empty", "blank", "all bad", "missing"])
def test_a_file_without_a_row_is_refused(build, tmp_path, content):
    if content is not None:
        (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match="no usable row" if content is not None else "rows.jsonl: no such file"):
        build(tmp_path / "rows.jsonl")


# --------------------------------------------------------------------------------------------- the cache


def test_two_workers_write_bitwise_the_same_cache_as_one(build, tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "READ_BLOCK_BYTES", 600)  # some fifty blocks, more than are in flight
    paths = [write(tmp_path / f"{name}.jsonl", numbered(400, name), [17, 18, 300]) for name in "ab"]
    one, two = (build(*paths, cache_dir=f"{count}", num_workers=count) for count in (1, 2))
    assert one.folder != two.folder and one.meta["bad"] == 6
    names = sorted(path.name for path in one.folder.iterdir())
    assert names == sorted(path.name for path in two.folder.iterdir())
    assert all((one.folder / name).read_bytes() == (two.folder / name).read_bytes() for name in names)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_cache_holds_what_the_dataset_encodes_and_no_text_in_it_forges_a_control_token(
    build, tokenizer, tmp_path, workers
):
    contents = ["</s><s>assistant\n", *numbered(5), "<unk> <think>"]
    cache = build(write(tmp_path / "rows.jsonl", contents), num_workers=workers)
    documents = PretrainDataset(tokenizer).encode(contents)
    assert np.array_equal(cache.ids, np.concatenate([document.ids for document in documents]))
    assert np.array_equal(cache.classes, np.concatenate([document.classes for document in documents]))
    assert np.diff(cache.offsets).tolist() == [len(document.ids) for document in documents]
    assert np.bincount(cache.ids)[:3].tolist() == [0, 7, 7]


@pytest.mark.parametrize("workers", [1, 2])
def test_memory_does_not_grow_with_the_file(build, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(jsonl, "READ_BLOCK_BYTES", 100_000)
    row = json.dumps({"notes": "x" * 50_000, "text": "a"}) + "\n"
    (tmp_path / "rows.jsonl").write_text(row * 300, encoding="utf-8")  # 15 MB
    tracemalloc.start()
    try:
        assert len(build(tmp_path / "rows.jsonl", num_workers=workers)) == 300
        assert tracemalloc.get_traced_memory()[1] < 10_000_000  # 5 MB are the tokenizer
    finally:
        tracemalloc.stop()


def test_a_changed_mtime_alone_does_not_rebuild(build, tmp_path, monkeypatch):
    path = write(tmp_path / "rows.jsonl", numbered(5))
    first = build(path)
    before = first.folder.stat().st_mtime_ns
    monkeypatch.setattr(token_cache, "_build", None)  # would fail if called
    os.utime(path, (1, 1))
    again = build(path)
    assert again.folder == first.folder and again.folder.stat().st_mtime_ns == before


def test_changed_content_of_the_same_size_builds_a_new_cache(build, texts, tmp_path):
    same = numbered(200)  # so that the change lies far from the beginning
    path = write(tmp_path / "rows.jsonl", [*same, "one", *same])
    first = build(path)
    write(path, [*same, "two", *same])
    os.utime(path, (1, 1))
    second = build(path)
    assert texts(first)[200] == "one" and texts(second)[200] == "two" and first.folder != second.folder


def test_what_a_killed_run_left_is_cleared_after_an_hour_and_what_still_grows_is_not(build, tmp_path):
    path = write(tmp_path / "rows.jsonl", ["one"])
    folder = build(path).folder
    shutil.rmtree(folder)
    dead, alive = (folder.with_name(f"{folder.name}.tmp-{name}") for name in (os.getpid(), "other"))
    for left_over in (dead, alive):
        left_over.mkdir()
        (left_over / "ids.bin").write_bytes(b"0")
    for old in (dead / "ids.bin", dead, alive):  # a folder's own time stands still while its files grow
        os.utime(old, (1, 1))
    assert len(build(path)) == 1 and alive.is_dir() and not dead.exists()


@pytest.fixture
def extended(tokenizer):
    """The committed tokenizer with one token more."""
    other = Tokenizer.from_str(tokenizer.to_str())
    other.add_tokens(["<think>"])
    other.encode_special_tokens = True
    return other


@pytest.mark.parametrize("what", ["tokenizer", "version", "dataset class"])
def test_another_tokenizer_version_or_dataset_class_builds_a_new_cache(build, tmp_path, monkeypatch, extended, what):
    path = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>a"}]
    path.write_text(json.dumps({"text": "<think>", "conversations": turns}), encoding="utf-8")
    first = build(path)
    if what == "version":
        monkeypatch.setattr(token_cache, "ENCODING_VERSION", 999)
    changes = {"tokenizer": {"tokenizer": extended}, "dataset class": {"dataset_class": SFTDataset}}
    second = build(path, **changes.get(what, {}))
    assert first.folder != second.folder and first.folder.is_dir() and second.folder.is_dir()
    assert what == "version" or len(first.ids) != len(second.ids)


def test_a_finished_cache_opens_elsewhere_alone(build, tmp_path):
    path = write(tmp_path / "rows.jsonl", numbered(200))
    first = build(path)
    ids, parts = first.ids.copy(), first.split(0.1)
    shutil.move(first.folder, tmp_path / "carried")
    path.unlink()
    shutil.rmtree(tmp_path / "cache")
    moved = build(tmp_path / "carried")
    assert np.array_equal(moved.ids, ids) and all(map(np.array_equal, moved.split(0.1), parts))
    assert not (tmp_path / "cache").exists()


def test_a_cache_of_another_tokenizer_or_dataset_class_is_refused_with_both_names(build, tmp_path, tokenizer, extended):
    folder = build(write(tmp_path / "rows.jsonl", numbered(5))).folder
    with pytest.raises(ValueError, match=f"{fingerprint(tokenizer)}.*{fingerprint(extended)}"):
        build(folder, tokenizer=extended)
    with pytest.raises(ValueError, match="PretrainDataset.*SFTDataset"):
        build(folder, dataset_class=SFTDataset)


@pytest.mark.parametrize(
    "name, kept", [("ids.bin", 10), ("ids.bin", 11), ("classes.bin", 10), ("hashes.bin", 32), ("offsets.bin", 41)]
)
def test_a_damaged_cache_is_an_error(build, tmp_path, name, kept):
    path = write(tmp_path / "rows.jsonl", numbered(5))
    os.truncate(build(path).folder / name, kept)
    with pytest.raises(ValueError):
        build(path)


class Interrupted(PretrainDataset):
    def encode(self, texts):
        raise KeyboardInterrupt


@pytest.mark.parametrize("how", ["bad rows", "strict", "interrupted"])
def test_a_failed_build_leaves_no_folder_behind(build, tmp_path, how):
    path = write(tmp_path / "rows.jsonl", numbered(5), [0] * 11 if how == "bad rows" else [3])
    with pytest.raises(KeyboardInterrupt if how == "interrupted" else ValueError):
        build(path, dataset_class=Interrupted if how == "interrupted" else PretrainDataset, strict=how == "strict")
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == ["digests.json"]


# ------------------------------------------------------------------------------------------- held-out rows


def held(cache):
    """The content hashes that validation keeps, of each source file."""
    validation, begin, parts = cache.split(0.01)[1], 0, []
    for source in cache.meta["sources"]:
        end = begin + source["documents"]
        parts.append({int(cache.hashes[row]) for row in validation if begin <= row < end})
        begin = end
    return parts


def test_a_file_holds_out_the_same_rows_whatever_file_is_beside_it(build, tmp_path):
    a = write(tmp_path / "a.jsonl", numbered(300, "a"), [7])
    b = write(tmp_path / "b.jsonl", numbered(40, "b"))
    (alone,) = held(build(a))
    assert [alone, held(build(b))[0]] == held(build(a, b)) == held(build(b, a))[::-1]
    assert len(alone) == 64 and len(held(build(b))[0]) == 20


def test_the_tokenizer_learns_from_the_rows_that_training_learns_from(build, tmp_path):
    a = write(tmp_path / "a.jsonl", [*numbered(300, "a"), *numbered(9, "a")], [7])
    b = tmp_path / "b.jsonl"
    b.write_bytes(BOM + write(b, numbered(200, "b")).read_bytes().replace(b"\n", b"\r\n\r\n"))
    size, hidden = scan_corpus([a, b], 0.01, strict=False)
    parts = held(build(a, b))
    assert hidden == set().union(*parts) and all(len(part) >= 60 for part in parts)
    assert size == sum(len(text.encode()) for text in [*numbered(300, "a"), *numbered(9, "a"), *numbered(200, "b")])


def test_a_gz_file_that_breaks_off_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "abc"}\n' * 5000)[:-20])
    with pytest.raises(ValueError, match=r"rows\.jsonl\.gz: damaged"):
        list(jsonl.read_blocks(path))
