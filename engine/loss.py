"""The losses of a step, as sums: next-token cross-entropy times the loss weight of each label, and what is logged.

Sums, because a mean of micro-batch means weighs short answers more than long ones. The loop divides once, by the summed
loss weights of the whole step over all micro-batches and ranks.

Shapes: N positions, C dim, V vocabulary, B rows, T positions of a row
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
LOGITS_MULTIPLE = 256  # on the CPU logits are computed for a multiple of so many positions


@dataclass(frozen=True)
class Counts:
    """The divisors of a step and of its log row, summed over micro-batches and, by `over_ranks`, over all ranks."""

    weight_sum: float = 0.0  # loss weights of all labels
    loss_tokens: int = 0  # tokens with a loss
    tags: int = 0  # tag tokens among them
    bytes: int = 0  # of text of the tokens with a loss
    positions: int = 0  # real tokens read

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(left + right for left, right in zip(astuple(self), astuple(other), strict=True)))

    def over_ranks(self, rt: Runtime, *more: float) -> tuple["Counts", list[float]]:
        """Return the counts summed over all ranks, and the sums of `more`: in one all-reduce."""
        local = astuple(self)
        summed = rt.sum([*local, *more])
        weight_sum, *counts = summed[: len(local)]
        return Counts(weight_sum, *map(int, counts)), summed[len(local) :]


def count_tokens(batches: list[Batch], token_bytes: Tensor, positions: int = 0) -> Counts:
    """Count one rank's micro-batches, before they are copied to the device.

    Args:
        batches: The micro-batches.
        token_bytes: Bytes of text of each token, (V,) int32.
        positions: Real tokens read (Source.positions).
    """
    total = Counts(positions=positions)
    for batch in batches:
        has_loss = batch.classes != NO_LOSS
        total += Counts(
            weight_sum=float(batch.loss_weights.double().sum()),
            loss_tokens=int(has_loss.sum()),
            tags=int((batch.classes == TAG).sum()),
            bytes=int(token_bytes[batch.labels[has_loss]].sum()),
        )
    return total


@torch.compiler.disable
def loss_positions(classes: Tensor) -> Tensor:
    """Select the positions that need logits, in order: classes (N,) uint8 -> (K,) int64.

    K is the number of labels with a loss, rounded up with positions of loss weight 0: oneDNN builds a bf16 kernel for
    each number of rows.
    """
    has_loss = classes != NO_LOSS
    rounded = math.ceil(int(has_loss.sum()) / LOGITS_MULTIPLE) * LOGITS_MULTIPLE
    positions = has_loss.argsort(descending=True, stable=True)[:rounded]
    torch._dynamo.maybe_mark_dynamic(positions, 0)  # compiled code is made once for all numbers of them
    return positions


class TokenLoss(nn.Module):
    """Compute the summed losses of a batch. This is the module that torch.compile, DDP and FSDP wrap.

    Args:
        model: The decoder.
        end_id: Id of </s>, which is no text: it has a loss, but is left out of bits per byte.
        z_loss: Weight of log(Z)^2 added to each cross-entropy, Z the sum in the softmax: it keeps the logits from
            drifting (arXiv:2204.02311, section 5; 0: off).
        chunk: Positions whose logits exist at a time, 0 all. Each chunk is computed again in backward.
    """

    def __init__(self, model: SpongeBob, *, end_id: int = 2, z_loss: float = 0.0, chunk: int = 0):
        super().__init__()
        self.model = model
        self.end_id = end_id
        self.z_loss = z_loss
        self.chunk = chunk

    def forward(
        self, inputs: Tensor, labels: Tensor, classes: Tensor, loss_weights: Tensor, cu_seqlens: Tensor | None = None
    ) -> Tensor:
        """Sum the losses of a micro-batch.

        Args:
            inputs, labels, classes, loss_weights, cu_seqlens: The tensors of a Batch.
        Returns:
            (4,) float32 sums in nats, in the order of LOSS_NAMES; the loop backpropagates only the first.
        """
        hidden = self.model.hidden_states(inputs, cu_seqlens).flatten(0, 1)  # (N, C)
        labels, classes, loss_weights = (tensor.flatten() for tensor in (labels, classes, loss_weights))  # (N,)
        if hidden.device.type == "cpu":  # on a GPU the number of positions would need a synchronization
            positions = cast(Tensor, loss_positions(classes))  # pyright: ignore[reportArgumentType, reportCallIssue]
            hidden, labels, classes, loss_weights = (t[positions] for t in (hidden, labels, classes, loss_weights))
        if self.chunk:
            return self._chunked_sums(hidden, labels, classes, loss_weights)  # pyright: ignore[reportCallIssue]
        return self.sums(hidden, labels, classes, loss_weights)

    @torch.compiler.disable  # the loop would be unrolled into one graph; parallel.wrap compiles `sums` instead
    def _chunked_sums(self, *tensors: Tensor) -> Tensor:
        chunks = zip(*(tensor.split(self.chunk) for tensor in tensors), strict=True)
        return torch.stack([checkpoint(self.sums, *chunk, use_reentrant=False) for chunk in chunks]).sum(0)

    def sums(self, hidden: Tensor, labels: Tensor, classes: Tensor, loss_weights: Tensor) -> Tensor:
        """Sum the cross-entropy of N positions under four weightings.

        Args:
            hidden: Final hidden states, (N, C).
            labels, classes, loss_weights: Next-token ids, label classes and weights, each (N,); int64, uint8, float32.
        Returns:
            (4,) float32, as `forward`.
        """
        logits = self.model.output(hidden).float()  # (N, V)
        token_losses = F.cross_entropy(logits, labels, reduction="none")  # (N,)
        has_loss = classes != NO_LOSS
        is_text = has_loss & (labels != self.end_id)
        weights = torch.stack([loss_weights, has_loss.float(), (classes == TAG).float(), is_text.float()])  # (4, N)
        sums = (weights * token_losses).sum(1)  # not weights @ token_losses, which autocast would do in half precision
        if self.z_loss:
            log_z = logits.logsumexp(-1)
            sums = sums + F.pad(self.z_loss * (loss_weights * log_z.square()).sum()[None], (0, 3))  # only the objective
        return sums
