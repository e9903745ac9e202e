"""Measure prepare_data.py: seconds and memory, for rows (half texts, half conversations) and for pages of HTML.

    python -m benchmarks.prepare                                      # of the bundled sample, where sentences repeat
    python -m benchmarks.prepare --data FOLDER --megabytes 1000

The rows are as long as those of the folder's files and made of their sentences, drawn at random: hardly one repeats
another. A quarter of them is measured, too: the difference in memory is what a row takes.
"""

import json
import os
import random
import re
import resource
import tempfile
import time
from contextlib import suppress
from itertools import chain, cycle
from pathlib import Path

import prepare_data
from benchmarks import compare
from engine.corpus.cleaned_rows import content_of_row, line_of
from engine.corpus.jsonl import parse_line, read_lines
from engine.corpus.repeats import row_text
from engine.corpus.rules import Content
from engine.flags import ROOT
from engine.schemas import BadRow

SENTENCE_RE = re.compile(r"[^。！？.!?\n]+[。！？.!?\n]*")
ORIGINAL_BYTES = 24e9  # of the original's file before it was cleaned
PAGE = """<html><head><title>{0}</title></head><body><nav><a href="/">Home</a> | <a href="/news">News</a></nav>
<article><h1>{0}</h1><p>{1}</p></article><footer>All rights reserved.</footer></body></html>"""


class Rows:
    """Makes rows from the sentences of others.

    Args:
        folder: JSONL files.
    """

    def __init__(self, folder: Path):
        self.contents: dict[type, list] = {str: [], list: []}  # texts and conversations
        for path in sorted(folder.glob("*.jsonl")):
            for _, line in read_lines(path):
                with suppress(BadRow):  # as a question with its choices
                    content = content_of_row(parse_line(line))
                    self.contents[type(content)].append(content)
        texts = "\n".join(map(row_text, chain(*self.contents.values())))
        self.sentences = SENTENCE_RE.findall(texts)
        self.random = random.Random(0)

    def text(self, length: int) -> str:
        """Return sentences of so many characters, or some more."""
        parts: list[str] = []
        while length > 0:
            parts.append(self.random.choice(self.sentences))
            length -= len(parts[-1])
        return "".join(parts)

    def like(self, content: Content) -> Content:
        """Return a text or a conversation of the same form."""
        if isinstance(content, str):
            return self.text(len(content))
        return [message | {"content": self.text(len(message["content"]))} for message in content]

    def write(self, folder: Path, megabytes: float) -> None:
        """Write half of the bytes as texts, and half as conversations."""
        for kind, contents in self.contents.items():
            with open(folder / f"{kind.__name__}.jsonl", "wb") as file:
                for content in cycle(contents):
                    if file.tell() >= megabytes * 5e5:
                        break
                    file.write(line_of(self.like(content)) + b"\n")

    def write_pages(self, folder: Path, megabytes: float) -> None:
        """Write pages of 10 to 40 paragraphs."""
        size = 0
        while size < megabytes * 1e6:
            paragraphs = "</p>\n<p>".join(self.text(300) for _ in range(self.random.randint(10, 40)))
            page = PAGE.format(self.text(20), paragraphs).encode()
            (folder / f"{size}.html").write_bytes(page)
            size += len(page)


def prepare(job: dict) -> dict:
    """Prepare a folder, in a process of its own."""
    began = time.perf_counter()
    prepare_data.main([job["data"], "--out", f"{job['folder']}/out", "--num_workers", str(job["num_workers"])])
    seconds = time.perf_counter() - began
    files = json.loads(Path(job["folder"], "out", "prepared.json").read_text(encoding="utf-8"))["files"]
    metrics = {name: sum(file[name] for file in files) for name in ("rows", "kept", "bytes")}
    metrics |= {"seconds": seconds, "speed": metrics["bytes"] / 1e6 / seconds}
    metrics |= {"processor": sum(os.times()[:4])}  # with its finished children
    return metrics | {"worker": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10}


def main(argv: list[str] | None = None) -> None:
    parser = compare.parser(__doc__)
    add = parser.add_argument
    add("--data", type=Path, default=ROOT / "data" / "sample", help="folder of JSONL files")
    add("--megabytes", type=float, default=100, help="of JSONL")
    add("--html_megabytes", type=float, default=5, help="of pages")
    add("--num_workers", type=int, default=os.cpu_count() or 1, help="processes")
    add("--results", type=Path, default=compare.RESULTS, help="file the table is appended to")
    args = parser.parse_args(argv)
    machine = compare.machine()
    rows = Rows(args.data)
    lines = [["", "rows", "kept", "seconds", "MB/s", "processor seconds", "main process, MiB", "a worker, MiB"]]
    results = []
    for name, write, megabytes in (
        ("a quarter", rows.write, args.megabytes / 4),
        ("JSONL", rows.write, args.megabytes),
        ("HTML", rows.write_pages, args.html_megabytes),
    ):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), megabytes)
            result = compare.run("benchmarks.prepare", {"data": folder, "num_workers": args.num_workers})
        if "failed" in result:
            raise ValueError(f"{name}: {result['failed']}")
        results.append(result)
        names = ("rows", "kept", "seconds", "speed", "processor", "memory", "worker")
        lines.append([f"{name}, {result['bytes'] / 1e6:,.0f} MB", *(compare.spread([result[key]]) for key in names)])
    few, many, _ = results
    row = (many["memory"] - few["memory"]) * 2**20 / (many["rows"] - few["rows"])
    total = many["memory"] * 2**20 + row * many["rows"] * (ORIGINAL_BYTES / many["bytes"] - 1)
    told = f"a row takes {row:.0f} bytes of the main process; 24 GB of them, calculated: {total / 1e9:.1f} GB"
    compare.publish("preparing", "benchmarks.prepare", argv, [*compare.table(lines), "", told], args.results, machine)


if __name__ == "__main__":
    compare.entry(main, prepare)
