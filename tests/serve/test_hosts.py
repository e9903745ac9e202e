"""Names, origins and addresses: what a page of another site may not do, and proxies may."""

import dataclasses
import socket

import httpx
import pytest
from live_server import listening

from engine.serve.engine_thread import EngineThread
from engine.serve.hosts import is_loopback, listen

LOCAL = ["localhost", "127.0.0.1:9", "[::1]:9", "LOCALHOST.", "app.localhost", "127.8.9.1"]
FOREIGN = ["evil.example", "evil.example:8000", "localhost.evil.example", "192.168.1.5", "127.0.0.1.evil.example", "[x"]


@pytest.fixture(scope="module")
def guarded(api):
    """An address that is asked by local names and those of two proxies, and by the pages of one site."""
    hosts, origins = ("llm.example:443", "*.lan"), ("http://localhost:3000",)
    with listening(dataclasses.replace(api, engine_thread=EngineThread(4), hosts=hosts, origins=origins)) as (it, _):
        yield it


@pytest.mark.parametrize("host", [*LOCAL, "llm.example", "LLM.example:8443", "a.lan"])
def test_local_and_allowed_names_are_answered(guarded, host):
    assert httpx.get(f"{guarded}/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", FOREIGN)
def test_name_of_another_site_is_refused_with_the_flag(guarded, host):
    refused = httpx.get(f"{guarded}/v1/models", headers={"Host": host})
    assert refused.status_code == 403 and "--allow_host" in refused.json()["error"]["message"]


def test_browser_asks_from_an_allowed_origin_alone(guarded):
    headers = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    preflight = httpx.options(f"{guarded}/v1/completions", headers={"Origin": "http://localhost:3000"} | headers)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    refused = httpx.post(f"{guarded}/v1/completions", headers={"Origin": "http://localhost:3000"})
    assert refused.status_code == 415 and "access-control-allow-origin" in refused.headers  # the page can read why
    for path in ("/v1/models", "/v1/completions"):
        other = httpx.options(guarded + path, headers={"Origin": "http://evil.example"} | headers)
        assert "access-control-allow-origin" not in other.headers


def test_server_listens_at_ipv6_and_at_both():
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    for host, addresses in (("::1", ["::1"]), ("[::]", ["::1", "127.0.0.1"]), ("localhost", ["127.0.0.1"])):
        with listen(host, 0) as listener:
            for address in addresses:
                socket.create_connection((address, listener.getsockname()[1]), 2).close()
    with (
        listen("127.0.0.1", 0) as taken,
        pytest.raises(ValueError, match=r"--host 127.0.0.1 --port \d+: Address already"),
    ):
        listen("127.0.0.1", taken.getsockname()[1])


def test_unknown_host_is_refused_by_its_flag(monkeypatch):
    def fail(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", fail)
    with pytest.raises(ValueError, match="--host nowhere: Name or service not known"):
        listen("nowhere", 0)


def test_loopback_is_what_this_machine_alone_reaches():
    assert all(map(is_loopback, ["127.0.0.1", "::1", "localhost", "127.1.2.3"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::"]))
