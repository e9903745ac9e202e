"""Temperature first, then top_k, then top_p: each works on what the one before it has left."""

import torch

from engine.generate.sampling import choose


def drawn(shares, **options) -> set[int]:
    """The tokens that 2,000 draws find."""
    generator = torch.Generator().manual_seed(0)
    return set(choose(torch.tensor([shares]).log().expand(2000, -1), generator=generator, **options).tolist())


def test_top_p_is_a_share_of_the_probabilities_that_temperature_has_made():
    shares = [0.5, 0.3, 0.15, 0.05]  # at temperature 2: 0.38, 0.29, 0.21, 0.12
    assert drawn(shares, top_p=0.7) == {0, 1}
    assert drawn(shares, top_p=0.7, temperature=2.0) == {0, 1, 2}


def test_top_p_is_a_share_of_what_top_k_has_left():
    shares = [0.5, 0.3, 0.15, 0.05]  # the first two alone: 0.625, 0.375
    assert drawn(shares, top_p=0.6) == {0, 1}
    assert drawn(shares, top_p=0.6, top_k=2) == {0}
