"""A chat survives what people type, and ends politely."""

import io
import sys

import pytest

from engine.serve import conversation


def type_in(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def test_the_end_of_the_input_ends_the_chat_politely(ask, monkeypatch):
    type_in(monkeypatch, b"")
    assert ask().endswith("bye\n")


def test_a_chat_survives_empty_lines_and_bytes_that_are_not_text(ask, monkeypatch):
    type_in(monkeypatch, "你好\n\n   \n".encode() + b"\xff\xfe\x80 what\n")
    out = ask("--temperature", 0)
    assert out.count("> ") == 5
    assert out.endswith("bye\n")


def test_ctrl_c_stops_an_answer_and_then_the_chat(ask, monkeypatch):
    type_in(monkeypatch, "你好\n".encode())

    def interrupted(*_):
        yield "半"
        raise KeyboardInterrupt

    monkeypatch.setattr(conversation, "stream_text", interrupted)
    out = ask()
    assert "半 (stopped)\n" in out
    assert out.endswith("bye\n")
    monkeypatch.setattr("builtins.input", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    assert ask().endswith("bye\n")


@pytest.mark.parametrize("count", [0, 1, 4])
def test_the_chat_remembers_as_many_pairs_as_asked(ask, monkeypatch, count):
    seen, original = [], conversation.Conversation.prompt

    def spy(self, question, history=()):
        seen.append([asked for asked, _ in history])
        return original(self, question, history)

    monkeypatch.setattr(conversation.Conversation, "prompt", spy)
    type_in(monkeypatch, b"a\nb\nc\n")
    ask("--history_cnt", count, "--max_seq_len", 512)
    assert seen == [["a", "b", "c"][max(0, n - count) : n] for n in range(3)]


def test_a_question_longer_than_the_context_is_an_error_with_numbers_and_the_chat_goes_on(ask, monkeypatch):
    with pytest.raises(ValueError, match=r"takes \d+ tokens of a context of 128"):
        ask("--prompt", "龘" * 500)
    type_in(monkeypatch, ("龘" * 500 + "\n你好\n").encode())
    out = ask("--temperature", 0)
    assert "tokens of a context of 128" in out
    assert ask("--temperature", 0, "--prompt", "你好").strip() in out
