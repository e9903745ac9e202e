"""The rows that prepare_data.py leaves out: dropped.jsonl.gz, their counts, and some examples."""

import gzip
from collections import Counter, defaultdict
from contextlib import ExitStack
from pathlib import Path

from engine.corpus.rules import Content, masked, render
from engine.files import to_json
from engine.schemas import BadRow

MAX_EXAMPLES = 5  # of each rule
SHOWN_CHARACTERS = 200


class DroppedRows:
    """Writer of dropped.jsonl.gz, which counts rows by file and rule, and keeps the first as examples.

    Args:
        path: File to write.
    """

    def __init__(self, path: Path):
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.examples: dict[str, list[dict]] = defaultdict(list)
        self._path = path

    def __enter__(self) -> "DroppedRows":
        with ExitStack() as stack:
            raw = stack.enter_context(open(self._path, "wb"))
            # Without time and name, so that equal rows are equal bytes.
            self._file = stack.enter_context(gzip.GzipFile("", "wb", fileobj=raw, mtime=0))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def write(self, file: str, number: int, rule: str, row: Content | BadRow) -> None:
        """Write a row.

        Args:
            file: Name of its file.
            number: Its line there.
            rule: Name of the rule that drops it.
            row: Its content, or the BadRow that says why it has none.
        """
        self.counts[file][rule] += 1
        fields = {"reason": masked(str(row))} if isinstance(row, BadRow) else shown(row)
        self._file.write(to_json({"file": file, "line": number, "rule": rule, **fields}))
        if len(self.examples[rule]) < MAX_EXAMPLES:
            before = fields["reason"] if isinstance(row, BadRow) else excerpt(row)
            self.examples[rule].append({"file": file, "line": number, "before": before, "after": ""})


def excerpt(content: Content) -> str:
    """Return the beginning of a row for people to read: without keys and ID numbers."""
    text = masked(render(content))
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + " ..."


def shown(content: Content) -> dict:
    """Return a row as its file may have it, without keys and ID numbers."""
    if isinstance(content, str):
        return {"text": masked(content)}
    return {"conversations": [message | {"content": masked(message["content"])} for message in content]}
