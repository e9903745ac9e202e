"""Memory that a micro-batch takes on a GPU, calculated before it runs.

The factors were counted, not measured: by benchmarks/fake_cuda.py (eager) and benchmarks/inductor.py (compiled) in
bf16, for shapes of 4 to 17 layers x 256 to 768; there they are right to about a tenth.
"""

from dataclasses import dataclass, replace

import torch

from Config import LLMConfig

# Bytes per position, eager and compiled.
BLOCK_ACTIVATION_BYTES = 46.4, 31.4  # of a block; times dim
LOGITS_BYTES = 12.8, 2.4  # with their gradients; times vocab_size
USABLE_FRACTION = 0.92  # of a GPU's memory: CUDA and torch's rounding take the rest


@dataclass(frozen=True)
class MicroBatchSpec:
    """Everything that the memory of a micro-batch depends on."""

    config: LLMConfig
    rows: int
    length: int  # positions of a row
    dtype: torch.dtype
    recompute: bool = False  # --activation_checkpointing
    chunk: int = 0  # --loss_chunk
    compiled: bool = False


def micro_batch_bytes(spec: MicroBatchSpec) -> float:
    """Return the bytes that a micro-batch takes in addition to weights, gradients and optimizer."""
    config, positions = spec.config, spec.rows * spec.length
    block, logits = BLOCK_ACTIVATION_BYTES[spec.compiled] * config.dim, LOGITS_BYTES[spec.compiled] * config.vocab_size
    if spec.chunk:
        logits *= min(1, spec.chunk / positions)
    if spec.recompute:  # the input of each block, and one block or the logits at a time
        per_position = (4 * config.n_layers + 16) * config.dim + max(block, logits)
    else:
        per_position = config.n_layers * block + logits
    return per_position * positions * (2 if spec.dtype == torch.float32 else 1)


def rows_that_fit(spec: MicroBatchSpec, available: float) -> int:
    """Return the largest number of rows for which `available` bytes suffice."""
    return max(0, int(available / (micro_batch_bytes(spec) / spec.rows)))


def memory_saving_flags(spec: MicroBatchSpec) -> str:
    """List the flags that save memory, the most effective one first; empty if there is none."""
    half = max(1, spec.rows // 2)
    changes = {
        "--activation_checkpointing": replace(spec, recompute=True),
        "--loss_chunk 2048": replace(spec, chunk=2048),
        "--compile": replace(spec, compiled=True),
        f"--batch_size {half} with twice the --accumulation_steps": replace(spec, rows=half),
    }
    saved = {flag: micro_batch_bytes(spec) - micro_batch_bytes(changed) for flag, changed in changes.items()}
    flags = sorted((flag for flag in saved if saved[flag] > 0), key=saved.__getitem__, reverse=True)
    return ", ".join(f"{flag} saves about {saved[flag] / 2**30:.1f} GiB" for flag in flags)
