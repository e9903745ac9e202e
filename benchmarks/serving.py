"""Serving: serve.py against `transformers serve` on the exported model, in turn, asked by the same clients.

    python -m benchmarks.serving                                    # fresh weights of the default shape
    python -m benchmarks.serving --ckpt demo/distill.pth --clients 4

Each client asks one question after another (/v1/completions of the openai package, greedy, every second one streamed).
The table counts the tokens of all answers a second, and how long one took from its question to its end.
"""

import itertools
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import compare, decode
from engine.flags import ROOT
from engine.machine import runtime

STARTS_WITHIN = 300  # seconds


def serve_py(job: dict, weights: str) -> list[str]:
    flags = f"--device {job['device']} --weight_dtype {weights} --slots {job['clients']}"
    return [str(ROOT / "serve.py"), "--ckpt", job["ckpt"], *flags.split()]


def transformers_serve(job: dict, dtype: str, *more: str) -> list[str]:
    program = ["-m", "transformers.cli.transformers", "serve", job["exported"]]
    return [*program, "--device", job["device"], "--dtype", dtype, *more]


# name: (function that gives the command, but for the port; its arguments after the job)
CONTENDERS = {
    "ours float32": (serve_py, "float32"),
    "ours auto": (serve_py, "auto"),
    "transformers float32": (transformers_serve, "float32"),
    "transformers bfloat16": (transformers_serve, "bfloat16"),
    "transformers float32, continuous batching": (transformers_serve, "float32", "--continuous-batching"),
}


@contextmanager
def served(command: list[str]) -> Iterator[str]:
    """Start a server and yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    address, until = f"http://127.0.0.1:{port}", time.monotonic() + STARTS_WITHIN
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([sys.executable, *command, "--port", str(port)], stderr=log)
        try:
            while not answers(address):
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    raise ValueError(log.read().strip().splitlines()[-1])
                time.sleep(0.2)
            yield address
        finally:
            process.kill()
            process.wait()


def answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(f"{address}/health").status == 200
    except (urllib.error.URLError, ConnectionError):
        return False


def work(job: dict) -> dict:
    """In a contender's process: start the server, ask, and count what comes."""
    import openai

    command, *options = CONTENDERS[job["contender"]]
    with served(command(job, *options)) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=600)
        name: Any = client.models.list().data[0].id if "ours" in job["contender"] else job["exported"]

        def ask(prompt: str, stream: bool) -> tuple[int, float]:
            """Return the number of tokens of the answer and its seconds."""
            began = time.perf_counter()
            request: Any = {"model": name, "prompt": prompt, "max_tokens": job["new_tokens"], "temperature": 0}
            if stream:
                request |= {"stream": True, "stream_options": {"include_usage": True}}
                usage = [part.usage for part in client.completions.create(**request) if part.usage][-1]
            else:
                usage = client.completions.create(**request).usage
            return usage.completion_tokens, time.perf_counter() - began

        def client_of(number: int) -> list[tuple[int, float]]:
            prompts = [f"第{number}号问题的第{turn}次：{decode.TEXT}" for turn in range(job["requests"])]
            return [ask(prompt, stream=turn % 2 == 1) for turn, prompt in enumerate(prompts)]

        ask(decode.TEXT, False)  # warms up
        began = time.perf_counter()
        with ThreadPoolExecutor(job["clients"]) as pool:
            came = list(itertools.chain(*pool.map(client_of, range(job["clients"]))))
        taken = time.perf_counter() - began
    return {
        "tokens_per_second": sum(count for count, _ in came) / taken,
        "answers": len(came),
        "tokens": sum(count for count, _ in came),
        "seconds": statistics.median(seconds for _, seconds in came),
    }


def main(argv: list[str] | None = None) -> None:
    parser = compare.parser(__doc__)
    decode.add_model(parser)
    add = parser.add_argument
    add("--clients", type=int, default=16, help="that ask at once")
    add("--requests", type=int, default=2, help="questions of each")
    add("--new_tokens", type=int, default=64, help="longest answer")
    add("--rounds", type=int, default=1, help="times each contender is run")
    add("--device", default="auto", help="auto, cuda, mps or cpu")
    add("--results", default=compare.RESULTS, help="file the table is appended to")
    args = parser.parse_args(argv)
    device = runtime.resolve_device(args.device).type
    before = compare.machine(device)
    with tempfile.TemporaryDirectory() as folder:
        job = compare.select(args, "clients", "requests", "new_tokens") | decode.prepare(args, Path(folder))
        job |= {"device": device}
        jobs: compare.Jobs = {name: ("benchmarks.serving", job | {"contender": name}) for name in CONTENDERS}
        results = compare.in_turn(lambda _: jobs, args.rounds)
    columns = {
        "tokens/s": "tokens_per_second",
        "seconds an answer": "seconds",
        "answers": "answers",
        "tokens": "tokens",
    }
    lines = compare.compared(results, columns, "tokens_per_second")
    title = f"serving, {decode.shape_of(args)}, on {device}, {args.clients} clients"
    compare.publish(title, "benchmarks.serving", argv, lines, Path(args.results), before)


if __name__ == "__main__":
    compare.entry(main, work)
