"""What --weight_dtype means on a device."""

import pytest
import torch

from engine.talk.chat_model import Weights

CUDA = torch.device("cuda")


def test_auto_is_int8_on_a_cpu_and_what_the_card_multiplies_on_cuda(monkeypatch):
    assert Weights().on(torch.device("cpu")) == "int8"
    assert Weights().on(torch.device("mps")) == "float32"
    for capability, kind in [((7, 5), "float16"), ((8, 0), "bfloat16")]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, capability=capability: capability)
        assert Weights().on(CUDA) == kind
        assert Weights("float32").on(CUDA) == "float32"


def test_weights_that_a_device_cannot_multiply_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="--weight_dtype int8 is for the CPU"):
        Weights("int8").on(CUDA)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    with pytest.raises(ValueError, match="bfloat16: Tesla T4 has no bf16 units"):
        Weights("bfloat16").on(CUDA)
