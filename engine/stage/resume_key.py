"""The resume key: everything that must be equal for a run to be resumed.

It is derived from the flags, not listed: a flag of any group is in it with its value, unless the flag says that it is
free or names the key whose value is derived from it (flags.flag). So a new flag is bound until somebody decides.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from engine import optim
from engine.checkpoint.weights import config_dict
from engine.flags import Args, flag_fields, shown
from engine.loop import Run
from engine.machine.runtime import Runtime
from engine.tokenizer import fingerprint

DATA_FILES = "data_files"  # [name, rows] of each file, for messages: a file that was renamed is the same


def resume_key(run: Run, args: Args, sources_key: Mapping[str, Any], stage: str, parent: str | None) -> dict[str, Any]:
    """Make the resume key of a run, of plain values.

    Args:
        run: The run.
        args: The user's flags.
        sources_key: The part of the data (Sources.resume_key).
        stage: The stage's name.
        parent: Hash of the weights that it starts from.
    """
    derived = {
        "stage": stage,
        "parent": parent,
        "config": config_dict(run.model.config),
        "tokenizer": fingerprint(run.tokenizer),
        "rows_per_step": run.rows_per_step,
        "steps": run.steps,
        "warmup_iters": run.warmup,
        "dtype": str(run.runtime.dtype),
    }
    return bound_flags(args) | derived | dict(sources_key)


def bound_flags(args: Args) -> dict[str, Any]:
    """Return the flags that must be equal themselves, and their values."""
    bound = {}
    for group in args.groups:
        for flag_field in flag_fields(type(group)):
            if not flag_field.metadata["free"] and not flag_field.metadata["bound_by"]:
                bound[flag_field.name] = shown(getattr(group, flag_field.name))
    return bound


def check_ranks_agree(key: dict[str, Any], rt: Runtime) -> None:
    """Refuse to start when processes would train on different data or settings, as when one machine lacks the file."""
    for rank, other in enumerate(rt.gather(key)):
        different = [name for name, value in key.items() if other[name] != value and name != DATA_FILES]
        if different:
            raise ValueError(
                f"processes {rt.rank} and {rank} differ in {', '.join(different)}: every machine needs the same "
                "command, code and files"
            )


def check_unchanged(before: dict[str, Any], now: dict[str, Any], step: int, where: object) -> None:
    """Refuse to resume when something that changes the result differs.

    More steps are allowed if every learning rate so far would have been the same.

    Args:
        before: Resume key of the state.
        now: Resume key of this run.
        step: Steps that the state has done.
        where: Named in the message as the place of the state.
    Raises:
        ValueError: Names what differs, with both values.
    """
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name) and name != DATA_FILES]
    if not changed or (changed == ["steps"] and _same_past(step, before, now)):
        return
    if "data" in changed and DATA_FILES in before:
        derived = ("data", "held_out", "steps", "warmup_iters")
        changed = [name for name in changed if name not in derived]
        changes = [_describe_data(before, now)]
    else:
        changes = []
    for name in changed:
        changes += _differences(name, before.get(name), now.get(name))
    hint = ""
    if "steps" in changed:
        hint = " (a run can only be made longer with --schedule wsd, from a state before its decay)"
    if "held_out" in changed:
        hint = " (other rows are held out than before: validation would hold rows that were trained on)"
    if "encoding" in changed:
        hint = " (this version reads or holds out rows otherwise: finish the run with the version that began it)"
    if "row_len" in changed:
        hint = " (--max_seq_len, --batch_size and the device decide how rows are laid out)"
    raise ValueError(
        f"{where} belongs to another run: {'; '.join(changes)}{hint}. Use the old flags, --name or --overwrite"
    )


def _differences(name: str, before: Any, now: Any) -> list[str]:
    """Describe what differs, of dicts only the entries that do."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [f"{name} was {before!r}, is {now!r}"]
    changes = []
    for key in {**before, **now}:
        if before.get(key) != now.get(key):
            changes += _differences(f"{name}.{key}", before.get(key), now.get(key))
    return changes


def _describe_data(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Describe how the files of two resume keys differ, by name."""
    old, new = before[DATA_FILES], now[DATA_FILES]
    old_contents, contents = ([file["content"] for file in key["data"]] for key in (before, now))
    if old_contents != contents and sorted(old_contents) == sorted(contents):
        return f"the files are in another order, {_names(new)}; it was {_names(old)}"
    rows_before, changes = dict(old), []
    for content, (name, rows) in zip(contents, new, strict=True):
        if content in old_contents:
            continue
        if name not in rows_before:
            changes.append(f"{name} is new")
        elif rows == rows_before[name]:
            changes.append(f"{name} has other content in as many rows")
        else:
            changes.append(f"{name} has {rows:,} rows, had {rows_before[name]:,}")
    changes += [f"{name} is missing" for name in rows_before if name not in dict(new)]
    if not changes:  # a file that was named twice, or other documents of the same rows
        changes.append(f"there are {_num_documents(now)}, there were {_num_documents(before)}")
    return "; ".join(changes)


def _num_documents(key: dict[str, Any]) -> str:
    return f"{len(key['data'])} files of {sum(file['documents'] for file in key['data']):,} documents"


def _names(files: Sequence) -> str:
    return ", ".join(name for name, _ in files)


def _same_past(step: int, before: dict, now: dict) -> bool:
    """Return whether a run of the new length would have had the same learning rates until `step`."""
    if step > now["steps"]:
        return False
    schedules = []
    for key in (before, now):
        schedules.append(
            optim.schedule(key["schedule"], max_lr=key["learning_rate"], steps=key["steps"], warmup=key["warmup_iters"])
        )
    return all(schedules[0](done) == schedules[1](done) for done in range(step))
