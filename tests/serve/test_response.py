"""Answers as the openai client gets them: whole, streamed, cut, late, or canceled."""

import json
import time

import httpx
import openai
import pytest
from factories import EOS, TOKENIZER
from live_server import greedy_answer, user, wait_until
from tiny_model import tiny

from dataset import SFTDataset
from engine.generate.engine import complete
from engine.reasoning import format_reasoning

# A greedy answer that never repeats itself fills the context.
LONG = {"messages": user("你好"), "temperature": 0, "extra_body": {"presence_penalty": 1e4}}


def test_answer_has_usage_and_finish_reason(client):
    answer = client.chat.completions.create(model="distill", messages=user("你好"), temperature=0, max_tokens=5)
    assert answer.model == "distill" and answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content == greedy_answer("你好", 5, seed=1) != greedy_answer("你好", 5)
    prompt = len(SFTDataset(TOKENIZER).prompt(user("你好")))
    counts = answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens
    assert counts == (prompt, 5, prompt + 5)
    options = {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0, "max_tokens": 5}
    chunks = list(client.chat.completions.create(model="distill", messages=user("你好"), **options))
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].usage == answer.usage
    assert chunks[-2].choices[0].finish_reason == "length"


def test_usage_counts_a_prompt_once_whatever_n_is(client):
    """A prompt is computed once for all of its choices; of two prompts both are counted."""
    prompt = len(SFTDataset(TOKENIZER).prompt(user("你好")))
    options = {"temperature": 0, "max_tokens": 2}
    for n in (1, 3):
        usage = client.chat.completions.create(model="SFT", messages=user("你好"), n=n, **options).usage
        assert (usage.prompt_tokens, usage.completion_tokens) == (prompt, 2 * n)
    texts, n = ["从前", "从前有一条船"], 2
    tokens = sum(1 + len(TOKENIZER.encode(text, add_special_tokens=False).ids) for text in texts)
    usage = client.completions.create(model="pretrain", prompt=texts, n=n, **options).usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (tokens, 2 * n * len(texts))


def test_text_is_continued_up_to_the_stop_string(client):
    prompt = [1, *TOKENIZER.encode("从前", add_special_tokens=False).ids]
    (ids,) = complete(tiny(2), [prompt], max_new_tokens=30, end_id=EOS, temperature=0)
    full_text = TOKENIZER.decode(ids, skip_special_tokens=False)
    options = {"model": "pretrain", "temperature": 0, "max_tokens": 30}
    answer = client.completions.create(prompt=["从前", "从前"], stop=[full_text[9:12]], **options)
    assert [choice.text for choice in answer.choices] == [full_text[: full_text.index(full_text[9:12])]] * 2
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].finish_reason == "stop"
    pieces = [chunk.choices[0].text for chunk in client.completions.create(prompt="从前", stream=True, **options)]
    assert "".join(pieces) == full_text
    with pytest.raises(openai.BadRequestError, match="does not chat"):
        client.chat.completions.create(model="pretrain", messages=user("你好"))


def test_seed_decides_and_choices_differ(client):
    def ask(n=1, **extra):
        options = {"model": "SFT", "messages": user("讲个故事"), "temperature": 1.2, "top_p": 1, "max_tokens": 12}
        return [choice.message.content for choice in client.chat.completions.create(**options, n=n, **extra).choices]

    three = ask(3, seed=7)
    assert three == ask(3, seed=7) and len(set(three)) == 3
    assert ask(seed=7) == three[:1] and ask(seed=8) == three[1:2]
    assert ask() != ask()
    assert (
        ask(seed=7, extra_body={"top_k": 1}) == ask(seed=9, extra_body={"min_p": 1}) == [greedy_answer("讲个故事", 12)]
    )


def test_thought_is_returned_as_reasoning_content(client, let_it_say):
    let_it_say(format_reasoning("一加一，\n要进位吗？", "2"))
    message = client.chat.completions.create(model="distill", messages=user("一加一？")).choices[0].message
    assert message.content == "2" and message.reasoning_content == "一加一，\n要进位吗？"
    parts = {"reasoning_content": "", "content": ""}
    for chunk in client.chat.completions.create(model="distill", messages=user("一加一？"), stream=True):
        for name in parts:
            parts[name] += getattr(chunk.choices[0].delta, name, None) or ""
    assert parts == {"reasoning_content": message.reasoning_content, "content": message.content}


@pytest.mark.parametrize("stop", ["要", "2", "<answer>", "不要"])
def test_stop_string_ends_the_content_and_not_the_thought(client, let_it_say, stop):
    thought, content = "要进位吗？2，", "2，不要3"
    options = {"model": "distill", "messages": user("一加一？"), "stop": stop}
    let_it_say(format_reasoning(thought, content))
    choice = client.chat.completions.create(**options).choices[0]
    parts = choice.message.reasoning_content, choice.message.content
    assert (*parts, choice.finish_reason) == (thought, content.partition(stop)[0], "stop")
    let_it_say(format_reasoning(thought, content))
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**options, stream=True)]
    streamed = (
        "".join(getattr(delta, name, None) or "" for delta in deltas) for name in ("reasoning_content", "content")
    )
    assert tuple(streamed) == parts
    let_it_say(format_reasoning(thought, content))
    text = client.completions.create(model="distill", prompt="一", stop=stop).choices[0].text
    assert text == format_reasoning(thought, content).partition(stop)[0]


def test_truncation_auto_drops_the_oldest_turns_and_counts_them(client):
    messages = [{"role": "system", "content": "短"}]
    for n in range(6):
        messages += [*user(f"问题{n}" * 4), {"role": "assistant", "content": "好" * 9}]
    options = {"model": "SFT", "messages": [*messages, *user("现在呢？")]}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**options)
    assert caught.value.code == "context_length_exceeded"
    answer = client.chat.completions.create(**options, max_tokens=9, extra_body={"truncation": "auto"})
    dropped = answer.left_out_messages
    remaining = [options["messages"][0], *options["messages"][1 + dropped :]]
    assert dropped % 2 == 0 and answer.usage.prompt_tokens == len(SFTDataset(TOKENIZER).prompt(remaining)) <= 128 - 9


def test_events_are_lines_of_json(address):
    body = {"messages": user("你好"), "max_tokens": 3, "stream": True}
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-accel-buffering"] == "no" and answer.headers["cache-control"] == "no-cache"
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)
    assert json.loads(lines[0].removeprefix("data: "))["object"] == "chat.completion.chunk"


def test_client_that_leaves_frees_its_slot(client, address, api, slow):
    stream = client.chat.completions.create(model="SFT", **LONG, stream=True)
    next(iter(stream))
    assert api.engine_thread.num_requests == 1
    stream.close()
    wait_until(lambda: api.engine_thread.num_requests == 0, 1.0)
    body = LONG["extra_body"] | {"messages": LONG["messages"], "temperature": 0, "model": "SFT"}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{address}/v1/chat/completions", json=body, timeout=0.2)
    assert api.engine_thread.num_requests == 1
    wait_until(lambda: api.engine_thread.num_requests == 0, 1.0)


def test_late_answer_is_an_error_and_frees_its_slot(client, api, slow, monkeypatch):
    monkeypatch.setattr(api, "timeout", 0.1)
    start = time.monotonic()
    with pytest.raises(openai.InternalServerError, match="longer than this server allows") as caught:
        client.chat.completions.create(model="SFT", **LONG)
    assert time.monotonic() - start < 1.5  # not when the answer would have been whole
    assert caught.value.status_code == 503 and api.engine_thread.num_requests == 0
    with pytest.raises(openai.APIError, match="longer than this server allows"):
        list(client.chat.completions.create(model="SFT", **LONG, stream=True))


def test_timeout_counts_from_the_arrival_of_the_request(client, api, monkeypatch):
    real = api.prepare
    monkeypatch.setattr(api, "prepare", lambda *params: (real(*params), time.sleep(0.2))[0])
    monkeypatch.setattr(api, "timeout", 0.15)
    with pytest.raises(openai.InternalServerError, match="longer than this server allows"):
        client.chat.completions.create(model="SFT", messages=user("你好"), max_tokens=1)
