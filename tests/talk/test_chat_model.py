"""The weight dtype on each device; prompts that fit the context."""

import pytest
import torch
from factories import TOKENIZER, greedy

from engine.generate.fast_decoder import Decoder
from engine.generate.sampling import Sampling
from engine.talk import terminal
from engine.talk.chat_model import ChatModel, Quantization

CUDA = torch.device("cuda")


def test_weight_dtype_auto_is_int8_on_cpu_and_half_on_cuda(monkeypatch):
    assert Quantization().resolve(torch.device("cpu")) == "int8"
    assert Quantization().resolve(torch.device("mps")) == "float32"
    for capability, dtype in [((7, 5), "float16"), ((8, 0), "bfloat16")]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, capability=capability: capability)
        assert Quantization().resolve(CUDA) == dtype
        assert Quantization("float32").resolve(CUDA) == "float32"


def test_weight_dtype_that_a_device_cannot_compute_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="--weight_dtype int8 is for the CPU"):
        Quantization("int8").resolve(CUDA)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    with pytest.raises(ValueError, match="bfloat16: Tesla T4 has no bf16 units"):
        Quantization("bfloat16").resolve(CUDA)


def test_oldest_pairs_are_dropped_when_the_context_is_full(model):
    chat_model = ChatModel(Decoder(model), TOKENIZER, True, None, 32)
    history = [(f"问题{n}" * 5, f"回答{n}" * 5) for n in range(4)]
    ids, num_dropped = chat_model.make_prompt("现在呢？", history)
    remaining = [n for n in range(4) if f"问题{n}" in TOKENIZER.decode(ids, skip_special_tokens=False)]
    assert remaining and remaining == list(range(4 - len(remaining), 4)) and num_dropped == 2 * (4 - len(remaining)) > 0
    assert (
        len(ids) + 32
        <= 128
        < len(chat_model.encode_messages(chat_model.build_messages(history[remaining[0] - 1 :], "现在呢？"))) + 32
    )


def test_answer_ends_at_the_end_of_the_context(model):
    chat_model = ChatModel(Decoder(model), TOKENIZER, True, None, 512, Sampling(temperature=0))
    ids = chat_model.make_prompt("你好").ids
    text = TOKENIZER.decode(greedy(model, ids, 128 - len(ids)), skip_special_tokens=False)
    requests = [chat_model.make_request(ids), chat_model.make_request([*ids, 5, 6, 7])]
    for _ in chat_model.generate(requests):
        pass
    assert requests[0].written == "".join(terminal.stream_text(chat_model, chat_model.make_request(ids))) == text
    assert requests[0].finish_reason == "length" and len(ids) + len(requests[0].ids) == 128
    assert len(requests[1].prompt) + len(requests[1].ids) == 128
