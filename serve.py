"""Serve every checkpoint of --save_dir behind OpenAI's API, each under its name, and a page to chat.

    python serve.py                                     # results/SFT.pth and its siblings, on http://127.0.0.1:8000
    python serve.py --model_mode 2                      # the page, and requests without a model: distill.pth
    python serve.py --host 0.0.0.0 --api_key_file KEY   # for other machines

It needs two more packages: pip install -e .[serve]. docs/serve.md shows how clients talk to it.
"""

import asyncio
import contextlib
import gc
import importlib.util
import os
import signal
import tempfile
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import torch
from tokenizers import Tokenizer

from engine import cli
from engine.checkpoint.weights import open_chosen
from engine.console import print0
from engine.export import page as chat_page
from engine.flags import Args, Flags, flag, parse
from engine.machine import runtime
from engine.options import Checkpoint, Device
from engine.serve.models import Models
from engine.talk.chat_model import ChatModel, Quantization
from engine.tokenizer import load_tokenizer

KEY_VARIABLE = "SELFLLM_API_KEY"  # of the environment


@dataclass(frozen=True)
class Serve(Flags):
    """server"""

    host: str = flag("127.0.0.1", "address to listen at; 0.0.0.0 or :: (IPv6): other machines reach it, too")
    port: int = flag(8000, "port to listen at (0: a free one)", ge=0, le=65535)
    api_key: str | None = flag(None, "API key that clients must send, seen by all users of this machine; default: none")
    api_key_file: Path | None = flag(None, f"file with the API key; ${KEY_VARIABLE} holds it, too", path="file")
    allow_origin: list[str] | None = flag(
        None, "origins of web apps that may ask from a browser, http://HOST:PORT (*: all)", nargs="+", type=str
    )
    allow_host: list[str] | None = flag(
        None, "names that proxies pass on as Host; on a loopback address only local ones are taken", nargs="+", type=str
    )
    slots: int = flag(16, "requests of a model that are answered at once; others wait", gt=0)
    max_queue: int = flag(64, "requests running and waiting, in all; more get status 429", gt=0)
    request_timeout: float = flag(300.0, "seconds from a request to the end of its answer; then status 503", gt=0)
    grace: float = flag(10.0, "seconds from SIGTERM or Ctrl-C to the end; what still runs is cut off", ge=0)
    max_body_kb: int = flag(256, "largest request in kB; larger ones get status 413", gt=0)


def open_model(args: Args, tokenizer: Tokenizer, device: torch.device, path: Path) -> ChatModel:
    """Return the model of a checkpoint.

    Args:
        args: The command line.
        tokenizer: Tokenizer of all checkpoints.
        device: Device that computes.
        path: The checkpoint.
    """
    model, meta = open_chosen(args.checkpoint, tokenizer, path)
    chats = (meta.get("stage") or path.stem) != "pretrain"
    return ChatModel(args.quantization.make_decoder(model, device), tokenizer, chats, None, model.config.max_seq_len)


def read_api_key(args: Serve) -> str | None:
    """Return the key that clients must send, from a flag, a file or the environment.

    Raises:
        ValueError: There is none where there should be one, or there are two.
    """
    if args.api_key is not None and args.api_key_file is not None:
        raise ValueError("--api_key and --api_key_file are both given; keep one of them")
    source, key = "--api_key", args.api_key
    if args.api_key_file is not None:
        source = f"--api_key_file {args.api_key_file}"
        key = args.api_key_file.read_text(encoding="utf-8-sig", errors="surrogateescape").strip()
    elif key is None and KEY_VARIABLE in os.environ:
        source, key = KEY_VARIABLE, os.environ[KEY_VARIABLE].strip()
    if key is not None and len(key.splitlines()) != 1:
        problem = f"has {len(key.splitlines())} lines; a key is one line" if key else "is empty"
        raise ValueError(f"{source} {problem}; leave it out if clients need no key")
    return key


@lru_cache(maxsize=1)
def render_page(checkpoint: Checkpoint, mtime_ns: int) -> str:
    """Return export.py's page with this server as its engine.

    Args:
        checkpoint: The flags of the checkpoint whose weights the page shows.
        mtime_ns: When it was written; part of the cache's key.
    """
    path, shape = checkpoint.path, {name: getattr(checkpoint, name) for name in chat_page.SHAPE_FLAGS}
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "page.html"
        chat_page.write_page({path.stem: path}, checkpoint.tokenizer_dir, target, served=True, **shape)
        return target.read_text(encoding="utf-8")


def make_api(args: Args):
    """Return everything but the socket. The default model is read now, so that a wrong one fails before clients come.

    Raises:
        ValueError: A flag, or the default checkpoint, cannot be used.
    """
    from engine.serve.api import Api
    from engine.serve.engine_thread import EngineThread
    from engine.serve.hosts import check_origins, is_loopback

    checkpoint, serve = args.checkpoint, args.serve
    key = read_api_key(serve)
    origins = serve.allow_origin or ()
    check_origins(origins)
    hosts = serve.allow_host
    if hosts is None and is_loopback(serve.host):
        hosts = ()
    device = runtime.start(args.device, seed=0).device
    opener = partial(open_model, args, load_tokenizer(checkpoint.tokenizer_dir), device)
    models = Models(Path(checkpoint.save_dir), checkpoint.path, opener, serve.slots)
    models.open_default()

    def page(locked: bool) -> str:
        return chat_page.locked_page() if locked else render_page(checkpoint, checkpoint.path.stat().st_mtime_ns)

    max_body_bytes = 1000 * serve.max_body_kb
    engine_thread = EngineThread(serve.max_queue)
    return Api(models, engine_thread, key, page, max_body_bytes, serve.request_timeout, hosts, origins)


def parse_args(argv: list[str] | None) -> Args:
    return parse(__doc__, argv, Serve, Checkpoint, Device, Quantization)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with contextlib.suppress(RuntimeError):  # none is running
        asyncio.get_running_loop()
        raise ValueError("an event loop runs here, as in a notebook's cell: start the server with !python serve.py")
    if missing := [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]:
        raise ValueError(f"serve.py needs {' and '.join(missing)}: pip install -e .[serve]")
    from engine.serve.connections import Server
    from engine.serve.hosts import listen

    server = Server(make_api(args), args.serve.grace)
    with listen(args.serve.host, args.serve.port) as listener:
        # uvicorn finishes what runs, then raises the signal again for the handler that it had replaced.
        signal.signal(signal.SIGTERM, server.handle_exit)
        host, port, *_ = listener.getsockname()
        print0(f"http://{f'[{host}]' if ':' in host else host}:{port} (Ctrl-C or SIGTERM: finish what runs and stop)")
        try:
            server.run(sockets=[listener])
        finally:
            gc.freeze()  # the process ends a second sooner: Python does not search all that torch made for garbage


if __name__ == "__main__":
    cli.run(main)
