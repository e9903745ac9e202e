"""GPUs by name, and the reasons why one cannot be used."""

import pytest
import torch

from engine import cli
from engine.machine import flops, gpu_specs, runtime

TFLOPS = {
    "NVIDIA H100 80GB HBM3": 989,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA H100 NVL": 835,
    "NVIDIA A800-SXM4-80GB": 312,
    "NVIDIA A100-SXM4-40GB": 312,
    "NVIDIA A100 80GB PCIe": 312,
    "NVIDIA H20": 148,
    "NVIDIA L20": 119.5,
    "NVIDIA L40": 181,
    "NVIDIA L40S": 362,
    "NVIDIA L4": 121,
    "Tesla T4": 65,
    "Tesla V100-SXM2-32GB": 125,
    "Tesla V100-PCIE-16GB": 112,
    "NVIDIA GeForce RTX 4090": 165,
    "NVIDIA GeForce RTX 4090 D": 147,
    "NVIDIA GeForce RTX 3090 Ti": 80,
    "NVIDIA GeForce RTX 4090 Laptop GPU": None,
    "NVIDIA GeForce RTX 3080 Laptop GPU": None,
    "NVIDIA GeForce RTX 4070": None,
    "NVIDIA A100-SXM4-80GB MIG 1g.10gb": None,
    "NVIDIA A10G": None,
    "NVIDIA L40G": None,
    "NVIDIA RTX A1000": None,
    "Quadro RTX 6000": None,
    "Some H1000": None,
    "": None,
}
OLD_DRIVER = "The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver"
NO_DRIVER = "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU"


@pytest.mark.parametrize("name", TFLOPS)
def test_peak_belongs_to_the_whole_name_of_a_gpu(name, fake_gpu):
    assert gpu_specs.gpu_tflops(name) == TFLOPS[name]
    fake_gpu(name)
    assert flops.peak_flops(torch.device("cuda"), torch.bfloat16) == (TFLOPS[name] and 1e12 * TFLOPS[name])


def remove_gpus(monkeypatch, message: str, *, built: str | None = "13.0", visible: str | None = None) -> None:
    def init() -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


@pytest.mark.parametrize(
    "message, more, reason",
    [
        ("", {"built": None}, "built without CUDA"),
        (NO_DRIVER, {}, "docker run --gpus all"),
        (NO_DRIVER, {"visible": "0"}, "docker run --gpus all"),
        ("No CUDA GPUs are available", {"visible": "3"}, "CUDA_VISIBLE_DEVICES='3' names none"),
        (OLD_DRIVER, {}, "supports CUDA 12.2, this torch needs 13.0"),
    ],
)
def test_device_cuda_without_a_gpu_gives_the_reason_in_one_line(message, more, reason, monkeypatch, capsys):
    remove_gpus(monkeypatch, message, **more)
    with pytest.raises(SystemExit) as exit:
        cli.run(lambda: runtime.resolve_device("cuda"))
    error = capsys.readouterr().err
    assert exit.value.code == 2 and error.count("\n") == 1
    assert error.startswith("error: --device cuda: ") and reason in error


def test_device_auto_with_an_old_driver_is_an_error(monkeypatch):
    remove_gpus(monkeypatch, OLD_DRIVER)
    with pytest.raises(ValueError, match="driver is too old.*--device cpu runs without"):
        runtime.resolve_device("auto")


@pytest.mark.parametrize("more", [{"built": None}, {}, {"visible": ""}])
def test_device_auto_without_a_gpu_is_the_cpu(more, monkeypatch):
    remove_gpus(monkeypatch, NO_DRIVER, **more)
    assert runtime.resolve_device("auto").type in ("cpu", "mps")


@pytest.mark.parametrize("capability", [(6, 1), (7, 0), (7, 5), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_gpu_that_is_too_old_for_this_torch_is_refused(capability, fake_gpu, monkeypatch):
    archs = ["sm_75", "sm_80", "sm_86", "sm_90a", "sm_100", "compute_120"]
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: archs)
    fake_gpu("NVIDIA GeForce GTX 1080", capability)
    if capability >= (7, 5):
        gpu_specs.check_compute_capability(torch.device("cuda", 0))
        return
    with pytest.raises(ValueError, match=r"GTX 1080 \(compute capability .*built for 7.5 and newer.*--device cpu"):
        gpu_specs.check_compute_capability(torch.device("cuda", 0))
