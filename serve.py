"""A server that speaks OpenAI's API: every checkpoint of --save_dir is a model by its name.

    python serve.py                                     # results/SFT.pth and all beside it, on http://127.0.0.1:8000
    python serve.py --model_mode 2                      # the page and who names no model: distill.pth
    python serve.py --host 0.0.0.0 --api_key KEY        # for other machines

It needs two packages more: pip install -e .[serve]. docs/serve.md shows how clients talk to it.
"""

import importlib.util
import signal
import socket
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from engine import cli
from engine.checkpoint.weights import open_chosen
from engine.console import print0
from engine.export import page as chat_page
from engine.flags import Args, Flags, flag, parse
from engine.machine import runtime
from engine.options import Checkpoint, Device
from engine.serve.models import Models
from engine.talk.chat_model import ChatModel, Weights
from engine.tokenizer import load_tokenizer

INSTALL = "pip install -e .[serve]"


@dataclass(frozen=True)
class Serve(Flags):
    """server"""

    host: str = flag("127.0.0.1", "address it listens at; 0.0.0.0: other machines reach it, too")
    port: int = flag(8000, "port it listens at (0: one that is free)", ge=0, le=65535)
    api_key: str | None = flag(None, "what clients must send as their API key; default: no key is asked for")
    slots: int = flag(16, "requests of a model that are answered at once; others wait", gt=0)
    max_queue: int = flag(64, "requests that are answered or wait, in all; more get status 429", gt=0)
    request_timeout: float = flag(300.0, "longest time from a request to the end of its answer; then status 503", gt=0)
    max_body_kb: int = flag(256, "largest request; larger ones get status 413", gt=0)


def models_of(args: Args, tokenizer: Tokenizer, rt: runtime.Runtime) -> Models:
    """The checkpoints of --save_dir and the one that --model_mode or --ckpt means."""
    checkpoint = args.checkpoint

    def open_one(path: Path) -> ChatModel:
        model, meta = open_chosen(checkpoint, tokenizer, path)
        decoder = args.weights.decoder(model, rt.device)
        chats = (meta.get("stage") or path.stem) != "pretrain"
        return ChatModel(decoder, tokenizer, chats, None, model.config.max_seq_len)

    return Models(Path(checkpoint.save_dir), checkpoint.path, open_one, args.serve.slots)


@lru_cache(maxsize=1)
def page_of(path: Path, tokenizer_dir: Path, written: int) -> str:
    """The page of export.py with this server as its engine; `written` is the time of the weights it looks into."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "page.html"
        chat_page.write_page({path.stem: path}, tokenizer_dir, target, served=True)
        return target.read_text(encoding="utf-8")


def api_of(args: Args):
    """Everything but the socket. The model that is meant is read now: a wrong one is told before clients come."""
    from engine.serve.api import Api, Limits
    from engine.serve.engine_thread import EngineThread

    checkpoint, serve = args.checkpoint, args.serve
    if serve.api_key == "":
        raise ValueError("--api_key is empty; leave it out where no key is to be asked for")
    models = models_of(args, load_tokenizer(checkpoint.tokenizer_dir), runtime.start(args.device, seed=0))
    models.open_default()
    limits = Limits(body=1000 * serve.max_body_kb, seconds=serve.request_timeout)
    page = lambda: page_of(checkpoint.path, checkpoint.tokenizer_dir, checkpoint.path.stat().st_mtime_ns)
    return Api(models, EngineThread(serve.max_queue), limits, serve.api_key, page)


def parse_args(argv: list[str] | None) -> Args:
    return parse(__doc__, argv, Serve, Checkpoint, Device, Weights)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if missing := [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]:
        raise ValueError(f"serve.py needs {' and '.join(missing)}: {INSTALL}")
    import uvicorn

    serve, app = args.serve, api_of(args).app()
    with socket.create_server((serve.host, serve.port)) as door:
        print0(f"http://{serve.host}:{door.getsockname()[1]} (Ctrl-C or SIGTERM: finish what runs and stop)")
        # uvicorn finishes what runs, then raises the signal again for whoever had it before.
        signal.signal(signal.SIGTERM, lambda *_: None)
        # A client that uses its connection again after some seconds must not meet its end.
        config = uvicorn.Config(app, log_level="warning", ws="none", timeout_keep_alive=60)
        uvicorn.Server(config).run(sockets=[door])


if __name__ == "__main__":
    cli.run(main)
