"""A cache is known by the content of its files."""

import json
import os

import pytest
from factories import write_rows

from engine.corpus import jsonl, token_cache
from engine.corpus.digests import content_digest

ROWS = [{"text": f"The boat number {number} comes home 船"} for number in range(200)]


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
    assert content_digest(path, tmp_path / "cache").startswith(f"{2 * size}:")
