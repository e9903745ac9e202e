"""The server as the openai client sees it: answers, streams, errors, limits, and clients that leave."""

import asyncio
import dataclasses
import json
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
import uvicorn
from compile_support import as_written
from factories import EOS, TOKENIZER, actions_of, save
from live_server import listening
from starlette.requests import ClientDisconnect
from tiny_model import tiny

import serve
from dataset import SFTDataset
from engine.generate import engine
from engine.generate.engine import GenerationEngine, complete
from engine.generate.fast_decoder import Decoder
from engine.serve.engine_thread import EngineThread, ServedRequest
from engine.serve.protocol import APIError

pytestmark = pytest.mark.usefixtures("one_thread")
THOUGHT = "<think>\n一加一，\n要进位吗？\n</think>\n<answer>\n2\n</answer>"


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    for seed, name in enumerate(("SFT", "distill", "pretrain")):
        save(tiny(seed), folder / f"{name}.pth", stage=name)
    words = "--save_dir X --device cpu --weight_dtype float32 --slots 4 --max_queue 40 --max_body_kb 20".replace(
        "X", str(folder)
    )
    return serve.make_api(serve.parse_args(words.split()))


@pytest.fixture(scope="module")
def address(api):
    with listening(api) as (address, _):
        yield address


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=20) as client:
        yield client


def user(text):
    return [{"role": "user", "content": text}]


def expected(question, count, seed=0):
    """What the engine says by itself."""
    prompt = SFTDataset(TOKENIZER).prompt(user(question))
    (ids,) = complete(tiny(seed), [prompt], max_new_tokens=count, end_id=EOS, temperature=0)
    return TOKENIZER.decode(ids, skip_special_tokens=False)


def test_twenty_clients_at_once_streamed_and_not_get_each_their_own_answer_also_when_some_leave(client, api):
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
        assert answer is None if number % 3 == 2 else answer == expected(f"问题 {number}", 8 + number)
    wait_until(lambda: api.engine_thread.num_requests == 0)


def wait_until(holds, seconds=5.0):
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_an_answer_has_usage_and_says_why_it_ended(client):
    answer = client.chat.completions.create(model="distill", messages=user("你好"), temperature=0, max_tokens=5)
    assert answer.model == "distill" and answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content == expected("你好", 5, seed=1) != expected("你好", 5)
    prompt = len(SFTDataset(TOKENIZER).prompt(user("你好")))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        prompt,
        5,
        prompt + 5,
    )
    options = {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0, "max_tokens": 5}
    chunks = list(client.chat.completions.create(model="distill", messages=user("你好"), **options))
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].usage == answer.usage
    assert chunks[-2].choices[0].finish_reason == "length"


def test_a_text_is_continued_and_a_stop_string_is_left_out(client):
    prompt = [1, *TOKENIZER.encode("从前", add_special_tokens=False).ids]
    (ids,) = complete(tiny(2), [prompt], max_new_tokens=30, end_id=EOS, temperature=0)
    whole = TOKENIZER.decode(ids, skip_special_tokens=False)
    options = {"model": "pretrain", "temperature": 0, "max_tokens": 30}
    answer = client.completions.create(prompt=["从前", "从前"], stop=[whole[9:12]], **options)
    assert [choice.text for choice in answer.choices] == [whole[: whole.index(whole[9:12])]] * 2
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].finish_reason == "stop"
    pieces = [chunk.choices[0].text for chunk in client.completions.create(prompt="从前", stream=True, **options)]
    assert "".join(pieces) == whole
    with pytest.raises(openai.BadRequestError, match="does not chat"):
        client.chat.completions.create(model="pretrain", messages=user("你好"))


def test_a_seed_decides_and_several_choices_differ(client):
    def ask(n=1, **more):
        options = {"model": "SFT", "messages": user("讲个故事"), "temperature": 1.2, "top_p": 1, "max_tokens": 12}
        return [one.message.content for one in client.chat.completions.create(**options, n=n, **more).choices]

    three = ask(3, seed=7)
    assert three == ask(3, seed=7) and len(set(three)) == 3
    assert ask(seed=7) == three[:1] and ask(seed=8) == three[1:2]
    assert ask() != ask()
    assert ask(seed=7, extra_body={"top_k": 1}) == ask(seed=9, extra_body={"min_p": 1}) == [expected("讲个故事", 12)]


def test_log_probabilities_are_those_of_the_tokens(client):
    options = {"model": "SFT", "messages": user("你好"), "temperature": 0, "max_tokens": 6, "logprobs": True}
    answer = client.chat.completions.create(**options, top_logprobs=3).choices[0]
    told = answer.logprobs.content
    assert b"".join(bytes(one.bytes) for one in told).decode("utf-8", "replace") == answer.message.content
    for one in told:
        assert one.logprob == one.top_logprobs[0].logprob <= 0 and one.bytes == one.top_logprobs[0].bytes
        assert one.top_logprobs[0].logprob > one.top_logprobs[1].logprob > one.top_logprobs[2].logprob
    streamed = [chunk.choices[0].logprobs for chunk in client.chat.completions.create(**options, stream=True)]
    assert [one.logprob for part in streamed if part for one in part.content] == [one.logprob for one in told]
    text = client.completions.create(model="SFT", prompt="你好", max_tokens=4, temperature=0, logprobs=2).choices[0]
    assert len(text.logprobs.tokens) == 4 == len(text.logprobs.token_logprobs) and text.logprobs.text_offset[0] == 0


def let_it_say(words, monkeypatch):
    """The model says this, whatever it is asked; one client at a time. Returns the ids, and the end's."""
    ids, said = [*TOKENIZER.encode(words, add_special_tokens=False).ids, EOS], []

    def sample_next_tokens(logits, *_):
        said.append(0)
        return engine.torch.tensor([ids[(len(said) - 1) % len(ids)]])

    monkeypatch.setattr(engine, "sample_next_tokens", sample_next_tokens)
    return ids


def test_a_token_is_said_to_stand_where_its_character_does(client, monkeypatch):
    words = "龘a靐b"
    asked, ids = {"model": "SFT", "prompt": "一", "logprobs": 1}, let_it_say(words, monkeypatch)
    whole = client.completions.create(**asked).choices[0]
    assert whole.text == words and len(whole.logprobs.tokens) == len(ids) - 1 > len(words)
    for token, offset in zip(whole.logprobs.tokens, whole.logprobs.text_offset, strict=True):
        assert words.startswith(token, offset) or (token.startswith("bytes:\\x") and words[offset] in "龘靐")
    parts = [chunk.choices[0].logprobs for chunk in client.completions.create(**asked, stream=True)]
    assert [at for part in parts if part for at in part.text_offset] == whole.logprobs.text_offset


@pytest.fixture
def thinks(monkeypatch):
    let_it_say(THOUGHT, monkeypatch)


def test_a_thought_is_told_as_reasoning_content(client, thinks):
    message = client.chat.completions.create(model="distill", messages=user("一加一？")).choices[0].message
    assert message.content == "2" and message.reasoning_content == "一加一，\n要进位吗？"
    parts = {"reasoning_content": "", "content": ""}
    for chunk in client.chat.completions.create(model="distill", messages=user("一加一？"), stream=True):
        for name in parts:
            parts[name] += getattr(chunk.choices[0].delta, name, None) or ""
    assert parts == {"reasoning_content": message.reasoning_content, "content": message.content}


def test_a_thought_that_comes_back_is_what_the_model_said(client, api):
    history = [*user("一加一？"), {"role": "assistant", "content": "2", "reasoning_content": "一加一，\n要进位吗？"}]
    answer = client.chat.completions.create(model="SFT", messages=[*history, *user("再加一？")], max_tokens=1)
    plain = [*user("一加一？"), {"role": "assistant", "content": THOUGHT}, *user("再加一？")]
    assert answer.usage.prompt_tokens == len(SFTDataset(TOKENIZER).prompt(plain))


# -------------------------------------------------------------------------------------------- errors and limits


@pytest.mark.parametrize(
    "options, status, words",
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
        ({"messages": [{"role": "tool", "content": "1", "tool_call_id": "1"}]}, 400, "role"),
    ],
)
def test_what_cannot_be_answered_is_told_in_openais_shape(client, options, status, words):
    with pytest.raises(openai.APIStatusError, match=words) as caught:
        client.chat.completions.create(**{"model": "SFT", "messages": user("你好")} | options)
    assert caught.value.status_code == status
    assert caught.value.body.keys() == {"message", "type", "param", "code"}


def test_the_oldest_turns_are_left_out_where_that_is_asked_for_and_it_is_told(client):
    pairs = [turn for n in range(6) for turn in (*user(f"问题{n}" * 4), {"role": "assistant", "content": "好" * 9})]
    options = {"model": "SFT", "messages": [{"role": "system", "content": "短"}, *pairs, *user("现在呢？")]}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**options)
    assert caught.value.code == "context_length_exceeded"
    answer = client.chat.completions.create(**options, max_tokens=9, extra_body={"truncation": "auto"})
    left_out = answer.left_out_messages
    kept = [options["messages"][0], *options["messages"][1 + left_out :]]
    assert left_out % 2 == 0 and answer.usage.prompt_tokens == len(SFTDataset(TOKENIZER).prompt(kept)) <= 128 - 9


def test_a_link_to_nothing_and_a_folder_are_no_models(client, api):
    (api.models.folder / "gone.pth").symlink_to("nowhere")
    (api.models.folder / "folder.pth").mkdir()
    assert {model.id for model in client.models.list()} == {"SFT", "distill", "pretrain"}


def test_models_health_and_the_page(client, address):
    assert [one.id for one in client.models.list()] == ["SFT", "distill", "pretrain"]
    assert client.models.retrieve("SFT").owned_by == "selfllm-engine"
    assert httpx.get(f"{address}/health").json() == {"status": "ok", "running": 0}
    page = httpx.get(address)
    assert page.headers["content-type"].startswith("text/html") and '"name":"SFT"' in page.text
    assert page.text == httpx.get(address).text
    lost = httpx.get(f"{address}/v2")
    assert lost.status_code == 404 and lost.json()["error"]["message"] == "Not Found"
    broken = httpx.post(f"{address}/v1/chat/completions", content=b'{"messages": ')
    assert broken.status_code == 400 and broken.json()["error"]["type"] == "invalid_request_error"


def test_without_the_key_there_is_only_health(api, address, client, monkeypatch):
    monkeypatch.setattr(api, "key", "秘密")
    assert httpx.get(f"{address}/health").status_code == 200
    for path in ("", "/v1/models"):
        assert httpx.get(address + path).status_code == 401
    with pytest.raises(openai.AuthenticationError, match="API key"):
        client.chat.completions.create(model="SFT", messages=user("你好"))
    for given, status in (("秘密", 200), ("秘", 401), ("\x80", 401)):
        headers = {"Authorization": f"Bearer {given}".encode()}
        assert httpx.get(f"{address}/v1/models", headers=headers).status_code == status
    monkeypatch.setattr(api, "key", "secret")
    assert client.with_options(api_key="secret").models.list().data
    for wrong in ("secre", "secrets", "Secret"):
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key=wrong).models.list()


@pytest.fixture
def slow(monkeypatch):
    """A step takes 20 ms, so an answer that fills the context takes two seconds."""
    real = GenerationEngine.step
    monkeypatch.setattr(GenerationEngine, "step", lambda self: (time.sleep(0.02), real(self))[1])


LONG = {"messages": user("你好"), "temperature": 0, "extra_body": {"presence_penalty": 1e4}}


def test_a_client_that_goes_away_frees_its_slot(client, address, api, slow):
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


def test_who_comes_when_the_queue_is_full_is_told_to_wait(client, api, slow):
    with client.chat.completions.create(model="SFT", **LONG, n=40, stream=True) as stream:
        next(iter(stream))
        with pytest.raises(openai.RateLimitError, match="of at most 40"):
            client.chat.completions.create(model="SFT", messages=user("你好"))
    wait_until(lambda: api.engine_thread.num_requests == 0)


def test_who_left_in_the_step_that_failed_is_let_go_too(monkeypatch):
    thread, engine = EngineThread(2), GenerationEngine(Decoder(tiny()), 2, 64)
    client = {"engine": engine, "notify": lambda: None, "deadline": time.monotonic() + 60}
    requests = [ServedRequest([5, 6], 50, **client) for _ in range(2)]
    thread.submit(requests)
    thread._receive(wait=False)
    thread._step(engine)
    requests[0].cancel()
    engine.cache.kv.fill_(float("nan"))
    thread._step(engine)
    assert [request.finish_reason for request in requests] == ["cancelled", "error"] and "not finite" in requests[
        1
    ].error
    assert thread.num_requests == 0 and not thread._requests and not engine.busy and engine.cache.kv.isfinite().all()


def test_an_answer_that_takes_too_long_is_an_error_and_frees_its_slot(client, api, slow, monkeypatch):
    monkeypatch.setattr(api, "timeout", 0.1)
    before = time.monotonic()
    with pytest.raises(openai.InternalServerError, match="longer than this server allows") as caught:
        client.chat.completions.create(model="SFT", **LONG)
    assert time.monotonic() - before < 1.5  # not when the answer would have been whole
    assert caught.value.status_code == 503 and api.engine_thread.num_requests == 0
    with pytest.raises(openai.APIError, match="longer than this server allows"):
        list(client.chat.completions.create(model="SFT", **LONG, stream=True))


def test_the_time_of_an_answer_counts_from_the_arrival_of_its_question(client, api, monkeypatch):
    real = api.prepare
    monkeypatch.setattr(api, "prepare", lambda *asked: (real(*asked), time.sleep(0.2))[0])
    monkeypatch.setattr(api, "timeout", 0.15)
    with pytest.raises(openai.InternalServerError, match="longer than this server allows"):
        client.chat.completions.create(model="SFT", messages=user("你好"), max_tokens=1)


def test_a_model_in_memory_does_not_wait_for_one_that_is_being_read(api, monkeypatch):
    served, late = api.models.get("SFT"), api.models.folder / "late.pth"
    shutil.copy(api.models.folder / "distill.pth", late)
    reads, may_go_on, real = threading.Event(), threading.Event(), api.models.open_model

    def slowly(path):
        reads.set()
        assert may_go_on.wait(10)
        return real(path)

    monkeypatch.setattr(api.models, "open_model", slowly)
    with ThreadPoolExecutor(2) as clients:
        other = clients.submit(api.models.get, "late")
        try:
            assert reads.wait(10)
            assert clients.submit(api.models.get, "SFT").result(5) is served
        finally:
            may_go_on.set()
        assert other.result(10) is api.models.get("late")
    late.unlink()


def test_a_client_that_leaves_while_it_sends_is_no_error_of_the_server(api):
    class Http:
        async def stream(self):
            yield b"{"
            raise ClientDisconnect

    with pytest.raises(APIError) as told:
        asyncio.run(api.read_body(Http()))
    assert told.value.status == 499


NOTHING_ASKED = {
    **dict.fromkeys(["n", "stream", "logprobs", "tools", "logit_bias", "temperature", "stop", "response_format"]),
    "tool_choice": "none",
    "functions": [],
    "messages": [{"role": "user", "content": "你好", "name": None, "refusal": None, "tool_calls": []}],
}


@pytest.mark.parametrize("more", [{}, {"tools": [], "logit_bias": {}, "response_format": {"type": "text"}}])
def test_null_and_neutral_fields_ask_nothing(address, more):
    asked = {"model": "SFT", "temperature": 0, "max_tokens": 5}
    answer = httpx.post(f"{address}/v1/chat/completions", json=NOTHING_ASKED | asked | more)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == expected("你好", 5)


@pytest.mark.parametrize("owner, name", [(engine, "sample_next_tokens"), (engine.GenerationEngine, "_prefill")])
def test_a_failure_of_the_model_is_told_and_the_next_request_is_answered(client, monkeypatch, capsys, owner, name):
    def breaks(*_):
        raise RuntimeError("\nout of memory")

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, breaks)
        with pytest.raises(openai.InternalServerError, match="out of memory"):
            client.chat.completions.create(model="SFT", messages=user("你好"), n=2)
    answer = client.chat.completions.create(model="SFT", messages=user("你好"), temperature=0, max_tokens=5)
    assert answer.choices[0].message.content == expected("你好", 5)


def test_weights_that_were_written_anew_are_read_anew(client, api):
    path = api.models.folder / "late.pth"
    options = {"model": "late", "messages": user("你好"), "temperature": 0, "max_tokens": 5}
    for seed in (0, 1):
        save(tiny(seed), path)
        assert client.chat.completions.create(**options).choices[0].message.content == expected("你好", 5, seed)
    path.with_suffix(".json").write_text("{")
    save(tiny(0), path)
    path.write_bytes(b"no weights")
    with pytest.raises(openai.InternalServerError, match="late.pth"):
        client.chat.completions.create(**options)
    path.unlink()


def test_a_server_that_is_asked_to_stop_finishes_what_runs(api, slow):
    api = dataclasses.replace(api, engine_thread=EngineThread(4), key=None)
    with listening(api) as (address, server):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        stream = client.chat.completions.create(
            model="SFT", messages=user("你好"), temperature=0, max_tokens=9, stream=True
        )
        pieces = iter(stream)
        text = next(pieces).choices[0].delta.content
        server.should_exit = True
        text += "".join(chunk.choices[0].delta.content or "" for chunk in pieces)
        assert text == expected("你好", 9)
        client.close()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health")


def test_without_fastapi_the_one_command_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "fastapi" else name)
    with pytest.raises(ValueError, match=r"needs fastapi: pip install -e \.\[serve\]"):
        serve.main([])


def test_events_are_lines_of_json(address):
    body = {"messages": user("你好"), "max_tokens": 3, "stream": True}
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)
    assert json.loads(lines[0].removeprefix("data: "))["object"] == "chat.completion.chunk"


FLAGS = {
    "--api_key K": lambda api: api.key,
    "--slots 3": lambda api: api.models.num_slots,
    "--max_queue 5": lambda api: api.engine_thread.max_requests,
    "--request_timeout 2": lambda api: api.timeout,
    "--max_body_kb 9": lambda api: api.max_body_bytes,
    "--model_mode 2": lambda api: api.models.default,
    "--save_dir other": lambda api: [*api.models.paths()],
    "--ckpt other/x.pth": lambda api: api.models.default,
    "--max_seq_len 64": lambda api: api.models.get("SFT").chat_model.context,
    "--weight_dtype float32": lambda api: api.models.get("SFT").chat_model.decoder.dtype,
    "--compile": lambda api: type(api.models.get("SFT").chat_model.decoder),
}


def test_every_flag_of_the_server_reaches_what_it_is_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.compile", as_written)
    for path in ("results/SFT.pth", "results/distill.pth", "other/x.pth", "other/SFT.pth"):
        save(tiny(), tmp_path / path)
    plain = serve.make_api(serve.parse_args(["--device", "cpu"]))
    for words, found in FLAGS.items():
        assert found(serve.make_api(serve.parse_args(["--device", "cpu", *words.split()]))) != found(plain), words
    others = {action.option_strings[-1] for action in actions_of(serve)} - {words.split()[0] for words in FLAGS}
    assert others == {"--host", "--port", "--long", "--tokenizer_dir", "--n_heads", "--rope_theta", "--device"}


@pytest.mark.parametrize(
    "words, reason",
    [
        ("--api_key=", "--api_key is empty"),
        ("--port 65536", "--port 65536 must be at most 65535"),
    ],
)
def test_what_cannot_be_served_is_refused_at_the_start(words, reason, tmp_path):
    save(tiny(), tmp_path / "SFT.pth", stage="SFT")
    with pytest.raises(ValueError, match=reason):
        serve.make_api(serve.parse_args([*words.split(), "--save_dir", str(tmp_path), "--device", "cpu"]))


def test_it_listens_where_it_is_told_and_sigterm_is_no_error(tmp_path, monkeypatch, capsys):
    save(tiny(), tmp_path / "SFT.pth")
    seen = {}

    def run(self, sockets):
        seen["at"] = sockets[0].getsockname()
        signal.raise_signal(signal.SIGTERM)  # as uvicorn does in the end

    monkeypatch.setattr(uvicorn.Server, "run", run)
    before = signal.getsignal(signal.SIGTERM)
    serve.main(["--save_dir", str(tmp_path), "--device", "cpu", "--host", "0.0.0.0", "--port", "0"])
    signal.signal(signal.SIGTERM, before)
    assert seen["at"][0] == "0.0.0.0" and f"http://0.0.0.0:{seen['at'][1]}" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no such checkpoint. Make it with: python SFT.py"):
        serve.main(["--save_dir", str(tmp_path / "none"), "--device", "cpu"])
