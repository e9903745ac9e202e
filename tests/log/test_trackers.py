"""A tracking service shows each step of a run once, and cannot stop the run."""

import os
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.log import trackers
from engine.log.tracker import Tracker
from engine.options import Output


@pytest.fixture
def service_calls(monkeypatch, tmp_path):
    """Calls of fake services: `starts` and `rows`; the first `failing` starts fail."""
    seen = SimpleNamespace(starts=[], failing=0, rows=[])

    def init(**options):
        seen.starts.append(options)
        if len(seen.starts) <= seen.failing:
            raise RuntimeError("401: no such key\nmore")
        offline = options.get("mode") == "offline"
        return SimpleNamespace(
            id=options.get("id") or "new",
            offline=offline,
            dir="wandb/run/files",
            finish=lambda: None,
            log=lambda values, step: seen.rows.append((step, values)),
        )

    wandb = SimpleNamespace(
        init=init,
        Settings=lambda **options: options,
        setup=lambda _: SimpleNamespace(settings=SimpleNamespace(mode=os.environ.get("WANDB_MODE", "online"))),
        login=lambda prompt, verify: "WANDB_API_KEY" in os.environ,
    )
    swanlab = SimpleNamespace(init=init, finish=lambda: None, log=lambda values, step: seen.rows.append((step, values)))
    board = SimpleNamespace(
        SummaryWriter=lambda folder, purge_step: (
            seen.starts.append({"folder": folder, "purge_step": purge_step})
            or SimpleNamespace(add_scalar=lambda key, value, step: seen.rows.append((step, {key: value})))
        )
    )
    for name, module in {"wandb": wandb, "swanlab": swanlab, "torch.utils.tensorboard": board}.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("WANDB_MODE", "WANDB_API_KEY", "SWANLAB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # where an account could be in .netrc
    return seen


def opened(service, run_id=None, step=0):
    return trackers.open_service(service, Path("results/v1.5.metrics.jsonl"), "project", {}, run_id, step)


def test_tensorboard_hides_the_steps_after_the_state(service_calls):
    opened("tensorboard")
    opened("tensorboard", step=300)
    first, again = service_calls.starts
    assert first["purge_step"] == 0 and again["purge_step"] == 301
    assert first["folder"] == again["folder"] == str(Path("results/tensorboard/v1.5"))


@pytest.mark.parametrize("service", ["wandb", "swanlab"])
def test_resumed_run_continues_the_run_of_the_service(service, service_calls, monkeypatch):
    monkeypatch.setenv(f"{service.upper()}_API_KEY", "key")
    assert opened(service).run_id == "new"
    assert opened(service, run_id="old", step=3).run_id == "old"
    first, again = service_calls.starts
    assert first.get("id") is None and (again["id"], again["resume"]) == ("old", "allow")
    assert again.get("mode") in (None, "cloud")


@pytest.mark.parametrize("service, mode", [("wandb", "offline"), ("swanlab", "local")])
def test_run_without_account_or_network_is_local_and_says_so(service, mode, service_calls, monkeypatch, capsys):
    opened(service)
    assert service_calls.starts[-1]["mode"] == mode
    monkeypatch.setenv(f"{service.upper()}_API_KEY", "wrong")
    service_calls.failing = len(service_calls.starts) + 1
    assert opened(service, run_id="old", step=3).run_id == "old"
    assert service_calls.starts[-1]["mode"] == mode and f"{service}: 401: no such key" in capsys.readouterr().out


def test_settings_of_wandb_are_left_to_it(service_calls, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "key")
    opened("wandb")
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    opened("wandb")
    assert ["mode" in start for start in service_calls.starts] == [False, False]


OWN_SERVER = "https://tracking.example.org"
NETRC = f"machine {{}}\n  login user\n  password {'k' * 40}\n"
ACCOUNTS = {  # what there is: the environment, files of the home folder, and whether wandb finds an account
    "nothing": ({}, {}, False),
    "its own server": (
        {"WANDB_BASE_URL": OWN_SERVER, "NETRC": "mine"},
        {"mine": NETRC.format("tracking.example.org")},
        True,
    ),
    "a server in its settings": (
        {},
        {
            ".config/wandb/settings": f"[default]\nbase_url = {OWN_SERVER}\n",
            ".netrc": NETRC.format("tracking.example.org"),
        },
        True,
    ),
    "another server": ({"WANDB_BASE_URL": OWN_SERVER}, {".netrc": NETRC.format("api.wandb.ai")}, False),
    "a token file": ({"WANDB_IDENTITY_TOKEN_FILE": "token"}, {"token": "t"}, True),
    "switched off": ({}, {".config/wandb/settings": "[default]\nmode = disabled\n"}, True),
}


def test_wandb_is_offline_only_where_it_finds_no_account(tmp_path, monkeypatch):
    import wandb
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    starts = []
    monkeypatch.setattr(
        wandb, "init", lambda **options: starts.append(options) or SimpleNamespace(id="1", offline=False)
    )
    monkeypatch.setattr(wandb, "setup", partial(wandb_setup._setup, start_service=False))  # a quarter of a second each
    for name in [name for name in os.environ if name.startswith(("WANDB", "NETRC", "XDG_CONFIG"))]:
        monkeypatch.delenv(name)
    found = {}
    for account, (environment, files, _) in ACCOUNTS.items():
        monkeypatch.setenv("HOME", str(tmp_path / account))
        for name, content in files.items():
            path = tmp_path / account / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, str(tmp_path / account / value) if value in files else value)
            wandb.teardown()
            wbauth.unauthenticate_session()
            opened("wandb")
        found[account] = starts[-1].get("mode") != "offline"
    wandb.teardown()
    assert found == {account: expected for account, (_, _, expected) in ACCOUNTS.items()}


def test_part_without_a_service_keeps_the_run_for_the_next_one(service_calls):
    assert opened("none", run_id="old").run_id == "old"


def test_project_that_a_service_refuses_is_one_line(service_calls):
    service_calls.failing = 9
    with pytest.raises(ValueError, match="--tracker wandb, --wandb_project project: 401: no such key$"):
        opened("wandb")


def test_service_that_fails_receives_nothing_more(service_calls, tmp_path, monkeypatch, capsys):
    tracker = Tracker(Output(name="a", save_dir=str(tmp_path), tracker="wandb"), {}, steps=4)
    monkeypatch.setattr(tracker.service, "log", lambda values, step: 1 / 0)
    for step in (1, 2):
        tracker.log({"step": step, "loss": 1.0})
    tracker.close()
    assert capsys.readouterr().err.count("the tracker failed") == 1
    assert len((tmp_path / "a.metrics.jsonl").read_bytes().splitlines()) == 2 and tracker.service.run_id == "new"


def test_runs_with_similar_names_have_logs_of_their_own(service_calls, tmp_path):
    for name in ("v1.5", "v1.6"):
        Tracker(Output(name=name, save_dir=str(tmp_path), tracker="tensorboard"), {}, steps=4).close()
    assert [Path(start["folder"]).name for start in service_calls.starts] == ["v1.5", "v1.6"]
