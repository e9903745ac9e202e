"""Fast decoding of one token per row: the math of model.py in fewer and larger operations, on smaller weights.

With one token a row, most of the time is spent reading weights and launching operations. So weights are stored in the
dtype of --weight_dtype, matrices with the same input are concatenated, queries and keys are rotated together in place,
and the query heads that share a key head are computed as several queries of that head.

Shapes: B rows, C dim, H query heads, K key-value heads, D head dim, S visible positions of the cache, V vocabulary,
        I and O inputs and outputs of a matrix
"""

from collections.abc import Callable
from functools import cached_property
from operator import call
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.generate.kv_cache import KVCache
from model import SpongeBob, check_parameters_known, compute_dtype, rope_cos_sin

ONEDNN_MIN_NUMEL = 2**18  # elements of a matrix above which reading it takes longer than launching a matmul
PREPACKED_ROWS = 64  # rows of input that the oneDNN layout is chosen for; it serves fewer as well
INT8_KERNEL_MAX_ROWS = 4  # up to here the int8 kernel is faster than a bfloat16 matmul, which reads twice as much


def quantize_per_row(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize a matrix (O, I) symmetrically to int8 (O, I) and one float32 scale per row (O, 1).

    The element of a row with the largest magnitude becomes 127 or -127.
    """
    scales = matrix.abs().amax(dim=1, keepdim=True) / 127
    return (matrix / scales.clamp_min(torch.finfo(torch.float32).tiny)).round().to(torch.int8), scales


def fake_quantize(weight: Tensor, weight_dtype: str) -> Tensor:
    """Round a matrix to the values of "int8" or a float dtype, in its own dtype; a vector (N,) is kept."""
    if weight.dim() == 1:
        return weight
    if weight_dtype != "int8":
        return weight.to(getattr(torch, weight_dtype)).to(weight.dtype)
    qweight, scales = quantize_per_row(weight)
    return qweight.to(weight.dtype) * scales


def prepack(weight: Tensor) -> Tensor:
    """Reorder a matrix (O, I) to the layout of oneDNN, which reads it up to twice as fast."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, PREPACKED_ROWS)


def prepacked_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply x (B, I) by a prepacked matrix (O, I) of the same dtype -> (B, O)."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


class DenseLinear:
    """A matrix (O, I) in a floating-point dtype."""

    uses_onednn = False  # torch.compile cannot fuse matmuls of several rows with the operations around them

    def __init__(self, weight: Tensor):
        self.weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply x (B, I) of any float dtype -> (B, O)."""
        return x.to(self.weight.dtype) @ self.weight.t()

    def dot(self, x: Tensor) -> Tensor:
        """Multiply one vector (I,) float32 -> (O,) float32, as a sum that torch.compile can fuse."""
        # Float32 is limited by memory latency: reading four rows at once hides some of it.
        return torch.cat([(rows * x).sum(-1) for rows in self.weight.chunk(4 if self.weight.dtype == x.dtype else 1)])


class PrepackedLinear(DenseLinear):
    """A large matrix (O, I) on a CPU, multiplied by oneDNN."""

    uses_onednn = True

    @cached_property
    def prepacked(self) -> Tensor:
        """Return the matrix (O, I) for oneDNN, made at the first use: a chat has one row and never needs it."""
        return prepack(self.weight)

    @staticmethod
    def supports(weight: Tensor, dtype: torch.dtype) -> bool:
        """Return whether oneDNN has matmuls of `dtype` on this CPU and the matrix (O, I) is large enough for them."""
        if weight.device.type != "cpu" or weight.numel() < ONEDNN_MIN_NUMEL or not torch.backends.mkldnn.is_available():
            return False
        return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply x (B, I) of any float dtype -> (B, O)."""
        x = x.to(self.weight.dtype)
        if len(x) <= 2 and x.dtype == torch.float32:
            # MKL is faster here, but uses one thread for one vector: two vectors take half the time of one.
            return (self.weight @ torch.cat([x, x])[:2].t())[:, : len(x)].t()
        return prepacked_matmul(x, self.prepacked)


class Int8Linear:
    """A matrix (O, I) as int8 with one scale per row; it is multiplied by bfloat16 vectors."""

    def __init__(self, weight: Tensor):
        qweight, scales = quantize_per_row(weight.float())
        self.padding = -qweight.shape[1] % 64  # torch's kernel reads whole groups of columns, past the end of a row
        self.qweight = F.pad(qweight, (0, self.padding))
        self.scales = scales.flatten().bfloat16()
        self.uses_onednn = PrepackedLinear.supports(qweight, torch.bfloat16)

    @cached_property
    def prepacked(self) -> Tensor:
        """Return the matrix (O, I) for oneDNN at the first use; bfloat16 holds every int8 value exactly."""
        return prepack(self.qweight.bfloat16())

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply x (B, I) of any float dtype -> (B, O) bfloat16 or float32."""
        x = F.pad(x.bfloat16(), (0, self.padding)) if self.padding else x.bfloat16()
        if len(x) <= INT8_KERNEL_MAX_ROWS or not self.uses_onednn:
            return torch._weight_int8pack_mm(x, self.qweight, self.scales)
        return prepacked_matmul(x, self.prepacked) * self.scales.float()

    def dot(self, x: Tensor) -> Tensor:
        """Multiply one vector (I,) float32 -> (O,) float32, as a sum that torch.compile can fuse."""
        return (self.qweight[:, : len(x)] * x).sum(-1) * self.scales


LinearWeight = DenseLinear | Int8Linear


class Layer(NamedTuple):
    """Weights of one block; norms are multiplied by sqrt(C), see `Decoder._normed`."""

    attention_norm: Tensor  # (C,) float32
    wqkv: LinearWeight
    wo: LinearWeight
    ffn_norm: Tensor  # (C,) float32
    w13: LinearWeight
    w2: LinearWeight


class Decoder:
    """Step of engine/generate/engine.py: the newest token of every row of a cache -> logits of the next one.

    It copies most weights: a model that is trained further needs a new Decoder.

    Args:
        model: Model whose weights are read.
        weight_dtype: "int8" or the name of a float dtype; None: the dtype of the model's matmuls.
    Raises:
        ValueError: The model has a parameter that is not computed here.
    """

    def __init__(self, model: SpongeBob, weight_dtype: str | None = None):
        self.model = model
        self.config = model.config
        weight = model.tok_embeddings.weight
        self.dtype = compute_dtype(weight)
        if weight_dtype:
            self.dtype = torch.bfloat16 if weight_dtype == "int8" else getattr(torch, weight_dtype)
        parameters = dict(model.named_parameters(remove_duplicate=False))  # the tied matrix under both of its names
        computed = {"tok_embeddings.weight"}

        def read(name: str) -> Tensor:
            computed.add(f"{name}.weight")
            return parameters[f"{name}.weight"].detach()

        def norm(name: str) -> Tensor:
            return read(name).float() * self.config.dim**0.5

        def linear(*names: str) -> LinearWeight:
            matrix = torch.cat([read(name) for name in names]) if len(names) > 1 else read(*names)
            if weight_dtype == "int8":
                return Int8Linear(matrix)
            matrix = matrix.to(self.dtype)
            return PrepackedLinear(matrix) if PrepackedLinear.supports(matrix, self.dtype) else DenseLinear(matrix)

        self.layers = []
        for block in (f"layers.{layer}" for layer in range(self.config.n_layers)):
            self.layers.append(
                Layer(
                    norm(f"{block}.attention_norm"),
                    linear(f"{block}.attention.wq", f"{block}.attention.wk", f"{block}.attention.wv"),
                    linear(f"{block}.attention.wo"),
                    norm(f"{block}.ffn_norm"),
                    linear(f"{block}.feed_forward.w1", f"{block}.feed_forward.w3"),
                    linear(f"{block}.feed_forward.w2"),
                )
            )
        self.norm = norm("norm")
        self.output = linear("output")
        self.norm_floor = torch.full((), (self.config.dim * self.config.norm_eps) ** 0.5, device=weight.device)
        check_parameters_known(parameters, computed, "engine/generate/fast_decoder.py")

    @classmethod
    def from_model(cls, model: SpongeBob, weight_dtype: str, device: torch.device) -> Self:
        """Move a model to its device, round its weights to `weight_dtype` and make its decoder.

        On a CPU the model itself stays in float32, with rounded values: prompts have many tokens, so float32 is faster
        for them, and more exact.

        Args:
            model: Model to move and round in place.
            weight_dtype: "int8" or the name of a float dtype.
            device: Device to decode on.
        Raises:
            ValueError: `weight_dtype` cannot hold a weight, or see the class.
        """
        on_cpu = device.type == "cpu"
        model.eval().to(device, torch.float32 if on_cpu else getattr(torch, weight_dtype))  # pyright: ignore
        if on_cpu and weight_dtype != "float32":
            for name, parameter in model.named_parameters():
                parameter.data = fake_quantize(parameter.data, weight_dtype)
                if not parameter.data.isfinite().all():
                    flag = f"--weight_dtype {weight_dtype}"
                    raise ValueError(f"{flag}: {name} holds values that {weight_dtype} cannot keep; choose another")
        return cls(model, weight_dtype)

    def __call__(self, ids: Tensor, positions: Tensor, cache: KVCache) -> Tensor:
        """Compute the logits of the next tokens, and store the keys and values of these.

        Args:
            ids: Newest token of each of the cache's first B rows, (B,) int64.
            positions: Their positions in their rows, (B,) int64.
            cache: Keys and values of the tokens before.
        Returns:
            (B, V) float32.
        """
        config = self.config
        rows, dim = len(ids), config.dim
        group_size = config.n_heads // config.n_kv_heads
        rotary_dim = (config.n_heads + config.n_kv_heads) * config.head_dim
        cos, sin = rope_cos_sin(config, positions[:, None])
        rotation = torch.complex(cos[:, 0], sin[:, 0])  # (B, 1, D/2)
        flat_positions = cache.flat_positions(positions)  # (B,)
        mask = None
        if rows > 1:
            is_future = torch.arange(cache.length, device=ids.device) > positions[:, None]
            mask = torch.zeros(is_future.shape, device=ids.device, dtype=cache.kv.dtype)
            mask = mask.masked_fill_(is_future, -torch.inf)[:, None, None]  # (B, 1, 1, S)

        def attend(layer: int, qkv: Tensor) -> Tensor:
            qkv = qkv.float().contiguous()
            torch.view_as_complex(qkv[:, :rotary_dim].unflatten(-1, (-1, config.head_dim // 2, 2))).mul_(rotation)
            q, kv = qkv.split([dim, qkv.shape[1] - dim], dim=-1)
            k, v = cache.append(layer, kv, flat_positions)  # (B, K, S, D)
            q = q.unflatten(-1, (-1, group_size, config.head_dim)).to(k.dtype)  # (B, K, H/K, D)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).reshape(rows, dim)

        return self.output(self._hidden(ids, attend, matmul=call)).float()  # pyright: ignore[reportArgumentType]

    def _hidden(
        self,
        ids: Tensor,
        attend: Callable[[int, Tensor], Tensor],
        matmul: Callable[[LinearWeight, Tensor], Tensor],
    ) -> Tensor:
        """Compute the input of the output matrix, (B, C) float32: all of a step but attention.

        Args:
            ids: Newest token of each row, (B,) int64.
            attend: Rotates and stores the queries, keys and values (B, (H + 2K)D) of a layer, and attends -> (B, C).
            matmul: Multiplies (B, I) by a matrix.
        """
        x = F.embedding(ids, self.model.tok_embeddings.weight).float()  # (B, C)
        for number, layer in enumerate(self.layers):
            qkv = matmul(layer.wqkv, self._normed(x, layer.attention_norm))
            x += matmul(layer.wo, attend(number, qkv))
            gate, up = matmul(layer.w13, self._normed(x, layer.ffn_norm)).chunk(2, dim=-1)
            x += matmul(layer.w2, F.silu(gate).mul_(up))
        return self._normed(x, self.norm)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        """Apply RMSNorm to x (B, C) by its length: sqrt(mean(x^2) + eps) = hypot(|x|, sqrt(C eps)) / sqrt(C).

        The factor sqrt(C) is part of `weight` (C,).
        """
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return (x / torch.hypot(length, self.norm_floor)).mul_(weight)
