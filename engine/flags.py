"""Flags from the fields of frozen dataclasses: argparse is made from them, and one object for each group comes back.

A class is a group of flags in --help and its docstring the heading; a class that inherits adds a group of its own.
"""

import argparse
import math
import os
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from itertools import chain
from pathlib import Path
from types import NoneType, SimpleNamespace
from typing import Any, NoReturn, get_args, get_type_hints

from engine.files import resolve_download_path

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
# Flags that no script has, or this kind of script does not -> a flag of the scripts that explain it, what to do.
LAUNCH = (
    "a flag of a launcher, which no script reads: start with torchrun --nproc_per_node=N SCRIPT or accelerate launch "
    "SCRIPT; deepspeed and torch.distributed.launch are not supported"
)
LAUNCHER_FLAGS = (
    "local_rank",
    "nproc_per_node",
    "nnodes",
    "num_processes",
    "num_gpus",
    "deepspeed",
    "deepspeed_config",
)
ABSENT_FLAGS = {f"--{name}": ("parallel", LAUNCH) for name in LAUNCHER_FLAGS}


def flag(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    free: bool = False,
    bound_by: str = "",
    path: str = "",
    **argparse_kwargs: Any,
) -> Any:
    """Make a dataclass field that is a flag.

    A training run is resumed only with an equal value, unless `free` or `bound_by` says otherwise.

    Args:
        default: Value of a flag that is not typed.
        help: Noun phrase with the unit and the value that switches it off.
        ge, gt, le: Bounds: at least, more than, at most.
        free: A resumed run may have another value.
        bound_by: Key of the resume key whose value is derived from this flag and must be equal instead.
        path: Kind of a path: "file", "folder", "data" (a file, or a cache or a downloaded folder) or "any". Its ~ is
            expanded.
        argparse_kwargs: Passed to add_argument.
    """
    metadata = {"help": help, "ge": ge, "gt": gt, "le": le, "free": free, "bound_by": bound_by, "path": path}
    return field(default=default, metadata=metadata | {"argparse": argparse_kwargs})


@dataclass(frozen=True)
class Flags:
    """Base of every group. A value out of its bounds, or a path of the wrong kind, is a ValueError that names it."""

    def __post_init__(self) -> None:
        for flag_field in flag_fields(type(self)):
            value = getattr(self, flag_field.name)
            if value and (kind := flag_field.metadata["path"]):
                kwargs = flag_field.metadata["argparse"]
                name = kwargs["metavar"] if "called" in kwargs else f"--{flag_field.name}"
                object.__setattr__(self, flag_field.name, _expand_and_check(name, value, kind))
            numbers = value if isinstance(value, list) else [value]
            for number in numbers:
                if not isinstance(number, (int, float)) or isinstance(number, bool):
                    continue
                ge, gt, le = (flag_field.metadata[bound] for bound in ("ge", "gt", "le"))
                problem = ""
                if not math.isfinite(number):
                    problem = "must be a finite number"
                elif ge is not None and number < ge:
                    problem = "must not be negative" if ge == 0 else f"must be at least {ge}"
                elif gt is not None and number <= gt:
                    problem = f"must be more than {gt}"
                elif le is not None and number > le:
                    problem = f"must be at most {le}"
                if problem:
                    raise ValueError(f"--{flag_field.name} {number} {problem}")


def _expand_and_check(flag: str, path: Any, kind: str) -> Any:
    """Return a path, or each of a list, with ~ as the home folder.

    A shell leaves it in --flag=~/x and in quotes, and a notebook has no shell.
    """
    if isinstance(path, list):
        return [_expand_and_check(flag, part, kind) for part in path]
    expanded = type(path)(os.path.expanduser(path))
    check_path(flag, Path(expanded), kind)
    return expanded


def check_path(flag: str, path: Path, kind: str) -> None:
    """Refuse a file where a folder is meant, and a folder where a file is meant.

    Args:
        flag: Named in the message.
        path: The path; nothing needs to be there.
        kind: As in `flag`.
    Raises:
        ValueError: Names the flag and the path.
    """
    folders = [*([path] if kind == "folder" else []), *path.parents]
    obstacle = next((folder for folder in folders if os.path.lexists(folder)), Path())
    if not obstacle.is_dir():
        wanted = kind if kind in ("file", "folder") else "file or a folder"
        raise ValueError(f"{flag} {path}: {obstacle} is not a folder; pass the path of a {wanted}")
    is_data_folder = kind == "data" and ((path / "meta.json").is_file() or resolve_download_path(path) != path)
    if kind in ("file", "data") and path.is_dir() and not is_data_folder:
        raise ValueError(f"{flag} {path}: a folder; pass the path of a file")


def flag_fields(group: type[Flags]) -> list[Field]:
    """Return the fields of a group that are flags."""
    return [flag_field for flag_field in fields(group) if "help" in flag_field.metadata]


def flag_names(*groups: type[Flags]) -> list[str]:
    """Return the names of the flags of some groups."""
    return [flag_field.name for flag_field in chain.from_iterable(map(flag_fields, groups))]


def add_flags(parser: argparse.ArgumentParser, group: type[Flags], defaults: Mapping[str, Any]) -> None:
    """Add the flags of a class under its heading, those it inherits under theirs.

    Args:
        parser: Parser to add to.
        group: The class.
        defaults: {flag: default} instead of the fields' own.
    """
    for part in group.__mro__:
        if not issubclass(part, Flags) or part is Flags:
            continue
        argparse_group = parser.add_argument_group(part.__doc__)
        for flag_field in flag_fields(part):
            if flag_field.name not in part.__annotations__:  # inherited
                continue
            kwargs = {"help": flag_field.metadata["help"]}
            kwargs["default"] = defaults.get(flag_field.name, flag_field.default)
            kwargs |= flag_field.metadata["argparse"]
            annotation = get_type_hints(part)[flag_field.name]
            if annotation is bool:
                kwargs.setdefault("action", "store_true")
            elif annotation == bool | None:  # None: decided later; --name and --no-name
                kwargs.setdefault("action", argparse.BooleanOptionalAction)
            else:  # `int | None` is read by int
                types = [part for part in (*get_args(annotation), annotation) if part is not NoneType]
                kwargs.setdefault("type", types[0])
            argparse_group.add_argument(kwargs.pop("called", f"--{flag_field.name}"), **kwargs)


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show defaults that say something: not None, False or an empty text."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if any(action.default is silent for silent in (None, False, "", argparse.SUPPRESS)):
            return action.help
        return f"{action.help} (default: {shown(action.default)})"


def shown(value: Any) -> Any:
    """Return a value as --help and the .json name it: paths in this repository are relative to it."""
    if isinstance(value, (list, tuple)):
        return [shown(part) for part in value]
    if isinstance(value, Path):
        return value.relative_to(ROOT).as_posix() if ROOT in value.parents else str(value)
    return value


class Args(SimpleNamespace):
    """A parsed command line: an attribute for each group, named like its class, and the flags that were typed."""

    explicit: frozenset[str]

    @property
    def groups(self) -> list[Flags]:
        """The groups, in the order in which they were given."""
        return [group for group in vars(self).values() if isinstance(group, Flags)]

    def values(self) -> dict[str, Any]:
        """Return every flag and its value."""
        values = {}
        for group in self.groups:
            values |= {name: shown(getattr(group, name)) for name in flag_names(type(group))}
        return values


class Parser(argparse.ArgumentParser):
    """A parser whose errors a script prints in one line, and of which a notebook or a program can catch them."""

    def error(self, message: str) -> NoReturn:
        """Raise ValueError; argparse would print all flags and leave Python."""
        raise ValueError(f"{message} (--help lists the flags)")


def make_parser(doc: str | None, groups: Sequence[type[Flags]], defaults: Mapping[str, Any] | None = None) -> Parser:
    """Make the parser of a script.

    Args:
        doc: Description in --help.
        groups: Its flags.
        defaults: {flag: default} instead of the fields' own.
    """
    parser = Parser(description=doc, formatter_class=Help, allow_abbrev=False)
    for group in groups:
        add_flags(parser, group, defaults or {})
    return parser


def arguments_of(argv: Sequence[object] | None) -> list[str]:
    """Return a command line as texts; None means that of the process.

    Raises:
        ValueError: The process is a notebook's, or `argv` is one text.
    """
    # A script that IPython's %run starts is __main__, and has a command line of its own.
    if argv is None and "ipykernel" in sys.modules and not hasattr(sys.modules["__main__"], "__file__"):
        raise ValueError(
            'a notebook has no command line: call main(["--flag", "value"]) with the flags as a list, or run !python'
        )
    if isinstance(argv, str):
        raise ValueError(f"main({argv!r}): give it the flags as a list, main({argv.split()})")
    return list(map(str, sys.argv[1:] if argv is None else argv))


def parse_explicit(
    doc: str | None, argv: Sequence[str] | None, groups: Sequence[type[Flags]], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Return {flag: value} of the flags that were typed, and no others.

    Args:
        doc: Description in --help.
        argv: Command line; None: that of the process.
        groups: The script's flags.
        defaults: Shown in --help.
    Raises:
        ValueError: A flag does not exist, has another name now, or its value cannot be read.
    """
    names, arguments = flag_names(*groups), arguments_of(argv)
    for argument in arguments:
        old = argument.partition("=")[0]
        new = RENAMED_FLAGS.get(old, "--")
        if not new.startswith("--") or new.removeprefix("--") in names:
            raise ValueError(f"{old} is now {new}")
        where, advice = ABSENT_FLAGS.get(old[:2] + old[2:].replace("-", "_"), ("", ""))
        if where in names:
            raise ValueError(f"{old}: {advice}")
    absent = object()
    namespace = argparse.Namespace(**dict.fromkeys(names, absent))
    parsed = make_parser(doc, groups, defaults).parse_args(arguments, namespace)
    return {name: value for name, value in vars(parsed).items() if value is not absent}


def build_groups(groups: Sequence[type[Flags]], defaults: Mapping[str, Any], explicit: Mapping[str, Any]) -> Args:
    """Make one object for each group.

    Args:
        groups: The classes.
        defaults: {field: value} instead of the fields' own defaults.
        explicit: {flag: value} of what was typed, which comes first.
    """
    values, objects = {**defaults, **explicit}, {}
    for group in groups:
        attribute = re.sub(r"(?<!^)(?=[A-Z])", "_", group.__name__).lower()
        objects[attribute] = group(**{f.name: values[f.name] for f in fields(group) if f.name in values})
    return Args(**objects, explicit=frozenset(explicit))


def parse(doc: str | None, argv: Sequence[str] | None, *groups: type[Flags]) -> Args:
    """Parse the command line into one object for each group; `doc` is the description in --help."""
    return build_groups(groups, {}, parse_explicit(doc, argv, groups, {}))


def check_flags_used(explicit: Collection[str], mode: str, reads: Mapping[str, Collection[str]]) -> None:
    """Refuse a typed flag that a mode does not read.

    Args:
        explicit: The flags that were typed.
        mode: The mode that was chosen.
        reads: {mode: flags it reads}.
    Raises:
        ValueError: Names the flag and the modes that read it.
    """
    for name in sorted(set(explicit) - set(reads[mode])):
        others = [other for other, names in reads.items() if name in names]
        raise ValueError(f"--{name} is not read by {mode}, only by {' and '.join(others)}")
