"""A server in the tests' own process, and its expected answers."""

import contextlib
import socket
import threading
import time

import uvicorn
from factories import EOS, TOKENIZER
from tiny_model import tiny

from dataset import SFTDataset
from engine.generate.engine import complete


@contextlib.contextmanager
def listening(api):
    """Yield its address and the server while it runs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(api.app(), log_level="warning", ws="none", timeout_keep_alive=60))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", server
        finally:
            server.should_exit = True  # as SIGTERM does
            thread.join(10)
        assert not thread.is_alive()


def user(text):
    return [{"role": "user", "content": text}]


def greedy_answer(question, max_new_tokens, seed=0):
    """Return the engine's answer without a server."""
    prompt = SFTDataset(TOKENIZER).prompt(user(question))
    (ids,) = complete(tiny(seed), [prompt], max_new_tokens=max_new_tokens, end_id=EOS, temperature=0)
    return TOKENIZER.decode(ids, skip_special_tokens=False)


def wait_until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
