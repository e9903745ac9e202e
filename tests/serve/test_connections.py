"""Clients that do not keep to the protocol, and the end of a server while they are connected."""

import contextlib
import dataclasses
import time

import httpx
import pytest
from live_server import BAD_CLIENTS, connect, listening, wait_until

from engine.serve import connections
from engine.serve.engine_thread import EngineThread
from engine.serve.models import Models


@pytest.fixture
def own(api):
    """A server's parts of this test's own, for a server ends once."""
    models = Models(api.models.folder, api.models.default_path, api.models.open_model, 4)
    models._loaded = api.models._loaded
    return dataclasses.replace(api, models=models, engine_thread=EngineThread(40))


@pytest.mark.parametrize("name", ["half a body", "reads no stream", "all"])
def test_server_stops_within_its_grace_whatever_clients_do(own, slow, name, capfd):
    clients = BAD_CLIENTS.values() if name == "all" else [BAD_CLIENTS[name]]
    with contextlib.ExitStack() as stack:
        with listening(own, grace=0.3) as (address, server):
            for pieces in clients:
                stack.enter_context(connect(address, pieces))
            assert httpx.get(f"{address}/health").json()["status"] == "ok"
            time.sleep(0.1)
            start = time.monotonic()
            server.should_exit = True
        assert time.monotonic() - start < 2.5
    output = capfd.readouterr()
    assert "Traceback" not in output.err and "closed before their end (--grace 0.3 s)" in output.out + output.err
    assert own.engine_thread.num_requests == 0


def test_no_connection_is_outside_every_limit(own, monkeypatch, capfd):
    """Without a signal, too: none of the bad clients is left after the time of a request."""
    monkeypatch.setattr(connections, "MARGIN_SECONDS", 0.1)
    monkeypatch.setattr(connections, "KEEP_ALIVE_SECONDS", 0.2)
    with contextlib.ExitStack() as stack, listening(dataclasses.replace(own, timeout=0.4)) as (address, server):
        for pieces in BAD_CLIENTS.values():
            stack.enter_context(connect(address, pieces))
        wait_until(lambda: not server.server_state.connections and not own.engine_thread.num_requests, 4)
    assert "Traceback" not in capfd.readouterr().err


def test_body_that_does_not_come_is_told_with_status_408(own, monkeypatch):
    monkeypatch.setattr(connections, "MARGIN_SECONDS", 1.0)
    with (
        listening(dataclasses.replace(own, timeout=0.2)) as (address, _),
        connect(address, BAD_CLIENTS["half a body"]) as client,
    ):
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 408") and b"20 bytes came within 0.2 s, and not the rest" in answer


def test_more_connections_than_allowed_are_refused_with_503(own, monkeypatch):
    monkeypatch.setattr(connections, "NUM_IDLE_CONNECTIONS", 2 - own.engine_thread.max_requests)
    with contextlib.ExitStack() as stack, listening(own) as (address, server):
        for _ in range(2):
            stack.enter_context(connect(address, []))
        wait_until(lambda: len(server.server_state.connections) == 2)
        refused = httpx.get(f"{address}/health")
    assert refused.status_code == 503 and refused.text == "2 connections are open, of at most 2"
