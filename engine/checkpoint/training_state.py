"""Write, check and read training states: all that resuming needs, complete or absent.

results/pretrain.state/00000100/     the state after step 100
    tensors/                         weights and optimizer by parameter name, written by torch.distributed.checkpoint:
                                     sharded under FSDP, and read back by any number of processes, with FSDP or without
    run.pt                           progress, random states of every process, what the run was started with
    manifest.json                    sizes and checksums, written last
results/pretrain.state/00000100.tmp  being written, or its writer was killed
"""

import json
import os
import shutil
import warnings
import zlib
from itertools import chain
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from engine.checkpoint.run_info import RunInfo
from engine.checkpoint.safe_reader import PlainReader
from engine.checkpoint.weights import check_names_and_shapes
from engine.console import warn
from engine.files import atomic_write, first_line, sync_folder, write_json

# A run of one process uses the same code, and torch would print a warning at every save.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")

# -------------------------------------------------------------------------------------------------- what is saved


def snapshot_tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Return {name: copy on the CPU} of model.<name> and optimizer.<name>.<value>; a rank's shard stays its shard."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {f"model.{name}": parameter for parameter, name in names.items()}
    for optimizer in optimizers:
        for parameter, values in optimizer.state.items():
            for key, value in values.items():
                tensors[f"optimizer.{names[parameter]}.{key}"] = torch.as_tensor(value)
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


# -------------------------------------------------------------------------------------------------------- writing


def write(
    folder: Path,
    step: int,
    tensors: dict[str, Tensor],
    info: RunInfo,
    *,
    keep: int,
    main: bool = True,
    group: dist.ProcessGroup | None = None,
) -> None:
    """Write folder/<step>/, then delete all but the `keep` newest states.

    Args:
        folder: Of the run's states.
        step: Optimizer steps that were taken.
        tensors: Of snapshot_tensors, {name: tensor}.
        info: Everything else that resuming needs.
        keep: Number of states that stay.
        main: Whether this process writes run.pt and the manifest.
        group: Processes that hold shards, each of which calls this; None: this process holds everything.
    Raises:
        OSError: The state could not be written; nothing of it is left.
    """
    final = folder / f"{step:08d}"
    temporary = final.with_suffix(".tmp")
    try:
        if main:
            shutil.rmtree(temporary, ignore_errors=True)  # the others write only after torch has gathered the plans
        writer = dcp.FileSystemWriter(temporary / "tensors", single_file_per_rank=True)
        dcp.save(tensors, storage_writer=writer, process_group=group, no_dist=group is None)
        if not main:
            return
        atomic_write(temporary / "run.pt", lambda path: torch.save(vars(info), path))
        files = [path for path in sorted(temporary.rglob("*")) if path.is_file()]
        checksums = {path.relative_to(temporary).as_posix(): _size_and_crc32(path) for path in files}
        sync_folder(temporary / "tensors")
        write_json(temporary / "manifest.json", {"step": step, "files": checksums})
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        sync_folder(folder)
    except (OSError, RuntimeError, dcp.api.CheckpointException) as error:  # torch.save turns ENOSPC into a RuntimeError
        if main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(f"{final}: {_reason(error)}") from None
    _drop_old(folder, keep)


def _drop_old(folder: Path, keep: int) -> None:
    """Delete all but the newest states; failing is no error, as the new state is complete."""
    for old in list_states(folder)[:-keep]:
        try:
            shutil.rmtree(old)
        except OSError as error:
            warn(f"warning: {old} is no longer needed and cannot be deleted ({first_line(error)}); delete it yourself")


def _reason(error: BaseException) -> str:
    """Return the disk's own message in one line; torch wraps it in errors of its own."""
    if isinstance(error, dcp.api.CheckpointException):
        error = next(iter(error.failures.values()))[0]
    cause = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return first_line(cause or error)


def list_states(folder: Path) -> list[Path]:
    """List all states, complete or damaged, oldest first."""
    return sorted(path for path in folder.glob("*") if path.is_dir() and path.name.isdigit())


def _size_and_crc32(path: Path) -> list[int]:
    """Return [size, CRC-32] of a file: enough to notice a broken disk or a stopped copy."""
    checksum = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            checksum = zlib.crc32(chunk, checksum)
    return [path.stat().st_size, checksum]


# -------------------------------------------------------------------------------------------------------- finding


def find_corruption(path: Path) -> str | None:
    """Describe what is wrong with a state; None if every file is as it was written."""
    try:
        files = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["files"]
        if not {"run.pt", "tensors/.metadata"} <= files.keys():
            return "manifest.json does not name all its files"
        damaged = [name for name, checksum in files.items() if _size_and_crc32(path / name) != checksum]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"manifest.json or a file it names cannot be read: {error}"
    return f"{', '.join(damaged)} does not match its checksum" if damaged else None


def find_newest(folder: Path) -> Path | None:
    """Return the newest complete state, or None; a damaged one is named, and the one before it is used."""
    for path in reversed(list_states(folder)):
        if not (reason := find_corruption(path)):
            return path
        warn(f"warning: {path} is damaged ({reason}), using the state before it")
    return None


def quarantine_newer(folder: Path, step: int) -> None:
    """Rename the states after `step`, damaged or not, so that no later --resume takes them; nothing deletes them."""
    for path in list_states(folder):
        if int(path.name) > step:
            number = 1
            while (target := path.with_name(f"{path.name}.aside{number}")).exists():
                number += 1
            warn(f"{path} is now {target.name}; delete it when you do not need it")
            os.replace(path, target)


def remove_unfinished_states(folder: Path) -> None:
    """Delete the partial states of writers that were killed."""
    for path in folder.glob("*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


# -------------------------------------------------------------------------------------------------------- reading


def load_into(path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    """Copy a state into model and optimizers, each process its own shards.

    Args:
        path: Folder of the state.
        model: As when the state was written; every name and shape must fit.
        optimizers: The same; ranks and FSDP may differ.
    Raises:
        ValueError: The tensors do not fit, or cannot be read.
    """
    reader = PlainReader(path / "tensors")
    entries, parameters = reader.read_metadata().state_dict_metadata, dict(model.named_parameters())
    _check_fit(path, entries, parameters)
    tensors = {}
    for name, entry in entries.items():
        assert isinstance(entry, TensorStorageMetadata)  # _check_fit
        parameter = parameters[_parameter_name(name)]
        like = parameter if entry.size == parameter.shape else torch.empty(entry.size)  # else a count of steps
        tensors[name] = torch.empty_like(like, dtype=entry.properties.dtype)
    try:
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    except dcp.api.CheckpointException as error:  # a BaseException
        raise ValueError(f"{path}: its tensors cannot be read ({_reason(error)})") from None
    names = {parameter: name for name, parameter in parameters.items()}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"model.{name}"])
    for optimizer in optimizers:
        state = {}
        for index, parameter in enumerate(chain.from_iterable(group["params"] for group in optimizer.param_groups)):
            prefix = f"optimizer.{names[parameter]}."
            values = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            if values:
                state[index] = values
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _parameter_name(name: str) -> str:
    """Return the name of the parameter that a tensor of a state belongs to."""
    kind, _, rest = name.partition(".")
    return rest if kind == "model" else rest.rpartition(".")[0]


def _check_fit(path: Path, entries: dict, parameters: dict[str, nn.Parameter]) -> None:
    """Check all names and shapes before anything is read: values that are not tensors would be unpickled."""
    invalid = [name for name, entry in entries.items() if not isinstance(entry, TensorStorageMetadata)]
    actual = {name: tuple(entry.size) for name, entry in entries.items() if name not in invalid}
    expected = {f"model.{name}": tuple(parameter.shape) for name, parameter in parameters.items()}
    for name in actual:  # an optimizer has values of its parameter's shape, and the count of its steps
        parameter = parameters.get(_parameter_name(name))
        if not name.startswith("model.") and parameter is not None:
            expected[name] = () if name.endswith(".step") else tuple(parameter.shape)
    check_names_and_shapes(path, expected, actual, [f"{name} is not a tensor" for name in invalid])
