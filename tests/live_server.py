"""A server of the tests' own process."""

import contextlib
import socket
import threading
import time

import uvicorn


@contextlib.contextmanager
def listening(api):
    """Its address and the server while it runs."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        server = uvicorn.Server(uvicorn.Config(api.app(), log_level="warning", ws="none", timeout_keep_alive=60))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{door.getsockname()[1]}", server
        finally:
            server.should_exit = True  # what SIGTERM does
            thread.join(10)
        assert not thread.is_alive()
