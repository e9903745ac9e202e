"""What is drawn is what the flags allow."""

import torch

from engine.generate.sampling import choose


def drawn(logits, **options):
    generator = torch.Generator().manual_seed(0)
    return set(choose(logits.expand(2000, -1), generator=generator, **options).tolist())


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert drawn(logits, top_p=0.4) == {0}
    assert drawn(logits, top_p=0.6) == {0, 1}
    assert drawn(logits, top_p=0.9) == {0, 1, 2}
    assert drawn(logits) == {0, 1, 2, 3}


def test_temperature_zero_is_greedy_and_low_temperature_sharpens():
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    assert drawn(logits, temperature=0) == {1} == drawn(logits, temperature=0.05)
    assert drawn(logits, temperature=2.0) == {0, 1, 2}


def test_repetition_penalty_lowers_either_sign_and_leaves_unsaid_tokens_alone():
    said = torch.tensor([[True, False, False]])
    options = {"temperature": 0, "repetition_penalty": 2.0}
    assert choose(torch.tensor([[2.0, 1.5, -9.0]]), said=said, **options) == 1
    assert choose(torch.tensor([[-1.0, -1.5, -9.0]]), said=said, **options) == 1
    assert choose(torch.tensor([[2.0, 1.5, -9.0]]), said=~said, **options) == 0
    assert choose(torch.tensor([[2.0, 1.5, -9.0]]), said=torch.zeros_like(said), **options) == 0
