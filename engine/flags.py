"""Flags from the fields of frozen dataclasses: argparse is made from them, and one object for each group comes back.

A class is a group of flags in --help and its docstring the heading; a class that inherits adds a group of its own.
"""

import argparse
import math
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType, SimpleNamespace
from typing import Any, get_args, get_type_hints

ROOT = Path(__file__).resolve().parents[1]
RENAMED_FLAGS = {  # flags of earlier versions and what does the same now
    "--weights": "--weight_dtype",
    "--marks_are_borders": "--split_on_special_tokens",
    "--shots": "--num_fewshot",
    "--score_rows": "--max_eval_rows",
    "--score_batch": "--eval_batch_size",
    "--prompts": "--prompt_file",
    "--queue": "--max_queue",
    "--max_seconds": "--request_timeout",
    "--max_kilobytes": "--max_body_kb",
    "--export": "export.py: python export.py --format hf FOLDER",
}


def flag(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    **words: Any,
) -> Any:
    """A field that is a flag. The three bound its value; the other words go to add_argument as they are."""
    bounds = {"ge": ge, "gt": gt, "le": le}
    return field(default=default, metadata={"help": help, "words": words} | bounds)


@dataclass(frozen=True)
class Flags:
    """The base of every group; a value outside its bounds is refused by name."""

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            ge, gt, le = (one.metadata.get(bound) for bound in ("ge", "gt", "le"))
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                continue
            if not math.isfinite(value):
                raise ValueError(f"--{one.name} {value} must be a finite number")
            if ge is not None and value < ge:
                bound = "must not be negative" if ge == 0 else f"must be at least {ge}"
                raise ValueError(f"--{one.name} {value} {bound}")
            if gt is not None and value <= gt:
                raise ValueError(f"--{one.name} {value} must be more than {gt}")
            if le is not None and value > le:
                raise ValueError(f"--{one.name} {value} must be at most {le}")


def flag_names(*groups: type[Flags]) -> list[str]:
    """The flags of some groups."""
    return [one.name for group in groups for one in fields(group) if "help" in one.metadata]


def add_flags(parser: argparse.ArgumentParser, group: type[Flags], defaults: Mapping[str, Any]) -> None:
    """The flags of a class under its heading, those it inherits under theirs."""
    for part in [part for part in group.__mro__ if issubclass(part, Flags) and part is not Flags]:
        add = parser.add_argument_group(part.__doc__).add_argument
        for one in fields(part):
            if "help" not in one.metadata or one.name not in part.__annotations__:
                continue
            words = {"help": one.metadata["help"], "default": defaults.get(one.name, one.default)}
            words |= one.metadata["words"]
            kind = get_type_hints(part)[one.name]
            if kind is bool:
                words.setdefault("action", "store_true")
            elif kind == bool | None:  # None: decided later; --name and --no-name
                words.setdefault("action", argparse.BooleanOptionalAction)
            else:  # `int | None` is read by int
                words.setdefault("type", next(one for one in (*get_args(kind), kind) if one is not NoneType))
            add(words.pop("called", f"--{one.name}"), **words)


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        if any(action.default is untold for untold in (None, False, "", argparse.SUPPRESS)):
            return action.help
        return f"{action.help} (default: {shown(action.default)})"


def shown(value: Any) -> Any:
    """A value as --help and the .json name it: paths of this repository without the place where it lies."""
    if isinstance(value, (list, tuple)):
        return [shown(part) for part in value]
    if isinstance(value, Path):
        return value.relative_to(ROOT).as_posix() if ROOT in value.parents else str(value)
    return value


class Args(SimpleNamespace):
    """What a user chose: an attribute for each group, named like its class, and the flags that were typed."""

    explicit: frozenset[str]

    def values(self) -> dict[str, Any]:
        """Every flag and its value."""
        groups = [group for group in vars(self).values() if isinstance(group, Flags)]
        return {name: shown(getattr(group, name)) for group in groups for name in flag_names(type(group))}


def parse_explicit(
    doc: str | None, argv: Sequence[str] | None, groups: Sequence[type[Flags]], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """{flag: value} of what stands on the command line, and nothing else."""
    names = flag_names(*groups)
    for argument in sys.argv[1:] if argv is None else argv:
        old = argument.partition("=")[0]
        new = RENAMED_FLAGS.get(old, "--")
        if not new.startswith("--") or new.removeprefix("--") in names:
            raise ValueError(f"{old} is now {new}")
    parser = argparse.ArgumentParser(description=doc, formatter_class=Help, allow_abbrev=False)
    for group in groups:
        add_flags(parser, group, defaults)
    untyped = object()
    found = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(names, untyped)))
    return {name: value for name, value in vars(found).items() if value is not untyped}


def build_groups(groups: Sequence[type[Flags]], defaults: Mapping[str, Any], explicit: Mapping[str, Any]) -> Args:
    """One object for each group: what was typed, else the default given here, else the field's own."""
    values, made = {**defaults, **explicit}, {}
    for group in groups:
        known = [one.name for one in fields(group) if one.name in values]
        made[re.sub(r"(?<!^)(?=[A-Z])", "_", group.__name__).lower()] = group(**{name: values[name] for name in known})
    return Args(**made, explicit=frozenset(explicit))


def parse(doc: str | None, argv: Sequence[str] | None, *groups: type[Flags]) -> Args:
    """The command line as one object for each group."""
    return build_groups(groups, {}, parse_explicit(doc, argv, groups, {}))


def check_flags_used(explicit: Collection[str], mode: str, reads: Mapping[str, Collection[str]]) -> None:
    """ValueError for a typed flag that `mode` does not read, naming the modes that do; `reads` is {mode: flags}."""
    for name in sorted(set(explicit) - set(reads[mode])):
        others = [other for other, names in reads.items() if name in names]
        raise ValueError(f"--{name} is not read by {mode}, only by {' and '.join(others)}")
