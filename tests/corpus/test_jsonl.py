"""JSONL as it comes is read as meant, and what is left out of it is counted, named or refused."""

import gzip
import json
import os
import threading
import time
from contextlib import nullcontext

import pytest

from dataset import SFTDataset
from engine.corpus import jsonl

# ------------------------------------------------------------------------------------------------- reading

ROWS = [json.dumps({"text": text}, ensure_ascii=False).encode() for text in ("一 one", "二 two", "三 three")]
BOM = b"\xef\xbb\xbf"
GOOD = {"text": "two boats"}
BROKEN = "{broken"


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
    assert cache.meta["sources"][0]["counts"]["rows"] == 3 and cache.meta["sources"][0]["counts"]["bad"] == 0


@pytest.mark.parametrize("block", [1 << 10, jsonl.READ_BLOCK_BYTES], ids=["many reads", "few reads"])
def test_a_line_of_ten_megabytes_is_one_row_and_read_in_linear_time(build, texts, tmp_path, monkeypatch, block):
    monkeypatch.setattr(jsonl, "READ_BLOCK_BYTES", block)
    long = json.dumps({"notes": "x" * (10 << 20), "text": "after the notes"}).encode()
    (tmp_path / "long.jsonl").write_bytes(b"\n".join([ROWS[0], long, ROWS[1]]))
    started = time.process_time()
    assert texts(build(tmp_path / "long.jsonl", strict=True)) == ["一 one", "after the notes", "二 two"]
    assert time.process_time() - started < 3


def test_bad_rows_are_skipped_and_counted_and_the_first_five_named(build, texts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jsonl, "READ_BLOCK_BYTES", 1000)  # line numbers continue from block to block
    numbers = [str(number) for number in range(1500)]
    rows = [{"text": number} for number in numbers]
    cache = build([BROKEN, *rows[:3], BROKEN, *rows[3:700], *[BROKEN] * 10, *rows[700:]])
    assert texts(cache) == numbers
    counts = cache.meta["sources"][0]["counts"]
    assert (counts["rows"], counts["bad"]) == (1512, 12)
    examples = [example.split(" (")[0] for example in counts["examples"]]
    assert examples == [f"{line}: not JSON" for line in (1, 5, 703, 704, 705)]
    warning = capsys.readouterr().err
    assert "skipped 12 bad rows of 1512" in warning and all(example in warning for example in examples)


@pytest.mark.parametrize("good, bad, refused", [(10, 10, False), (10, 11, True), (1089, 11, False), (1088, 11, True)])
def test_more_than_one_percent_and_more_than_ten_bad_rows_are_refused(build, good, bad, refused):
    message = rf"{bad} of {good + bad} rows are bad(.|\n)*0.jsonl:1: not JSON"
    with pytest.raises(ValueError, match=message) if refused else nullcontext():
        assert len(build([BROKEN] * bad + [GOOD] * good)) == good


def test_strict_stops_at_the_first_bad_row(build):
    with pytest.raises(ValueError, match=r"^\S*0.jsonl:5: not JSON .*--strict_data"):
        build([GOOD] * 4 + [BROKEN, GOOD, BROKEN], strict=True)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"{broken\n", None], ids=["empty", "blank", "all bad", "missing"])
def test_a_file_without_a_row_is_refused(build, tmp_path, content):
    if content is not None:
        (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match="no usable row" if content is not None else "rows.jsonl: no such file"):
        build(tmp_path / "rows.jsonl")


def test_a_gz_file_that_breaks_off_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "abc"}\n' * 5000)[:-20])
    with pytest.raises(ValueError, match=r"rows\.jsonl\.gz: damaged"):
        list(jsonl.read_blocks(path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_pipe_is_refused_before_it_is_read(build, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    read, write = os.pipe()
    refused = []

    def attempt(path):
        with pytest.raises(ValueError, match="a pipe or a device"):
            build(path)
        refused.append(path)

    for path in (tmp_path / "pipe", f"/dev/fd/{read}", "/dev/zero"):
        if os.path.exists(path):
            thread = threading.Thread(target=attempt, args=[path], daemon=True)
            thread.start()
            thread.join(10)
            assert refused[-1:] == [path], f"{path} hangs"
    os.close(read), os.close(write)


# ------------------------------------------------------------------------------------------------- counting


def test_rows_without_text_are_counted_apart(build, capsys):
    rows = [{"text": "" if number % 3 else "boats"} for number in range(30)]
    cache = build(rows, strict=True)
    counts = cache.meta["sources"][0]["counts"]
    assert len(cache) == 10 and (counts["bad"], counts["empty"]) == (0, 20)
    assert "left out 20 rows of 30: 20 have no words" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no usable row in it: 3 have no words"):
        build([{"text": " "}] * 3)


def test_a_mostly_bad_file_is_refused_among_good_ones(build):
    good = [GOOD] * 2000
    with pytest.raises(ValueError, match=r"(?s)1\.jsonl: 8 of 8 rows are bad.*1\.jsonl:1: no field"):
        build(good, [{"prompt": "a"}] * 8)
    with pytest.raises(ValueError, match=r"1\.jsonl: 6 of 9 rows are bad"):
        build(good, [{"prompt": "a"}] * 6 + good[:3])


def test_skipped_rows_are_reported_by_file_and_from_the_cache(build, capsys):
    good, bad = [GOOD] * 5, {"prompt": "\u001b[31ma"}
    for _ in range(2):
        build(good, [*good, bad])
        warning = capsys.readouterr().err
        assert "1.jsonl: skipped 1 bad rows of 6" in warning and '1.jsonl:6: no field "text"' in warning
        assert "0.jsonl" not in warning and "\u001b[31m" not in warning
    with pytest.raises(ValueError, match="1.jsonl:6: .*--strict_data"):
        build(good, [*good, bad], strict=True)


def test_texts_without_a_conversation_are_refused_by_a_stage_of_chats(build, tmp_path):
    with pytest.raises(ValueError, match="20 rows are texts and none is a conversation.*pretrain.py"):
        build([GOOD] * 20, dataset_class=SFTDataset)
    assert not [*(tmp_path / "cache").iterdir()]
    chat = {"messages": [{"content": "q"}, {"content": "a"}]}
    cache = build([GOOD] * 20, [chat], dataset_class=SFTDataset)
    assert len(cache) == 21
    notes = [source["counts"]["notes"] for source in cache.meta["sources"]]
    assert notes == [{"schema text": [20, 1]}, {"schema messages": [1, 1], "tags none": [1, 1]}]
