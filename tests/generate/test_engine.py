"""Requests join and leave between steps, and each gets the answer that it gets alone."""

import pytest
import torch
from factories import EOS, TOKENIZER, greedy, prompts
from tiny_model import tiny

from engine.generate import engine
from engine.generate.detokenizer import TextStream
from engine.generate.engine import GenerationEngine, Request, complete
from engine.generate.fast_decoder import Decoder
from engine.generate.sampling import Sampling

pytestmark = pytest.mark.usefixtures("one_thread")
GREEDY = Sampling(temperature=0)
CLOSE = 1e-4  # nats


def request(prompt, count=12, sampling=GREEDY, **more) -> Request:
    return Request(prompt, count, (EOS,), sampling, **more)


def finish(slots: GenerationEngine) -> None:
    while slots.busy:
        slots.step()


def alone(model, added: Request, capacity=128) -> Request:
    slots = GenerationEngine(Decoder(model), 1, capacity)
    slots.add(added)
    finish(slots)
    return added


def request_with_logprobs(prompt, count=12) -> Request:
    """Ask for the log-probability of every token at every step."""
    return request(prompt, count, top_logprobs=6400)


def sorted_logprobs(token) -> torch.Tensor:
    """Return the log-probabilities of a step by token id, (V,)."""
    return torch.tensor([logprob for _, logprob in sorted(token.top_logprobs)])


def assert_equal_but_for_rounding(actual: Request, expected: Request):
    """Compare log-probabilities within 1e-4, and ids as long as the two best are further apart than that."""
    assert expected.ids
    for step, (token, reference) in enumerate(zip(actual.logprobs, expected.logprobs, strict=True)):
        assert (sorted_logprobs(token) - sorted_logprobs(reference)).abs().max() < CLOSE
        if reference.top_logprobs[0][1] - reference.top_logprobs[1][1] < CLOSE:
            return
        assert actual.ids[step] == expected.ids[step]
    assert actual.finish_reason == expected.finish_reason


@pytest.fixture
def varied():
    """Make ten prompts and limits of their answers, of different lengths."""
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, 6400, (3 + 7 * n % 40,), generator=generator).tolist() for n in range(10)]
    return [([1, *prompt], 3 + 5 * n % 13) for n, prompt in enumerate(prompts)]


def test_greedy_answer_is_the_argmax_of_the_full_forward(model):
    ids = prompts()[2]
    with torch.no_grad():
        for token in greedy(model, ids):
            assert token == model(torch.tensor([ids])).logits[0, -1].argmax()
            ids = [*ids, token]


def test_prompts_of_different_lengths_are_answered_together_as_alone(model):
    together = complete(model, prompts(), max_new_tokens=12, end_id=EOS, temperature=0)
    assert together == [greedy(model, ids) for ids in prompts()]
    assert len(set(map(tuple, together))) == 4


def test_finished_row_gets_no_tokens_while_others_continue(model):
    alone = [greedy(model, ids) for ids in prompts()]
    end_id = alone[0][3]
    together = complete(model, prompts(), max_new_tokens=12, end_id=end_id, temperature=0)
    assert together == [answer[: answer.index(end_id)] if end_id in answer else answer for answer in alone]
    assert len(together[0]) == alone[0].index(end_id)


def test_top_k_of_one_is_greedy(model):
    sampled = complete(model, prompts(), max_new_tokens=12, end_id=EOS, temperature=1.5, top_k=1)
    assert sampled == complete(model, prompts(), max_new_tokens=12, end_id=EOS, temperature=0)


def test_max_new_tokens_counts_new_tokens_and_may_differ_by_prompt(model):
    ids = list(range(10, 60))
    assert len(complete(model, [ids], max_new_tokens=1, end_id=-1, temperature=0)[0]) == 1
    answers = complete(model, [ids, ids[:4]], max_new_tokens=(5, 9), end_id=-1, temperature=0)
    assert [len(answer) for answer in answers] == [5, 9]


def test_requests_that_join_and_leave_get_the_answers_they_get_alone(model, varied):
    slots = GenerationEngine(Decoder(model), 3, 64)
    slots.cache.kv.fill_(1e4)  # what was there before
    together = [request_with_logprobs(prompt, count) for prompt, count in varied]
    coming, most = iter(together), 0
    for step in range(200):
        if step % 2 == 0 and (newcomer := next(coming, None)):
            slots.add(newcomer)
        slots.step()
        most = max(most, len(slots.running))
        if not slots.busy and step > 2 * len(together):
            break
    assert most == 3 and not slots.busy
    for joined, (prompt, count) in zip(together, varied, strict=True):
        assert_equal_but_for_rounding(joined, alone(model, request_with_logprobs(prompt, count)))


def test_cached_answers_equal_the_full_forward(model, varied):
    slots = GenerationEngine(Decoder(model), 4, 64)
    together = [slots.add(request_with_logprobs(prompt, count)) for prompt, count in varied]
    finish(slots)
    for done in together:
        with torch.no_grad():
            logprobs = model(torch.tensor([done.prompt + done.ids])).logits[0, len(done.prompt) - 1 :].log_softmax(-1)
        for step, token in enumerate(done.logprobs):
            assert (sorted_logprobs(token) - logprobs[step]).abs().max() < CLOSE
            assert token.logprob == dict(token.top_logprobs)[done.ids[step]]


def test_sampled_answer_depends_on_its_own_seed_alone(model):
    *settings, other = [Sampling(temperature=1.0, top_p=1.0, seed=seed) for seed in (0, 1, 2, 3, 77)]
    prompt = prompts()[2]
    expected = [alone(model, request(prompt, sampling=sampling)).ids for sampling in settings]
    assert len(set(map(tuple, expected))) == 4
    torch.manual_seed(9)  # the global one has no say
    slots = GenerationEngine(Decoder(model), 4, 64)
    slots.add(request(prompts()[3], 5, other))
    slots.step()
    sampled = [slots.add(request(prompt, sampling=sampling)) for sampling in reversed(settings)]
    state = torch.get_rng_state()
    finish(slots)
    assert [done.ids for done in reversed(sampled)] == expected
    assert torch.equal(torch.get_rng_state(), state)


def test_prompts_above_the_limit_of_a_step_wait_in_order(model, monkeypatch):
    monkeypatch.setattr(engine, "MAX_PREFILL_TOKENS", 30)
    slots = GenerationEngine(Decoder(model), 8, 64)
    for size in (20, 9, 40, 5):
        slots.add(request(list(range(3, 3 + size)), 20))
    sizes = []
    for _ in range(4):
        slots.step()
        sizes.append([len(running.prompt) for running in slots.running])
    assert sizes == [[20, 9], [20, 9, 40], [20, 9, 40, 5], [20, 9, 40, 5]]


def test_canceled_request_frees_its_slot_running_or_waiting(model):
    slots = GenerationEngine(Decoder(model), 1, 64)
    first, second, third = (slots.add(request(prompt, 9)) for prompt in prompts()[:3])
    slots.step()
    first.cancel()
    second.cancel()
    assert slots.step() == [first, second, third]
    assert first.finish_reason == second.finish_reason == "canceled" and len(first.ids) == 1 and second.ids == []
    assert slots.running == [third]
    finish(slots)
    assert third.ids == alone(model, request(prompts()[2], 9)).ids


def test_finish_reason_is_stop_or_length(model):
    ids = alone(model, request(prompts()[0])).ids
    ends = Request(prompts()[0], 12, (ids[4],), GREEDY)
    assert alone(model, ends).ids == ids[:4] and ends.finish_reason == "stop"
    assert alone(model, request(prompts()[0], 5)).finish_reason == "length"
    cut = alone(model, request(prompts()[0], 500), capacity=len(prompts()[0]) + 7)
    assert cut.finish_reason == "length" and cut.ids == ids[:7]


def test_prompt_that_fills_the_context_is_refused_with_the_numbers(model):
    with pytest.raises(ValueError, match="takes 64 tokens of a context of 64"):
        GenerationEngine(Decoder(model), 1, 64).add(request(list(range(64))))
    assert len(alone(model, request(list(range(63))), capacity=64).ids) == 1
    with pytest.raises(ValueError, match="at least one token"):
        GenerationEngine(Decoder(model), 1, 64).add(request([]))


def test_penalties_count_the_tokens_of_their_own_answer_alone(model):
    def first_token(prompt):
        return alone(model, request(prompt, 1)).ids[0]

    candidates = ([1, token, 50, token] for token in range(3, 500))
    prompt = next(ids for ids in candidates if first_token(ids) in ids[1:])
    harsh = Sampling(temperature=0, presence_penalty=1e4)
    slots = GenerationEngine(Decoder(model), 2, 64)
    penalized, plain = [slots.add(request(prompt, 30, sampling)).ids for sampling in (harsh, GREEDY)]
    finish(slots)
    assert penalized[0] == first_token(prompt) and len(set(penalized)) == len(penalized) > 5
    assert plain == alone(model, request(prompt, 30)).ids and len(set(plain)) < len(plain)


def test_cache_has_the_dtype_of_the_matmuls(model):
    with torch.autocast("cpu", torch.bfloat16):
        slots = GenerationEngine(Decoder(model), 1, 32)
        slots.add(request(prompts()[0], 4))
        slots.step()
    assert slots.cache.kv.dtype == torch.bfloat16 == GenerationEngine(Decoder(tiny().bfloat16()), 1, 32).cache.kv.dtype


def test_answer_of_a_single_request_is_that_of_complete(model):
    assert (
        alone(model, request(prompts()[3])).ids
        == complete(model, [prompts()[3]], max_new_tokens=12, end_id=EOS, temperature=0)[0]
    )


def test_stop_string_ends_the_request(model):
    whole = alone(model, request(prompts()[2], 20, text=TextStream(TOKENIZER)))
    middle = whole.written[len(whole.written) // 2 :][:3]
    ended = alone(model, request(prompts()[2], 20, text=TextStream(TOKENIZER, [middle])))
    assert ended.finish_reason == "stop" and ended.written == whole.written[: whole.written.index(middle)]
    assert len(ended.ids) < len(whole.ids)
    assert TOKENIZER.decode(whole.ids, skip_special_tokens=False) == whole.written
