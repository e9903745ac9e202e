"""A compiled step computes what the full forward computes with the same weights."""

import gc
import threading
import weakref
from unittest import mock

import compile_support
import pytest
import torch
from compile_support import needs_compiler
from test_fast_decoder import EXACT, SHAPES, assert_rows_have_their_own_positions, step_by_step
from tiny_model import tiny
from torch._dynamo.utils import counters

from engine.generate import compiled_decoder
from engine.generate import fast_decoder as decoder_module
from engine.generate.compiled_decoder import CompiledDecoder
from engine.generate.fast_decoder import Decoder
from engine.talk.chat_model import Quantization

CPU = torch.device("cpu")


@pytest.fixture
def as_written(monkeypatch):
    """Run what would be compiled operation by operation, which leaves nothing that garbage collection should freeze."""
    monkeypatch.setattr(torch, "compile", compile_support.as_written)
    monkeypatch.setattr(compiled_decoder, "gc", mock.Mock())


def some_ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(3, 300, (rows, length), generator=torch.Generator().manual_seed(rows))


@pytest.mark.parametrize("rows", [1, 3, 20])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@torch.inference_mode()
def test_compiled_steps_give_the_logits_of_the_full_forward(shape, kind, rows, as_written):
    decoder, ids = CompiledDecoder.from_model(tiny(3, **shape), kind, CPU), some_ids(rows, 9)
    limit = 1e-5 if rows == 1 and kind != "int8" else EXACT[kind]  # the vectors of a single row stay in fp32
    torch.testing.assert_close(step_by_step(decoder, ids), decoder.model(ids).logits, atol=limit, rtol=0)


@torch.inference_mode()
def test_compiled_rows_have_positions_of_their_own(as_written):
    assert_rows_have_their_own_positions(CompiledDecoder(tiny(4)))


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
@torch.inference_mode()
def test_batch_of_large_matrices_is_computed_as_without_the_flag(kind, as_written, monkeypatch):
    monkeypatch.setattr(decoder_module, "ONEDNN_MIN_NUMEL", 64)
    plain, compiled = (make.from_model(tiny(3), kind, CPU) for make in (Decoder, CompiledDecoder))
    assert (compiled.step_batch is None) is plain.layers[0].wqkv.uses_onednn
    torch.testing.assert_close(
        step_by_step(compiled, some_ids(6, 5)), step_by_step(plain, some_ids(6, 5)), atol=EXACT[kind], rtol=0
    )


@pytest.mark.runtimes
@needs_compiler
@torch.inference_mode()
def test_model_has_compiled_code_of_its_own_for_any_rows_and_positions():
    models = [tiny(3), tiny(3, rope_theta=100.0, n_heads=4, n_kv_heads=1)]
    decoders = [CompiledDecoder.from_model(model, "float32", CPU) for model in models]
    graphs = counters["stats"]["unique_graphs"]
    for ids in (some_ids(1, 9), some_ids(5, 9)):
        for decoder in decoders:
            logits = step_by_step(decoder, ids)[:, 1:]  # no answer is compiled for one position: a prompt has one
            torch.testing.assert_close(logits, decoder.model(ids).logits[:, 1:], atol=1e-5, rtol=0)
    assert counters["stats"]["unique_graphs"] == graphs  # nothing was compiled after the start


@pytest.mark.runtimes
@needs_compiler
def test_model_compiled_while_another_answers_keeps_its_own_code():
    first, ids = CompiledDecoder.from_model(tiny(0), "float32", CPU), some_ids(3, 30)
    compiled, errors = threading.Event(), []

    @torch.inference_mode()
    def steps(decoder: Decoder) -> list[torch.Tensor]:
        return [step_by_step(decoder, rows) for rows in (ids[:1], ids)]

    def answer() -> None:
        while not compiled.is_set() and not errors:
            try:
                steps(first)
            except Exception as error:
                errors.append(error)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        others = [CompiledDecoder.from_model(tiny(seed), "float32", CPU) for seed in range(1, 6)]
    finally:
        compiled.set()
        thread.join()
    assert not errors
    for decoder in (first, *others):
        for actual, expected in zip(steps(decoder), steps(Decoder(decoder.model, "float32")), strict=True):
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_compiling_a_model_frees_one_that_is_no_longer_used(as_written, monkeypatch):
    monkeypatch.setattr(compiled_decoder, "gc", gc)
    old = weakref.ref(CompiledDecoder(tiny(1)))
    CompiledDecoder(tiny(2))
    assert old() is None


def test_compile_flag_makes_a_compiled_decoder(as_written):
    assert type(Quantization(compile=True).make_decoder(tiny(), CPU)) is CompiledDecoder
    assert type(Quantization().make_decoder(tiny(), CPU)) is Decoder


def test_compile_flag_is_refused_on_a_gpu():
    with pytest.raises(ValueError, match="--compile is for answers on a CPU; on meta"):
        Quantization("float32", compile=True).make_decoder(tiny(), torch.device("meta"))
