"""run.pt is read only as this program writes it; anything else is refused in one line that names the keys."""

import copy

import pytest
import torch

from engine.checkpoint.run_info import STATE_VERSION, RunInfo, read_info

WHOLE = RunInfo(
    resume_key={"learning_rate": 0.1, "schedule": "wsd", "steps": 9, "warmup_iters": 1, "seed": 1},
    batch={"rows_per_step": 4, "batch_size": 2, "accumulation_steps": 2, "world_size": 1},
    run_id="a1",
    tracker_id=None,
    progress={
        "step": 5,
        "tokens": 7,
        "seconds": 1.5,
        "initial_validation": {},
        "validation": {},
        "window_sums": None,
        "last_validation_step": 4,
        "skipped": 0,
        "consecutive_skips": 0,
        "window_counts": {},
        "window_seconds": 0.5,
        "window_data_wait": 0.0,
    },
    scaler={},
    ranks=[{"random": {}, "window_sums": torch.zeros(4)}],
    compiled=False,
)


@pytest.fixture
def info_of(tmp_path):
    """info_of(content) writes run.pt and reads it."""

    def info_of(content):
        torch.save(content, tmp_path / "run.pt")
        return read_info(tmp_path)

    return info_of


def test_run_info_is_read_back(info_of):
    found = info_of(vars(WHOLE))
    assert found.progress == WHOLE.progress
    assert found.version == STATE_VERSION


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda content: content.pop("batch"), "batch"),
        (lambda content: content.update(more=1), "more"),
        (lambda content: content["resume_key"].pop("steps"), "resume_key.steps"),
        (lambda content: content["resume_key"].update(steps="9"), "resume_key.steps"),
        (lambda content: content["progress"].update(step=None), "progress.step"),
        (lambda content: content.update(scaler=[]), "scaler"),
        (lambda content: content.update(ranks=[]), "ranks"),
        (lambda content: content["ranks"][0].pop("random"), "ranks"),
        (lambda content: content.update(compiled=None), "compiled"),
    ],
)
def test_an_invalid_key_of_run_info_is_named(info_of, change, words):
    content = copy.deepcopy(vars(WHOLE))
    change(content)
    with pytest.raises(ValueError, match=f"run.pt: {words} missing or not as this program writes it$"):
        info_of(content)


@pytest.mark.parametrize("version, named", [(1, 1), (None, 1), (STATE_VERSION + 1, STATE_VERSION + 1)])
def test_a_state_of_another_version_is_refused_with_advice(info_of, version, named):
    content = vars(WHOLE) | {"version": version}
    if version is None:  # the first one did not say
        del content["version"]
    words = rf"another version of this program \({named}, this one continues {STATE_VERSION}\).* --name or --overwrite$"
    with pytest.raises(ValueError, match=words) as refused:
        info_of(content)
    assert "\n" not in str(refused.value)
