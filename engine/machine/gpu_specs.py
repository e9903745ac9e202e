"""The GPU of a run: its data sheet, why there is none, and whether it is too old."""

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
FORM_FACTOR = re.compile(r"\d+GB|HBM\w*|SXM\d?|PCIE")  # words that do not make another chip of it


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
