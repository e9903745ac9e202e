"""Temperature first, then top_k, then top_p: each works on what the one before it has left."""

import torch

from engine.generate.sampling import filtered_probs


def kept(shares: list[float], temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> set[int]:
    """The tokens that may be drawn."""
    columns = [torch.tensor([[value]]) for value in (temperature, top_k, top_p, 0.0)]
    return set(filtered_probs(torch.tensor([shares]).log(), *columns)[0].nonzero().flatten().tolist())


def test_top_p_is_a_share_of_the_probabilities_that_temperature_has_made():
    shares = [0.5, 0.3, 0.15, 0.05]  # at temperature 2: 0.38, 0.29, 0.21, 0.12
    assert kept(shares, top_p=0.7) == {0, 1}
    assert kept(shares, top_p=0.7, temperature=2.0) == {0, 1, 2}


def test_top_p_is_a_share_of_what_top_k_has_left():
    shares = [0.5, 0.3, 0.15, 0.05]  # the first two alone: 0.625, 0.375
    assert kept(shares, top_p=0.6) == {0, 1}
    assert kept(shares, top_p=0.6, top_k=2) == {0}
