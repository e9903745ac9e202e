"""What goes wrong in our own code is not blamed on a state."""

import pytest
from making import SHAPE, SHORT, SMALL

import pretrain
from engine import optim


def test_a_defect_of_our_own_is_not_called_a_damaged_state(folder, monkeypatch):
    words = [*SHAPE, *SHORT, *SMALL, "--schedule", "wsd"]
    pretrain.main(words)
    real, calls = optim.schedule, []

    def schedule(*arguments, **more):
        calls.append(arguments)
        return real(*arguments, **more) if len(calls) == 1 else real(*arguments, **more, oops=1)

    monkeypatch.setattr(optim, "schedule", schedule)
    with pytest.raises(TypeError, match="oops"):  # not "cannot be put back"
        pretrain.main([*words, "--max_steps", "12", "--resume"])
    assert len(calls) == 2
