"""Many clients at once, a full queue, and a model that fails."""

import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from live_server import greedy_answer, user, wait_until
from tiny_model import tiny

from engine.generate import engine
from engine.generate.engine import GenerationEngine
from engine.generate.fast_decoder import Decoder
from engine.serve.engine_thread import EngineThread, ServedRequest


def test_twenty_concurrent_clients_each_get_their_own_answer(client, api):
    """Some are streamed, and some of these leave."""

    def ask(number):
        options = {"model": "SFT", "messages": user(f"问题 {number}"), "temperature": 0, "max_tokens": 8 + number}
        if number % 3 == 0:
            return client.chat.completions.create(**options).choices[0].message.content
        stream, text = client.chat.completions.create(**options, stream=True), ""
        for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            if number % 3 == 2 and text:
                stream.close()
                return None
        return text

    with ThreadPoolExecutor(20) as clients:
        answers = list(clients.map(ask, range(20)))
    for number, answer in enumerate(answers):
        assert answer is None if number % 3 == 2 else answer == greedy_answer(f"问题 {number}", 8 + number)
    wait_until(lambda: api.engine_thread.num_requests == 0)


def test_full_queue_answers_429(client, api, slow):
    options = {"model": "SFT", "messages": user("你好")}
    with client.chat.completions.create(**options, n=40, stream=True) as stream:
        next(iter(stream))
        with pytest.raises(openai.RateLimitError, match="of at most 40"):
            client.chat.completions.create(**options)
    wait_until(lambda: api.engine_thread.num_requests == 0)


def test_requests_canceled_in_a_failing_step_are_released():
    thread, engine = EngineThread(2), GenerationEngine(Decoder(tiny()), 2, 64)
    client = {"engine": engine, "notify": lambda: None, "deadline": time.monotonic() + 60}
    requests = [ServedRequest([5, 6], 50, **client) for _ in range(2)]
    thread.submit(requests)
    thread._receive(wait=False)
    thread._step(engine)
    requests[0].cancel()
    engine.cache.kv.fill_(float("nan"))
    thread._step(engine)
    assert [request.finish_reason for request in requests] == ["canceled", "error"]
    assert "not finite" in str(requests[1].error)
    assert thread.num_requests == 0 and not thread._requests and not engine.busy and engine.cache.kv.isfinite().all()


@pytest.mark.parametrize("owner, name", [(engine, "sample_next_tokens"), (engine.GenerationEngine, "_prefill")])
def test_failing_model_is_reported_and_the_next_request_answered(client, monkeypatch, capsys, owner, name):
    def fail(*_):
        raise RuntimeError("\nout of memory")

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        with pytest.raises(openai.InternalServerError, match="out of memory"):
            client.chat.completions.create(model="SFT", messages=user("你好"), n=2)
    answer = client.chat.completions.create(model="SFT", messages=user("你好"), temperature=0, max_tokens=5)
    assert answer.choices[0].message.content == greedy_answer("你好", 5)
