"""Limits of a connection, and a server that stops within its grace: neither depends on what clients do."""

import asyncio
import time
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from h11 import IDLE, SEND_RESPONSE
from uvicorn.protocols.http.h11_impl import H11Protocol

from engine.console import warn
from engine.serve.api import Api

KEEP_ALIVE_SECONDS = 60  # a client that reuses its connection after some seconds must not find it closed
MARGIN_SECONDS = 5.0  # from the deadline of a request, which is answered with an error, to the end of its connection
NUM_IDLE_CONNECTIONS = 500  # more than --max_queue: clients that are idle, or still sending
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"


class Connection(H11Protocol):
    """A connection that ends when its answer does not, or when its client sends no whole request.

    Args:
        args: As of uvicorn's class.
        timeout: Seconds for a request and its answer.
        max_connections: Open connections; more are refused.
        kwargs: As of uvicorn's class.
    """

    def __init__(self, *args: Any, timeout: float, max_connections: int, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.timeout = timeout + MARGIN_SECONDS
        self.max_connections = max_connections
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._abort_after(self.timeout)
        if len(self.connections) > self.max_connections:
            message = b"%d connections are open, of at most %d" % (len(self.connections) - 1, self.max_connections)
            transport.write(BUSY % (len(message), message))
            transport.close()

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:  # another request
            self._abort_after(self.timeout)

    def on_response_complete(self) -> None:
        # The next request may begin at the end of the idle time. What is not read by then is not waited for.
        self._abort_after(KEEP_ALIVE_SECONDS + self.timeout)
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (IDLE, SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.abort()  # an answer is on its way, or was sent

    def connection_lost(self, exc: Exception | None) -> None:
        if self.timer is not None:
            self.timer.cancel()
        super().connection_lost(exc)

    def _abort_after(self, seconds: float) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.loop.call_later(seconds, self.transport.abort)


class Server(uvicorn.Server):
    """A server that finishes what runs when it is to stop, but after `grace` seconds or a second signal drops it."""

    def __init__(self, api: Api, grace: float):
        max_connections = api.engine_thread.max_requests + NUM_IDLE_CONNECTIONS
        connection: Any = partial(Connection, timeout=api.timeout, max_connections=max_connections)
        config = uvicorn.Config(api.app(), http=connection, ws="none", log_level="warning")
        config.timeout_keep_alive = KEEP_ALIVE_SECONDS
        super().__init__(config)
        self.api = api
        self.grace = grace
        self.is_urgent = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.is_urgent = self.should_exit
        if not self.should_exit:
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list | None = None) -> None:
        dropping = asyncio.create_task(self._drop_after_grace())
        await super().shutdown(sockets)
        dropping.cancel()

    async def _drop_after_grace(self) -> None:
        """Close the connections that are left; their requests are then canceled like those of clients that leave."""
        end = time.monotonic() + self.grace
        while time.monotonic() < end and not self.is_urgent:
            await asyncio.sleep(0.05)
        self.api.models.close()
        connections = list(self.server_state.connections)
        warn(f"{len(connections)} connections are closed before their end (--grace {self.grace:g} s)")
        for connection in connections:
            connection.transport.abort()
