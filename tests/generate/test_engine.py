"""One decoding engine: requests join and leave between steps, and nobody notices who sits beside them."""

import pytest
import torch
from factories import EOS, TOKENIZER, prompts
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


def alone(model, one: Request, capacity=128) -> Request:
    slots = GenerationEngine(Decoder(model), 1, capacity)
    slots.add(one)
    while slots.busy:
        slots.step()
    return one


def curious(prompt, count=12) -> Request:
    """It wants to know the log-probability of every token at every step."""
    return request(prompt, count, top_logprobs=6400)


def assert_the_same_but_for_rounding(found: Request, expected: Request):
    """Log-probabilities within 1e-4, and the same ids as long as the two best are further apart than that."""
    assert expected.ids
    for step, (ours, theirs) in enumerate(zip(found.logprobs, expected.logprobs, strict=True)):
        nats = [torch.tensor([value for _, value in sorted(one.top_logprobs)]) for one in (ours, theirs)]
        assert (nats[0] - nats[1]).abs().max() < CLOSE
        if theirs.top_logprobs[0][1] - theirs.top_logprobs[1][1] < CLOSE:
            return
        assert found.ids[step] == expected.ids[step]
    assert found.finish_reason == expected.finish_reason


@pytest.fixture
def varied():
    """Ten requests of different lengths."""
    generator = torch.Generator().manual_seed(1)
    return [
        ([1, *torch.randint(3, 6400, (3 + 7 * n % 40,), generator=generator).tolist()], 3 + 5 * n % 13)
        for n in range(10)
    ]


def test_those_that_join_and_leave_between_steps_get_the_answers_they_get_alone(model, varied):
    slots = GenerationEngine(Decoder(model), 3, 64)
    slots.cache.kv.fill_(1e4)  # what was there before
    together = [curious(prompt, count) for prompt, count in varied]
    coming, most = iter(together), 0
    for step in range(200):
        if step % 2 == 0 and (one := next(coming, None)):
            slots.add(one)
        slots.step()
        most = max(most, len(slots.running))
        if not slots.busy and step > 2 * len(together):
            break
    assert most == 3 and not slots.busy
    for one, (prompt, count) in zip(together, varied, strict=True):
        assert_the_same_but_for_rounding(one, alone(model, curious(prompt, count)))


def test_cached_answers_equal_the_full_forward(model, varied):
    slots = GenerationEngine(Decoder(model), 4, 64)
    together = [slots.add(curious(prompt, count)) for prompt, count in varied]
    while slots.busy:
        slots.step()
    for one in together:
        with torch.no_grad():
            nats = model(torch.tensor([one.prompt + one.ids])).logits[0, len(one.prompt) - 1 :].log_softmax(-1)
        for step, told in enumerate(one.logprobs):
            assert (torch.tensor([value for _, value in sorted(told.top_logprobs)]) - nats[step]).abs().max() < CLOSE
            assert told.logprob == dict(told.top_logprobs)[one.ids[step]]


def test_a_sampled_answer_depends_on_its_own_seed_alone(model):
    free = lambda seed: Sampling(temperature=1.0, top_p=1.0, seed=seed)
    prompt = prompts()[2]
    expected = [alone(model, request(prompt, sampling=free(seed))).ids for seed in range(4)]
    assert len(set(map(tuple, expected))) == 4
    torch.manual_seed(9)  # the global one has no say
    slots = GenerationEngine(Decoder(model), 4, 64)
    slots.add(request(prompts()[3], 5, free(77)))
    slots.step()
    found = [slots.add(request(prompt, sampling=free(seed))) for seed in reversed(range(4))]
    state = torch.get_rng_state()
    while slots.busy:
        slots.step()
    assert [one.ids for one in reversed(found)] == expected
    assert torch.equal(torch.get_rng_state(), state)


def test_prompts_of_one_step_are_limited_and_the_others_wait_in_order(model, monkeypatch):
    monkeypatch.setattr(engine, "MAX_PREFILL_TOKENS", 30)
    slots = GenerationEngine(Decoder(model), 8, 64)
    for size in (20, 9, 40, 5):
        slots.add(request(list(range(3, 3 + size)), 20))
    sizes = []
    for _ in range(4):
        slots.step()
        sizes.append([len(one.prompt) for one in slots.running])
    assert sizes == [[20, 9], [20, 9, 40], [20, 9, 40, 5], [20, 9, 40, 5]]


def test_a_cancelled_request_frees_its_slot_whether_it_sits_or_waits(model):
    slots = GenerationEngine(Decoder(model), 1, 64)
    first, second, third = (slots.add(request(prompt, 9)) for prompt in prompts()[:3])
    slots.step()
    first.cancel()
    second.cancel()
    assert slots.step() == [first, second, third]
    assert first.finish_reason == second.finish_reason == "cancelled" and len(first.ids) == 1 and second.ids == []
    assert slots.running == [third]
    while slots.busy:
        slots.step()
    assert third.ids == alone(model, request(prompts()[2], 9)).ids


def test_an_answer_says_how_it_ended(model):
    ids = alone(model, request(prompts()[0])).ids
    ends = Request(prompts()[0], 12, (ids[4],), GREEDY)
    assert alone(model, ends).ids == ids[:4] and ends.finish_reason == "stop"
    assert alone(model, request(prompts()[0], 5)).finish_reason == "length"
    cut = alone(model, request(prompts()[0], 500), capacity=len(prompts()[0]) + 7)
    assert cut.finish_reason == "length" and cut.ids == ids[:7]


def test_a_prompt_that_fills_the_context_is_refused_with_the_numbers(model):
    with pytest.raises(ValueError, match="takes 64 tokens of a context of 64"):
        GenerationEngine(Decoder(model), 1, 64).add(request(list(range(64))))
    assert len(alone(model, request(list(range(63))), capacity=64).ids) == 1
    with pytest.raises(ValueError, match="at least one token"):
        GenerationEngine(Decoder(model), 1, 64).add(request([]))


def test_penalties_count_the_answer_and_not_the_prompt_and_end_where_it_ends(model):
    first = lambda prompt: alone(model, request(prompt, 1)).ids[0]
    prompt = next([1, one, 50, one] for one in range(3, 500) if first([1, one, 50, one]) in (one, 50))
    harsh = Sampling(temperature=0, presence_penalty=1e4)
    slots = GenerationEngine(Decoder(model), 2, 64)
    found = [slots.add(request(prompt, 30, sampling)) for sampling in (harsh, GREEDY)]
    while slots.busy:
        slots.step()
    assert found[0].ids[0] == first(prompt) and len(set(found[0].ids)) == len(found[0].ids) > 5
    assert found[1].ids == alone(model, request(prompt, 30)).ids and len(set(found[1].ids)) < len(found[1].ids)


def test_in_half_precision_the_cache_is_what_the_products_are(model):
    with torch.autocast("cpu", torch.bfloat16):
        slots = GenerationEngine(Decoder(model), 1, 32)
        slots.add(request(prompts()[0], 4))
        slots.step()
    assert slots.cache.kv.dtype == torch.bfloat16 == GenerationEngine(Decoder(tiny().bfloat16()), 1, 32).cache.kv.dtype


def test_an_answer_with_nobody_beside_it_is_that_of_complete(model):
    assert (
        alone(model, request(prompts()[3])).ids
        == complete(model, [prompts()[3]], max_new_tokens=12, end_id=EOS, temperature=0)[0]
    )


# -------------------------------------------------------------------------------------------------- stop strings


def said(text, stop) -> TextStream:
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
def test_a_stop_string_ends_an_answer_across_tokens_and_is_left_out(text, stop, written):
    stream = said(text, stop)
    assert stream.stopped and stream.written == written


@pytest.mark.parametrize("text, stop", [("the sea was ca", ["calm"]), ("好的。。", ["。。。"]), ("abc", ["abcd", "x"])])
def test_what_only_looked_like_a_stop_string_is_shown_in_the_end(text, stop):
    stream = said(text, stop)
    assert not stream.stopped and stream.written == text


def test_a_stop_string_ends_the_request(model):
    whole = alone(model, request(prompts()[2], 20, text=TextStream(TOKENIZER)))
    middle = whole.written[len(whole.written) // 2 :][:3]
    ended = alone(model, request(prompts()[2], 20, text=TextStream(TOKENIZER, [middle])))
    assert ended.finish_reason == "stop" and ended.written == whole.written[: whole.written.index(middle)]
    assert len(ended.ids) < len(whole.ids)
    assert TOKENIZER.decode(whole.ids, skip_special_tokens=False) == whole.written


@pytest.mark.parametrize("text", ["龘靐齉😀", "👨‍👩‍👧‍👦🇨🇳é"])
def test_a_character_spread_over_tokens_is_never_split_and_a_cut_one_is_marked(text):
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert len(ids) > len(text)
    stream, shown = TextStream(TOKENIZER), []
    for token in ids:
        stream.add(token)
        shown.append(stream.written)
    assert shown[-1] == text and len(set(shown)) < len(ids)
    assert all(text.startswith(one) for one in shown)
    cut = TextStream(TOKENIZER)
    cut.add(ids[0])
    assert cut.written == ""
    cut.end()
    assert cut.written == "\ufffd"


@pytest.mark.parametrize(
    "wrong",
    [
        "temperature -1",
        "temperature nan",
        "temperature 1e308",
        "top_p 0",
        "top_p 1.5",
        "top_k -1",
        "top_k 1e20",
        "min_p 2",
        "repetition_penalty 0",
        "repetition_penalty 1e-320",
        "presence_penalty inf",
        "presence_penalty -1e39",
        "seed -1",
    ],
)
def test_settings_that_mean_nothing_are_refused_by_name(wrong):
    name, value = wrong.split()
    with pytest.raises(ValueError, match=f"^--{name} .* must "):
        Sampling(**{name: float(value)})
