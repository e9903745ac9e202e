"""A packed file is read as it is unpacked, up to its end or up to an error."""

import bz2
import gzip
import lzma

import pytest

from engine.corpus.packed_files import open_unpacked

CONTENT = b"boats come home\n" * 999


def zstd(content):
    return pytest.importorskip("pyarrow").Codec("zstd").compress(content, asbytes=True)


PACKINGS = {"": bytes, "gzip": gzip.compress, "zstd": zstd, "xz": lzma.compress, "bzip2": bz2.compress}


@pytest.mark.parametrize("packed", PACKINGS)
def test_all_parts_of_a_packed_file_are_read_and_its_bytes_are_counted(tmp_path, packed):
    pack, advanced = PACKINGS[packed], []
    (tmp_path / "a").write_bytes(pack(CONTENT) + pack(CONTENT))
    with open_unpacked(tmp_path / "a", packed, advanced.append) as stream:
        assert stream.read() == CONTENT * 2
    assert sum(advanced) == (tmp_path / "a").stat().st_size


@pytest.mark.parametrize("packed", [packed for packed in PACKINGS if packed])
def test_a_packed_file_that_breaks_off_is_an_error_that_names_it(tmp_path, packed):
    (tmp_path / "a").write_bytes(PACKINGS[packed](CONTENT)[:-9])
    with (
        open_unpacked(tmp_path / "a", packed) as stream,
        pytest.raises(ValueError, match=f"/a: damaged {packed} file .*; fetch it again"),
    ):
        stream.read()
