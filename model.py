"""The decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU, all by hand. No file access, no sampling.

Weights carry Meta's names, so published LLaMA-style .pth files load by name.

Shapes: B rows, T positions of a row, C dim, H query heads, K key-value heads, D head_dim, V vocabulary,
        S positions of the cache, N documents of a batch of packed rows
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
    """What keeps keys and values for the tokens to come; engine/generate/kv_cache.py owns the real one."""

    def store(self, layer: int, k: Tensor, v: Tensor, positions: Tensor) -> None:
        """Keep k and v (B, T, K, D), which stand at `positions` (B or 1, T)."""
        ...


class Context(NamedTuple):
    """What every layer of one forward pass shares."""

    cos: Tensor
    sin: Tensor
    positions: Tensor  # (B or 1, T)
    mask: Tensor | None = None  # (B, 1, T, T)
    cu_seqlens: Tensor | None = None  # (N + 1,)
    cache: Cache | None = None
    max_seqlen: int = 0  # no document of cu_seqlens has more positions


def compute_dtype(x: Tensor) -> torch.dtype:
    """What a matrix product with x is computed in: autocast's choice where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class RMSNorm(nn.Module):
    """x / rms(x) * weight (arXiv:1910.07467), in fp32 whatever comes in: squares of half-precision numbers overflow.

    The result already has the dtype of the matrix products that follow; autocast would cast it once for each of them.
    """

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * self.weight
        return normed.to(compute_dtype(x))


def rope_frequencies(config: LLMConfig, device: torch.device) -> Tensor:
    """Radians a position turns each of the D/2 pairs by: theta^(-2i/D) (arXiv:2104.09864, equation 15).

    With `rope_scaling`, Llama 3.1's rule: wavelengths shorter than original/high_freq_factor stay, those longer than
    original/low_freq_factor grow by `factor`, those between are interpolated.
    """
    exponent = torch.arange(0, config.head_dim, 2, device=device, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponent
    scaling = config.rope_parameters
    if scaling["rope_type"] == "llama3":
        turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        kept = ((turns - low) / (high - low)).clamp(0, 1)  # 1: the wavelength is short, keep it
        frequencies = kept * frequencies + (1 - kept) * frequencies / scaling["factor"]
    return frequencies


def rope_cos_sin(config: LLMConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of every angle, (B or 1, T, 1, D/2). Not stored: a buffer would not survive from_pretrained."""
    angles = positions.float()[:, :, None, None] * rope_frequencies(config, positions.device)
    return angles.cos(), angles.sin()


def apply_rotary_emb(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x0, x1), (x2, x3), ... of every head; x (B, T, H, D), the result in fp32.

    Pairs lie side by side, as in Meta's weights; Hugging Face pairs x[i] with x[i + D/2] and needs wq, wk permuted.
    """
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # (B, T, H, D/2)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def supports_varlen_attention(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether this device has a fast path for packed documents; elsewhere a mask over whole rows is used.

    The CPU attends to one after the other. CUDA has a kernel (flash attention) for half precision from Ampere on, if
    torch was built with it, for heads of a multiple of 8 up to 256: others make it raise.
    """
    if device.type != "cuda":
        return device.type == "cpu"
    fits = dtype in (torch.bfloat16, torch.float16) and head_dim % 8 == 0 and head_dim <= 256
    built = torch.backends.cuda.is_flash_attention_available()
    return fits and built and torch.cuda.get_device_capability(device) >= (8, 0)


def document_ids(cu_seqlens: Tensor, rows: int, length: int) -> Tensor:
    """(B, T) int64: the number of the document (see `attention`) that each position belongs to."""
    positions = torch.arange(rows * length, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    return torch.searchsorted(cu_seqlens, positions, right=True).view(rows, length) - 1


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, cu_seqlens: Tensor | None = None, max_seqlen: int = 0
) -> Tensor:
    """Grouped-query attention, q (B, T, H, D), k and v (B, S, K, D) -> (B, T, H, D).

    Causal, limited by at most one of: `mask` (B, 1, T, S), True where a query may look; `cu_seqlens` (N + 1,) int32,
    the first positions of the packed documents in the flattened rows, then B*T (any number of times). With neither, a
    row is one document. No document may have more than `max_seqlen` positions (0: than a row): a longer one would
    come out wrong on CUDA, without an error. The result has v's dtype; q and k may be wider.
    """
    if cu_seqlens is None:
        return _sdpa(q.type_as(v), k.type_as(v), v, mask)
    if q.is_cuda:
        return _varlen(q.type_as(v), k.type_as(v), v, cu_seqlens, max_seqlen or q.shape[1])
    return _attention_per_document(q, k, v, cu_seqlens)  # pyright: ignore[reportCallIssue]


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    if q.is_cuda and (mask is not None or not supports_varlen_attention(q.device, q.dtype, q.shape[3])):
        # Of CUDA's fused kernels only flash shares keys and values between heads, and it takes no mask. The one that is
        # left otherwise keeps all (B, H, T, S) scores.
        k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, heads, T, D)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
    return out.transpose(1, 2)


def _varlen(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """The CUDA kernel for documents of different lengths: no position outside a document is computed."""
    from torch.nn.attention.varlen import varlen_attn

    shape = q.shape
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    # Causal is a window of everything to the left. `max_seqlen` sizes the kernel's grid, so it should be tight.
    out = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, window_size=(-1, 0), enable_gqa=True)
    return out.view(shape)  # pyright: ignore[reportAttributeAccessIssue]


@torch.compiler.disable  # it would be compiled anew for every list of lengths; the parts around it are compiled
def _attention_per_document(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
    """One call for each document. Cost: the sum of n^2 over documents, instead of (sum of n)^2 for a masked row.

    In fp32: torch's bf16 kernel for CPUs takes up to three times as long on short documents.
    """
    lengths = cu_seqlens.diff().tolist()
    parts = zip(*(x.float().flatten(0, 1).split(lengths) for x in (q, k, v)), strict=True)
    with torch.autocast("cpu", enabled=False):
        out = [_sdpa(*(x[None] for x in part), mask=None) for part in parts if len(part[0])]
    return torch.cat(out, dim=1).view_as(q).type_as(v)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions: n_heads queries share n_kv_heads keys and values."""

    def __init__(self, config: LLMConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        kv_dim = config.n_kv_heads * config.head_dim
        self.wq = nn.Linear(config.dim, config.dim, bias=False)
        self.wk = nn.Linear(config.dim, kv_dim, bias=False)
        self.wv = nn.Linear(config.dim, kv_dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        q, k, v = (w(x).unflatten(-1, (-1, self.head_dim)) for w in (self.wq, self.wk, self.wv))  # (B, T, heads, D)
        q, k = apply_rotary_emb(q, context.cos, context.sin), apply_rotary_emb(k, context.cos, context.sin)
        if context.cache is not None:
            context.cache.store(self.layer, k, v, context.positions)
        return self.wo(attention(q, k, v, context.mask, context.cu_seqlens, context.max_seqlen).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x) (arXiv:2002.05202)."""

    def __init__(self, config: LLMConfig):
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.w2 = nn.Linear(config.hidden_dim, config.dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
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
        for added in (self.attention.wo, self.feed_forward.w2):
            added.init_scale = 1 / math.sqrt(2 * config.n_layers)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor, context: Context) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), context))
        return x + self.dropout(self.feed_forward(self.ffn_norm(x)))


class SpongeBob(PreTrainedModel):
    """The whole decoder. `model(ids).logits` for everybody; training takes `hidden_states` and its own head."""

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
        self.num_known_tokens = (
            config.vocab_size
        )  # the tokenizer's: ids from here on have no text and are never sampled
        self.recompute = False  # keep only the blocks' inputs for backward (activation checkpointing)
        self.post_init()  # initialises and ties the output to the embedding

    def _init_weights(self, module: nn.Module) -> None:
        """N(0, 0.02), and what is added to the residual stream scaled by 1/sqrt(2 n_layers) (GPT-2's rule).

        The sum of 2 n_layers such contributions then starts with the size of one.
        """
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02 * getattr(module, "init_scale", 1.0))
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.tok_embeddings

    def get_output_embeddings(self) -> nn.Linear:
        return self.output

    def hidden_states(self, input_ids: Tensor, cu_seqlens: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """The normalised residual stream before the output matrix, input_ids (B, T) -> (B, T, C).

        `cu_seqlens` (N + 1,) int32: see `attention`; no document may be longer than config.max_seq_len. `cache` keeps
        the keys and values, for a decoder that goes on from here (engine/generate/fast_decoder.py).
        """
        x = self.tok_embeddings(input_ids)  # (B, T, C)
        context = self._context(x, cu_seqlens, cache)
        for layer in self.layers:
            x = checkpoint(layer, x, context, use_reentrant=False) if self.recompute else layer(x, context)
        return self.norm(x)

    def _context(self, x: Tensor, cu_seqlens: Tensor | None, cache: Cache | None) -> Context:
        """Where each token of x (B, T, C) stands and what it may look at."""
        rows, length, mask = x.shape[0], x.shape[1], None
        if cu_seqlens is not None:  # packed documents: each counts its own positions
            document = document_ids(cu_seqlens, rows, length)
            positions = torch.arange(rows * length, device=x.device).view(rows, length) - cu_seqlens[document]
            if not supports_varlen_attention(x.device, compute_dtype(x), self.config.head_dim):
                mask = (document[:, None, :, None] == document[:, None, None, :]).tril()  # (B, 1, T, T)
                cu_seqlens = None
        else:  # whole rows
            positions = torch.arange(length, device=x.device)[None]  # (1, T)
        max_seqlen = min(length, self.config.max_seq_len)
        return Context(*rope_cos_sin(self.config, positions), positions, mask, cu_seqlens, cache, max_seqlen)

    def forward(
        self, input_ids: Tensor, cu_seqlens: Tensor | None = None, cache: Cache | None = None
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, V) of the token after each position; the arguments are those of `hidden_states`."""
        return CausalLMOutputWithPast(logits=self.output(self.hidden_states(input_ids, cu_seqlens, cache)))


def check_parameters_known(names: Iterable[str], known: Iterable[str], program: str) -> None:
    """Refuse a model with a part that another program for the same model does not compute.

    Whoever adds a parameter to a block has to add it to these programs, too: without this check they would leave it
    out in silence.

    Args:
        names: Names of the model's parameters.
        known: Names of those that the program computes with.
        program: File or format that computes, for the message.
    Raises:
        ValueError: Some of `names` are not `known`; blocks are not told apart (layers.N).
    """
    if unknown := set(names) - set(known):
        listed = sorted({re.sub(r"^layers\.\d+\.", "layers.N.", name) for name in unknown})
        raise ValueError(f"{program} does not compute {', '.join(listed)}; add it there, or take it out of the model")


AutoConfig.register("spongebob", LLMConfig, exist_ok=True)
AutoModelForCausalLM.register(LLMConfig, SpongeBob, exist_ok=True)
