"""Answers are the same alone and together, at once and token by token."""

import pytest
import torch
from making import END_ID, greedy

from engine.generate.decode import complete, generate, stream_text

pytestmark = pytest.mark.usefixtures("one_thread")


def prompts(count=4):
    return [[1, *range(10 + n, 15 + 4 * n)] for n in range(count)]


def test_a_greedy_answer_is_the_argmax_of_the_full_forward(model):
    ids = prompts()[2]
    with torch.no_grad():
        for token in greedy(model, ids):
            assert token == model(torch.tensor([ids])).logits[0, -1].argmax()
            ids = [*ids, token]


def test_prompts_of_different_lengths_are_answered_together_as_alone(model):
    together = complete(model, prompts(), max_new_tokens=12, end_id=END_ID, temperature=0)
    assert together == [greedy(model, ids) for ids in prompts()]
    assert len(set(map(tuple, together))) == 4


def test_a_finished_row_stays_silent_while_others_go_on(model):
    alone = [greedy(model, ids) for ids in prompts()]
    end_id = alone[0][3]
    together = complete(model, prompts(), max_new_tokens=12, end_id=end_id, temperature=0)
    assert together == [answer[: answer.index(end_id)] if end_id in answer else answer for answer in alone]
    assert len(together[0]) == alone[0].index(end_id)


def test_top_k_of_one_is_greedy(model):
    sampled = complete(model, prompts(), max_new_tokens=12, end_id=END_ID, temperature=1.5, top_k=1)
    assert sampled == complete(model, prompts(), max_new_tokens=12, end_id=END_ID, temperature=0)


def test_max_new_tokens_counts_only_new_tokens(model):
    for count in (1, 5):
        steps = list(generate(model, [list(range(10, 60))], max_new_tokens=count, end_id=-1, temperature=0))
        assert len(steps) == count


@pytest.mark.parametrize(
    "text", ["你好，世界！龘靐齉", "笑脸😀👨‍👩‍👧‍👦和🇨🇳", "a b\n  c", "<think>\n嗯\n</think>", "é ñ ü"]
)
def test_streaming_equals_the_whole_text_without_broken_characters(text, tokenizer):
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    pieces = list(stream_text(tokenizer, iter(ids)))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_streaming_any_tokens_equals_decoding_them_at_once(tokenizer):
    """A young model's bytes need not be text at all."""
    generator = torch.Generator().manual_seed(0)
    for high in (260, 6400):
        for _ in range(50):
            ids = torch.randint(3, high, (30,), generator=generator).tolist()
            streamed = "".join(stream_text(tokenizer, iter(ids)))
            assert streamed == tokenizer.decode(ids, skip_special_tokens=False)
