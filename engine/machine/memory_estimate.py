"""Memory that a micro-batch takes on a GPU, calculated before it runs.

The factors were counted, not measured: by benchmarks/fake_cuda.py (eager) and benchmarks/inductor.py (compiled) in
bf16, for shapes of 4 to 17 layers x 256 to 768; there they are right to about a tenth.
"""

from dataclasses import dataclass, replace

import torch

from Config import LLMConfig

# Bytes per position: of a block's activations and of the logits with their gradients, eager and compiled.
BLOCK_ACTIVATION_BYTES, LOGITS_BYTES = (46.4, 31.4), (12.8, 2.4)  # x C in each layer; x V
USABLE_FRACTION = 0.92  # of a card's memory: the rest is CUDA's own, and torch's rounding


@dataclass(frozen=True)
class MicroBatchSpec:
    """What decides the memory of a micro-batch."""

    config: LLMConfig
    rows: int
    length: int  # positions of a row
    dtype: torch.dtype
    recompute: bool = False  # --activation_checkpointing
    chunk: int = 0  # --loss_chunk
    compiled: bool = False


def micro_batch_bytes(spec: MicroBatchSpec) -> float:
    """Bytes that a micro-batch adds to weights, gradients and optimizer."""
    config, positions = spec.config, spec.rows * spec.length
    block, logits = BLOCK_ACTIVATION_BYTES[spec.compiled] * config.dim, LOGITS_BYTES[spec.compiled] * config.vocab_size
    if spec.chunk:
        logits *= min(1, spec.chunk / positions)
    if spec.recompute:  # each block's input, one block at a time, or the logits
        each = (4 * config.n_layers + 16) * config.dim + max(block, logits)
    else:
        each = config.n_layers * block + logits
    return each * positions * (2 if spec.dtype == torch.float32 else 1)


def rows_that_fit(spec: MicroBatchSpec, available: float) -> int:
    """Rows of a micro-batch for which `available` bytes are enough."""
    return max(0, int(available / (micro_batch_bytes(spec) / spec.rows)))


def memory_saving_flags(spec: MicroBatchSpec) -> str:
    """The flags that save memory, the one that helps most first; empty when nothing would."""
    half = max(1, spec.rows // 2)
    ways = {
        "--activation_checkpointing": replace(spec, recompute=True),
        "--loss_chunk 2048": replace(spec, chunk=2048),
        "--compile": replace(spec, compiled=True),
        f"--batch_size {half} with twice the --accumulation_steps": replace(spec, rows=half),
    }
    now = micro_batch_bytes(spec)
    saved = {way: now - micro_batch_bytes(changed) for way, changed in ways.items()}
    best = sorted((way for way in ways if saved[way] > 0), key=saved.__getitem__, reverse=True)
    return ", ".join(f"{way} saves about {saved[way] / 2**30:.1f} GiB" for way in best)
