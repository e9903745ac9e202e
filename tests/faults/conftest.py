"""A working folder with data of three kinds and, for every stage, the outcome of a run that was never disturbed."""

import json
import os

import pytest
from harness import LATER, TINY, go
from hypothesis import HealthCheck, settings

settings.register_profile("short", max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile("faults", settings.get_profile("short"), max_examples=100)
settings.load_profile("faults" if os.environ.get("ALL_FAULTS") else "short")


def pytest_collection_modifyitems(items):
    """The long ones only when they are asked for."""
    if not os.environ.get("ALL_FAULTS"):
        items[:] = [item for item in items if not item.get_closest_marker("faults")]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """The folder every run of this session works in; each has a --save_dir of its own."""
    folder = tmp_path_factory.mktemp("faults")
    folder.chmod(0o777)
    for parent in folder.parents:
        if parent.stat().st_uid == os.getuid() and parent.stat().st_mode & 0o77 == 0:
            parent.chmod(0o711)  # one test runs as another user
    write_rows(
        folder / "pretrain.jsonl", [{"text": f"第{i}天，小镇下雨，" + "船回来了。" * (i % 7)} for i in range(60)]
    )
    for name, answer in (("sft_512", "是{}。"), ("r1_1024", "<think>\n加一\n</think>\n<answer>\n{}\n</answer>")):
        write_rows(
            folder / f"{name}.jsonl",
            [
                {
                    "conversations": [
                        {"role": "user", "content": f"{i}加一是多少？"},
                        {"role": "assistant", "content": answer.format(i + 1) + "好。" * (i % 5)},
                    ]
                }
                for i in range(60)
            ],
        )
    return folder


@pytest.fixture(scope="session")
def undisturbed(home):
    """stage -> (its flags, the results of a run that nothing happened to)."""
    found = {}
    for stage, words in (("pretrain", TINY), ("SFT", LATER), ("distill", LATER)):
        parent = {
            "pretrain": [],
            "SFT": ["--init_from", "whole/pretrain.pth"],
            "distill": ["--init_from", "whole/SFT.pth"],
        }
        argv = [*words, *parent[stage]]
        done = go(stage, [*argv, "--save_dir", "whole"], home)
        assert done.code == 0, done.said
        found[stage] = argv, home / "whole"
    return found
