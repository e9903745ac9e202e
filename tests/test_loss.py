"""The loss is cross-entropy times the loss weight, summed; chunks and dtypes change nothing else."""

import pytest
import torch
from tiny_model import fresh

from dataset import LOSS
from engine.loss import TokenLoss


def loss_weights_of(classes, tag_weight):
    """Return the loss weight of each label, as packing.py looks it up."""
    return torch.tensor([0.0, 1.0, tag_weight])[classes.long()]


def test_chunked_loss_gives_the_sums_and_gradients_of_the_whole():
    whole, chunked = TokenLoss(fresh(vocab_size=100)), TokenLoss(fresh(vocab_size=100), chunk=7)
    ids, labels = torch.randint(3, 100, (2, 2, 40))
    labels[0, 5] = 2
    classes = torch.randint(0, 3, (2, 40), dtype=torch.uint8)
    weights = loss_weights_of(classes, tag_weight=5)
    a, b = whole(ids, labels, classes, weights), chunked(ids, labels, classes, weights)
    torch.testing.assert_close(a, b)
    a[0].backward()
    b[0].backward()
    for mine, theirs in zip(whole.parameters(), chunked.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_the_tag_weight_multiplies_the_tags_alone():
    model = fresh(vocab_size=100)
    ids, labels = torch.randint(3, 100, (2, 1, 30))
    classes = torch.tensor([[0] * 10 + [1] * 12 + [2] * 8], dtype=torch.uint8)
    nats = torch.nn.functional.cross_entropy(model(ids).logits[0], labels[0], reduction="none")
    weighted, plain, tags, text = TokenLoss(model)(ids, labels, classes, loss_weights_of(classes, tag_weight=10))
    torch.testing.assert_close(weighted, nats[10:22].sum() + 10 * nats[22:].sum())
    torch.testing.assert_close(plain, nats[10:].sum())
    torch.testing.assert_close(tags, nats[22:].sum())
    torch.testing.assert_close(text, plain)


def test_eos_has_a_loss_and_is_no_text():
    model = fresh(vocab_size=100)
    ids, labels = torch.randint(3, 100, (2, 1, 30))
    labels[0, [9, 29]] = 2
    ones = torch.ones(1, 30)
    nats = torch.nn.functional.cross_entropy(model(ids).logits[0], labels[0], reduction="none")
    _, plain, _, text = TokenLoss(model)(ids, labels, ones.byte(), ones)
    torch.testing.assert_close(plain, nats.sum())
    torch.testing.assert_close(text, nats.sum() - nats[[9, 29]].sum())


def test_loss_weights_are_summed_in_fp32_under_autocast():
    torch.manual_seed(0)
    model = fresh(vocab_size=100)
    ids, labels = torch.randint(3, model.config.vocab_size, (2, 4, 32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        classes = torch.full_like(labels, LOSS)
        plain = TokenLoss(model)(ids, labels, classes, classes.float())[1]
        logits = model(ids).logits.float()
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1).double(), labels.flatten(), reduction="sum")
    assert plain.item() == pytest.approx(nats.item(), rel=1e-5)


def test_the_z_loss_adds_the_square_of_log_z_to_the_objective_alone():
    model = fresh(vocab_size=100)
    ids, labels = torch.randint(3, 100, (2, 1, 30))
    classes = torch.tensor([[0] * 10 + [1] * 12 + [2] * 8], dtype=torch.uint8)
    squares = model(ids).logits[0].exp().sum(-1).log().square()
    weights = loss_weights_of(classes, tag_weight=10)
    off, on = (TokenLoss(model, z_loss=z)(ids, labels, classes, weights) for z in (0.0, 0.3))
    torch.testing.assert_close(on[0] - off[0], 0.3 * (squares[10:22].sum() + 10 * squares[22:].sum()))
    torch.testing.assert_close(on[1:], off[1:])
