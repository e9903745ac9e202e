"""An export that the disk does not take leaves nothing, names its path, and works when there is room."""

import resource
from functools import partial

import pytest

import export
from engine.checkpoint import weights
from engine.export import gguf, hugging_face

TARGETS = {"hf": "exported", "gguf": "mine.gguf", "page": "talk.html", "import": "theirs.pth"}
LIMITS = resource.getrlimit(resource.RLIMIT_FSIZE)


@pytest.fixture
def exports(home, small, tmp_path, capsys):  # whose streams, unlike capfd's, are no files
    """Return {kind: function that exports, or imports, below a folder}."""
    of_model = ["--ckpt", str(home / "SFT.pth"), "--tokenizer_dir", str(small)]
    argv = {kind: [*of_model, "--format", kind] for kind in ("hf", "gguf", "page")}
    argv["import"] = ["--import_hf", str(home / "exported")]
    return {kind: partial(export.main, [*argv[kind], str(tmp_path / "new" / TARGETS[kind])]) for kind in TARGETS}


def with_limit(size, write):
    """Call `write` while no file may be larger than `size` bytes, as on a disk that fills up."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, LIMITS[1]))
    try:
        with pytest.raises(OSError) as raised:
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, LIMITS)
    return str(raised.value)


@pytest.mark.parametrize("kind", TARGETS)
def test_an_export_on_a_full_disk_leaves_nothing_and_says_why(kind, exports, tmp_path):
    for size in (0, 20_000):  # nothing fits, or all but the weights
        message = with_limit(size, exports[kind])
        assert message.startswith(f"cannot write {tmp_path / 'new' / TARGETS[kind]}: ") and "File too large" in message
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    exports[kind]()  # with room again


@pytest.mark.parametrize(
    "kind, module, name, last",
    [
        ("hf", hugging_face, "model_card", "exported"),
        ("gguf", gguf, "modelfile", "mine.Modelfile"),
        ("import", weights, "weights_hash", "theirs.json"),
    ],
)
def test_no_file_of_an_export_stays_without_its_last(kind, module, name, last, exports, tmp_path, monkeypatch):
    real = getattr(module, name)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, lambda *args: real(*args) + " " * 3_000_000)
        message = with_limit(2_000_000, exports[kind])
    assert message == f"cannot write {tmp_path / 'new' / last}: File too large"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    exports[kind]()


def test_an_empty_folder_that_was_there_stays_there_empty(exports, tmp_path):
    (tmp_path / "new" / "exported").mkdir(parents=True)
    with_limit(20_000, exports["hf"])
    assert list((tmp_path / "new").rglob("*")) == [tmp_path / "new" / "exported"]


def test_ctrl_c_during_an_export_leaves_nothing(exports, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(hugging_face, "model_card", interrupt)
    with pytest.raises(KeyboardInterrupt):
        exports["hf"]()
    assert list(tmp_path.iterdir()) == [tmp_path / "new"] and not list((tmp_path / "new").iterdir())
