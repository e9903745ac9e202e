"""A LLaMA-3 style decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU. No file access, no sampling.

Weights have the names of Meta's checkpoints, so published LLaMA-style .pth files load by name.

Shapes: B rows, T positions of a row, C dim, H query heads, K key-value heads, D head_dim, V vocabulary,
        S positions of the keys, N documents in a batch of packed rows
"""

import math
import re
from collections.abc import Iterable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from Config import LLMConfig


class Cache(Protocol):
    """Receiver of the keys and values of a prompt, for decoding; implemented in engine/generate/kv_cache.py."""

    def store(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> None:
        """Store the keys and values of one layer.

        Args:
            layer: Index of the block.
            k, v: Rotated keys, and values, (B, T, K, D); k in float32, v in the dtype of matmuls.
            positions: Position of each token in its document, (B or 1, T) int64.
        """
        ...


class Context(NamedTuple):
    """Inputs of one forward pass that all blocks share."""

    cos: Tensor  # (B or 1, T, 1, D/2) float32
    sin: Tensor
    positions: Tensor  # (B or 1, T) int64
    mask: Tensor | None = None  # (B, 1, T, T) bool
    cu_seqlens: Tensor | None = None  # (N + 1,) int32
    cache: Cache | None = None
    max_seqlen: int = 0  # upper limit of the length of a document


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that matmuls with `x` (any shape) run in: autocast's dtype if enabled, else `x.dtype`."""
    device_type = x.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else x.dtype


class RMSNorm(nn.Module):
    """Scale vectors to a root mean square of 1, then by a learned weight: x / rms(x) * weight (arXiv:1910.07467).

    Computed in float32 for every input dtype, because squares of half-precision numbers overflow. The output already
    has the dtype of the matmuls that follow; autocast would cast it once for each of them.
    """

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (..., C); the output has the same shape."""
        x_fp32 = x.float()
        normed = x_fp32 * torch.rsqrt(x_fp32.square().mean(-1, keepdim=True) + self.eps) * self.weight
        return normed.to(compute_dtype(x))


def rope_frequencies(config: LLMConfig, device: torch.device) -> Tensor:
    """Return the rotation of each of the D/2 pairs in radians per position: theta^(-2i/D), (D/2,) float32.

    The formula is equation 15 of arXiv:2104.09864. `rope_scaling` adds Llama 3.1's rule: wavelengths shorter than
    original/high_freq_factor are kept, those longer than original/low_freq_factor grow by `factor`, those between are
    interpolated.
    """
    exponent = torch.arange(0, config.head_dim, 2, device=device, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponent
    scaling = config.rope_parameters
    if scaling["rope_type"] == "llama3":
        rotations = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        smooth = ((rotations - low) / (high - low)).clamp(0, 1)  # 1: a short wavelength, which is kept
        frequencies = smooth * frequencies + (1 - smooth) * frequencies / scaling["factor"]
    return frequencies


def rope_cos_sin(config: LLMConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return cos and sin of every angle at `positions` (B or 1, T) int64, each (B or 1, T, 1, D/2) float32.

    They are no buffers of the model, because from_pretrained would not restore them.
    """
    angles = positions.float()[:, :, None, None] * rope_frequencies(config, positions.device)
    return angles.cos(), angles.sin()


def apply_rotary_emb(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x0, x1), (x2, x3), ... of every head.

    Pairs are interleaved, as in Meta's weights. Hugging Face pairs x[i] with x[i + D/2] and needs wq and wk permuted.

    Args:
        x: Queries or keys, (B, T, heads, D).
        cos, sin: From `rope_cos_sin`, (B or 1, T, 1, D/2) float32.
    Returns:
        (B, T, heads, D) float32.
    """
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # (B, T, H, D/2)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def supports_varlen_attention(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Return whether attention over packed documents has a fast path; without one, a mask over whole rows is used.

    On a CPU documents are processed one after the other. CUDA has a kernel (flash attention) for half precision on
    Ampere and newer, if torch was built with it.

    Args:
        device: Device of the model.
        dtype: Dtype of matmuls, see `compute_dtype`.
        head_dim: Size of a head; the kernel raises unless it is a multiple of 8 up to 256.
    """
    if device.type != "cuda":
        return device.type == "cpu"
    fits = dtype in (torch.bfloat16, torch.float16) and head_dim % 8 == 0 and head_dim <= 256
    built = torch.backends.cuda.is_flash_attention_available()
    return fits and built and torch.cuda.get_device_capability(device) >= (8, 0)


def document_ids(cu_seqlens: Tensor, batch_size: int, seq_len: int) -> Tensor:
    """Return the index of the document that each position belongs to.

    Args:
        cu_seqlens: Boundaries of the documents, (N + 1,) int32, see `attention`.
        batch_size, seq_len: B and T.
    Returns:
        (B, T) int64.
    """
    positions = torch.arange(batch_size * seq_len, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    return torch.searchsorted(cu_seqlens, positions, right=True).view(batch_size, seq_len) - 1


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, cu_seqlens: Tensor | None = None, max_seqlen: int = 0
) -> Tensor:
    """Compute causal grouped-query attention, limited by at most one of `mask` and `cu_seqlens`.

    With neither, a row is one document.

    Args:
        q: Queries, (B, T, H, D).
        k, v: Keys and values, (B, S, K, D). q and k may have a wider dtype than v.
        mask: True where a query may attend, (B, 1, T, S) bool.
        cu_seqlens: First position of each packed document in the flattened rows, then B*T, (N + 1,) int32. B*T may
            be repeated, so that the length of the tensor stays the same.
        max_seqlen: Upper limit of the length of a document in tokens (0: T). The CUDA kernel computes longer documents
            wrong, without an error.
    Returns:
        (B, T, H, D) in the dtype of v.
    """
    if cu_seqlens is None:
        return _sdpa(q.type_as(v), k.type_as(v), v, mask)
    if q.is_cuda:
        return _varlen(q.type_as(v), k.type_as(v), v, cu_seqlens, max_seqlen or q.shape[1])
    return _attention_per_document(q, k, v, cu_seqlens)  # pyright: ignore[reportCallIssue]


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    if q.is_cuda and (mask is not None or not supports_varlen_attention(q.device, q.dtype, q.shape[3])):
        # Of CUDA's fused kernels only flash attention shares keys and values between heads, and it takes no mask.
        # Without this line torch would use its math kernel, which stores all (B, H, T, S) scores.
        k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, heads, T, D)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
    return out.transpose(1, 2)


def _varlen(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """Call the CUDA kernel for documents of different lengths, which computes no position outside a document."""
    from torch.nn.attention.varlen import varlen_attn

    shape = q.shape
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    # Causal: an unlimited window to the left. `max_seqlen` sets the size of the kernel's grid, so it should be tight.
    out = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, window_size=(-1, 0), enable_gqa=True)
    return out.view(shape)  # pyright: ignore[reportAttributeAccessIssue]


@torch.compiler.disable  # it would be compiled again for every list of lengths; the code around it is compiled
def _attention_per_document(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Attend to one document after the other: the sum of n^2 over documents instead of (sum of n)^2 of a masked row.

    Computed in float32: torch's bfloat16 kernel for CPUs takes up to three times as long on short documents.
    """
    lengths = cu_seqlens.diff().tolist()
    documents = zip(*(x.float().flatten(0, 1).split(lengths) for x in (q, k, v)), strict=True)
    with torch.autocast("cpu", enabled=False):
        out = [_sdpa(*(x[None] for x in document), mask=None) for document in documents if len(document[0])]
    return torch.cat(out, dim=1).view_as(q).type_as(v)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions: H query heads share K heads of keys and values."""

    def __init__(self, config: LLMConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        kv_dim = config.n_kv_heads * config.head_dim
        self.wq = nn.Linear(config.dim, config.dim, bias=False)
        self.wk = nn.Linear(config.dim, kv_dim, bias=False)
        self.wv = nn.Linear(config.dim, kv_dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Attend within documents, x (B, T, C) -> (B, T, C)."""
        q, k, v = (w(x).unflatten(-1, (-1, self.head_dim)) for w in (self.wq, self.wk, self.wv))  # (B, T, heads, D)
        q = apply_rotary_emb(q, context.cos, context.sin)
        k = apply_rotary_emb(k, context.cos, context.sin)
        if context.cache is not None:
            context.cache.store(self.layer, k, v, context.positions)
        out = attention(q, k, v, context.mask, context.cu_seqlens, context.max_seqlen)  # (B, T, H, D)
        return self.wo(out.flatten(2))


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x) (arXiv:2002.05202)."""

    def __init__(self, config: LLMConfig):
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.w2 = nn.Linear(config.hidden_dim, config.dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform every position alone, x (..., C) -> (..., C)."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """Pre-norm residual block: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: LLMConfig, layer: int):
        super().__init__()
        self.attention = Attention(config, layer)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        for projection in (self.attention.wo, self.feed_forward.w2):
            projection.init_scale = 1 / math.sqrt(2 * config.n_layers)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Add attention and feed-forward to the residual stream, x (B, T, C) -> (B, T, C)."""
        x = x + self.dropout(self.attention(self.attention_norm(x), context))
        return x + self.dropout(self.feed_forward(self.ffn_norm(x)))


class SpongeBob(PreTrainedModel):
    """The decoder with its embedding and output matrix.

    `model(ids).logits` has the logits of all positions. Training calls `hidden_states`; engine/loss.py computes logits
    for the positions that have a loss alone.
    """

    config: LLMConfig
    config_class = LLMConfig
    _tied_weights_keys = {"output.weight": "tok_embeddings.weight"}
    _no_split_modules = ["Block"]

    def __init__(self, config: LLMConfig):
        super().__init__(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.num_known_tokens = config.vocab_size  # the tokenizer's; higher ids have no text and are never sampled
        self.recompute = False  # activation checkpointing: store only the input of each block for the backward pass
        self.post_init()  # initializes the weights and ties the output matrix to the embedding

    def _init_weights(self, module: nn.Module) -> None:
        """Initialize with N(0, 0.02), scaled by 1/sqrt(2 n_layers) where the output enters the residual stream.

        This is GPT-2's rule: the sum of 2 n_layers such contributions has the variance of a single unscaled one.
        """
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02 * getattr(module, "init_scale", 1.0))
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the embedding, for transformers."""
        return self.tok_embeddings

    def get_output_embeddings(self) -> nn.Linear:
        """Return the output matrix, which transformers ties to the embedding."""
        return self.output

    def hidden_states(self, input_ids: Tensor, cu_seqlens: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Compute the normalized residual stream before the output matrix.

        Args:
            input_ids: Token ids, (B, T) int64.
            cu_seqlens: Boundaries of packed documents, (N + 1,) int32, see `attention`. No document may be longer than
                config.max_seq_len.
            cache: Receives keys and values, so that engine/generate/fast_decoder.py can continue the rows.
        Returns:
            (B, T, C) in the dtype of matmuls.
        """
        x = self.tok_embeddings(input_ids)  # (B, T, C)
        context = self._context(x, cu_seqlens, cache)
        for layer in self.layers:
            x = checkpoint(layer, x, context, use_reentrant=False) if self.recompute else layer(x, context)
        return self.norm(x)

    def _context(self, x: Tensor, cu_seqlens: Tensor | None, cache: Cache | None) -> Context:
        """Compute the position of each token of x (B, T, C), and what limits its attention."""
        batch_size, seq_len = x.shape[:2]
        mask = None
        if cu_seqlens is None:
            positions = torch.arange(seq_len, device=x.device)[None]  # (1, T)
        else:  # packed documents: each counts its own positions
            document = document_ids(cu_seqlens, batch_size, seq_len)
            starts = cu_seqlens[document]
            positions = torch.arange(batch_size * seq_len, device=x.device).view(batch_size, seq_len) - starts
            if not supports_varlen_attention(x.device, compute_dtype(x), self.config.head_dim):
                mask = (document[:, None, :, None] == document[:, None, None, :]).tril()  # (B, 1, T, T)
                cu_seqlens = None
        max_seqlen = min(seq_len, self.config.max_seq_len)
        return Context(*rope_cos_sin(self.config, positions), positions, mask, cu_seqlens, cache, max_seqlen)

    def forward(
        self, input_ids: Tensor, cu_seqlens: Tensor | None = None, cache: Cache | None = None
    ) -> CausalLMOutputWithPast:
        """Compute the logits of the token after each position.

        Args:
            input_ids: Token ids, (B, T) int64.
            cu_seqlens: See `hidden_states`.
            cache: See `hidden_states`.
        Returns:
            An object whose `logits` are (B, T, V).
        """
        return CausalLMOutputWithPast(logits=self.output(self.hidden_states(input_ids, cu_seqlens, cache)))


def check_parameters_known(names: Iterable[str], known: Iterable[str], program: str) -> None:
    """Refuse a model with a parameter that another implementation of its forward pass would leave out.

    A parameter that is added to this file has to be added to the fast decoder and to the exports, too.

    Args:
        names: Names of the model's parameters.
        known: Names of those that the implementation computes with.
        program: The implementation, for the message.
    Raises:
        ValueError: Some of `names` are not `known`; blocks are not told apart (layers.N).
    """
    names, known = ({re.sub(r"^layers\.\d+\.", "layers.N.", name) for name in group} for group in (names, known))
    if unknown := ", ".join(sorted(names - known)):
        raise ValueError(f"{program} does not compute {unknown}; add it there, or take it out of the model")


AutoConfig.register("spongebob", LLMConfig, exist_ok=True)
AutoModelForCausalLM.register(LLMConfig, SpongeBob, exist_ok=True)
