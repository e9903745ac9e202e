"""Each setting of the sampling keeps the tokens that its name says."""

import pytest
import torch

from engine.generate import sampling
from engine.generate.sampling import Sampling, sample_from_probs, sample_next_tokens

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(logits, **options):
    options = {"temperature": 1.0, "top_p": 1.0} | options
    uniforms = torch.rand(2000, 1, generator=torch.Generator().manual_seed(0))
    return set(sample_next_tokens(logits.expand(2000, -1), [Sampling(**options)] * 2000, uniforms).tolist())


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert drawn(logits, top_p=0.4) == {0}
    assert drawn(logits, top_p=0.6) == {0, 1}
    assert drawn(logits, top_p=0.9) == {0, 1, 2}
    assert drawn(logits) == {0, 1, 2, 3}


def test_top_p_applies_after_temperature_and_top_k():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert drawn(logits, top_p=0.7) == {0, 1}
    assert drawn(logits, top_p=0.7, temperature=2.0) == {0, 1, 2}  # of 0.38, 0.29, 0.21 and 0.12
    assert drawn(logits, top_p=0.6, top_k=2) == {0}  # of 0.625 and 0.375


def test_min_p_drops_tokens_below_its_share_of_the_largest():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert drawn(logits, min_p=0.61) == {0}
    assert drawn(logits, min_p=0.31) == {0, 1}
    assert drawn(logits, min_p=0.29) == {0, 1, 2}


@pytest.mark.parametrize(
    "top_k, top_p, min_p",
    [(0, 0.9, 0), (5, 1, 0), (5, 0.5, 0), (0, 1, 0.2), (200, 0.99, 0), (0, 1, 0), (0, 0.9999999, 0), (300, 0.6, 0.001)],
)
@pytest.mark.parametrize("sharpness", [0.1, 1.5, 3.0])
def test_top_candidates_equal_a_sorted_vocabulary(top_k, top_p, min_p, sharpness, monkeypatch):
    logits = sharpness * torch.randn(6, 500, generator=torch.Generator().manual_seed(0))
    logits[:, 7] = logits[:, 30] = logits.max()
    columns = [torch.full((6, 1), float(value)) for value in (1, top_k, top_p, min_p)]
    probs = sampling.filtered_probs(logits, *columns)
    monkeypatch.setattr(sampling, "NUM_CANDIDATES", 500)
    torch.testing.assert_close(probs, sampling.filtered_probs(logits, *columns))


def test_top_k_keeps_exactly_k_of_equal_logits():
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    logits[:, 7] = logits[:, 30] = 4.0  # equal and the largest
    greedy = drawn(logits, temperature=0)
    assert drawn(logits, top_k=1) == greedy == drawn(logits, top_p=1e-9) and len(greedy) == 1
    assert len(drawn(torch.zeros(1, 9), top_k=3, top_p=1)) == 3


def test_temperature_zero_is_greedy_and_low_temperature_sharpens():
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    assert drawn(logits, temperature=0) == {1} == drawn(logits, temperature=0.05)
    assert drawn(logits, temperature=2.0) == {0, 1, 2}


def test_sample_from_probs_inverts_the_cumulative_distribution():
    probs = torch.tensor([[0.0, 0.6, 0.0, 0.4, 0.0]])
    uniforms = torch.tensor([[0.0], [0.59], [0.61], [1 - 2**-24]])
    assert sample_from_probs(probs.expand(4, -1), uniforms).tolist() == [1, 1, 3, 3]


def test_rows_have_their_own_settings():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(4, -1)
    free = {"temperature": 1.0, "top_p": 1.0}
    each = [Sampling(**free), Sampling(**free | {"top_p": 0.6}), Sampling(**free, top_k=3), Sampling(temperature=0)]
    assert sample_next_tokens(logits, each, torch.full((4, 1), 1 - 2**-24)).tolist() == [3, 1, 2, 0]


def test_penalties_lower_generated_tokens_of_either_sign():
    generated = torch.tensor([[True, False, False]])

    def pick(logits, generated, **penalty):
        settings = [Sampling(temperature=0, **penalty)]
        return sample_next_tokens(torch.tensor([logits]), settings, torch.zeros(1, 1), generated)

    for penalty in ({"repetition_penalty": 2.0}, {"presence_penalty": 0.75}):
        assert pick([2.0, 1.5, -9.0], generated, **penalty) == 1
        assert pick([-1.0, -1.5, -9.0], generated, **penalty) == 1
        assert pick([2.0, 1.5, -9.0], ~generated, **penalty) == 0
        assert pick([2.0, 1.5, -9.0], torch.zeros_like(generated), **penalty) == 0


@pytest.mark.parametrize(
    "setting",
    [
        "temperature -1",
        "temperature nan",
        "temperature 1e308",
        "top_p 0",
        "top_p 1.5",
        "top_k -1",
        "top_k 1e20",
        "min_p 2",
        "repetition_penalty 0",
        "repetition_penalty 1e-320",
        "presence_penalty inf",
        "presence_penalty -1e39",
        "seed -1",
    ],
)
def test_settings_out_of_range_are_refused_by_name(setting):
    name, value = setting.split()
    with pytest.raises(ValueError, match=f"^--{name} .* must "):
        Sampling(**{name: float(value)})
