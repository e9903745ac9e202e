"""The checkpoints of a folder as models."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch
from factories import save
from live_server import greedy_answer, user
from tiny_model import tiny


def test_dangling_links_and_folders_are_no_models(client, api):
    (api.models.folder / "gone.pth").symlink_to("nowhere")
    (api.models.folder / "folder.pth").mkdir()
    assert {model.id for model in client.models.list()} == {"SFT", "distill", "pretrain"}


def test_loaded_model_does_not_wait_for_one_being_read(api, monkeypatch):
    loaded, late = api.models.get("SFT"), api.models.folder / "late.pth"
    shutil.copy(api.models.folder / "distill.pth", late)
    is_reading, may_finish = threading.Event(), threading.Event()
    real = api.models.open_model

    def read_slowly(path):
        is_reading.set()
        assert may_finish.wait(10)
        return real(path)

    monkeypatch.setattr(api.models, "open_model", read_slowly)
    with ThreadPoolExecutor(2) as clients:
        other = clients.submit(api.models.get, "late")
        try:
            assert is_reading.wait(10)
            assert clients.submit(api.models.get, "SFT").result(5) is loaded
        finally:
            may_finish.set()
        assert other.result(10) is api.models.get("late")
    late.unlink()


def test_rewritten_weights_are_read_again(client, api):
    path = api.models.folder / "late.pth"
    options = {"model": "late", "messages": user("你好"), "temperature": 0, "max_tokens": 5}
    for seed in (0, 1):
        save(tiny(seed), path)
        assert client.chat.completions.create(**options).choices[0].message.content == greedy_answer("你好", 5, seed)
    path.with_suffix(".json").write_text("{")
    save(tiny(0), path)
    path.write_bytes(b"no weights")
    with pytest.raises(openai.InternalServerError, match="late.pth"):
        client.chat.completions.create(**options)
    path.unlink()


def test_broken_files_are_not_listed_and_their_errors_name_no_folder(client, api, capsys):
    folder = api.models.folder
    (folder / "junk.pth").write_text("x")
    (folder / "cut.pth").write_bytes((folder / "SFT.pth").read_bytes()[:-100])
    torch.save({"other": torch.zeros(2)}, folder / "other.pth")
    assert {model.id for model in client.models.list()} == {"SFT", "distill", "pretrain", "other"}
    for name in ("junk", "cut", "other"):
        with pytest.raises(openai.InternalServerError, match=rf"{name}\.pth cannot be used") as refused:
            client.chat.completions.create(model=name, messages=user("你好"))
        assert str(folder) not in str(refused.value) and "/" not in refused.value.body["message"]
        assert f"{name}.pth" in "".join(capsys.readouterr())
    assert {model.id for model in client.models.list()} == {"SFT", "distill", "pretrain"}
    save(tiny(), folder / "other.pth")
    assert "other" in {model.id for model in client.models.list()}
    for name in ("junk", "cut", "other"):
        (folder / f"{name}.pth").unlink()
