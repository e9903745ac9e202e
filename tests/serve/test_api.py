"""The routes: models, key, page; the server's flags, its start and its end."""

import asyncio
import dataclasses
import signal
from typing import ClassVar

import httpx
import openai
import pytest
import uvicorn
from compile_support import as_written
from factories import actions_of, save
from live_server import greedy_answer, listening, user
from starlette.requests import ClientDisconnect
from tiny_model import tiny

import serve
from engine.serve.engine_thread import EngineThread
from engine.serve.protocol import APIError


def test_models_health_and_page_are_served(client, address):
    assert [model.id for model in client.models.list()] == ["SFT", "distill", "pretrain"]
    assert client.models.retrieve("SFT").owned_by == "selfllm-engine"
    assert httpx.get(f"{address}/health").json() == {"status": "ok", "running": 0}
    page = httpx.get(address)
    assert page.headers["content-type"].startswith("text/html") and '"name":"SFT"' in page.text
    assert page.text == httpx.get(address).text
    broken = httpx.post(
        f"{address}/v1/chat/completions", content=b'{"messages": ', headers={"Content-Type": "application/json"}
    )
    assert broken.status_code == 400 and broken.json()["error"]["type"] == "invalid_request_error"


def test_without_the_key_only_health_answers(api, address, client, monkeypatch):
    monkeypatch.setattr(api, "key", "秘密")
    assert httpx.get(f"{address}/health").status_code == 200
    for path in ("", "/v1/models"):
        assert httpx.get(address + path).status_code == 401
    assert "SFT" not in httpx.get(address).text  # the page that asks for the key
    with pytest.raises(openai.AuthenticationError, match="API key"):
        client.chat.completions.create(model="SFT", messages=user("你好"))
    for key, status in (("秘密", 200), ("秘", 401), ("\x80", 401)):
        headers = {"Authorization": f"Bearer {key}".encode()}
        assert httpx.get(f"{address}/v1/models", headers=headers).status_code == status
    monkeypatch.setattr(api, "key", "secret")
    for scheme in ("bearer", "BEARER ", "Bearer \t"):
        headers = {"Authorization": f"{scheme} secret"}
        assert httpx.get(f"{address}/v1/models", headers=headers).status_code == 200, scheme
    assert httpx.get(f"{address}/v1/models", headers={"Authorization": "Basic secret"}).status_code == 401
    assert client.with_options(api_key="secret").models.list().data
    for wrong in ("secre", "secrets", "Secret"):
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key=wrong).models.list()


def test_missing_addresses_and_methods_name_those_that_are(address):
    for method, path, status in (
        ("GET", "/v2", 404),
        ("POST", "/v1/responses", 404),
        ("POST", "/v1//chat/completions", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
    ):
        refused = httpx.request(method, address + path)
        assert refused.status_code == status and refused.json()["error"]["message"].startswith(f"no {method} {path}")
        assert "only: GET /, /health, /v1/models" in refused.json()["error"]["message"]
        assert "POST /v1/chat/completions" in refused.json()["error"]["message"]


def test_head_is_get_without_its_body_and_options_name_the_methods(address):
    for path in ("/health", "/", "/v1/models", "/v1/models/SFT"):
        head, get = httpx.head(address + path), httpx.get(address + path)
        assert head.status_code == 200 and head.content == b""
        assert head.headers["content-length"] == get.headers["content-length"]
        options = httpx.options(address + path)
        assert options.status_code == 204 and set(options.headers["allow"].split(", ")) == {"GET", "HEAD"}
    assert httpx.options(f"{address}/v1/completions").headers["allow"] == "POST"


def test_key_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    (tmp_path / "key").write_text(" in a file\r\n")

    def key(*flags):
        return serve.read_api_key(serve.parse_args(list(flags)).serve)

    assert key() is None and key("--api_key_file", str(tmp_path / "key")) == "in a file"
    (tmp_path / "key").write_bytes("\ufeffin a file\r\n".encode())  # as Windows' editor may save it
    assert key("--api_key_file", str(tmp_path / "key")) == "in a file"
    monkeypatch.setenv("SELFLLM_API_KEY", "of the environment")
    assert key() == "of the environment" and key("--api_key", "typed") == "typed"
    monkeypatch.setenv("SELFLLM_API_KEY", "")
    with pytest.raises(ValueError, match="SELFLLM_API_KEY is empty"):
        key()


def test_client_that_leaves_while_sending_is_no_server_error(api):
    class Http:
        headers: ClassVar = {"content-type": "application/json"}

        async def stream(self):
            yield b"{"
            raise ClientDisconnect

    with pytest.raises(APIError) as refused:
        asyncio.run(api.read_body(Http()))
    assert refused.value.status == 499


def test_stopping_server_finishes_running_answers(api, slow):
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
        assert text == greedy_answer("你好", 9)
        client.close()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health")


def test_missing_fastapi_is_answered_with_the_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "fastapi" else name)
    with pytest.raises(ValueError, match=r"needs fastapi: pip install -e \.\[serve\]"):
        serve.main([])


FLAGS = {
    "--api_key K": lambda api: api.key,
    "--api_key_file key": lambda api: api.key,
    "--allow_origin http://a:3000": lambda api: api.origins,
    "--allow_host llm.example": lambda api: api.hosts,
    "--host ::": lambda api: api.hosts,
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


def test_every_server_flag_changes_something(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.compile", as_written)
    (tmp_path / "key").write_text("in a file\n")
    for path in ("results/SFT.pth", "results/distill.pth", "other/x.pth", "other/SFT.pth"):
        save(tiny(), tmp_path / path)
    default = serve.make_api(serve.parse_args(["--device", "cpu"]))
    for flags, setting in FLAGS.items():
        api = serve.make_api(serve.parse_args(["--device", "cpu", *flags.split()]))
        assert setting(api) != setting(default), flags
    others = {action.option_strings[-1] for action in actions_of(serve)} - {flags.split()[0] for flags in FLAGS}
    assert others == {
        "--port",
        "--grace",
        "--long",
        "--tokenizer_dir",
        "--n_heads",
        "--rope_theta",
        "--device",
    }


@pytest.mark.parametrize(
    "flags, reason",
    [
        ("--api_key=", "--api_key is empty"),
        ("--api_key_file /dev/null", "--api_key_file /dev/null is empty"),
        (f"--api_key_file {__file__}", r"test_api.py has \d+ lines; a key is one line"),
        ("--api_key a --api_key_file b", "--api_key and --api_key_file are both given"),
        ("--allow_origin localhost:3000", "--allow_origin localhost:3000: browsers send http://HOST:PORT"),
        ("--allow_origin http://a/", "without a path"),
        ("--port 65536", "--port 65536 must be at most 65535"),
    ],
)
def test_impossible_server_flags_are_refused_at_the_start(flags, reason, tmp_path):
    save(tiny(), tmp_path / "SFT.pth", stage="SFT")
    with pytest.raises(ValueError, match=reason):
        serve.make_api(serve.parse_args([*flags.split(), "--save_dir", str(tmp_path), "--device", "cpu"]))


def test_server_listens_at_its_address_and_sigterm_is_no_error(tmp_path, monkeypatch, capsys):
    save(tiny(), tmp_path / "SFT.pth")
    bound = {}

    def run(self, sockets):
        bound["address"] = sockets[0].getsockname()
        signal.raise_signal(signal.SIGTERM)  # as uvicorn does at its end

    monkeypatch.setattr(uvicorn.Server, "run", run)
    before = signal.getsignal(signal.SIGTERM)
    serve.main(["--save_dir", str(tmp_path), "--device", "cpu", "--host", "0.0.0.0", "--port", "0"])
    signal.signal(signal.SIGTERM, before)
    assert bound["address"][0] == "0.0.0.0" and f"http://0.0.0.0:{bound['address'][1]}" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no such checkpoint. Make it with: python SFT.py"):
        serve.main(["--save_dir", str(tmp_path / "none"), "--device", "cpu"])
