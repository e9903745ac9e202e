"""Text -> token ids on disk: our token cache, a plain loop and transformers' batches in turn, in MB of text a second.

    python -m benchmarks.encode                                      # the bundled sample
    python -m benchmarks.encode --data_path pretrain.jsonl --rounds 5
    python -m benchmarks.encode --data_path pretrain.jsonl --memory_gb 2    # is memory flat? table and picture
    python -m benchmarks.encode --page                               # the tokenizer of the page, in node

Every contender reads the same JSONL, encodes each row's text between <s> and </s>, and writes the ids as uint16; a hash
of what was written says whether they agree. Ours checks and hashes the rows too, and is told --num_workers; --memory_gb
writes that much JSONL, of rows that differ, and follows the memory of the builder and its workers. --page times the
worst that can be typed on the page: one word of Han characters, without a break.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import compare, rows
from dataset import PretrainDataset
from engine.corpus.token_cache import open_or_build
from engine.export.page import PROGRAM, describe_tokenizer
from engine.flags import ROOT
from engine.options import SAMPLE
from engine.tokenizer import load_tokenizer


def ours(job: dict, out: Path) -> None:
    """The stages' own first step; afterwards the ids are in the cache folder."""
    tokenizer = load_tokenizer(job["tokenizer_dir"])
    cache = open_or_build([job["path"]], PretrainDataset, tokenizer, cache_dir=out.parent, num_workers=job["workers"])
    os.replace(cache.folder / "ids.bin", out)


def loop(job: dict, out: Path) -> None:
    """One process, one row at a time, as a script would write it."""
    tokenizer = load_tokenizer(job["tokenizer_dir"])
    bos, eos = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")
    with open(job["path"], encoding="utf-8") as lines, open(out, "wb") as file:
        for line in lines:
            ids = tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids
            np.array([bos, *ids, eos], dtype=np.uint16).tofile(file)


def transformers_batches(job: dict, out: Path) -> None:
    """AutoTokenizer on a thousand texts at once, with the threads it takes by itself."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job["tokenizer_dir"], split_special_tokens=True)
    with open(job["path"], encoding="utf-8") as lines, open(out, "wb") as file:
        texts = [json.loads(line)["text"] for line in lines]
        for start in range(0, len(texts), 1000):
            for ids in tokenizer(texts[start : start + 1000], add_special_tokens=False).input_ids:
                np.array([tokenizer.bos_token_id, *ids, tokenizer.eos_token_id], dtype=np.uint16).tofile(file)


CONTENDERS = {"ours": ours, "plain loop": loop, "transformers, batches": transformers_batches}


def work(job: dict) -> dict:
    """In a contender's process: megabytes of text a second, and of processor time."""
    out = Path(job["folder"], "ids")
    began, processor = time.perf_counter(), os.times()
    CONTENDERS[job["contender"]](job, out)
    seconds, after = time.perf_counter() - began, os.times()
    spent = sum(after[:4]) - sum(processor[:4])  # of this process and of its finished children
    ids = hashlib.blake2b(out.read_bytes(), digest_size=6).hexdigest()
    return {"mb_per_second": job["mb"] / seconds, "mb_per_cpu_second": job["mb"] / spent, "ids": ids}


def text_bytes(path: Path) -> int:
    with open(path, encoding="utf-8") as lines:
        return sum(len(json.loads(line)["text"].encode()) for line in lines)


# -------------------------------------------------------------------------------------------------- memory


def enlarge(path: Path, size: int, out: Path) -> None:
    """Write `size` bytes of JSONL: the file's rows again and again, each numbered so that no two are equal."""
    with open(path, encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    written = number = 0
    with open(out, "w", encoding="utf-8") as file:
        while written < size:
            line = json.dumps({"text": f"{number} {texts[number % len(texts)]}"}, ensure_ascii=False) + "\n"
            written += len(line.encode())
            file.write(line)
            number += 1


def tree_memory(pid: int) -> float:
    """Sum the MiB of a process and its children, shared pages counted once (proportional set sizes)."""
    pids = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    kib = 0
    for member in pids:
        try:
            lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        kib += sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon", "Pss_Shmem")))
    return kib / 2**10


BUILD = """
import sys
from pathlib import Path
from benchmarks import compare, rows
from engine.tokenizer import load_tokenizer
tokenizer = load_tokenizer(sys.argv[3])
before = compare.peak_memory()["memory"]
cache = rows.open_rows(Path(sys.argv[1]), tokenizer, Path(sys.argv[2]), int(sys.argv[4]))
print(len(cache), compare.peak_memory()["memory"] - before)
"""


def memory(args: argparse.Namespace, folder: Path) -> list[str]:
    """Build the cache of a big file, then open it in a new process. Pages of files are not counted."""
    if not Path("/proc/self/smaps_rollup").is_file():
        raise ValueError("--memory_gb reads /proc, which only Linux has")
    big, curve = folder / "big.jsonl", []
    enlarge(Path(args.data_path), int(args.memory_gb * 2**30), big)
    command = [sys.executable, "-c", BUILD, str(big), str(folder / "cache"), args.tokenizer_dir, str(args.num_workers)]
    began = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as job:
        while job.poll() is None:
            curve.append((time.perf_counter() - began, tree_memory(job.pid)))
            time.sleep(0.5)
        if job.returncode:
            raise ValueError("the cache could not be built")
    opened = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    picture = Path(args.results).with_name("cache_memory.png")
    draw(curve, picture)
    half = curve[len(curve) // 2 :]
    cells = [
        f"{args.memory_gb:g} GiB",
        opened[0],
        f"{max(mib for _, mib in curve):.0f}",
        f"{max(mib for _, mib in half):.0f}",
        f"{float(opened[1]):.0f}",
    ]
    heading = ["file", "rows", "MiB at most", "in the second half", "MiB to open"]
    return [*compare.table([heading, cells]), "", f"![memory while the cache is built]({picture.name})"]


def draw(curve: list[tuple[float, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3), layout="constrained")
    axes.plot(*zip(*curve, strict=True))
    axes.set(xlabel="seconds", ylabel="MiB, all processes", ylim=(0, None))
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


# ---------------------------------------------------------------------------------------------------- page

ONE_WORD = """
const { data, lengths } = JSON.parse(require("fs").readFileSync(0, "utf8"));
const tokenizer = new Tokenizer(data, async () => false);
const encode = async (length) => {
  const word = Array.from({ length }, (_, i) => "的一是不了在人有我他"[i * i % 97 % 10]).join("");
  const began = performance.now(), ids = await tokenizer.encode(word);
  return [length, ids.length, (performance.now() - began) / 1000];
};
(async () => {
  const rows = [];
  for (const length of [lengths[0], ...lengths]) rows.push(await encode(length));  // the first one warms up
  console.log(JSON.stringify(rows.slice(1)));
})();
"""


def page_tokenizer(tokenizer_dir: str) -> list[str]:
    """Time the page's tokenizer in node."""
    data = describe_tokenizer(load_tokenizer(tokenizer_dir), tokenizer_dir)
    command = ["node", "-e", (PROGRAM / "tokenizer.js").read_text(encoding="utf-8") + ONE_WORD]
    job = json.dumps({"data": data, "lengths": [25_000, 50_000, 100_000]})
    done = subprocess.run(command, input=job, capture_output=True, text=True, encoding="utf-8", check=True)
    rows = [[f"{length:,}", f"{tokens:,}", f"{seconds:.2f}"] for length, tokens, seconds in json.loads(done.stdout)]
    return compare.table([["characters of one word", "tokens", "seconds"], *rows])


# ---------------------------------------------------------------------------------------------------- main


def main(argv: list[str] | None = None) -> None:
    parser = compare.parser(__doc__)
    add = parser.add_argument
    add("--data_path", default=SAMPLE / "pretrain.jsonl", help='JSONL file with "text" rows')
    add("--rounds", type=int, default=3, help="times each contender is run")
    add("--num_workers", type=int, default=os.cpu_count() or 1, help="tokenizing processes of ours")
    add("--memory_gb", type=float, default=0, help="instead: memory while the cache of so large a file is built")
    add("--page", action="store_true", help="instead: seconds of the page's tokenizer for one long word; needs node")
    add("--tokenizer_dir", default=ROOT / "spongebob_tokenizer", help="folder with tokenizer.json")
    add("--results", default=compare.RESULTS, help="file the table is appended to")
    args = parser.parse_args(argv)
    path = Path(args.data_path).resolve()
    if path.is_dir() or rows.stage_of(path) != "pretrain":
        raise ValueError(f'{args.data_path}: --data_path must be a JSONL file with "text" rows')
    args.tokenizer_dir = str(Path(args.tokenizer_dir).resolve())
    args.data_path, before = str(path), compare.machine()
    if args.page:
        lines = page_tokenizer(args.tokenizer_dir)
    elif args.memory_gb:
        with tempfile.TemporaryDirectory() as folder:
            lines = memory(args, Path(folder))
    else:
        mb = text_bytes(path) / 1e6
        job = {"path": str(path), "mb": mb, "workers": args.num_workers, "tokenizer_dir": args.tokenizer_dir}
        jobs = {name: ("benchmarks.encode", job | {"contender": name}) for name in CONTENDERS}
        results = compare.in_turn(lambda _: jobs, args.rounds)
        columns = {"MB/s": "mb_per_second", "MB a CPU second": "mb_per_cpu_second", "peak memory, MiB": "memory"}
        lines = compare.compared(results, columns, "mb_per_second")
        ids = {name: metrics[0].get("ids") for name, metrics in results.items()}
        same = "the same" if len(set(ids.values())) == 1 else f"NOT the same: {ids}"
        lines += ["", f"{mb:.1f} MB of text; the ids of all are {same}."]
    title = f"{'memory of the token cache' if args.memory_gb else 'encoding'}, {path.name}"
    title = "encoding on the page" if args.page else title
    compare.publish(title, "benchmarks.encode", argv, lines, Path(args.results), before)


if __name__ == "__main__":
    compare.entry(main, work)
