"""A stream writes whole characters, and nothing of a stop string."""

import random

import pytest
import torch
from factories import TOKENIZER

from engine.generate.detokenizer import TextStream
from engine.reasoning import format_reasoning, stream_reasoning


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
        ("海风吹过", ["海风停", "风"], "海"),
    ],
)
def test_stop_string_across_tokens_ends_an_answer_and_is_left_out(text, stop, written):
    stream = stream_text(text, stop)
    assert stream.stopped and stream.written == written


@pytest.mark.parametrize("text, stop", [("the sea was ca", ["calm"]), ("好的。。", ["。。。"]), ("abc", ["abcd", "x"])])
def test_beginning_of_a_stop_string_is_written_at_the_end(text, stop):
    stream = stream_text(text, stop)
    assert not stream.stopped and stream.written == text


def test_stop_strings_cut_the_content_and_leave_the_thought():
    """Whatever they are: words of the thought, parts of tags, several that overlap."""
    rng = random.Random(0)
    num_cut = 0
    for _ in range(300):
        thought, content = ("".join(rng.choices("ab。\n<", k=rng.randrange(12))) for _ in range(2))
        text = rng.choice([content, f"<think>{thought}</think>{content}", format_reasoning(thought, content)])
        text = text[: rng.choice([len(text), rng.randrange(len(text) + 1)])]
        starts = [rng.randrange(len(text)) for _ in range(rng.randint(1, 4)) if text]
        stops = [text[start : start + rng.randint(1, 5)] for start in starts]
        whole_thought, whole_content = stream_reasoning(text, is_whole=True)
        end = min((whole_content.index(stop) for stop in stops if stop in whole_content), default=len(whole_content))
        stream, shown = TextStream(TOKENIZER, stops, stream_reasoning), ("", "")
        for token in TOKENIZER.encode(text, add_special_tokens=False).ids:
            stream.add(token)
            assert all(part.startswith(earlier) for part, earlier in zip(stream.parts, shown, strict=True))
            shown = stream.parts
            if stream.stopped:
                break
        stream.end()
        assert stream.parts == (whole_thought, whole_content[:end]), (text, stops)
        assert stream.stopped == (end < len(whole_content))
        num_cut += stream.stopped
    assert 50 < num_cut < 250


def test_beginning_of_a_stop_string_holds_no_tag_back():
    stream = TextStream(TOKENIZER, ["</think>\n<answer>\n六五。", "\n六五。", "<think>"], stream_reasoning)
    for token in TOKENIZER.encode("<think>\n五\n</think>\n<answer>\n六", add_special_tokens=False).ids:
        stream.add(token)
    assert stream.parts == ("五", "六")
