"""GPUs: peak FLOP/s by data sheet, reasons why none is found, and the check that torch supports one."""

import os
import re

import torch

# Dense bf16 or fp16 products with fp32 sums, by the maker's data sheet, in 10^12 FLOP/s.
GPU_TFLOPS = {
    "B200": 2250, "GH200": 989, "H200": 989, "H200 NVL": 835, "H100": 989, "H100 NVL": 835, "H100 PCIe": 756,
    "H800": 989, "H800 PCIe": 756, "H20": 148, "A100": 312, "A800": 312, "L40S": 362, "L40": 181, "L20": 119.5,
    "L4": 121, "A10": 125, "A40": 150, "RTX A6000": 155, "V100": 125, "V100 PCIe": 112, "T4": 65,
    "RTX 5090": 209, "RTX 5080": 113, "RTX 4090": 165, "RTX 4090 D": 147, "RTX 4080": 97, "RTX 4080 SUPER": 104,
    "RTX 3090": 71, "RTX 3090 Ti": 80, "RTX 3080": 60, "RTX 3080 Ti": 68,
}  # fmt: skip
VENDOR_WORDS = {"NVIDIA", "TESLA", "GEFORCE"}
FORM_FACTOR = re.compile(r"\d+GB|HBM\w*|SXM\d?|PCIE")  # words that do not name another chip


def gpu_tflops(name: str) -> float | None:
    """Return the peak of a GPU by the name that its driver reports; None for a GPU that is not in the table.

    The whole name must fit: a laptop's 4090 is not a 4090.
    """
    words = set(name.upper().replace("-", " ").split()) - VENDOR_WORDS
    best = ""
    for known in GPU_TFLOPS:
        required = set(known.upper().split())
        fits = required <= words and all(FORM_FACTOR.fullmatch(word) for word in words - required)
        if fits and len(known) > len(best):
            best = known
    return GPU_TFLOPS.get(best)


def why_no_cuda() -> str:
    """Return the reason why torch finds no NVIDIA GPU, and what to do."""
    if torch.version.cuda is None:
        return "this torch was built without CUDA; requirements.txt says how to install one with it"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    problem = driver_problem()
    if "too old" in problem:
        return problem
    if visible is not None and "no nvidia driver" not in problem.lower():
        return f"CUDA_VISIBLE_DEVICES={visible!r} names none of the GPUs; unset it"
    return "no NVIDIA driver answers; install it, or start the container with its GPUs (docker run --gpus all)"


def driver_problem() -> str:
    """Return in one line the error with which torch refuses the GPU; empty if there is none."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        text = " ".join(str(error).split())
        if match := re.search(r"driver .*too old \(found version (\d+)\)", text):
            version = f"{int(match[1]) // 1000}.{int(match[1]) % 1000 // 10}"
            return (
                f"the NVIDIA driver is too old: it supports CUDA {version}, this torch needs {torch.version.cuda}; "
                "install a newer driver, or a torch for this one (requirements.txt)"
            )
        return text
    return ""


def check_compute_capability(device: torch.device) -> None:
    """Raise ValueError if the installed torch has no kernels for this GPU; else the first kernel would fail."""
    capability = torch.cuda.get_device_capability(device)
    built = {}
    for arch in torch.cuda.get_arch_list():
        if match := re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", arch):
            built[arch] = int(match[2]), int(match[3])
    for arch, version in built.items():
        # Code for "compute" is translated by the driver of any newer GPU.
        if version <= capability and (arch.startswith("compute") or version[0] == capability[0]):
            return
    oldest = "{}.{}".format(*min(built.values())) if built else "other GPUs"
    raise ValueError(
        f"{torch.cuda.get_device_name(device)} (compute capability {capability[0]}.{capability[1]}) is not supported "
        f"by torch {torch.__version__}, built for {oldest} and newer; install a torch built for it, or use --device cpu"
    )
