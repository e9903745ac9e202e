"""Decoding: engine/generate against transformers' generate and llama.cpp on the exported model, in turn.

    python -m benchmarks.decode                                       # fresh weights of the default shape
    python -m benchmarks.decode --ckpt results/pretrain.pth --batch_size 1 8 --new_tokens 256
    python -m benchmarks.decode --dim 128 --n_layers 4 --n_heads 4    # the demo's shape

All continue the same prompts greedily with a cache, always to the full length; each with float32 weights and its other
dtypes, ours with --compile too. The table shows the time to the first token and the bytes of weights read per second;
above it is what a plain product of a matrix and a vector reads. llama.cpp is included if it is installed (pip install
xllamacpp).
"""

import argparse
import hashlib
import importlib.util
import json
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks import compare, ours
from engine.flags import ROOT
from engine.machine import runtime
from engine.tokenizer import load_tokenizer

PRODUCT = "a matrix times a vector"
TEXT = "从前，海边有一座小镇，镇上的人都靠打鱼为生。The sea was calm that day, and the boats came home early. "


def engine_generate(job: dict, kind: str, compile: bool = False):
    import torch

    from engine.checkpoint.weights import load_model
    from engine.generate.compiled_decoder import CompiledDecoder
    from engine.generate.engine import GenerationEngine, Request
    from engine.generate.fast_decoder import Decoder
    from engine.generate.sampling import Sampling

    make = CompiledDecoder if compile else Decoder
    decoder = make.from_model(load_model(Path(job["ckpt"]))[0], kind, torch.device(job["device"]))

    def answer(prompts: list[list[int]], count: int) -> list[list[int]]:
        slots = GenerationEngine(decoder, len(prompts), len(prompts[0]) + count)
        requests = [slots.add(Request(prompt, count, sampling=Sampling(temperature=0))) for prompt in prompts]
        while slots.busy:
            slots.step()
        return [request.ids for request in requests]

    return answer


def engine_compiled(job: dict, kind: str):
    return engine_generate(job, kind, compile=True)


def transformers_generate(job: dict, kind: str):
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(job["exported"], dtype=getattr(torch, kind)).eval().to(job["device"])
    model.generation_config.eos_token_id = None  # generate to the full length

    def answer(prompts: list[list[int]], count: int) -> list[list[int]]:
        ids = torch.tensor(prompts, device=job["device"])
        options = {"do_sample": False, "max_new_tokens": count}
        with torch.inference_mode():
            return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[:, ids.shape[1] :].tolist()

    return answer


def llama_cpp(job: dict, kind: str):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_parallel = f"{job['exported']}/{kind}.gguf", len(job["prompts"])
    params.n_ctx = 512 * params.n_parallel
    params.n_gpu_layers = 0 if job["device"] == "cpu" else 99
    params.cpuparams.n_threads, params.verbosity = job["threads"] or len(os.sched_getaffinity(0)), -1
    server = xllamacpp.Server(params)

    def ask(prompt: list[int], count: int) -> list[int]:
        fields = {
            "prompt": prompt,
            "n_predict": count,
            "temperature": 0,
            "return_tokens": True,
            "ignore_eos": True,
            "cache_prompt": False,
        }
        headers, url = {"Content-Type": "application/json"}, f"{server.listening_address}/completion"
        asked = urllib.request.Request(url, json.dumps(fields).encode(), headers)
        return json.loads(urllib.request.urlopen(asked).read())["tokens"]

    def answer(prompts: list[list[int]], count: int) -> list[list[int]]:
        with ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(ask, prompts, [count] * len(prompts)))

    return answer


# name: (function that makes it, weights, bits per weight)
CONTENDERS = {
    "ours float32": (engine_generate, "float32", 32),
    "ours bfloat16": (engine_generate, "bfloat16", 16),
    "ours int8": (engine_generate, "int8", 8),
    "compiled float32": (engine_compiled, "float32", 32),
    "compiled bfloat16": (engine_compiled, "bfloat16", 16),
    "compiled int8": (engine_compiled, "int8", 8),
    "transformers float32": (transformers_generate, "float32", 32),
    "transformers bfloat16": (transformers_generate, "bfloat16", 16),
    "llama.cpp F32": (llama_cpp, "float32", 32),
    "llama.cpp Q8_0": (llama_cpp, "q8_0", 8.5),
}
COLUMNS = {
    "tokens/s": "tokens_per_second",
    "GB of weights/s": "read",
    "ms to the first": "first_token_ms",
    "MiB": "memory",
}
PAIRS = [
    ("ours float32", "transformers float32"),
    ("ours bfloat16", "transformers bfloat16"),
    ("ours int8", "transformers float32"),
    ("ours float32", "llama.cpp F32"),
    ("ours int8", "llama.cpp Q8_0"),
    ("compiled float32", "llama.cpp F32"),
    ("compiled int8", "llama.cpp Q8_0"),
]


def work(job: dict) -> dict:
    """Measure new tokens per second of the whole batch, after a short answer to warm up; in a contender's process."""
    if job["contender"] == PRODUCT:
        return matrix_vector(job["device"])
    make, kind, bits = CONTENDERS[job["contender"]]
    answer, taken = make(job, kind), []
    answer(job["prompts"], 4)
    for count in (1, job["new_tokens"]):
        began = time.perf_counter()
        ids = answer(job["prompts"], count)
        taken.append(time.perf_counter() - began)
    made = sum(map(len, ids))
    speed = made / taken[1]
    return {
        "tokens_per_second": speed,
        "first_token_ms": taken[0] * 1e3,
        "read": speed / len(job["prompts"]) * job["numbers"] * bits / 8 / 1e9,
        "ids": hashlib.blake2b(str(ids).encode(), digest_size=6).hexdigest(),
    }


def matrix_vector(device: str) -> dict:
    """Measure the GB per second that torch's fp32 product of a 64 MB matrix and a vector reads."""
    import torch

    matrix, vector = torch.ones(4096, 4096, device=device), torch.ones(4096, device=device)
    taken = []
    for _ in range(20):
        began = time.perf_counter()
        (matrix @ vector).sum().item()
        taken.append(time.perf_counter() - began)
    return {"read": matrix.numel() * 4 / min(taken) / 1e9}


def prepare(args, folder: Path) -> dict[str, Any]:
    """Make the checkpoint and its exports. Without --ckpt it has been trained for one step: only its shape matters."""
    from engine.checkpoint.weights import load_model
    from engine.export import hugging_face
    from engine.export.gguf import to_gguf

    shape = compare.select(args, "dim", "n_layers", "n_heads", "n_kv_heads")
    ckpt = Path(args.ckpt).resolve() if args.ckpt else ours.one_step(shape, args.tokenizer_dir, folder)
    model = load_model(ckpt)[0]
    hugging_face.to_hf(model, args.tokenizer_dir, folder / "exported")
    if importlib.util.find_spec("xllamacpp"):
        for kind in ("float32", "q8_0"):
            to_gguf(model, args.tokenizer_dir, folder / "exported" / f"{kind}.gguf", kind, {})
    numbers = sum(weight.numel() for weight in model.parameters() if weight.dim() == 2)  # tied: each is read once
    return {"ckpt": str(ckpt), "exported": str(folder / "exported"), "numbers": numbers}


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `prepare` reads."""
    add = parser.add_argument
    add("--ckpt", help="checkpoint to decode with; default: fresh weights")
    add("--dim", type=int, default=512, help="width of the fresh model")
    add("--n_layers", type=int, default=8, help="blocks of the fresh model")
    add("--n_heads", type=int, default=8, help="its query heads")
    add("--n_kv_heads", type=int, default=2, help="its key-value heads")
    add("--tokenizer_dir", default=ROOT / "spongebob_tokenizer", help="folder with tokenizer.json")


def shape_of(args: argparse.Namespace) -> str:
    """Name the model: its file or its shape."""
    return Path(args.ckpt).name if args.ckpt else f"{args.n_layers} layers x {args.dim}"


def can_run(make: Callable, kind: str, device: str) -> bool:
    """Return whether a contender is installed and has such weights on this device."""
    if make is llama_cpp:
        return importlib.util.find_spec("xllamacpp") is not None
    return device == "cpu" or (kind != "int8" and make is not engine_compiled)


def main(argv: list[str] | None = None) -> None:
    parser = compare.parser(__doc__)
    add_model(parser)
    add = parser.add_argument
    add("--batch_size", type=int, nargs="+", default=[1, 16], help="prompts at once; a table for each")
    add("--prompt_tokens", type=int, default=32, help="length of each prompt")
    add("--new_tokens", type=int, default=128, help="length of each answer")
    add("--rounds", type=int, default=3, help="times each contender is run")
    add("--device", default="auto", help="auto, cuda, mps or cpu")
    add("--threads", type=int, default=0, help="threads of each contender (0: as torch decides)")
    add("--results", default=compare.RESULTS, help="file the table is appended to")
    args = parser.parse_args(argv)
    ids = load_tokenizer(args.tokenizer_dir).encode(TEXT * args.prompt_tokens, add_special_tokens=False).ids
    device = runtime.resolve_device(args.device).type
    before, lines = compare.machine(device), []
    with tempfile.TemporaryDirectory() as folder:
        job = compare.select(args, "new_tokens", "threads") | prepare(args, Path(folder))
        job["device"] = device
        names = [name for name, (make, kind, _) in CONTENDERS.items() if can_run(make, kind, device)]
        pairs = [pair for pair in PAIRS if {*pair} <= {*names}]
        for size in args.batch_size:
            prompts = [ids[row : row + args.prompt_tokens] for row in range(size)]
            shared = job | {"prompts": prompts}
            jobs = {name: ("benchmarks.decode", shared | {"contender": name}) for name in [*names, PRODUCT]}
            results = compare.in_turn(lambda _, jobs=jobs: jobs, args.rounds)
            read = compare.spread([figures["read"] for figures in results.pop(PRODUCT)])
            in_float32 = chain.from_iterable(results[name] for name in names if name.endswith("32"))
            same = "the same" if len({figures.get("ids") for figures in in_float32}) == 1 else "NOT the same"
            lines += [f"Batch {size}; in float32 the ids are {same}. {PRODUCT.capitalize()} reads {read} GB/s.", ""]
            lines += [*compare.compared(results, COLUMNS, "tokens_per_second"), ""]
            for ours_name, peer in pairs:
                if ratios := compare.ratios(results[ours_name], results[peer], "tokens_per_second"):
                    lines.append(f"- {ours_name} / {peer}: {compare.spread(ratios)}")
            lines.append("")
    title = f"decoding, {shape_of(args)}, on {device}, {args.prompt_tokens} + {args.new_tokens} tokens"
    words = sys.argv[1:] if argv is None else argv
    compare.publish(title, "benchmarks.decode", words, lines[:-1], Path(args.results), before)


if __name__ == "__main__":
    compare.entry(main, work)
