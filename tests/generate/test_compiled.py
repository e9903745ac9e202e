"""The compiled step of one row computes what the decoder computes."""

import sysconfig
from pathlib import Path
from shutil import which

import pytest
import torch
from test_decoder import SHAPES, step_by_step
from tiny import tiny

from engine.generate.compiled import Compiled
from engine.generate.decoder import Decoder
from engine.serve.conversation import Weights

CPU = torch.device("cpu")
COMPILER = which("c++") and Path(sysconfig.get_paths()["include"], "Python.h").is_file()
# In fp32 but for the weights, which are those of the full forward.
EXACT = {"float32": 1e-5, "bfloat16": 1e-5, "int8": 1e-2}


@pytest.fixture
def as_written(monkeypatch):
    """The function runs operation by operation."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@torch.inference_mode()
def test_what_is_compiled_computes_the_logits_of_the_full_forward_with_the_same_weights(shape, kind, as_written):
    decoder = Compiled.ready(tiny(3, **shape), kind, CPU)
    ids = torch.randint(3, 300, (1, 12), generator=torch.Generator().manual_seed(1))
    expected = decoder.model(ids).logits
    logits = step_by_step(decoder, ids)[:, 1:]  # its caches begin with the second token: a prompt has one at least
    torch.testing.assert_close(logits, expected[:, 1:], atol=EXACT[kind], rtol=0)


@pytest.mark.runtimes
@pytest.mark.skipif(not COMPILER, reason="torch.compile wants a C++ compiler and Python.h")
@torch.inference_mode()
def test_every_model_has_compiled_code_of_its_own_for_any_number_of_positions():
    ids = torch.randint(3, 300, (1, 9), generator=torch.Generator().manual_seed(1))
    models = [tiny(3), tiny(3, rope_theta=100.0, n_heads=4, n_kv_heads=1)]
    decoders = [Compiled.ready(model, "float32", CPU) for model in models]
    for decoder in decoders:
        torch.testing.assert_close(
            step_by_step(decoder, ids)[:, 1:], decoder.model(ids).logits[:, 1:], atol=1e-5, rtol=0
        )


def test_the_flag_compiles_what_answers(as_written):
    assert type(Weights(compile=True).decoder(tiny(), CPU)) is Compiled
    assert type(Weights().decoder(tiny(), CPU)) is Decoder


def test_a_gpu_is_told_to_go_without():
    with pytest.raises(ValueError, match="--compile is for answers on a CPU; on meta"):
        Weights(weights="float32", compile=True).decoder(tiny(), torch.device("meta"))
