"""A resumed run is the one that was never stopped; what would make it another run is refused."""

import pytest
from making import SHAPE, SHORT, SMALL, log_of, same, tensors, weights

import pretrain
from engine import loop, optim

ALL_ON = ["--optimizer", "muon", "--schedule", "wsd", "--z_loss", "1e-4", "--loss_chunk", "50", "--dtype", "bfloat16",
          "--activation_checkpointing"]  # fmt: skip


@pytest.mark.parametrize("cut, words", [("3", []), ("5", []), ("5", ALL_ON)],
                         ids=["at a save", "between log rows", "with every option on"])  # fmt: skip
def test_a_resumed_run_is_bitwise_the_one_that_was_never_stopped(folder, cut, words, monkeypatch):
    words = ["--dropout", "0.1", *words]  # draws on the random state
    pretrain.main([*SHAPE, *SHORT, *words, "--name", "whole"])
    options = [*SHAPE, *SHORT, *words, "--name", "cut", "--save_step", cut]
    real, calls = loop.train_step, []

    def dies(*arguments):
        if len(calls) == int(cut):
            raise KeyboardInterrupt
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(loop, "train_step", dies)
    with pytest.raises(KeyboardInterrupt):
        pretrain.main(options)
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    pretrain.main([*options, "--resume"])
    assert same(weights("results/whole.pth"), weights("results/cut.pth"))
    assert same(*(tensors(folder / f"results/{name}.state") for name in ("whole", "cut")))
    assert log_of(folder / "results/whole.metrics.jsonl") == log_of(folder / "results/cut.metrics.jsonl")


def test_a_run_with_the_usual_warm_up_is_made_longer_before_its_decay(folder):
    at = SHORT.index("--warmup_iters")
    words = [*SHAPE, *SHORT[:at], *SHORT[at + 2 :], "--schedule", "wsd", "--log_step", "1", "--save_step", "10"]
    pretrain.main([*words, "--max_steps", "20"])
    pretrain.main([*words, "--max_steps", "40", "--resume", "results/pretrain.state/00000010"])
    log = log_of(folder / "results/pretrain.metrics.jsonl")
    rates = {row["step"]: row["learning_rate"] for row in log if "learning_rate" in row}
    assert rates[1] == pytest.approx(1e-3 / 3)
    assert rates[30] == 1e-3
    assert max(rates) == 40


def test_resuming_says_what_there_is(folder, capsys):
    pretrain.main([*SHAPE, *SHORT, "--resume"])
    assert "no state" in capsys.readouterr().out
    pretrain.main([*SHAPE, *SHORT, "--resume"])
    assert "nothing left to do" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"learning_rate was 0\.001, is 0\.5"):
        pretrain.main([*SHAPE, *SHORT, "--resume", "--learning_rate", "0.5"])
    pretrain.main([*SHAPE, *SHORT, "--resume", "--log_step", "1"])  # harmless


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
