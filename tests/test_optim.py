"""Muon is torch's Muon, faster; every weight has one optimizer; schedules are right at their corners."""

from itertools import chain

import pytest
import torch

from Config import LLMConfig
from engine import optim, options
from engine.options import Training
from model import SpongeBob

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


@pytest.mark.parametrize("dtype, rtol, atol", [("float32", 1e-2, 1e-4), ("bfloat16", 0.0, 0.03)])
@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 16, 40), (2, 40, 16)], ids=["square", "wide", "tall"])
def test_orthogonalize_applies_the_polynomial_to_singular_values(shape, dtype, rtol, atol, monkeypatch):
    monkeypatch.setattr(optim, "resolve_dtype", lambda *_: getattr(torch, dtype))  # whatever this machine is fast in
    torch.manual_seed(0)
    x = torch.randn(shape)
    u, sizes, v = torch.linalg.svd(x.double(), full_matrices=False)
    sizes = sizes / sizes.norm(dim=1, keepdim=True)
    for _ in range(5):
        sizes = COEFFICIENTS[0] * sizes + COEFFICIENTS[1] * sizes**3 + COEFFICIENTS[2] * sizes**5
    expected = u @ torch.diag_embed(sizes) @ v
    torch.testing.assert_close(optim.orthogonalize(x, COEFFICIENTS, 5).double(), expected, rtol=rtol, atol=atol)


def test_muon_makes_the_steps_of_torchs_muon():
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in ((8, 8), (8, 20), (8, 8), (20, 8))]
    theirs = [torch.nn.Parameter(weight.detach().clone()) for weight in ours]
    settings = {"lr": 0.05, "weight_decay": 0.3, "adjust_lr_fn": "match_rms_adamw"}
    optimizers = optim.Muon(ours, **settings), torch.optim.Muon(theirs, **settings)
    for _ in range(3):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        before = torch.cat([weight.detach().flatten() for weight in theirs])
        for optimizer in optimizers:
            optimizer.step()
        mine, other = (torch.cat([weight.detach().flatten() for weight in part]) for part in (ours, theirs))
        assert (mine - other).norm() < 0.02 * (other - before).norm()  # torch computes in bf16
    mine, other = (optimizer.state_dict()["state"] for optimizer in optimizers)
    assert mine.keys() == other.keys() and all(mine[key].keys() == other[key].keys() for key in mine)


def param_groups(optimizers) -> list[dict]:
    return list(chain.from_iterable(optimizer.param_groups for optimizer in optimizers))


@pytest.mark.parametrize("name", options.OPTIMIZERS)
def test_weights_have_one_optimizer_and_only_hidden_matrices_decay(name):
    model = SpongeBob(LLMConfig(dim=64, n_layers=2, n_heads=4))
    groups = param_groups(optim.build(model, Training(optimizer=name, learning_rate=1e-3, weight_decay=0.1)))
    updated, decayed = [], set()
    for group in groups:
        updated += map(id, group["params"])
        if group["weight_decay"]:
            decayed |= set(map(id, group["params"]))
    assert sorted(updated) == sorted(map(id, model.parameters()))
    names = {id(weight): name for name, weight in model.named_parameters() if weight.dim() == 2}
    assert decayed == {weight for weight, name in names.items() if "layers" in name}


@pytest.mark.parametrize("name", options.OPTIMIZERS)
def test_the_schedule_reaches_every_weight_and_the_moments_are_llamas(name):
    model = SpongeBob(LLMConfig(dim=64, n_layers=1, n_heads=4))
    optimizers = optim.build(model, Training(optimizer=name, learning_rate=1e-3))
    optim.set_lr(optimizers, 0.25)
    assert {group["lr"] for group in param_groups(optimizers)} == {0.25}
    assert {group["betas"] for group in optimizers[-1].param_groups} == {(0.9, 0.95)}


def test_one_rate_serves_both_optimizers():
    """Muon's step has the root mean square of AdamW's, which is about 0.2 times the rate (arXiv:2502.16982)."""
    torch.manual_seed(0)
    for shape in ((64, 64), (16, 128), (128, 16)):
        weight = torch.nn.Parameter(torch.zeros(shape))
        weight.grad = torch.randn(shape)
        optim.Muon([weight], lr=0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw").step()
        assert weight.detach().square().mean().sqrt().item() == pytest.approx(0.2 * 0.01, rel=0.25)


# ----------------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize("name, last", [("cosine", 0.1), ("linear", 1 / 90), ("wsd", 1 / 20)])
def test_a_schedule_is_right_at_its_corners(name, last):
    lr = optim.schedule(name, max_lr=3.0, steps=100, warmup=10)
    rates = [lr(step) for step in range(100)]
    assert rates[0] == pytest.approx(3 / 11) and rates[9] == pytest.approx(30 / 11) and rates[10] == pytest.approx(3)
    assert rates[99] == pytest.approx(3 * last)
    assert max(rates) <= 3 * (1 + 1e-12) and min(rates) > 0
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)
    halfway = {"cosine": 0.55, "linear": 0.5, "wsd": 1.0}[name]
    assert (rates[54] + rates[55]) / 2 == pytest.approx(3 * halfway, rel=0.02)


def test_wsd_is_flat_and_then_falls_in_a_straight_line():
    lr = optim.schedule("wsd", max_lr=1.0, steps=50, warmup=5, decay_share=0.4)
    assert [lr(step) for step in range(5, 31)] == [1.0] * 26
    assert [lr(step) for step in range(30, 50)] == pytest.approx([1 - step / 20 for step in range(20)])


def test_wsd_reaches_its_peak_however_long_the_warmup_is():
    lr = optim.schedule("wsd", max_lr=1.0, steps=10, warmup=9)
    assert [lr(step) for step in range(10)] == pytest.approx([(step + 1) / 10 for step in range(10)])


def test_default_warmup_is_a_tenth_of_the_steps_and_at_most_100():
    assert [optim.default_warmup_steps(steps) for steps in (9, 10, 999, 1001, 9999, 10**6)] == [0, 1, 99, 100, 100, 100]


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
def test_a_run_of_one_step_without_warmup_takes_it_at_the_peak(name):
    assert optim.schedule(name, max_lr=2.0, steps=1, warmup=0)(0) == pytest.approx(2)


@pytest.mark.parametrize(
    "name, warmup, message",
    [
        ("cosine", -1, "warmup_iters=-1 .* 10 steps"),
        ("cosine", 10, "warmup_iters=10 .* 10 steps"),
        ("cosine", 11, "warmup_iters=11 .* 10 steps"),
        ("step", 0, "'step' is not known, expected one of cosine"),
    ],
)
def test_schedule_that_is_unknown_or_does_not_fit_is_refused(name, warmup, message):
    with pytest.raises(ValueError, match=message):
        optim.schedule(name, max_lr=1.0, steps=10, warmup=warmup)
