"""What many tests make: the costs of a stage, flags of a machine, rows on disk."""

import argparse
import json
from pathlib import Path
from unittest import mock

from dataset import LOSS, NO_LOSS, TAG
from engine import options
from engine.options import Machine

# What may differ between the logs of two equal runs.
WALL_CLOCK = ("seconds", "tokens_per_second", "loader_share", "mfu")
CPU = Machine(device="cpu", dtype="float32")


def cost(tag_weight: float = 1.0) -> dict[int, float]:
    """A recipe's table."""
    return {NO_LOSS: 0.0, LOSS: 1.0, TAG: tag_weight}


def chosen(script, argv: list[str]):
    """What a recipe makes of its command line, before anything else happens."""
    more = {name: getattr(script, name.upper()) for name in ("long", "presets") if hasattr(script, name.upper())}
    groups = {"pretrain": ["Shape"], "SFT": ["Start"], "distill": ["Start", "Thoughts"]}[script.__name__]
    groups = [getattr(script, name) for name in groups]
    return options.choose(script.__doc__, argv, script.NUMBERS, on_sample=script.ON_SAMPLE, groups=groups, **more)


def actions_of(script) -> list[argparse.Action]:
    """The flags of a script: its parser is caught at the moment it would read the command line."""

    class Caught(Exception):
        pass

    def catch(parser, *_):
        raise Caught(parser)

    with mock.patch.object(argparse.ArgumentParser, "parse_args", catch):
        try:
            script.main([])
        except Caught as caught:
            shown = [action for action in caught.args[0]._actions if action.help != argparse.SUPPRESS]
            return [action for action in shown if action.dest != "help"]
    raise AssertionError(f"{script.__name__} reads no flags")


def write_rows(path: Path, rows) -> Path:
    """Rows as JSONL."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
