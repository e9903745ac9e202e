"""The loss of a step, as sums: next-token cross-entropy times the cost of each label, and what is logged beside it.

Sums, because a mean of micro-batch means weighs short answers more than long ones. The loop divides once, by the cost
of the whole step over all micro-batches and ranks.
"""

import math
from dataclasses import astuple, dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dataset import NO_LOSS, TAG
from engine.machine.runtime import Runtime
from engine.packing import Batch
from model import SpongeBob

LOSS_NAMES = ("weighted", "plain", "tags", "text")  # the order of TokenLoss's sums
LOGIT_ROWS = 256  # logits on the CPU are made for a multiple of so many positions


@dataclass(frozen=True)
class Counts:
    """What a step divides by and reports, summed over its micro-batches and all ranks."""

    loss_weights: float = 0.0  # of all labels
    tokens: int = 0  # learned tokens
    tags: int = 0  # of them tag tokens
    bytes: int = 0  # of text that the learned tokens stand for
    positions: int = 0  # real tokens read

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def over_ranks(self, rt: Runtime, *also: float) -> tuple["Counts", list[float]]:
        """The same, summed over all processes, and the sums of `also`: all travel at once."""
        mine = astuple(self)
        summed = rt.sum([*mine, *also])
        loss_weights, *whole = summed[: len(mine)]
        return Counts(loss_weights, *map(int, whole)), summed[len(mine) :]


def count(batches: list[Batch], token_bytes: Tensor, positions: int = 0) -> Counts:
    """The counts of one rank's micro-batches, on the CPU before they travel; `positions` is Batches.positions."""
    total = Counts(positions=positions)
    for batch in batches:
        learned = batch.classes != NO_LOSS
        total += Counts(
            loss_weights=float(batch.loss_weights.double().sum()),
            tokens=int(learned.sum()),
            tags=int((batch.classes == TAG).sum()),
            bytes=int(token_bytes[batch.labels[learned]].sum()),
        )
    return total


@torch.compiler.disable
def loss_positions(classes: Tensor) -> Tensor:
    """The positions that need logits, in order; classes (positions,) uint8 -> (about as many as are learned,) int64.

    Their number is rounded up, with positions that cost nothing: bf16 kernels are made anew for every number of rows.
    """
    learned = classes != NO_LOSS
    rounded = math.ceil(int(learned.sum()) / LOGIT_ROWS) * LOGIT_ROWS
    kept = learned.argsort(descending=True, stable=True)[:rounded]
    torch._dynamo.maybe_mark_dynamic(kept, 0)  # compiled code is made once for all numbers of them
    return kept


class TokenLoss(nn.Module):
    """Model -> sums. The one module that compile, DDP and FSDP wrap: all of the computation is inside.

    Args:
        model: the decoder.
        end_id: </s>, which stands for no text: it is learned, but left out of bits per byte.
        z_loss: weight of log(Z)^2 beside each cross-entropy, Z the sum behind the softmax: it keeps the logits from
            drifting (arXiv:2204.02311, section 5; 0: off).
        chunk: positions whose logits exist at a time, 0 all. Each chunk is computed again in backward.
    """

    def __init__(self, model: SpongeBob, *, end_id: int = 2, z_loss: float = 0.0, chunk: int = 0):
        super().__init__()
        self.model, self.end_id, self.z_loss, self.chunk = model, end_id, z_loss, chunk

    def forward(
        self, inputs: Tensor, labels: Tensor, classes: Tensor, loss_weights: Tensor, cu_seqlens: Tensor | None = None
    ) -> Tensor:
        """A Batch's tensors -> (4,) fp32 sums of nats: weighted (the objective), plain, tags, text without </s>."""
        hidden = self.model.hidden_states(inputs, cu_seqlens).flatten(0, 1)  # (positions, C)
        labels, classes, loss_weights = labels.flatten(), classes.flatten(), loss_weights.flatten()  # (positions,)
        if hidden.device.type == "cpu":  # elsewhere the number of learned positions would have to be waited for
            kept = cast(Tensor, loss_positions(classes))  # pyright: ignore[reportArgumentType, reportCallIssue]
            hidden, labels, classes, loss_weights = hidden[kept], labels[kept], classes[kept], loss_weights[kept]
        return (self._in_chunks if self.chunk else self.sums)(hidden, labels, classes, loss_weights)  # pyright: ignore[reportCallIssue]

    @torch.compiler.disable  # a graph would hold so many chunks; what is compiled is `sums` (parallel.wrap)
    def _in_chunks(self, *tensors: Tensor) -> Tensor:
        parts = zip(*(tensor.split(self.chunk) for tensor in tensors), strict=True)
        return torch.stack([checkpoint(self.sums, *part, use_reentrant=False) for part in parts]).sum(0)

    def sums(self, hidden: Tensor, labels: Tensor, classes: Tensor, loss_weights: Tensor) -> Tensor:
        logits = self.model.output(hidden).float()  # (positions, V)
        nats = F.cross_entropy(logits, labels, reduction="none")  # (positions,)
        learned = classes != NO_LOSS
        text = learned & (labels != self.end_id)
        factors = torch.stack([loss_weights, learned.float(), (classes == TAG).float(), text.float()])  # (4, positions)
        sums = (factors * nats).sum(1)  # not factors @ nats, which autocast would do in half precision
        if self.z_loss:
            log_z = logits.logsumexp(-1)
            sums = sums + F.pad(self.z_loss * (loss_weights * log_z.square()).sum()[None], (0, 3))  # the objective only
        return sums
