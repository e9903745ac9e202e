"""Requests and errors in OpenAI's shape; log-probabilities."""

import codecs
import gzip
import json

import httpx
import openai
import pytest
from factories import TOKENIZER
from live_server import greedy_answer, user

from dataset import SFTDataset
from engine.reasoning import format_reasoning
from engine.serve.protocol import APIError, ChatCompletionRequest, parse_body


@pytest.mark.parametrize(
    "options, status, message",
    [
        ({"model": "GPT"}, 404, "no model 'GPT' here, only: SFT, distill, pretrain"),
        ({"messages": []}, 400, "messages"),
        ({"temperature": -1}, 400, "400 - temperature -1.0 must not be negative"),
        ({"top_p": 0}, 400, "top_p"),
        ({"temperature": 1e308}, 400, "temperature"),
        ({"presence_penalty": -1e39}, 400, "presence_penalty"),
        ({"extra_body": {"top_k": 10**20}}, 400, "top_k"),
        ({"tools": [{"type": "function"}]}, 400, "tools"),
        ({"extra_body": {"repetition_penalty": 1e-320}}, 400, "repetition_penalty"),
        ({"stop": ["1", "2", "3", "4", "5"]}, 400, "at most four"),
        ({"n": 0}, 400, "n: "),
        ({"n": 41}, 400, "41 answers exceed the 40 of this server"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, r"messages\.0\.content\.0\.type: "),
        ({"stop": [1]}, 400, r"stop\.0: Input should be a valid string"),
        ({"top_logprobs": 2}, 400, "top_logprobs needs logprobs: true"),
        ({"frequency_penalty": 1}, 400, "frequency_penalty"),
        ({"extra_body": {"colour": 1}}, 400, "colour"),
        ({"messages": user("长" * 200)}, 400, r"takes \d+ tokens of a context of 128"),
        ({"messages": user("长" * 9000)}, 413, "20000 bytes"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"tools": [{"type": "function"}]}, 400, "this server has no tools; leave it out"),
        ({"service_tier": "priority"}, 400, "this server has no service_tier"),
        ({"verbosity": "low"}, 400, "this server has no verbosity"),
        ({"stream_options": {"chunks": 2}}, 400, r"this server has no stream_options\.chunks"),
        ({"messages": [{"role": "user", "content": "1", "weight": 0}]}, 400, r"no messages\.0\.weight"),
        ({"messages": [{"role": "user"}]}, 400, r"messages\.0: a message of role user needs content"),
        ({"messages": [{"role": "user", "content": None}]}, 400, "needs content"),
        ({"messages": [{"role": "system", "content": []}]}, 400, "role system needs content"),
        ({"messages": [{"role": "tool", "content": "1", "tool_call_id": "1"}]}, 400, "role"),
    ],
)
def test_wrong_request_is_refused_in_openais_shape(client, options, status, message):
    with pytest.raises(openai.APIStatusError, match=message) as caught:
        client.chat.completions.create(**{"model": "SFT", "messages": user("你好")} | options)
    assert caught.value.status_code == status
    assert caught.value.body.keys() == {"message", "type", "param", "code"}


PART = {"type": "text", "text": "你好", "cache_control": {"type": "ephemeral"}}
MESSAGE = {
    "role": "user",
    "content": [PART],
    "name": "a",
    "refusal": None,
    "tool_calls": [],
    "id": "m1",
    "createdAt": 3,
}
NEUTRAL_FIELDS = [
    dict.fromkeys(["n", "stream", "logprobs", "tools", "logit_bias", "temperature", "stop", "response_format"]),
    {"tools": [], "functions": [], "logit_bias": {}, "tool_choice": "none", "response_format": {"type": "text"}},
    {"messages": [{**MESSAGE, "annotations": [], "audio": None}], "options": {}, "chat_template_kwargs": {}},
    {"parallel_tool_calls": False, "service_tier": "auto", "verbosity": "medium", "store": True, "user": 5},
    {"functions": [], "function_call": "auto"},
    {"prompt_cache_key": "x", "safety_identifier": "x", "metadata": {"a": "b"}, "chat_id": "1"},
    {"stream_options": {"include_usage": True, "continuous_usage_stats": False}, "top_k": -1},
]


@pytest.mark.parametrize("fields", NEUTRAL_FIELDS)
def test_null_and_neutral_fields_change_nothing(address, fields):
    needed = {"model": "SFT", "temperature": 0, "max_tokens": 5}
    answer = httpx.post(f"{address}/v1/chat/completions", json={"messages": [MESSAGE]} | fields | needed)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == greedy_answer("你好", 5)


def test_minus_1_is_no_limit():
    for name in ("max_tokens", "max_completion_tokens", "top_k"):
        params = parse_body(ChatCompletionRequest, json.dumps({"messages": user("a"), name: -1}).encode())
        assert getattr(params, name) is None
        with pytest.raises(APIError, match=name):
            parse_body(ChatCompletionRequest, json.dumps({"messages": user("a"), name: -2}).encode()).sampling(0)


@pytest.mark.parametrize(
    "headers, body, status, message",
    [
        ({"Content-Encoding": "gzip"}, gzip.compress(b"{}", mtime=0), 415, "compressed (Content-Encoding: gzip)"),
        ({"Content-Encoding": "br"}, b"{}", 415, "Content-Encoding: br"),
        ({"Content-Type": "text/plain"}, b"{}", 415, "say so: Content-Type: application/json"),
        ({"Content-Type": ""}, b"{}", 415, "say so: Content-Type: application/json"),
        ({"Content-Type": "application/json; charset=GBK"}, b"{}", 415, "the body is in gbk: send JSON in UTF-8"),
        ({}, '{"messages": "你'.encode("gbk"), 400, "the body is not UTF-8 (byte 14)"),
        ({}, b"{'messages': []}", 400, "body: Invalid JSON"),
        ({"Content-Type": 'Application/JSON; Charset="utf-8"', "Content-Encoding": "identity"}, b"", 200, ""),
        ({"Content-Type": "application/problem+json"}, codecs.BOM_UTF8, 200, ""),
    ],
)
def test_body_that_is_not_json_in_utf8_is_refused_with_the_word(address, headers, body, status, message):
    if status == 200:
        body += json.dumps({"messages": user("你好"), "max_tokens": 1}).encode()
    headers = {"Content-Type": "application/json"} | headers
    answer = httpx.post(f"{address}/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code == status and (not message or message in answer.json()["error"]["message"])


def test_reasoning_content_in_a_request_becomes_tags(client):
    history = [*user("一加一？"), {"role": "assistant", "content": "2", "reasoning_content": "一加一，\n要进位吗？"}]
    answer = client.chat.completions.create(model="SFT", messages=[*history, *user("再加一？")], max_tokens=1)
    plain = [
        *user("一加一？"),
        {"role": "assistant", "content": format_reasoning("一加一，\n要进位吗？", "2")},
        *user("再加一？"),
    ]
    assert answer.usage.prompt_tokens == len(SFTDataset(TOKENIZER).prompt(plain))


def test_logprobs_are_those_of_the_tokens(client):
    options = {"model": "SFT", "messages": user("你好"), "temperature": 0, "max_tokens": 6, "logprobs": True}
    answer = client.chat.completions.create(**options, top_logprobs=3).choices[0]
    tokens = answer.logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode("utf-8", "replace") == answer.message.content
    for token in tokens:
        first, second, third = token.top_logprobs
        assert (token.logprob, token.bytes) == (first.logprob, first.bytes)
        assert 0 >= first.logprob > second.logprob > third.logprob
    parts = [chunk.choices[0].logprobs for chunk in client.chat.completions.create(**options, stream=True)]
    streamed = sum((part.content for part in parts if part), [])
    assert [token.logprob for token in streamed] == [token.logprob for token in tokens]
    text = client.completions.create(model="SFT", prompt="你好", max_tokens=4, temperature=0, logprobs=2).choices[0]
    assert len(text.logprobs.tokens) == 4 == len(text.logprobs.token_logprobs) and text.logprobs.text_offset[0] == 0


def test_text_offset_is_that_of_the_tokens_character(client, let_it_say):
    text = "龘a靐b"
    num_tokens = len(let_it_say(text)) - 1
    params = {"model": "SFT", "prompt": "一", "logprobs": 1}
    answer = client.completions.create(**params).choices[0]
    assert answer.text == text and len(answer.logprobs.tokens) == num_tokens > len(text)
    for token, offset in zip(answer.logprobs.tokens, answer.logprobs.text_offset, strict=True):
        assert text.startswith(token, offset) or (token.startswith("bytes:\\x") and text[offset] in "龘靐")
    parts = [chunk.choices[0].logprobs for chunk in client.completions.create(**params, stream=True)]
    assert sum((part.text_offset for part in parts if part), []) == answer.logprobs.text_offset
