"""What tests of several rooms start from: the tokenizer, a folder of data, small checkpoints and a question to them."""

import pytest
import torch
from making import chat, read_tokenizer, save_checkpoint, tiny, write_rows

import eval_model


@pytest.fixture(scope="session")
def tokenizer():
    return read_tokenizer()


@pytest.fixture(scope="module")
def one_thread():
    """Layers as small as the tests' lose more by waiting for each other's threads than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with the three kinds of data, as a user might have."""
    monkeypatch.chdir(tmp_path)
    texts = [
        {"text": f"第{i}天，海边的小镇下了{'雨' if i % 3 else '雪'}，" + "船都回来了。" * (i % 9)} for i in range(200)
    ]
    chats = [chat(f"{i}加一是多少？", f"是{i + 1}。") for i in range(200)]
    thought = "<think>\n加一\n</think>\n<answer>\n{}\n</answer>"
    thoughts = [chat(f"{i}加一是多少？", thought.format(i + 1)) for i in range(200)]
    for name, rows in (("pretrain", texts), ("sft_512", chats), ("sft_1024", chats), ("r1_1024", thoughts)):
        write_rows(tmp_path / f"{name}.jsonl", rows)
    return tmp_path


@pytest.fixture(scope="session")
def model():
    """A small model that answers."""
    return tiny()


@pytest.fixture(scope="session")
def results(model, tmp_path_factory):
    """A folder where every stage has left that model."""
    folder = tmp_path_factory.mktemp("results")
    for name in ("pretrain", "SFT", "SFT_long", "distill", "distill_long"):
        save_checkpoint(model, folder / f"{name}.pth", stage=name.removesuffix("_long"))
    return folder


@pytest.fixture
def ask(results, capsys, one_thread):
    """Run eval_model.py on the small checkpoints and return what it printed."""

    def run(*argv):
        fixed = ["--save_dir", str(results), "--device", "cpu", "--dtype", "float32", "--max_new_tokens", "12"]
        eval_model.main([*fixed, *map(str, argv)])
        return capsys.readouterr().out

    return run
