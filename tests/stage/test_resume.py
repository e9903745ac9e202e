"""A run resumes what it may and refuses the rest; our own mistakes are not blamed on a state."""

import pytest
from factories import SHAPE, SHORT, SMALL

import pretrain
from engine import optim
from engine.checkpoint import training_state
from engine.checkpoint.run_info import read_info


def test_resume_keeps_fp16_scale_and_refuses_a_longer_cosine_run(folder):
    words = [*SHAPE, *SHORT, *SMALL, *"--dtype float16 --max_seq_len 32 --max_steps 4 --log_step 9 --resume".split()]
    pretrain.main([*words, "--max_minutes", "1e-9"])  # one step
    pretrain.main(words)
    newest = training_state.find_newest(folder / "results/pretrain.state")
    assert newest.name == "00000004" and read_info(newest).scaler["_growth_tracker"] == 4  # steps without an overflow
    with pytest.raises(ValueError, match="steps was 4, is 12 .*only be made longer with --schedule wsd"):
        pretrain.main([*words, "--max_steps", "12"])


def test_a_defect_of_our_own_is_not_called_a_damaged_state(folder, monkeypatch):
    words = [*SHAPE, *SHORT, *SMALL, "--schedule", "wsd"]
    pretrain.main(words)
    real, calls = optim.schedule, []

    def schedule(*arguments, **more):
        calls.append(arguments)
        return real(*arguments, **more) if len(calls) == 1 else real(*arguments, **more, oops=1)

    monkeypatch.setattr(optim, "schedule", schedule)
    with pytest.raises(TypeError, match="oops"):  # not "cannot be restored"
        pretrain.main([*words, "--max_steps", "12", "--resume"])
    assert len(calls) == 2
