"""The encoding of a text is known by its bytes, or it is not known."""

import pytest

from engine.corpus.encodings import guess_encoding


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_is_known_also_where_a_character_is_cut(encoding):
    for text in ("Boats come home, é", "一条船回来了。\n"):
        sample = (text * 20).encode(encoding)
        for cut in range(4):
            assert guess_encoding(sample[: len(sample) - cut]) == encoding.removesuffix("-sig")
