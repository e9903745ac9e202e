"""Data of a stage fits its model."""

import json
import types

import pytest
import torch
from factories import loss_weights, write_rows
from forked import run_stage
from tiny_model import tiny

from dataset import PretrainDataset
from engine import options
from engine.checkpoint import trained_rows
from engine.checkpoint.weights import load_model, weights_hash
from engine.corpus.token_cache import open_or_build
from engine.machine.runtime import Runtime
from engine.packing import split_documents
from engine.score.records import read_hashes, read_items
from engine.stage import prepare


def test_rows_longer_than_the_model_are_refused():
    args = types.SimpleNamespace(data=options.Data(max_seq_len=129), training=options.Training())
    with pytest.raises(ValueError, match="--max_seq_len 129 is more than the 128 of the model"):
        prepare.pack(None, None, args, Runtime(torch.device("cpu"), torch.float32), tiny())


def test_a_state_of_a_file_read_twice_is_not_that_of_the_file_read_once(small, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [{"text": f"boat {number}"} for number in range(9)])
    args = types.SimpleNamespace(data=options.Data(max_seq_len=64), training=options.Training())
    sources = []
    for paths in ([path], [path, path]):
        cache = open_or_build(paths, PretrainDataset, small, cache_dir=tmp_path / "cache")
        rows = prepare.pack(cache, split_documents, args, Runtime(torch.device("cpu"), torch.float32), tiny())
        sources.append(rows.sources(loss_weights()))
    files = [source.resume_key["data"] for source in sources]
    assert files[1] == 2 * files[0] and [key["documents"] for key in files[0]] == [9]
    assert all("held out: 4 of 9 documents" in source.description for source in sources)


def test_a_stage_leaves_its_rows_and_those_of_the_stage_before(home, tmp_path):
    """Also one that stops before it has read them all."""
    stop = ["--save_dir", str(tmp_path), "--max_minutes", "1e-9", "--eval_step", "0"]
    assert run_stage(home, "--init_from", "whole/pretrain.pth", *stop, stage="SFT").code == 75
    hashes = [read_hashes(path, read_items(path, 0)) for path in (home / "pretrain.jsonl", home / "sft_512.jsonl")]
    counts = []
    for path in (home / "whole/pretrain.pth", tmp_path / "SFT.pth"):
        rows = trained_rows.read(path, weights_hash(load_model(path)[0].state_dict()))
        counts.append([rows.overlap(part)["trained_on"] for part in hashes])
        assert rows.is_complete and len(rows.hashes) == sum(counts[-1])
    assert counts == [[30, 0], [30, 30]]  # half of each file is held out


def test_answers_are_validated_the_same_with_texts_beside_them(home, tmp_path):
    """The held-out loss before the first step is that of a run without texts, to the bit."""
    common = ["--init_from", "whole/pretrain.pth", "--eval_step", "0", "--save_step", "0", "--save_dir"]
    both = ["--data_path", "sft_512.jsonl", "pretrain.jsonl"]
    alone = run_stage(home, *common, str(tmp_path / "alone"), stage="SFT")
    mixed = run_stage(home, *common, str(tmp_path / "mixed"), *both, stage="SFT")
    assert "\ntexts  " in mixed.output and "\ntexts  " not in alone.output
    runs = [json.loads((tmp_path / name / "SFT.json").read_text()) for name in ("alone", "mixed")]
    before = [run["initial_validation"] for run in runs]
    assert before[0].items() <= before[1].items()
    assert before[1].keys() - before[0].keys() == {"val_text_loss", "val_text_bits_per_byte"}
    assert runs[1]["val_text_loss"] < before[1]["val_text_loss"]
