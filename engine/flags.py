"""argparse groups every stage shares; each stage shows its own numbers with set_defaults."""

import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data" / "sample"


def default_file(name: str) -> Path:
    """The full corpus where it has been downloaded, else the bundled sample."""
    return Path(name) if Path(name).exists() else SAMPLE / name


def run(main: Callable[[], object]) -> None:
    """Run a script's main(); a user's mistake ends in one line and exit code 2, not in a traceback."""
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
