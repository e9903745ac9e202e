"""A server in the tests' own process, its expected answers, and clients that do not keep to the protocol."""

import contextlib
import json
import socket
import struct
import threading
import time
from urllib.parse import urlsplit

from factories import EOS, TOKENIZER
from tiny_model import tiny

from dataset import SFTDataset
from engine.generate.engine import complete
from engine.serve.connections import Server


def user(text):
    return [{"role": "user", "content": text}]


BODY = json.dumps({"messages": user("你好"), "max_tokens": 100, "presence_penalty": 9e3, "temperature": 0}).encode()
STREAM = BODY[:-1] + b', "stream": true, "n": 4}'
LOGPROBS = BODY[:-1] + b', "n": 4, "logprobs": true, "top_logprobs": 20}'


def post(body, length=None, more=""):
    fields = f"Host: localhost\r\nContent-Type: application/json\r\n{more}"
    if not more:
        fields += f"Content-Length: {len(body) if length is None else length}\r\n"
    return f"POST /v1/chat/completions HTTP/1.1\r\n{fields}\r\n".encode() + body


CHUNKED = "Transfer-Encoding: chunked\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
BAD_CLIENTS = {  # what each sends before it stops; b"" at the end: it shuts its sending side, None: it resets
    "connects and says nothing": [],
    "half a header": [b"POST /v1/chat/completions HTTP/1.1\r\nHost: loc"],
    "half a body": [post(BODY[:20], len(BODY))],
    "a byte at a time": [bytes([byte]) for byte in post(BODY)[:9]],
    "a chunked body without an end": [post(b"5\r\n{    \r\n", more=CHUNKED)],
    "a chunk of no length": [post(b"zz\r\n", more=CHUNKED)],
    "idle after its answer": [HEALTH],
    "a body where none is read": [HEALTH[:-2] + b"Content-Length: 99999\r\n\r\n", b"a"],
    "a bad chunk after its answer": [
        b"GET /no HTTP/1.1\r\nHost: localhost\r\n" + CHUNKED.encode() + b"\r\n",
        b"zz\r\n",
    ],
    "reads no stream": [post(STREAM)],
    "reads no long answer": [post(LOGPROBS)],
    "pipelines": [post(BODY) * 3 + post(BODY[:9], len(BODY))],
    "leaves half a connection": [post(STREAM), b""],
    "resets in the middle": [post(STREAM), None],
    "a huge header": [b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70_000],
    "waits for 100": [post(b"", 99, "Expect: 100-continue\r\nContent-Length: 99\r\n")],
    "speaks TLS": [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 60],
    "a body that is too large": [post(b"a" * 100_000, 10**9)],
}


def connect(address, pieces):
    """Return the socket of a bad client, which has sent its pieces."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    client.settimeout(5)
    client.connect((urlsplit(address).hostname, urlsplit(address).port))
    with contextlib.suppress(ConnectionError):  # a server may end it before
        for piece in pieces:
            time.sleep(0.005)  # as a segment of its own
            if piece is None:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
            elif not piece:
                client.shutdown(socket.SHUT_WR)
            else:
                client.sendall(piece)
    return client


@contextlib.contextmanager
def listening(api, grace=10.0):
    """Yield its address and the server while it runs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(api, grace)
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
