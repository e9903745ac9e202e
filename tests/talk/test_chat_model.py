"""What --weight_dtype means on a device."""

import pytest
import torch

from engine.talk.chat_model import Quantization

CUDA = torch.device("cuda")


def test_auto_is_int8_on_a_cpu_and_what_the_card_multiplies_on_cuda(monkeypatch):
    assert Quantization().resolve(torch.device("cpu")) == "int8"
    assert Quantization().resolve(torch.device("mps")) == "float32"
    for capability, kind in [((7, 5), "float16"), ((8, 0), "bfloat16")]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, capability=capability: capability)
        assert Quantization().resolve(CUDA) == kind
        assert Quantization("float32").resolve(CUDA) == "float32"


def test_weights_that_a_device_cannot_multiply_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="--weight_dtype int8 is for the CPU"):
        Quantization("int8").resolve(CUDA)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    with pytest.raises(ValueError, match="bfloat16: Tesla T4 has no bf16 units"):
        Quantization("bfloat16").resolve(CUDA)
