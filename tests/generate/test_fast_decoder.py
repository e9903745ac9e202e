"""The fast decoder computes what model.py computes with the same weights."""

import pytest
import torch
from tiny_model import tiny

import eval_model
from engine.checkpoint.weights import config_dict, full_state_dict, save_weights
from engine.generate.fast_decoder import Decoder, fake_quantize
from engine.generate.kv_cache import KVCache
from model import Attention, RMSNorm

CPU = torch.device("cpu")
# A step in bfloat16 rounds to 8 bits; logits here are of the size of 1.
EXACT = {"float32": 1e-5, "int8": 0.05, "bfloat16": 0.05, "float16": 0.01}
SHAPES = {
    "one key head": {"n_heads": 4, "n_kv_heads": 1},
    "as many key heads": {"n_heads": 4, "n_kv_heads": 4},
    "odd sizes": {"dim": 36, "n_heads": 3, "n_kv_heads": 1, "hidden_dim": 52},
}


def step_by_step(decoder: Decoder, ids: torch.Tensor) -> torch.Tensor:
    """Compute logits (B, T, V) one token at a time, in a cache that is filled with other values."""
    rows, length = ids.shape
    cache = KVCache(decoder.config, rows + 1, length + 3, CPU, torch.float32)
    cache.kv.fill_(1e4)
    logits = []
    for position in range(length):
        cache.length = position + 1
        logits.append(decoder(ids[:, position], torch.full((rows,), position), cache))
    return torch.stack(logits, dim=1)


@pytest.mark.parametrize("rows", [1, 2, 20])
@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@torch.inference_mode()
def test_decoder_steps_equal_the_full_forward_with_the_same_weights(shape, kind, rows):
    model = tiny(3, **shape)
    decoder = Decoder.from_model(model, kind, CPU)
    ids = torch.randint(3, 300, (rows, 12), generator=torch.Generator().manual_seed(rows))
    expected = model(ids).logits
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(step_by_step(decoder, ids), expected, atol=EXACT[kind], rtol=0)


@torch.inference_mode()
def test_rows_have_positions_of_their_own():
    assert_rows_have_their_own_positions(Decoder(tiny(4)))


def assert_rows_have_their_own_positions(decoder: Decoder) -> None:
    model, ids = decoder.model, torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    cache = KVCache(model.config, 2, 16, CPU, torch.float32)
    for position in range(9):
        cache.length = 9
        late = min(position, 4)  # the second row waits at its fifth token
        logits = decoder(torch.stack([ids[0, position], ids[1, late]]), torch.tensor([position, late]), cache)
    torch.testing.assert_close(logits[0], model(ids[:1]).logits[0, -1], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits[1], model(ids[1:, :5]).logits[0, -1], atol=1e-5, rtol=0)


def test_quantization_is_off_by_half_a_step_at_most_and_idempotent():
    weight = torch.randn(7, 33, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 2, 7)[:, None]
    rounded = fake_quantize(weight, "int8")
    assert ((rounded - weight).abs() <= weight.abs().amax(1, keepdim=True) / 127 * 0.501).all()
    torch.testing.assert_close(fake_quantize(rounded, "int8"), rounded, rtol=1e-6, atol=0)
    vector = weight[0]
    assert fake_quantize(vector, "int8") is vector and not fake_quantize(torch.zeros(2, 3), "int8").any()


def test_weights_beyond_the_dtype_are_refused_by_name():
    model = tiny()
    model.layers[0].attention.wo.weight.data[0, 0] = 1e6
    with pytest.raises(ValueError, match="float16: layers.0.attention.wo.weight .* choose another"):
        Decoder.from_model(model, "float16", CPU)


def add_q_norm(monkeypatch) -> None:
    """Give every block a parameter that no program but model.py knows."""
    make = Attention.__init__

    def init(self, config, layer):
        make(self, config, layer)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps)

    monkeypatch.setattr(Attention, "__init__", init)


def test_decoder_refuses_a_parameter_that_it_does_not_compute(monkeypatch):
    add_q_norm(monkeypatch)
    with pytest.raises(ValueError, match=r"fast_decoder.py does not compute layers.N.attention.q_norm.weight;"):
        Decoder.from_model(tiny(), "float32", CPU)


def test_eval_model_refuses_a_checkpoint_with_an_unknown_parameter(monkeypatch, tmp_path):
    add_q_norm(monkeypatch)
    model, path = tiny(), tmp_path / "SFT.pth"
    save_weights(path, full_state_dict(model), {"config": config_dict(model.config)})
    with pytest.raises(ValueError, match=r"fast_decoder.py does not compute layers.N.attention.q_norm.weight;"):
        eval_model.main(["--ckpt", str(path), "--device", "cpu", "--prompt", "hello"])
