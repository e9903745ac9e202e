"""Only the newest states stay, and a damaged one is found."""

import torch

from engine.checkpoint import training_state
from engine.checkpoint.run_info import RunInfo

INFO = RunInfo(resume_key={}, batch={}, run_id="r", tracker_id=None, progress={}, scaler={}, ranks=[], compiled=False)


def test_only_the_newest_states_are_kept(tmp_path):
    for step in (2, 4, 6, 8):
        training_state.write(tmp_path, step, {"model.weight": torch.ones(3)}, INFO, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000006", "00000008"]


def test_a_flipped_bit_is_found_at_the_same_size(tmp_path):
    training_state.write(tmp_path, 2, {"model.weight": torch.ones(3)}, INFO, keep=2)
    (file,) = (tmp_path / "00000002/tensors").glob("*.distcp")
    assert training_state.find_corruption(tmp_path / "00000002") is None
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert "does not match its checksum" in training_state.find_corruption(tmp_path / "00000002")
