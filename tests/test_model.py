"""The model keeps what training relies on: causality, isolated documents, exact saving."""

import subprocess
import sys

import pytest
import torch
from making import SCALING, fresh
from transformers import AutoModelForCausalLM

from Config import LLMConfig
from engine.loss import TokenLoss
from model import SpongeBob


def test_the_future_is_invisible():
    model, ids = fresh().eval(), torch.randint(3, 100, (2, 40))
    changed = ids.clone()
    changed[:, 25] = (changed[:, 25] + 1) % 100
    before, after = model(ids).logits, model(changed).logits
    assert torch.equal(before[:, :25], after[:, :25])
    assert not torch.equal(before[:, 25:], after[:, 25:])


@pytest.mark.parametrize("scaling", [None, SCALING], ids=["plain", "scaled"])
def test_a_reload_in_a_fresh_process_gives_the_same_bits(scaling, tmp_path):
    model, ids = fresh(rope_scaling=scaling, n_kv_heads=1).eval(), torch.arange(3, 90)[None]
    model.save_pretrained(tmp_path)
    torch.save({"ids": ids, "logits": model(ids).logits.detach()}, tmp_path / "expected.pt")
    program = (
        "import torch, model; from transformers import AutoModelForCausalLM; import sys;"
        "saved = torch.load(sys.argv[1] + '/expected.pt');"
        "found = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval();"
        "assert type(found).__name__ == 'SpongeBob';"
        "assert found.output.weight is found.tok_embeddings.weight;"
        "assert torch.equal(found(saved['ids']).logits, saved['logits'])"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.rope_parameters["rope_type"] == (
        "llama3" if scaling else "default"
    )


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activation_checkpointing_runs_every_block_twice_and_changes_no_bit(dropout, monkeypatch):
    ids, labels = torch.randint(3, 100, (2, 2, 40))
    documents = torch.tensor([0, 13, 40, 80, 80], dtype=torch.int32)
    found, runs = [], []
    for recompute in (False, True):
        loss = TokenLoss(fresh(dropout=dropout)).train()
        loss.model.recompute = recompute
        calls = []
        for block in loss.model.layers:
            forward = block.forward
            monkeypatch.setattr(block, "forward", lambda *args, f=forward, c=calls: (c.append(1), f(*args))[1])
        torch.manual_seed(5)
        sums = loss(ids, labels, torch.ones(2, 40, dtype=torch.uint8), torch.ones(2, 40), documents)
        sums[0].backward()
        found.append([sums.detach(), *(parameter.grad for parameter in loss.parameters())])
        runs.append(len(calls))
    assert runs == [2, 4]
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*found, strict=True))


def test_contributions_to_the_residual_stream_start_small():
    model = SpongeBob(LLMConfig(dim=128, n_layers=8, n_heads=4))
    assert model.layers[0].attention.wq.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.layers[0].attention.wo.weight.std().item() == pytest.approx(0.005, rel=0.1)
    assert model.layers[7].feed_forward.w2.weight.std().item() == pytest.approx(0.005, rel=0.1)


@pytest.mark.parametrize("shape, words", [
    ({"dim": 65}, "dim=65"), ({"n_heads": 4, "n_kv_heads": 3}, "n_heads=4"), ({"n_layer": 3}, "n_layer"),
    ({"dropout": 1.5}, "dropout=1.5"), ({"n_layers": 0}, "n_layers=0"),
    ({"rope_scaling": {"rope_type": "yarn"}}, "yarn"), ({"rope_scaling": {"rope_type": "llama3"}}, "factor"),
])  # fmt: skip
def test_a_contradictory_shape_is_refused_with_its_numbers(shape, words):
    with pytest.raises(ValueError, match=words):
        LLMConfig(**shape)


def test_the_default_shape_is_the_published_one():
    config = LLMConfig()
    assert (config.dim, config.n_layers, config.n_heads, config.n_kv_heads, config.vocab_size) == (512, 8, 8, 2, 6400)
    assert sum(parameter.numel() for parameter in SpongeBob(config).parameters()) == 25_829_888
