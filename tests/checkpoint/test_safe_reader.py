"""States written on another system are read; states that run code or leave their folder are refused."""

import pickle
from pathlib import PurePosixPath, PureWindowsPath

import pytest
import torch
import torch.distributed.checkpoint as dcp

from Config import LLMConfig
from engine import optim, options
from engine.checkpoint import training_state
from engine.checkpoint.safe_reader import PlainReader
from model import SpongeBob


@pytest.fixture
def owner():
    model = SpongeBob(LLMConfig(dim=16, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=64))
    optimizers = optim.build(model, options.Training(optimizer="muon", learning_rate=1e-3))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    return model, optimizers


def written(folder, tensors):
    dcp.save(tensors, storage_writer=dcp.FileSystemWriter(folder / "tensors", single_file_per_rank=True), no_dist=True)
    return folder


@pytest.mark.parametrize(
    "home, kind",
    [
        ("pathlib", "PosixPath"),
        ("pathlib", "WindowsPath"),
        ("pathlib._local", "WindowsPath"),
    ],
)
def test_a_state_with_a_path_of_either_system_is_read(home, kind, owner, tmp_path):
    """A path of the other system cannot be made here, and torch writes one into each state."""
    file = written(tmp_path, training_state.snapshot_tensors(*owner)) / "tensors/.metadata"
    metadata = pickle.loads(file.read_bytes())
    metadata.storage_meta.checkpoint_id = PurePosixPath("here")
    content = pickle.dumps(metadata, protocol=2)  # names its classes in lines
    assert content.count(b"cpathlib\nPurePosixPath\n") == 1
    file.write_bytes(content.replace(b"cpathlib\nPurePosixPath\n", f"c{home}\n{kind}\n".encode()))
    training_state.load_into(tmp_path, *owner)
    read = PlainReader(tmp_path / "tensors").read_metadata().storage_meta.checkpoint_id
    assert read == {"WindowsPath": PureWindowsPath, "PosixPath": PurePosixPath}[kind]("here")


@pytest.mark.parametrize("name", ["../a", "a/b", "..\\a", "a\\b", "C:a", "C:\\a", "\\\\server\\share\\a", "."])
def test_tensors_outside_the_folder_are_refused_on_either_system(name, owner, tmp_path):
    file = written(tmp_path, training_state.snapshot_tensors(*owner)) / "tensors/.metadata"
    metadata = pickle.loads(file.read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path = name
    file.write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match="points outside its folder"):
        training_state.load_into(tmp_path, *owner)


@pytest.mark.parametrize(
    "name, found, expected",
    [
        ("optimizer.norm.weight.exp_avg", torch.ones(3), "(3,), expected (16,)"),
        ("optimizer.norm.weight.exp_avg", torch.ones(()), "(), expected (16,)"),
        ("optimizer.norm.weight.step", torch.ones(2), "(2,), expected ()"),
        ("optimizer.layers.0.attention.wq.weight.momentum_buffer", torch.ones(16), "(16,), expected (16, 16)"),
    ],
)
def test_optimizer_values_that_do_not_fit_are_refused_by_name(name, found, expected, owner, tmp_path):
    tensors = training_state.snapshot_tensors(*owner)
    assert name in tensors
    written(tmp_path, tensors | {name: found})
    with pytest.raises(ValueError) as refused:
        training_state.load_into(tmp_path, *owner)
    assert f"{name} is {expected}" in str(refused.value)
