"""Decoding: engine/generate against transformers' generate on the exported model, in turn.

    python -m benchmarks.decode                                       # fresh weights of the default shape
    python -m benchmarks.decode --ckpt results/pretrain.pth --batch_size 1 8 --new_tokens 256

Both continue the same prompts greedily with fp32 weights and a cache, always to the full length. The table says whether
they gave the same ids, and how long the first token took.
"""

import hashlib
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import compare, ours
from dataset import load_tokenizer
from engine.flags import ROOT
from engine.machine import runtime
from engine.options import DTYPES

TEXT = "从前，海边有一座小镇，镇上的人都靠打鱼为生。The sea was calm that day, and the boats came home early. "


def engine_generate(job: dict):
    from engine.checkpoint.weights import load_model
    from engine.generate.decode import complete

    model, _ = load_model(Path(job["ckpt"]))
    model.eval().to(job["device"], job["dtype"])

    def answer(prompts: list[list[int]], count: int) -> list[list[int]]:
        return complete(model, prompts, max_new_tokens=count, end_id=None, temperature=0)

    return answer


def transformers_generate(job: dict):
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(job["exported"], dtype=job["dtype"]).eval().to(job["device"])
    model.generation_config.eos_token_id = None  # both go on to the full length

    def answer(prompts: list[list[int]], count: int) -> list[list[int]]:
        ids = torch.tensor(prompts, device=job["device"])
        options = {"do_sample": False, "max_new_tokens": count}
        with torch.inference_mode():
            return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[:, ids.shape[1] :].tolist()

    return answer


CONTENDERS = {"ours": engine_generate, "transformers generate": transformers_generate}


def work(job: dict) -> dict:
    """In a contender's process: new tokens a second of the whole batch, after a short answer to warm up."""
    import torch

    job["dtype"] = getattr(torch, job["dtype"])
    answer, taken = CONTENDERS[job["contender"]](job), []
    answer(job["prompts"], 4)
    for count in (1, job["new_tokens"]):
        began = time.perf_counter()
        ids = answer(job["prompts"], count)
        taken.append(time.perf_counter() - began)
    made = sum(map(len, ids))
    return {
        "tokens_per_second": made / taken[1],
        "first_token_ms": taken[0] * 1e3,
        "ids": hashlib.blake2b(str(ids).encode(), digest_size=6).hexdigest(),
    }


def prepare(args, folder: Path) -> dict[str, str]:
    """The checkpoint and its export. Without --ckpt its weights are as good as fresh: only their shape matters here."""
    from engine.checkpoint import hugging_face
    from engine.checkpoint.weights import load_model

    shape = compare.select(args, "dim", "n_layers", "n_heads", "n_kv_heads")
    ckpt = Path(args.ckpt).resolve() if args.ckpt else ours.one_step(shape, args.tokenizer_dir, folder)
    hugging_face.to_hf(load_model(ckpt)[0], args.tokenizer_dir, folder / "exported")
    return {"ckpt": str(ckpt), "exported": str(folder / "exported")}


def main(argv: list[str] | None = None) -> None:
    parser = compare.parser(__doc__)
    add = parser.add_argument
    add("--ckpt", help="checkpoint to decode with; default: fresh weights")
    add("--dim", type=int, default=512, help="width of the fresh model")
    add("--n_layers", type=int, default=8, help="blocks of the fresh model")
    add("--n_heads", type=int, default=8, help="its query heads")
    add("--n_kv_heads", type=int, default=2, help="its key-value heads")
    add("--batch_size", type=int, nargs="+", default=[1, 8], help="prompts at once; a table for each")
    add("--prompt_tokens", type=int, default=32, help="length of each prompt")
    add("--new_tokens", type=int, default=128, help="length of each answer")
    add("--rounds", type=int, default=3, help="times each contender is run")
    add("--device", default="auto", help="auto, cuda, mps or cpu")
    add("--dtype", choices=list(DTYPES), default="float32", help="of weights and cache")
    add("--threads", type=int, default=0, help="threads of each contender (0: as torch decides)")
    add("--tokenizer_dir", default=ROOT / "spongebob_tokenizer", help="folder with tokenizer.json")
    add("--results", default=compare.RESULTS, help="file the table is appended to")
    args = parser.parse_args(argv)
    ids = load_tokenizer(args.tokenizer_dir).encode(TEXT * args.prompt_tokens, add_special_tokens=False).ids
    device = runtime.pick_device(args.device).type
    before, lines = compare.machine(device), []
    with tempfile.TemporaryDirectory() as folder:
        job = compare.select(args, "new_tokens", "dtype", "threads") | prepare(args, Path(folder))
        job["device"] = device
        for size in args.batch_size:
            prompts = [ids[row : row + args.prompt_tokens] for row in range(size)]
            jobs = {name: ("benchmarks.decode", job | {"contender": name, "prompts": prompts}) for name in CONTENDERS}
            results = compare.in_turn(lambda _, jobs=jobs: jobs, args.rounds)
            columns = {"tokens/s": "tokens_per_second", "ms to the first": "first_token_ms", "MiB": "memory"}
            answers = {figures.get("ids") for several in results.values() for figures in several}
            lines += [f"Batch {size}; the ids are {'the same' if len(answers) == 1 else 'NOT the same'}.", ""]
            lines += [*compare.compared(results, columns, "tokens_per_second"), ""]
    shape = Path(args.ckpt).name if args.ckpt else f"{args.n_layers} layers x {args.dim}"
    title = f"decoding, {shape}, {args.dtype} on {device}, {args.prompt_tokens} + {args.new_tokens} tokens"
    words = sys.argv[1:] if argv is None else argv
    compare.publish(title, "benchmarks.decode", words, lines[:-1], Path(args.results), before)


if __name__ == "__main__":
    compare.entry(main, work)
