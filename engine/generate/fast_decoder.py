"""The next token of every row: the mathematics of model.py in fewer and larger operations, on weights made small.

With one token a row, most of the time goes into reading the weights and into starting operations. So the weights are
kept as --weight_dtype says; matrices that read the same vector are one; queries and keys are rotated together, in
place; and a group of query heads is read as several queries of the head whose keys they share.

Shapes: B rows, C dim, H query heads, K key-value heads, D head dim, S positions that are looked at, V vocabulary
"""

from typing import NamedTuple, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from model import SpongeBob, check_parameters_known, compute_dtype, rope_cos_sin

ONEDNN_MIN_NUMEL = 2**18  # numbers of a matrix that takes longer to read than to start a product of it
PREPACKED_ROWS = 64  # that a layout is chosen for: it serves fewer as well
INT8_KERNEL_MAX_ROWS = 4  # rows for which the int8 kernel is faster than products of bfloat16, which read twice as much


def quantize_per_row(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes (rows, columns) and one fp32 scale for each row (rows, 1); the largest of a row gets the code 127."""
    scales = matrix.abs().amax(dim=1, keepdim=True) / 127
    return (matrix / scales.clamp_min(torch.finfo(torch.float32).tiny)).round().to(torch.int8), scales


def fake_quantize(weight: Tensor, kind: str) -> Tensor:
    """A weight with the values that `kind` keeps of it, in its own dtype; vectors are kept whole."""
    if weight.dim() == 1:
        return weight
    if kind != "int8":
        return weight.to(getattr(torch, kind)).to(weight.dtype)
    qweight, scales = quantize_per_row(weight)
    return qweight.to(weight.dtype) * scales


class Cache(Protocol):
    """What is needed of engine/generate/kv_cache.py."""

    kv: Tensor
    length: int

    def flat_positions(self, positions: Tensor) -> Tensor: ...

    def append(self, layer: int, kv: Tensor, flat_positions: Tensor) -> tuple[Tensor, Tensor]: ...


class LinearWeight(Protocol):
    """A weight as it is kept, and its products with vectors of any dtype."""

    uses_onednn: bool  # products with several vectors are closed to a compiler

    def __call__(self, x: Tensor, /) -> Tensor:
        """x (B, columns) -> (B, rows)."""
        ...

    def dot(self, x: Tensor, /) -> Tensor:
        """x (columns,) -> (rows,), in fp32: a sum that a compiler can join with what stands around it."""
        ...


class Layer(NamedTuple):
    attention_norm: Tensor
    wqkv: LinearWeight
    wo: LinearWeight
    ffn_norm: Tensor
    w13: LinearWeight
    w2: LinearWeight


class Decoder:
    """What a step of engine/generate/engine.py computes with. `kind`: int8 or a dtype; None is that of the products.

    It holds copies of most weights: a model that is trained further needs a new Decoder.
    """

    def __init__(self, model: SpongeBob, kind: str | None = None):
        self.model, self.config = model, model.config
        weight = model.tok_embeddings.weight
        self.dtype = getattr(torch, "bfloat16" if kind == "int8" else kind) if kind else compute_dtype(weight)

        weights = dict(model.named_parameters(remove_duplicate=False))  # the tied matrix under both of its names
        computed = {"tok_embeddings.weight"}

        def read(*names: str) -> list[Tensor]:
            full_names = [f"{name}.weight" for name in names]
            computed.update(full_names)
            return [weights[name].detach() for name in full_names]

        def norm(name: str) -> Tensor:
            return read(name)[0].float() * self.config.dim**0.5  # `_normed` leaves this factor out

        def matrix(*names: str) -> LinearWeight:
            parts = read(*names)
            whole = torch.cat(parts) if len(parts) > 1 else parts[0]
            if kind == "int8":
                return Int8Linear(whole)
            weight = whole.to(self.dtype)
            return PrepackedLinear(weight) if PrepackedLinear.serves(weight, self.dtype) else DenseLinear(weight)

        self.layers = []
        for block in (f"layers.{layer}" for layer in range(self.config.n_layers)):
            self.layers.append(
                Layer(
                    norm(f"{block}.attention_norm"),
                    matrix(f"{block}.attention.wq", f"{block}.attention.wk", f"{block}.attention.wv"),
                    matrix(f"{block}.attention.wo"),
                    norm(f"{block}.ffn_norm"),
                    matrix(f"{block}.feed_forward.w1", f"{block}.feed_forward.w3"),
                    matrix(f"{block}.feed_forward.w2"),
                )
            )
        self.norm, self.output = norm("norm"), matrix("output")
        check_parameters_known(weights, computed, "engine/generate/fast_decoder.py")
        self.least = torch.full((), (self.config.dim * self.config.norm_eps) ** 0.5, device=weight.device)

    @classmethod
    def ready(cls, model: SpongeBob, kind: str, device: torch.device) -> Self:
        """The model on its device, its weights rounded to what `kind` keeps, and the decoder that reads them.

        On a CPU the model itself stays in fp32: prompts, of many tokens, are computed faster and exactly so.
        """
        model.eval().to(device, torch.float32 if device.type == "cpu" else getattr(torch, kind))  # pyright: ignore
        if device.type == "cpu" and kind != "float32":
            for name, parameter in model.named_parameters():
                parameter.data = fake_quantize(parameter.data, kind)
                if not parameter.data.isfinite().all():
                    raise ValueError(
                        f"--weight_dtype {kind}: {name} holds values that {kind} cannot keep; choose another"
                    )
        return cls(model, kind)

    def __call__(self, ids: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """Logits (B, V) in fp32 after `ids` (B,), which stand at `positions` (B,) of the cache's first B rows."""
        config, rows = self.config, len(ids)
        dim, groups = config.dim, config.n_heads // config.n_kv_heads
        rotary_dim = (config.n_heads + config.n_kv_heads) * config.head_dim
        cos, sin = rope_cos_sin(config, positions[:, None])
        rotation, flat_positions = (
            torch.complex(cos[:, 0], sin[:, 0]),
            cache.flat_positions(positions),
        )  # (B, 1, D/2), (B,)
        mask = None
        if rows > 1:
            is_future = torch.arange(cache.length, device=ids.device) > positions[:, None]
            mask = torch.zeros(is_future.shape, device=ids.device, dtype=cache.kv.dtype).masked_fill_(
                is_future, -torch.inf
            )
            mask = mask[:, None, None]  # (B, 1, 1, S)
        x = F.embedding(ids, self.model.tok_embeddings.weight).float()  # (B, C)
        for number, layer in enumerate(self.layers):
            qkv = layer.wqkv(self._normed(x, layer.attention_norm)).float().contiguous()
            torch.view_as_complex(qkv[:, :rotary_dim].unflatten(-1, (-1, config.head_dim // 2, 2))).mul_(rotation)
            q, kv = qkv.split([dim, qkv.shape[1] - dim], dim=-1)
            k, v = cache.append(number, kv, flat_positions)  # (B, K, S, D)
            q = q.unflatten(-1, (-1, groups, config.head_dim)).to(k.dtype)  # (B, K, H/K, D)
            attn_out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            x += layer.wo(attn_out.reshape(rows, dim))
            gate, up = layer.w13(self._normed(x, layer.ffn_norm)).chunk(2, dim=-1)
            x += layer.w2(F.silu(gate).mul_(up))
        return self.output(self._normed(x, self.norm)).float()

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMSNorm by the vector's length: sqrt(mean(x^2) + eps) = hypot(|x|, sqrt(C eps)) / sqrt(C)."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return (x / torch.hypot(length, self.least)).mul_(weight)


class DenseLinear:
    """A matrix in a floating-point dtype."""

    uses_onednn = False

    def __init__(self, weight: Tensor):
        self.weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        return x.to(self.weight.dtype) @ self.weight.t()

    def dot(self, x: Tensor) -> Tensor:
        # fp32 waits for memory, which answers sooner where four rows are read at once.
        return torch.cat([(rows * x).sum(-1) for rows in self.weight.chunk(4 if self.weight.dtype == x.dtype else 1)])


class PrepackedLinear(DenseLinear):
    """A large matrix on a CPU, laid out as oneDNN likes it, which then reads it up to twice as fast."""

    uses_onednn = True

    def __init__(self, weight: Tensor):
        super().__init__(weight)
        self.prepacked = None

    @staticmethod
    def serves(weight: Tensor, dtype: torch.dtype) -> bool:
        """Whether there is something to gain, and oneDNN has products of this dtype on this CPU."""
        if weight.device.type != "cpu" or weight.numel() < ONEDNN_MIN_NUMEL or not torch.backends.mkldnn.is_available():
            return False
        return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        if len(x) <= 2 and x.dtype == torch.float32:
            # MKL is faster here, but takes one thread for one vector: two come in half the time.
            return (self.weight @ torch.cat([x, x])[:2].t())[:, : len(x)].t()
        if self.prepacked is None:  # when it is first needed: a chat has one row
            self.prepacked = prepack(self.weight)
        return prepacked_matmul(x, self.prepacked)


def prepack(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight, PREPACKED_ROWS)


def prepacked_matmul(x: Tensor, matrix: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, matrix, None, "none", [], "")


class Int8Linear:
    """A matrix as codes and a scale for each row, times bfloat16 vectors."""

    def __init__(self, weight: Tensor):
        qweight, scales = quantize_per_row(weight.float())
        self.missing = -qweight.shape[1] % 64  # torch's kernel reads whole groups of columns, also past a row's end
        self.qweight, self.scales = F.pad(qweight, (0, self.missing)), scales.flatten().bfloat16()
        self.uses_onednn, self.prepacked = PrepackedLinear.serves(qweight, torch.bfloat16), None

    def __call__(self, x: Tensor) -> Tensor:
        x = F.pad(x.bfloat16(), (0, self.missing)) if self.missing else x.bfloat16()
        if len(x) <= INT8_KERNEL_MAX_ROWS or not self.uses_onednn:
            return torch._weight_int8pack_mm(x, self.qweight, self.scales)
        if self.prepacked is None:
            self.prepacked = prepack(self.qweight.bfloat16())  # which holds every code exactly
        return prepacked_matmul(x, self.prepacked) * self.scales.float()

    def dot(self, x: Tensor) -> Tensor:
        return (self.qweight[:, : len(x)] * x).sum(-1) * self.scales
