"""The model keeps what training relies on: causality, isolated documents, exact saving."""

import subprocess
import sys

import pytest
import torch
from tiny_model import fresh
from transformers import AutoModelForCausalLM

import model as model_module
from Config import LLMConfig
from engine.loss import TokenLoss
from model import RMSNorm, SpongeBob

SCALING = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def test_dropout_drops_the_output_of_attention_and_of_feed_forward():
    model = fresh(dropout=0.5, n_layers=1).train()
    block, x = model.layers[0], torch.randn(2, 9, 64)
    positions = torch.arange(9)[None]
    context = model_module.Context(*model_module.rope_cos_sin(model.config, positions), positions)
    torch.manual_seed(3)
    actual = block(x, context)
    torch.manual_seed(3)
    kept = [torch.nn.functional.dropout(torch.ones_like(x), 0.5) for _ in range(2)]  # 0, or 2 = 1 / (1 - 0.5)
    middle = x + kept[0] * block.attention(block.attention_norm(x), context)
    torch.testing.assert_close(actual, middle + kept[1] * block.feed_forward(block.ffn_norm(middle)))
    assert all(set(mask.unique().tolist()) == {0.0, 2.0} for mask in kept)


def test_future_tokens_are_invisible():
    model, ids = fresh(vocab_size=100).eval(), torch.randint(3, 100, (2, 40))
    changed = ids.clone()
    changed[:, 25] = (changed[:, 25] + 1) % 100
    before, after = model(ids).logits, model(changed).logits
    assert torch.equal(before[:, :25], after[:, :25])
    assert not torch.equal(before[:, 25:], after[:, 25:])


@pytest.mark.parametrize("chunk, recompute", [(0, False), (7, True)], ids=["plain", "chunked, recomputed"])
@pytest.mark.parametrize("by_document", [True, False], ids=["one by one", "masked"])
def test_packed_equals_padded_in_loss_and_gradients(by_document, chunk, recompute, monkeypatch):
    monkeypatch.setattr(model_module, "supports_varlen_attention", lambda *where: by_document)
    lengths = [13, 20, 7, 24]  # two rows of 33 and 31 positions, packed into rows of 40
    documents = [torch.randint(3, 100, (n + 1,)) for n in lengths]
    packed = [torch.zeros(2, 40, dtype=torch.long) for _ in range(2)]
    classes, bounds = torch.zeros(2, 40, dtype=torch.uint8), []
    for row, group in enumerate(((0, 1), (2, 3))):
        start = 0
        for document in group:
            columns = slice(start, start + lengths[document])
            packed[0][row, columns], packed[1][row, columns] = documents[document][:-1], documents[document][1:]
            classes[row, columns] = 1
            bounds.append(row * 40 + start)
            start = columns.stop
        bounds.append(row * 40 + start)
    padded = [torch.zeros(4, 40, dtype=torch.long) for _ in range(2)]
    padded_classes = torch.zeros(4, 40, dtype=torch.uint8)
    for row, (n, document) in enumerate(zip(lengths, documents, strict=True)):
        padded[0][row, :n], padded[1][row, :n] = document[:-1], document[1:]
        padded_classes[row, :n] = 1
    loss, reference = TokenLoss(fresh(vocab_size=100), chunk=chunk), TokenLoss(fresh(vocab_size=100))
    loss.model.recompute = recompute
    sums = loss(*packed, classes, classes.float(), torch.tensor([*bounds, 80, 80], dtype=torch.int32))
    expected = reference(*padded, padded_classes, padded_classes.float())
    torch.testing.assert_close(sums, expected)
    sums[0].backward()
    expected[0].backward()
    for (name, parameter), twin in zip(loss.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, twin.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_reload_in_a_fresh_process_gives_the_same_bits(tmp_path):
    ids, kinds = torch.arange(3, 90)[None], {"default": None, "llama3": SCALING}
    for kind, scaling in kinds.items():
        model = fresh(vocab_size=100, rope_scaling=scaling, n_kv_heads=1).eval()
        model.save_pretrained(tmp_path / kind)
        torch.save({"ids": ids, "logits": model(ids).logits.detach()}, tmp_path / kind / "expected.pt")
    program = (
        "import torch, model; from transformers import AutoModelForCausalLM; import sys\n"
        "for folder in sys.argv[1:]:\n"
        "    saved = torch.load(folder + '/expected.pt')\n"
        "    found = AutoModelForCausalLM.from_pretrained(folder).eval()\n"
        "    assert type(found).__name__ == 'SpongeBob'\n"
        "    assert found.output.weight is found.tok_embeddings.weight\n"
        "    assert torch.equal(found(saved['ids']).logits, saved['logits'])\n"
    )
    subprocess.run([sys.executable, "-c", program, *(tmp_path / kind for kind in kinds)], check=True)
    for kind in kinds:
        assert AutoModelForCausalLM.from_pretrained(tmp_path / kind).config.rope_parameters["rope_type"] == kind


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activation_checkpointing_runs_blocks_twice_and_changes_no_bit(dropout, monkeypatch):
    ids, labels = torch.randint(3, 100, (2, 2, 40))
    cu_seqlens = torch.tensor([0, 13, 40, 80, 80], dtype=torch.int32)
    results, runs = [], []
    for recompute in (False, True):
        loss = TokenLoss(fresh(vocab_size=100, dropout=dropout)).train()
        loss.model.recompute = recompute
        calls = []
        for block in loss.model.layers:
            forward = block.forward
            monkeypatch.setattr(block, "forward", lambda *args, f=forward, c=calls: (c.append(1), f(*args))[1])
        torch.manual_seed(5)
        ones = torch.ones(2, 40)
        sums = loss(ids, labels, ones.byte(), ones, cu_seqlens)
        sums[0].backward()
        results.append([sums.detach(), *(parameter.grad for parameter in loss.parameters())])
        runs.append(len(calls))
    assert runs == [2, 4]
    assert all(torch.equal(plain, recomputed) for plain, recomputed in zip(*results, strict=True))


def test_norms_are_computed_in_fp32_for_any_dtype():
    x = torch.full((2, 8), 300.0)  # its square is more than fp16 can hold
    assert torch.equal(RMSNorm(8, 1e-5)(x.half()), torch.ones(2, 8).half())
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.equal(RMSNorm(8, 1e-5)(x), torch.ones(2, 8).half())


def test_residual_projections_start_small():
    model = SpongeBob(LLMConfig(dim=128, n_layers=8, n_heads=4))
    assert model.layers[0].attention.wq.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.layers[0].attention.wo.weight.std().item() == pytest.approx(0.005, rel=0.1)
    assert model.layers[7].feed_forward.w2.weight.std().item() == pytest.approx(0.005, rel=0.1)


@pytest.mark.parametrize(
    "shape, words",
    [
        ({"dim": 65}, "dim=65"),
        ({"n_heads": 4, "n_kv_heads": 3}, "n_heads=4"),
        ({"n_layer": 3}, "n_layer"),
        ({"dropout": 1.5}, "dropout=1.5"),
        ({"n_layers": 0}, "n_layers=0"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "yarn"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "factor"),
    ],
)
def test_contradictory_shape_is_refused_with_its_numbers(shape, words):
    with pytest.raises(ValueError, match=words):
        LLMConfig(**shape)


def test_default_shape_is_the_published_one():
    config = LLMConfig()
    assert (config.dim, config.n_layers, config.n_heads, config.n_kv_heads, config.vocab_size) == (512, 8, 8, 2, 6400)
    assert sum(parameter.numel() for parameter in SpongeBob(config).parameters()) == 25_829_888
