"""Speaking: `say` to stdout, `warn` to stderr, both only in the main process and above a progress bar that is shown."""

import os
import sys

from tqdm import tqdm


def is_main() -> bool:
    """Whether this is the one process of a run that speaks (torchrun numbers them in RANK)."""
    return int(os.environ.get("RANK", 0)) == 0


def say(words: object = "") -> None:
    if is_main():
        tqdm.write(str(words), file=sys.stdout)
        sys.stdout.flush()


def warn(words: object) -> None:
    """A line that is no result: what was left out, what failed and is tried again."""
    if is_main():
        tqdm.write(str(words), file=sys.stderr)


def printable(text: str) -> str:
    """Without the control characters and half surrogates that a terminal would obey or refuse."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
