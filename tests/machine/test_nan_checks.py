"""Weights and loss scales that a run must not continue with."""

import math
from pathlib import Path

import pytest
import torch
from factories import write_rows

import pretrain
from engine.machine import nan_checks
from engine.machine.runtime import Runtime

TINY = (
    "--dim 32 --n_layers 1 --n_heads 4 --n_kv_heads 2 --batch_size 2 --max_seq_len 64 --accumulation_steps 1 "
    "--warmup_iters 0 --num_workers 1 --device cpu --dtype float32 --max_steps 2 --data_path rows.jsonl"
)


def test_fp16_that_only_skips_steps_is_an_error():
    scaler = torch.amp.GradScaler("cpu", init_scale=1024)
    nan_checks.check_fp16_overflows(scaler, nan_checks.MAX_CONSECUTIVE_SKIPS - 1, 60)
    with pytest.raises(ValueError, match="step 60: 50 fp16 steps in a row overflowed .* loss scale is 1024"):
        nan_checks.check_fp16_overflows(scaler, nan_checks.MAX_CONSECUTIVE_SKIPS, 60)
    with pytest.raises(ValueError, match="loss scale is 0.5"):
        nan_checks.check_fp16_overflows(torch.amp.GradScaler("cpu", init_scale=0.5), 1, 60)


@pytest.mark.parametrize("number", [math.inf, math.nan])
def test_weight_that_is_not_finite_is_an_error(number):
    model, rt = torch.nn.Linear(4, 4), Runtime(torch.device("cpu"), torch.float32)
    nan_checks.check_weights_finite(model, rt, 3)
    model.weight.data[1, 2] = number
    with pytest.raises(ValueError, match="after step 3 weights are not finite"):
        nan_checks.check_weights_finite(model, rt, 3)


@pytest.mark.parametrize("flags", [["--learning_rate", "1e38", "--eval_step", "1"], ["--learning_rate", "1e39"]])
def test_weights_that_are_not_finite_are_one_line_and_never_saved(flags, tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    write_rows(Path("rows.jsonl"), [{"text": "the boats come home"}] * 3 + [{"text": "fish"}])
    with pytest.raises(ValueError, match="not finite"):
        pretrain.main([*TINY.split(), *flags, "--log_step", "1", "--save_step", "1"])
    assert not Path("results/pretrain.pth").exists()
