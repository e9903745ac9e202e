"""Whatever a file or a flag holds: training, a counted skip or a one-line error; no code runs, no good row is lost."""

import io
import json
import os
import pickle
import shutil
import zlib
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from factories import actions_of
from forked import LATER, TINY
from hypothesis import given
from hypothesis import strategies as st

import distill
import pretrain
import SFT
from Config import LLMConfig
from dataset import PretrainDataset, SFTDataset
from engine import cli, loop, optim, options
from engine.checkpoint import training_state
from engine.checkpoint.run_info import read_info
from engine.checkpoint.weights import config_dict, full_state_dict, load_model
from engine.corpus.token_cache import open_or_build
from engine.files import write_json
from engine.tokenizer import load_tokenizer
from model import SpongeBob

SHAPE = {"dim": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "vocab_size": 6400}


def attempt(action) -> str:
    """Return the error's only line, or "done"; bad rows may be named below it. Other exceptions are failures."""
    try:
        action()
    except (ValueError, OSError) as error:
        first, *named = str(error).strip().split("\n")
        assert first and all(line.startswith("  ") for line in named), repr(error)
        return first
    return "done"


# ------------------------------------------------------------------------------------------------------------ JSONL

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ALMOST_ROWS = st.one_of(
    st.builds(lambda value: {"text": value}, JSON_VALUES),
    st.builds(lambda value: {"conversations": value}, JSON_VALUES),
    st.builds(lambda role, content: {"conversations": [{"role": role, "content": content}]}, JSON_VALUES, JSON_VALUES),
)
LINES = st.one_of(
    st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")),
    JSON_VALUES.map(lambda value: json.dumps(value).encode()),
    ALMOST_ROWS.map(lambda row: json.dumps(row, ensure_ascii=True).encode()),
    ALMOST_ROWS.map(lambda row: json.dumps(row).encode()[:-3]),
    st.integers(0, 3).map(lambda depth: b"[" * 10**depth),
)
GOOD = {
    PretrainDataset: lambda i: {"text": f"好行{i}"},
    SFTDataset: lambda i: {
        "conversations": [{"role": "user", "content": f"问{i}"}, {"role": "assistant", "content": "答"}]
    },
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


@pytest.mark.parametrize("kind", GOOD)
@given(lines=st.lists(LINES | st.none(), min_size=1, max_size=8), ending=st.sampled_from([b"\n", b"\r\n", b""]))
def test_no_line_of_a_jsonl_file_loses_a_good_one(kind, lines, ending, place, tokenizer):
    """None means a good row."""
    good = [json.dumps(GOOD[kind](i), ensure_ascii=False).encode() for i, line in enumerate(lines) if line is None]
    file, rest = place / "rows.jsonl", iter(good)
    file.write_bytes(b"\n".join(next(rest) if line is None else line for line in lines) + ending)
    caches = place / "caches"
    shutil.rmtree(caches, ignore_errors=True)
    opened = []
    with redirect_stderr(io.StringIO()):
        outcome = attempt(lambda: opened.append(open_or_build([file], kind, tokenizer, cache_dir=caches)))
    if outcome != "done":  # mostly bad, or of another kind
        assert not good or "rows are bad" in outcome or "not JSONL" in outcome, outcome
        return
    cache = opened[0]
    spans = zip(cache.offsets[:-1], cache.offsets[1:], strict=True)
    documents = {tuple(cache.ids[begin:end].tolist()) for begin, end in spans}
    encoder = kind(tokenizer)
    for line in good:
        assert tuple(encoder.encode([kind.read(json.loads(line))])[0].ids.tolist()) in documents
    counts = cache.meta["sources"][0]["counts"]
    assert counts["rows"] == len(cache) + counts["bad"] + counts["empty"]


# --------------------------------------------------------------------------------------------------------- tokenizers

SPOTS = st.lists(st.tuples(st.floats(0, 0.999), st.binary(max_size=3), st.integers(0, 40)), min_size=1, max_size=4)


def altered(content: bytes, spots) -> bytes:
    """Replace some bytes and remove some, at shares of the length."""
    content = bytearray(content)
    for share, insert, removed in spots:
        at = int(share * len(content))
        content[at : at + removed] = insert
    return bytes(content)


@given(spots=SPOTS, cut=st.none() | st.floats(0, 1))
def test_an_altered_tokenizer_file_is_one_line_or_encodes(spots, cut, small, place):
    content = altered(small.to_str().encode(), spots)
    (place / "tokenizer.json").write_bytes(content[: int(cut * len(content))] if cut is not None else content)

    def read_and_encode():
        SFTDataset(load_tokenizer(place)).encode([[{"role": "assistant", "content": "<think>好</think> hi"}]])

    attempt(read_and_encode)


# -------------------------------------------------------------------------------------------------------------- flags

VALUES = st.sampled_from(["-1", "0", "1", "2", "3", "7", "0.5", "-0.5", "1e-9", "nan", "inf", "-inf", "", "x", "١"])
BOUNDED = {"--num_workers", "--max_steps"}  # one costs processes, the other decides how long the test takes
NOT_TRIED = {"--tracker", "--save_dir", "--cache_dir", "--data_path", "--tokenizer_dir", "--help"}


def numeric_flags(script) -> list[str]:
    """Return the flags of a stage that take a value, except those that would leave this machine or its folders."""
    flags = {action.option_strings[0] for action in actions_of(script) if action.nargs != 0}
    return sorted(flags - NOT_TRIED - BOUNDED)


@pytest.mark.parametrize("script", [pretrain, SFT, distill], ids=lambda script: script.__name__)
@given(data=st.data())
def test_any_value_of_any_flag_ends_in_training_or_one_line(script, data, place, undisturbed, home, tokenizer):
    names = data.draw(st.lists(st.sampled_from(numeric_flags(script)), min_size=1, max_size=3, unique=True))
    values = [f"{name}={data.draw(VALUES)}" for name in names]
    argv, whole, _ = undisturbed[script.__name__]
    shutil.rmtree(place / "flags", ignore_errors=True)
    (place / "flags").mkdir()
    arguments = [*(TINY if script is pretrain else LATER), *argv, "--save_dir", str(place / "flags"), *values]
    stderr = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(stderr), redirect_stdout(io.StringIO()):
        patch.chdir(home)
        patch.setattr(script, "load_tokenizer", lambda folder: tokenizer)
        patch.setattr(loop, "train", lambda *arguments: None)
        with pytest.raises(SystemExit) as ended:
            cli.run(lambda: script.main(arguments))
    assert ended.value.code in (0, 2), stderr.getvalue()
    if ended.value.code == 2:
        last = stderr.getvalue().strip().splitlines()[-1]
        assert "error: " in last and "Traceback" not in stderr.getvalue()


# ------------------------------------------------------------------------------------------------ states and weights


class Code:
    """Make a folder when a pickle of it is opened."""

    def __reduce__(self):
        return os.mkdir, ("it-ran",)


@pytest.fixture
def whole_state(undisturbed, tmp_path, monkeypatch):
    """A copy of a good state, with a good one before it; the working folder is empty."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(undisturbed["pretrain"][1] / "pretrain.state", tmp_path / "run.state")
    return tmp_path / "run.state/00000012"


def seal(path: Path) -> None:
    """Write a manifest that fits, as an attacker would."""
    files = [file for file in path.rglob("*") if file.is_file() and file.name != "manifest.json"]
    seals = {f.relative_to(path).as_posix(): [f.stat().st_size, zlib.crc32(f.read_bytes())] for f in files}
    (path / "manifest.json").write_text(json.dumps({"step": 12, "files": seals}))


def a_model() -> tuple[SpongeBob, list]:
    model = SpongeBob(LLMConfig(dim=32, n_layers=2, n_heads=2, n_kv_heads=1, max_seq_len=96, dropout=0.1))
    return model, optim.build(model, options.Training(optimizer="adamw", learning_rate=1e-3))


def open_state(path: Path) -> None:
    read_info(path)
    training_state.load_into(path, *a_model())


def test_a_good_state_opens(whole_state):
    assert attempt(lambda: open_state(whole_state)) == "done"


@pytest.mark.parametrize("file", ["run.pt", "tensors/.metadata"])
def test_a_state_with_code_in_it_is_refused_by_name(file, whole_state):
    (whole_state / file).write_bytes(pickle.dumps(Code(), protocol=2))
    seal(whole_state)
    assert training_state.find_corruption(whole_state) is None
    assert str(whole_state / file) in attempt(lambda: open_state(whole_state))
    assert not Path("it-ran").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda saved: saved.pop("model.norm.weight"), "missing model.norm.weight"),
        (lambda saved: saved.update({"model.extra": torch.ones(2)}), "unexpected model.extra"),
        (lambda saved: saved.update({"optimizer.extra.step": torch.ones(())}), "unexpected optimizer.extra.step"),
        (lambda saved: saved.update({"model.norm.weight": torch.ones(3)}), r"model.norm.weight is \(3,\), expected"),
        (lambda saved: saved.update({"model.norm.weight": Code()}), "model.norm.weight is not a tensor"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_by_name(change, message, whole_state):
    model, optimizers = a_model()
    saved = training_state.snapshot_tensors(model, optimizers)
    change(saved)
    shutil.rmtree(whole_state / "tensors")
    training_state.dcp.save(
        saved, storage_writer=training_state.dcp.FileSystemWriter(whole_state / "tensors"), no_dist=True
    )
    with pytest.raises(ValueError, match=message):
        open_state(whole_state)
    assert not Path("it-ran").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda saved: saved.pop("norm.weight"), "missing norm.weight"),
        (lambda saved: saved.update({"extra": torch.ones(2)}), "unexpected extra"),
        (lambda saved: saved.update({"norm.weight": torch.ones(3)}), r"norm.weight is \(3,\), expected \(16,\)"),
        (lambda saved: saved.update({"norm.weight": Code()}), "not a readable checkpoint"),
        (lambda saved: saved.update({"norm.weight": "words"}), "norm.weight is"),
        (lambda saved: saved.update({"output.weight": saved["output.weight"] + 1}), "output.weight differs"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(change, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = SpongeBob(LLMConfig(**SHAPE))
    saved = full_state_dict(model)
    change(saved)
    torch.save(saved, "weights.pth")
    write_json(Path("weights.json"), {"config": config_dict(model.config)})
    with pytest.raises(ValueError, match=f"weights.pth: .*{message}"):
        load_model(Path("weights.pth"))
    assert not Path("it-ran").exists()


@given(spots=SPOTS, cut=st.none() | st.floats(0, 1), which=st.integers(0, 3), sealed=st.booleans())
def test_an_altered_state_is_passed_over_or_one_line(spots, cut, which, sealed, undisturbed, place):
    states = place / "altered.state"
    shutil.rmtree(states, ignore_errors=True)
    shutil.copytree(undisturbed["pretrain"][1] / "pretrain.state", states)
    path = states / "00000012"
    file = sorted(file for file in path.rglob("*") if file.is_file())[which]
    before = file.read_bytes()
    content = altered(before, spots)
    file.write_bytes(content[: int(cut * len(content))] if cut is not None else content)
    if sealed and file.name != "manifest.json":
        seal(path)
        attempt(lambda: open_state(path))
    elif file.read_bytes() != before and file.name != "manifest.json":
        with redirect_stdout(io.StringIO()):
            assert training_state.find_newest(states).name == "00000009"
    else:
        with redirect_stdout(io.StringIO()):
            assert training_state.find_newest(states) is not None
