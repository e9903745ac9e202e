"""The loss is a sum over the right tokens at the right cost, however a row is packed, chunked or computed again."""

import pytest
import torch
from making import COST, batches_of, cache_of, fresh

import model as model_module
from dataset import LOSS, NO_LOSS, TAG
from engine.loss import Counts, TokenLoss, count


def costs(classes: torch.Tensor) -> torch.Tensor:
    """What each label costs."""
    return torch.tensor([COST[number] for number in range(3)])[classes.long()]


@pytest.mark.parametrize("chunk, recompute", [(0, False), (7, True)], ids=["plain", "chunked, recomputed"])
@pytest.mark.parametrize("by_document", [True, False], ids=["one by one", "masked"])
def test_packed_equals_padded_in_loss_and_gradients(by_document, chunk, recompute, monkeypatch):
    monkeypatch.setattr(model_module, "can_attend_by_document", lambda *where: by_document)
    lengths = [13, 20, 7, 24]  # two rows of 33 and 31 positions, packed into rows of 40
    documents = [torch.randint(3, 100, (n + 1,)) for n in lengths]
    packed = [torch.zeros(2, 40, dtype=torch.long) for _ in range(2)]
    classes, bounds = torch.zeros(2, 40, dtype=torch.uint8), []
    for row, group in enumerate(((0, 1), (2, 3))):
        at = 0
        for document in group:
            n = lengths[document]
            packed[0][row, at : at + n], packed[1][row, at : at + n] = documents[document][:-1], documents[document][1:]
            classes[row, at : at + n] = 1
            bounds.append(row * 40 + at)
            at += n
        bounds.append(row * 40 + at)
    padded = [torch.zeros(4, 40, dtype=torch.long) for _ in range(2)]
    padded_classes = torch.zeros(4, 40, dtype=torch.uint8)
    for row, (n, document) in enumerate(zip(lengths, documents, strict=True)):
        padded[0][row, :n], padded[1][row, :n], padded_classes[row, :n] = document[:-1], document[1:], 1

    one, other = TokenLoss(fresh(), chunk=chunk), TokenLoss(fresh())
    one.model.recompute = recompute
    sums = one(*packed, classes, costs(classes), torch.tensor([*bounds, 80, 80], dtype=torch.int32))
    expected = other(*padded, padded_classes, costs(padded_classes))
    torch.testing.assert_close(sums, expected)
    sums[0].backward()
    expected[0].backward()
    for (name, mine), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_chunked_loss_gives_the_sums_and_gradients_of_the_whole():
    whole, chunked = TokenLoss(fresh()), TokenLoss(fresh(), chunk=7)
    ids, labels = torch.randint(3, 100, (2, 2, 40))
    labels[0, 5] = 2
    classes = torch.randint(0, 3, (2, 40), dtype=torch.uint8)
    batch = ids, labels, classes, costs(classes)
    a, b = whole(*batch), chunked(*batch)
    torch.testing.assert_close(a, b)
    a[0].backward()
    b[0].backward()
    for mine, theirs in zip(whole.parameters(), chunked.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_the_cost_of_a_tag_multiplies_the_tags_alone():
    model = fresh()
    ids, labels = torch.randint(3, 100, (2, 1, 30))
    classes = torch.tensor([[0] * 10 + [1] * 12 + [2] * 8], dtype=torch.uint8)
    nats = torch.nn.functional.cross_entropy(model(ids).logits[0], labels[0], reduction="none")
    weighted, plain, tags, text = TokenLoss(model)(ids, labels, classes, costs(classes))
    torch.testing.assert_close(weighted, nats[10:22].sum() + 10 * nats[22:].sum())
    torch.testing.assert_close(plain, nats[10:].sum())
    torch.testing.assert_close(tags, nats[22:].sum())
    torch.testing.assert_close(text, plain)


def test_costs_are_summed_in_fp32_under_autocast():
    torch.manual_seed(0)
    model = fresh()
    ids, labels = torch.randint(3, model.config.vocab_size, (2, 4, 32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = TokenLoss(model)(ids, labels, torch.full_like(labels, LOSS), torch.ones_like(labels).float())[1]
        logits = model(ids).logits.float()
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1).double(), labels.flatten(), reduction="sum")
    assert plain.item() == pytest.approx(nats.item(), rel=1e-5)


def test_the_z_loss_adds_the_square_of_log_z_to_the_objective_alone():
    model = fresh()
    ids, labels = torch.randint(3, 100, (2, 1, 30))
    classes = torch.tensor([[0] * 10 + [1] * 12 + [2] * 8], dtype=torch.uint8)
    squares = model(ids).logits[0].exp().sum(-1).log().square()
    off, on = (TokenLoss(model, z_loss=z)(ids, labels, classes, costs(classes)) for z in (0.0, 0.3))
    torch.testing.assert_close(on[0] - off[0], 0.3 * (squares[10:22].sum() + 10 * squares[22:].sum()))
    torch.testing.assert_close(on[1:], off[1:])


def test_the_counts_of_a_step_count_real_learned_and_tag_tokens_and_their_bytes():
    cache = cache_of([1, 10, 11, 12, 2, 1, 13, 2], [NO_LOSS, NO_LOSS, TAG, TAG, LOSS, NO_LOSS, LOSS, LOSS], [5, 3])
    sizes = torch.zeros(14, dtype=torch.int32)
    sizes[10:] = torch.tensor([1000, 1, 10, 100])
    counted = count(batches_of(cache, row_len=6, batch_size=1, rows_per_step=2).step(0), sizes)
    assert counted == Counts(cost=23.0, tokens=5, tags=2, bytes=111, positions=6)
    assert (counted + counted).positions == 12
