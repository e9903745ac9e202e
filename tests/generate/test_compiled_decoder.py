"""A compiled step computes what the full forward computes with the same weights."""

import threading
import weakref

import compile_support
import pytest
import torch
from compile_support import needs_compiler
from test_fast_decoder import EXACT, SHAPES, look_at_rows_apart, step_by_step
from tiny_model import tiny
from torch._dynamo.utils import counters

from engine.generate import fast_decoder as decoder_module
from engine.generate.compiled_decoder import CompiledDecoder
from engine.generate.fast_decoder import Decoder
from engine.talk.chat_model import Quantization

CPU = torch.device("cpu")


@pytest.fixture
def as_written(monkeypatch):
    """What would be compiled runs operation by operation."""
    monkeypatch.setattr(torch, "compile", compile_support.as_written)


def some_ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(3, 300, (rows, length), generator=torch.Generator().manual_seed(rows))


@pytest.mark.parametrize("rows", [1, 3, 20])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@torch.inference_mode()
def test_what_is_compiled_gives_the_logits_of_the_full_forward(shape, kind, rows, as_written):
    decoder, ids = CompiledDecoder.from_model(tiny(3, **shape), kind, CPU), some_ids(rows, 9)
    limit = 1e-5 if rows == 1 and kind != "int8" else EXACT[kind]  # the vectors of a single row stay in fp32
    torch.testing.assert_close(step_by_step(decoder, ids), decoder.model(ids).logits, atol=limit, rtol=0)


@torch.inference_mode()
def test_rows_stand_at_places_of_their_own(as_written):
    look_at_rows_apart(CompiledDecoder(tiny(4)))


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
@torch.inference_mode()
def test_many_rows_of_large_matrices_are_read_as_without_the_flag(kind, as_written, monkeypatch):
    monkeypatch.setattr(decoder_module, "ONEDNN_MIN_NUMEL", 64)
    plain, compiled = (make.from_model(tiny(3), kind, CPU) for make in (Decoder, CompiledDecoder))
    assert (compiled.step_batch is None) is plain.layers[0].wqkv.uses_onednn
    torch.testing.assert_close(
        step_by_step(compiled, some_ids(6, 5)), step_by_step(plain, some_ids(6, 5)), atol=EXACT[kind], rtol=0
    )


@pytest.mark.runtimes
@needs_compiler
@torch.inference_mode()
def test_every_model_has_compiled_code_of_its_own_for_any_number_of_rows_and_positions():
    models = [tiny(3), tiny(3, rope_theta=100.0, n_heads=4, n_kv_heads=1)]
    decoders = [CompiledDecoder.from_model(model, "float32", CPU) for model in models]
    made = counters["stats"]["unique_graphs"]
    for ids in (some_ids(1, 9), some_ids(5, 9)):
        for decoder in decoders:
            logits = step_by_step(decoder, ids)[:, 1:]  # no answer is compiled for one position: a prompt has one
            torch.testing.assert_close(logits, decoder.model(ids).logits[:, 1:], atol=1e-5, rtol=0)
    assert counters["stats"]["unique_graphs"] == made  # nothing was compiled after the start


@pytest.mark.runtimes
@needs_compiler
def test_a_model_that_is_compiled_while_another_one_answers_keeps_to_its_own_code():
    first, last, ids, failed = (
        CompiledDecoder.from_model(tiny(0), "float32", CPU),
        threading.Event(),
        some_ids(3, 30),
        [],
    )

    @torch.inference_mode()
    def steps(decoder: Decoder) -> list[torch.Tensor]:
        return [step_by_step(decoder, rows) for rows in (ids[:1], ids)]

    def answer() -> None:
        while not last.is_set() and not failed:
            try:
                steps(first)
            except Exception as error:
                failed.append(error)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        others = [CompiledDecoder.from_model(tiny(seed), "float32", CPU) for seed in range(1, 6)]
    finally:
        last.set()
        thread.join()
    assert not failed
    for decoder in (first, *others):
        for made, wanted in zip(steps(decoder), steps(Decoder(decoder.model, "float32")), strict=True):
            torch.testing.assert_close(made, wanted, atol=1e-5, rtol=0)


def test_a_model_that_nobody_needs_leaves_memory_when_another_one_is_compiled(as_written):
    old = weakref.ref(CompiledDecoder(tiny(1)))
    CompiledDecoder(tiny(2))
    assert old() is None


def test_the_flag_compiles_what_answers(as_written):
    assert type(Quantization(compile=True).make_decoder(tiny(), CPU)) is CompiledDecoder
    assert type(Quantization().make_decoder(tiny(), CPU)) is Decoder


def test_a_gpu_is_told_to_go_without():
    with pytest.raises(ValueError, match="--compile is for answers on a CPU; on meta"):
        Quantization("float32", compile=True).make_decoder(tiny(), torch.device("meta"))
