"""The tokenizer learns from what it may, in bounded pieces."""

from hypothesis import given, settings
from hypothesis import strategies as st
from making import write_rows

from engine.corpus import bpe


def test_held_out_rows_are_not_learned_from(tmp_path):
    corpus = write_rows(tmp_path / "rows.jsonl", [{"text": f"海 {number:03}."} for number in range(400)])
    (hashes,) = bpe.first_pass([corpus], 0.1, strict=True)[1]
    seen, unseen = (list(bpe.texts_of_examples(corpus, hashes, 1.0, held_out=kept)) for kept in (False, True))
    assert len(unseen) == 64
    assert len(seen) == 336
    assert not set(seen) & set(unseen)


@settings(deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.sampled_from("海a 。.\n\r"), st.sampled_from([1, 2, 510, 511, 512, 513, 1100])), max_size=8)
)
def test_pieces_join_to_the_text_and_none_is_longer_than_512(runs):
    text = "".join(character * count for character, count in runs)
    pieces = bpe.PIECE.findall(text)
    assert "".join(pieces) == text and all(len(piece) <= 512 for piece in pieces)
    assert all(not set(piece[:-1]) & set("。.\n") for piece in pieces)
