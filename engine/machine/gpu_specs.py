"""The GPU of a run: its data sheet, why there is none, and whether it is too old."""

import os
import re
from typing import NamedTuple

import torch


class GpuSpec(NamedTuple):
    """What the maker's data sheet says."""

    tflops: float  # dense bf16/fp16 products with fp32 sums, 10^12 FLOP/s
    bandwidth: float  # of its memory, 10^9 bytes/s


GPU_SPECS = {
    "B200": GpuSpec(2250, 8000), "GH200": GpuSpec(989, 4000), "H200": GpuSpec(989, 4800),
    "H200 NVL": GpuSpec(835, 4800), "H100": GpuSpec(989, 3350), "H100 NVL": GpuSpec(835, 3900),
    "H100 PCIe": GpuSpec(756, 2000), "H800": GpuSpec(989, 3350), "H800 PCIe": GpuSpec(756, 2000),
    "H20": GpuSpec(148, 4000), "A100": GpuSpec(312, 1555), "A100 80GB": GpuSpec(312, 1935),
    "A800": GpuSpec(312, 1555), "A800 80GB": GpuSpec(312, 1935), "L40S": GpuSpec(362, 864), "L40": GpuSpec(181, 864),
    "L20": GpuSpec(119.5, 864), "L4": GpuSpec(121, 300), "A10": GpuSpec(125, 600), "A40": GpuSpec(150, 696),
    "RTX A6000": GpuSpec(155, 768), "V100": GpuSpec(125, 900), "V100 PCIe": GpuSpec(112, 900), "T4": GpuSpec(65, 320),
    "RTX 5090": GpuSpec(209, 1792), "RTX 5080": GpuSpec(113, 960), "RTX 4090": GpuSpec(165, 1008),
    "RTX 4090 D": GpuSpec(147, 1008), "RTX 4080": GpuSpec(97, 717), "RTX 4080 SUPER": GpuSpec(104, 736),
    "RTX 3090": GpuSpec(71, 936), "RTX 3090 Ti": GpuSpec(80, 1008), "RTX 3080": GpuSpec(60, 760),
    "RTX 3080 Ti": GpuSpec(68, 912),
}  # fmt: skip
MAKERS = {"NVIDIA", "TESLA", "GEFORCE"}
SAME_CHIP = re.compile(r"\d+GB|HBM\w*|SXM\d?|PCIE")  # words that do not make another chip of it


def gpu_spec(name: str) -> GpuSpec | None:
    """By the name the driver gives. None for one that nobody wrote down: a laptop's 4090 is not a 4090."""
    words = set(name.upper().replace("-", " ").split()) - MAKERS
    fitting = {
        known: known_words
        for known in GPU_SPECS
        if (known_words := set(known.upper().split())) <= words
        and all(SAME_CHIP.fullmatch(word) for word in words - known_words)
    }
    return GPU_SPECS[max(fitting, key=lambda known: len(fitting[known]))] if fitting else None


def why_no_cuda() -> str:
    """Why torch sees no NVIDIA GPU, in words that say what to do."""
    if torch.version.cuda is None:
        return "this torch was built without CUDA; requirements.txt says how to install one with it"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    said = driver_problem()
    if "too old" in said:
        return said
    if visible is not None and "no nvidia driver" not in said.lower():
        return f"CUDA_VISIBLE_DEVICES={visible!r} names none of the GPUs; unset it"
    return "no NVIDIA driver answers; install it, or start the container with its GPUs (docker run --gpus all)"


def driver_problem() -> str:
    """What torch says when it begins to use the GPU, in one line; empty when all is well."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        text = " ".join(str(error).split())
        if found := re.search(r"driver .*too old \(found version (\d+)\)", text):
            version = f"{int(found[1]) // 1000}.{int(found[1]) % 1000 // 10}"
            return (
                f"the NVIDIA driver is too old: it knows CUDA {version}, this torch needs {torch.version.cuda}; "
                "install a newer driver, or a torch for this one (requirements.txt)"
            )
        return text
    return ""


def check_compute_capability(device: torch.device) -> None:
    """ValueError for a card that the installed torch holds no kernels for: the first one would fail, far from here."""
    major, minor = torch.cuda.get_device_capability(device)
    built = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", arch) for arch in torch.cuda.get_arch_list()]
    for kind, *of_kernel in (match.groups() for match in built if match):
        older = tuple(map(int, of_kernel)) <= (major, minor)
        if older and (kind == "compute" or int(of_kernel[0]) == major):  # compute: code that the driver translates
            return
    least = min((f"{match[2]}.{match[3]}" for match in built if match), key=float, default="another")
    raise ValueError(
        f"{torch.cuda.get_device_name(device)} (compute capability {major}.{minor}) is not served by torch "
        f"{torch.__version__}, built for {least} and newer; install a torch built for it, or use --device cpu"
    )
