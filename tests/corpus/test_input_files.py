"""A folder is read with all that is in it: each file is known by its first bytes, and what is left is named."""

import gzip
import json
import os

import numpy as np
import pytest

from engine.corpus import readers
from engine.corpus.input_files import find_files

LINES = json.dumps({"text": "boats"}) + "\n"


def write(path, content):
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_folder_is_read_with_all_that_is_in_it_and_the_rest_is_named(tmp_path):
    for name, content in {
        "笔记/第一.md": "# 一",
        "笔记/line\nbreak.txt": "two",
        "rows.jsonl": LINES,
        "picture.txt": b"\x89PNG\r\n\x1a\n",
        "paper.md": b"%PDF-1.4",
        "weights.bin": bytes(range(256)) * 9,
        "empty.txt": " \n",
        ".git/config": "x",
        "sub/.hidden": "x",
        "sub/node_modules/a.txt": "x",
        "data/state.json": "{}",
        "data/cache-0a1b.arrow": b"\xff\xff\xff\xff",
        "prepared/dropped.jsonl.gz": "",
        "prepared/pretrain.jsonl": LINES,
        "settings.json": '{\n  // a comment\n  "a": 1\n}',
        "drawing.svg": "<svg><text>hi</text></svg>",
        "lesson.ipynb": '{\n "cells": []\n}',
        "saved.jsonl": "<html><body>Please log in</body></html>",
    }.items():
        write(tmp_path / name, content)
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    (tmp_path / "sub" / "again.md").symlink_to(tmp_path / "笔记" / "第一.md")
    (tmp_path / "sub" / "broken").symlink_to(tmp_path / "nowhere")
    files, left = find_files([tmp_path])
    assert [(file.name, file.type) for file in files] == [
        ("rows.jsonl", "jsonl"),
        ("sub/again.md", "markdown"),
        ("笔记/line\nbreak.txt", "text"),
    ]
    reasons = {name: reason.partition(";")[0] for name, reason in left}
    assert reasons == {
        ".git": "hidden",
        "data/cache-0a1b.arrow": "a cache of the datasets library",
        "data/state.json": "describes a data set",
        "empty.txt": "empty",
        "paper.md": "a PDF file",
        "picture.txt": "an image",
        "settings.json": "line 2: broken JSON: Expecting property name enclosed in double quotes",
        "drawing.svg": "an image",
        "lesson.ipynb": "a notebook",
        "saved.jsonl": "a web page (of an error or a login?)",
        "sub/.hidden": "hidden",
        "sub/broken": "cannot be read (No such file or directory)",
        "sub/node_modules": "a folder of programs",
        "weights.bin": "binary, perhaps token ids in uint16",
        "笔记/第一.md": "the same file as sub/again.md",
    }


def test_names_and_order_are_those_of_the_content_not_of_the_arguments(tmp_path):
    for folder in "xy":
        write(tmp_path / folder / "in" / "a.txt", folder)
        write(tmp_path / folder / "b.txt", folder)
    paths = [tmp_path / "x", tmp_path / "y", tmp_path / "y" / "b.txt"]
    assert find_files(paths) == find_files(paths[::-1]) == find_files([*paths, paths[0]])
    assert [file.name for file in find_files(paths)[0]] == ["x/b.txt", "x/in/a.txt", "y/b.txt", "y/in/a.txt"]


def test_nothing_to_read_is_an_error_with_reasons(tmp_path):
    path = write(tmp_path / "paper.pdf", b"%PDF-1.4")
    with pytest.raises(
        ValueError, match=r"(?s)paper.pdf: nothing to read, and 1 files are left out\n  paper.pdf: a PDF"
    ):
        find_files([path])
    with pytest.raises(ValueError, match="notes: no such file or folder"):
        find_files([tmp_path / "notes"])


ZH = "清晨，港务长打开了闸门，第一条船随着潮水驶进港口，船上装满了过冬用的盐和绳子。"


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.json", "a.jsonl.gz", "a.html", "a.py"])
def test_each_text_is_read_in_its_encoding(tmp_path, name, encoding):
    content = {
        "a.txt": ZH,
        "a.csv": f"text\n{ZH}\n",
        "a.json": f'[\n{{"text": "{ZH}"}}\n]',
        "a.jsonl.gz": f'{{"text": "{ZH}"}}\n',
        "a.html": f"<html><body><p>{ZH}</p>\n",
        "a.py": f"{{'text': '{ZH}'}}",
    }[name]
    packed = gzip.compress if name.endswith("gz") else bytes
    (file,), _ = readers.find_files([write(tmp_path / name, packed(content.encode(encoding)))])
    (block,) = readers.read_blocks(file)
    assert list(readers.parse_block(file, block)) == [(2 if name == "a.csv" else 1, {"text": ZH})]
    assert file.encoding == encoding


def test_an_encoding_that_is_not_sure_is_refused_and_can_be_named(tmp_path):
    write(tmp_path / "短.txt", "港务长".encode("gb18030"))
    write(tmp_path / "utf8.txt", "港务长")
    write(tmp_path / "sixteen.txt", ZH.encode("utf-16"))
    with pytest.raises(ValueError, match=r"^短.txt: not UTF-8, and no other encoding is sure; name it by --encoding"):
        find_files([tmp_path])
    with pytest.raises(ValueError, match="--encoding gbk2: no such encoding"):
        find_files([tmp_path], encoding="gbk2")
    files, _ = find_files([tmp_path], encoding="gbk")
    assert {file.name: file.encoding for file in files} == {
        "短.txt": "gbk",
        "utf8.txt": "utf-8",
        "sixteen.txt": "utf-16",
    }


def test_token_ids_are_no_text_of_utf16(tmp_path):
    ids = np.random.default_rng(1)
    for name, tokens in {"gpt2": ids.zipf(1.2, 9000) % 50257, "characters": ids.integers(0, 65, 9000)}.items():
        write(tmp_path / f"{name}.bin", tokens.astype(np.uint16).tobytes())
    with pytest.raises(ValueError, match=r"(?s)characters.bin: binary, perhaps token ids.*gpt2.bin: binary, perhaps"):
        find_files([tmp_path])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_neither_a_pipe_nor_a_name_that_is_no_text_stops_a_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    os.symlink("/dev/zero", tmp_path / "zero.txt")
    with open(os.fsencode(tmp_path) + b"/bad\xff.txt", "w") as file:
        file.write("boats")
    files, left = find_files([tmp_path])
    assert [file.name for file in files] == ["bad\\udcff.txt"]
    assert left == [("pipe.txt", "a pipe or a device"), ("zero.txt", "a pipe or a device")]
