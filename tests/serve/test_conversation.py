"""The context holds the newest of the talk, and an answer stops where it ends."""

import pytest
from making import greedy

from engine.serve.conversation import Conversation

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_oldest_pairs_are_left_out_when_the_context_is_full(model, tokenizer):
    talk = Conversation(model, tokenizer, True, None, 32, {})
    history = [(f"问题{n}" * 5, f"回答{n}" * 5) for n in range(4)]
    ids = talk.prompt("现在呢？", history)
    kept = [n for n in range(4) if f"问题{n}" in tokenizer.decode(ids, skip_special_tokens=False)]
    assert kept and kept == list(range(4 - len(kept), 4)) and len(kept) < 4
    assert len(ids) + 32 <= 128 < len(talk.encode("现在呢？", history[kept[0] - 1 :])) + 32


def test_an_answer_stops_where_the_context_ends(model, tokenizer):
    talk = Conversation(model, tokenizer, True, None, 512, {"end_id": -1, "temperature": 0})
    ids = talk.prompt("你好")
    text = tokenizer.decode(greedy(model, ids, 128 - len(ids)), skip_special_tokens=False)
    assert talk.answers([ids, [*ids, 5, 6, 7]])[0] == "".join(talk.stream(ids)) == text
