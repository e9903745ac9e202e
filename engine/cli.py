"""Run a script's main(): exit codes, and one line in place of a traceback for a user's mistake."""

import sys
from collections.abc import Callable

import torch

from engine.console import OutputError, guard_streams
from engine.machine import runtime, stopping

# Text in a RuntimeError of torch, which has no classes for these -> advice.
ADVICE = {
    "Failed to find C compiler": "--compile needs one, to start Triton: install gcc or clang, or use --no-compile",
    "Cannot find a working triton": "pip install triton (Windows: triton-windows), or use --no-compile",
    "too old to be supported by the triton": "use --no-compile",
    "can't allocate memory": "try a smaller model, or fewer at once (--batch_size, --slots)",
    "InvalidCxxCompiler": "torch.compile needs a C++ compiler: install g++ or clang++, or go without --compile",
}


def run(main: Callable[[], int | None], output_is_result: bool = False) -> None:
    """Run main() and exit with its code: 0 done, 2 a mistake, 75 stopped early and saved, 130 Ctrl-C.

    Args:
        main: The script's main().
        output_is_result: What it prints is what it is run for. A stdout that cannot be written ends it with code 2, or
            with 0 where the reader of a pipe wants no more.
    """
    guard_streams(output_is_result)
    if sys.version_info < (3, 11):  # noqa: UP036 (pip installs everything on 3.10 without a complaint)
        sys.exit(f"error: this needs Python 3.11 or newer, and this is {sys.version.split()[0]}")
    stopping.exit_on_signals(*stopping.STOP_SIGNALS)
    try:
        runtime.rank_and_world_size()
        code = main()
        runtime.finish()
        sys.exit(code)
    except OutputError as error:
        if isinstance(error.__cause__, BrokenPipeError):
            sys.exit(0)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (ValueError, OSError, MemoryError, torch.OutOfMemoryError) as error:
        print(f"error: {error or 'out of memory'}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        for line in str(error).splitlines():
            for text, advice in ADVICE.items():
                if text in line:
                    print(f"error: {line.strip()}; {advice}", file=sys.stderr)
                    sys.exit(2)
        raise
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(130)
