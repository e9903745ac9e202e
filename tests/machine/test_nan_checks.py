"""Weights and loss scales that a run must not continue with."""

import math

import pytest
import torch

from engine.machine import nan_checks
from engine.machine.runtime import Runtime


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
