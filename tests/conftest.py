"""What several files of tests share: the committed tokenizer, a working folder with data, checkpoints to talk to."""

import json
import os

import pytest
import torch
from factories import save
from tiny_model import tiny

import eval_model
from engine.flags import ROOT
from engine.tokenizer import load_tokenizer


def pytest_collection_modifyitems(items):
    """The tests that need other programs (llama.cpp, trl, a compiler, a browser) run only when they are asked for."""
    for marker in ("runtimes", "pages"):
        if not os.environ.get(marker.upper()):
            items[:] = [item for item in items if not item.get_closest_marker(marker)]


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer(ROOT / "spongebob_tokenizer")


@pytest.fixture(scope="module")
def one_thread():
    """Layers as small as the tests' lose more by waiting for each other's threads than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with the three kinds of data, as a user might have."""
    monkeypatch.chdir(tmp_path)
    texts = [
        {"text": f"第{i}天，海边的小镇下了{'雨' if i % 3 else '雪'}，" + "船都回来了。" * (i % 9)} for i in range(200)
    ]
    chats = [
        {
            "conversations": [
                {"role": "user", "content": f"{i}加一是多少？"},
                {"role": "assistant", "content": f"是{i + 1}。"},
            ]
        }
        for i in range(200)
    ]
    thoughts = [
        {
            "conversations": [
                {"role": "user", "content": f"{i}加一是多少？"},
                {"role": "assistant", "content": f"<think>\n加一\n</think>\n<answer>\n{i + 1}\n</answer>"},
            ]
        }
        for i in range(200)
    ]
    for name, rows in (("pretrain", texts), ("sft_512", chats), ("sft_1024", chats), ("r1_1024", thoughts)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def results(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    for name in ("pretrain", "SFT", "SFT_long", "distill", "distill_long"):
        save(model, folder / f"{name}.pth", stage=name.removesuffix("_long"))
    return folder


@pytest.fixture
def ask(results, capsys):
    """Run eval_model.py on the tiny checkpoints and return what it printed; `ask.warned` is what it warned of."""

    def run(*argv):
        fixed = ["--save_dir", str(results), "--device", "cpu", "--weight_dtype", "float32", "--max_new_tokens", "12"]
        eval_model.main([*fixed, *map(str, argv)])
        out, run.warned = capsys.readouterr()
        return out

    return run
