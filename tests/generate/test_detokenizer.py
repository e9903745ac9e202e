"""A stream writes whole characters, and nothing of a stop string."""

import pytest
import torch
from factories import TOKENIZER

from engine.generate.detokenizer import TextStream


def pieces(ids):
    """Yield the text that a stream writes at each token and at its end."""
    stream, shown = TextStream(TOKENIZER), 0
    for token in ids:
        stream.add(token)
        yield stream.written[shown:]
        shown = len(stream.written)
    stream.end()
    yield stream.written[shown:]


@pytest.mark.parametrize(
    "text", ["你好，世界！龘靐齉", "笑脸😀👨‍👩‍👧‍👦和🇨🇳", "a b\n  c", "<think>\n嗯\n</think>", "é ñ ü"]
)
def test_stream_equals_the_whole_text_without_broken_characters(text):
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    texts = list(pieces(ids))
    assert "".join(texts) == text
    assert not any("\ufffd" in piece for piece in texts)


def test_stream_of_any_tokens_equals_decoding_them_at_once():
    """A model that has seen little also writes bytes that are no text."""
    generator = torch.Generator().manual_seed(0)
    for high in (260, 6400):
        for _ in range(50):
            ids = torch.randint(3, high, (30,), generator=generator).tolist()
            streamed = "".join(pieces(ids))
            assert streamed == TOKENIZER.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("text", ["龘靐齉😀", "👨‍👩‍👧‍👦🇨🇳é"])
def test_character_of_several_tokens_is_never_split_and_marked_when_cut(text):
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert len(ids) > len(text)
    stream, shown = TextStream(TOKENIZER), []
    for token in ids:
        stream.add(token)
        shown.append(stream.written)
    assert shown[-1] == text and len(set(shown)) < len(ids)
    assert all(text.startswith(prefix) for prefix in shown)
    cut = TextStream(TOKENIZER)
    cut.add(ids[0])
    assert cut.written == ""
    cut.end()
    assert cut.written == "\ufffd"


def stream_text(text, stop) -> TextStream:
    stream, shown = TextStream(TOKENIZER, stop), ""
    for token in TOKENIZER.encode(text, add_special_tokens=False).ids:
        if not stream.stopped:
            stream.add(token)
        assert stream.written.startswith(shown)  # nothing that was shown is taken back
        shown = stream.written
    stream.end()
    return stream


@pytest.mark.parametrize(
    "text, stop, written",
    [
        ("海风吹过码头，船都回来了。", ["码头"], "海风吹过"),
        ("the sea was calm", ["a was c"], "the se"),
        ("aab", ["ab"], "a"),
        ("one two three", ["three", "two"], "one "),
        ("abcabd", ["abd"], "abc"),
        ("笑脸😀👨‍👩‍👧‍👦和🇨🇳", ["和🇨"], "笑脸😀👨‍👩‍👧‍👦"),
        ("abc", ["abc"], ""),
        ("the sea", ["e", "h"], "t"),
    ],
)
def test_stop_string_across_tokens_ends_an_answer_and_is_left_out(text, stop, written):
    stream = stream_text(text, stop)
    assert stream.stopped and stream.written == written


@pytest.mark.parametrize("text, stop", [("the sea was ca", ["calm"]), ("好的。。", ["。。。"]), ("abc", ["abcd", "x"])])
def test_beginning_of_a_stop_string_is_written_at_the_end(text, stop):
    stream = stream_text(text, stop)
    assert not stream.stopped and stream.written == text
