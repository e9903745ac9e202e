"""A step as one function of machine code (--compile): the mathematics of decoder.py, written for a compiler.

Started operation by operation, a step spends half of its time between the products. Here torch.compile joins what
stands between them; for one row, whose product with a matrix is a sum like others, the whole step is a single function.

Shapes: B rows, C dim, H query heads, K key-value heads, D head dim, L layers, S positions that are looked at
"""

import gc
from collections.abc import Callable, Sequence
from types import FunctionType, MethodType

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.generate.fast_decoder import Cache, Decoder, LinearWeight
from engine.generate.kv_cache import KVCache
from engine.machine.parallel import use_inductor_cache_per_cpu
from model import SpongeBob, apply_rotary_emb, rope_cos_sin

OPTIONS = {
    # Of all that the function reads, only the number of rows and positions ever changes, and it may: to look at each
    # weight again would take 0.2 ms a step.
    "guard_filter_fn": lambda guards: [False] * len(guards),
    "size_asserts": False,  # of what is compiled: 0.05 ms a step of the demo's shape
    "compile_threads": 1,  # others would stay, as processes, while the server runs
    "cpp.enable_floating_point_contract_flag": "fast",  # a product and its sum in one instruction, rounded once
}


def materialize(x: Tensor) -> Tensor:
    """x, stored. Without it the compiler computes it anew for every row of the matrix that it is multiplied by."""
    return x.as_strided(x.shape, x.stride())  # a view, and only what is stored can have one


def matmul(matrix: LinearWeight, x: Tensor) -> Tensor:
    """x (B, columns) -> (B, rows) in fp32."""
    x = materialize(x)
    return matrix.dot(x[0])[None] if len(x) == 1 else matrix(x).float()


class CompiledDecoder(Decoder):
    """A Decoder on a CPU whose steps were compiled when it was made.

    Several rows of a model with large matrices are read as a Decoder reads them: the compiler cannot look into oneDNN's
    layouts.
    """

    def __init__(self, model: SpongeBob, kind: str | None = None):
        super().__init__(model, kind)
        use_inductor_cache_per_cpu()
        matrices = [part for layer in self.layers for part in (layer.wqkv, layer.wo, layer.w13, layer.w2)]
        joins_rows = not any(matrix.uses_onednn for matrix in matrices)
        self.step_single, self.step_batch = self._compiled(rows=1), self._compiled(rows=16) if joins_rows else None
        # Or Python would look through all that the compiler made in the middle of an answer: 0.26 s. Before that the
        # models that nobody needs any more are let go, which would stay for ever.
        gc.unfreeze()
        gc.collect()
        gc.freeze()

    def _compiled(self, rows: int) -> Callable[[Tensor, Tensor, Sequence[Tensor]], tuple[Tensor, Tensor]]:
        """`_step`, compiled by a typical call: by its sizes is decided what is shared among cores."""
        # Compiled code is found by the code object of a function, and without guards nothing would notice another
        # model's: so each has an object of its own. Options, too: torch.compile takes things out of them.
        own = FunctionType(CompiledDecoder._step.__code__.replace(), CompiledDecoder._step.__globals__)
        step = torch.compile(MethodType(own, self), fullgraph=True, dynamic=False, options={**OPTIONS})  # pyright: ignore
        # All sizes differ: what is equal here would be taken to be equal always. A place more than is looked at, too.
        kept = KVCache(self.config, rows, 128, self.model.device, self.model.dtype).kv[:, :, :127].unbind()
        ids, positions = torch.zeros(rows, dtype=torch.int64), torch.full((rows,), 100)
        for part in (ids, positions, *kept) if rows > 1 else ():
            torch._dynamo.mark_dynamic(part, 0)
        for layer in kept:
            torch._dynamo.mark_dynamic(layer, 1)
        with torch.inference_mode():
            step(ids, positions, kept)
        return step

    def __call__(self, ids: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        rows = len(ids)
        kept = cache.kv[:, :rows, : cache.length].unbind()
        if rows == 1:
            logits, kv = self.step_single(ids, positions, kept)
        elif self.step_batch:
            x, kv = self.step_batch(ids.contiguous(), positions.contiguous(), kept)
            logits = self.output(x).float()
        else:
            return super().__call__(ids, positions, cache)
        cache.kv.flatten(1, 2).index_copy_(1, cache.flat_positions(positions), kv)
        return logits

    def _step(self, ids: Tensor, positions: Tensor, kept: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """For one row its logits (1, V), for more what the output matrix is multiplied by (B, C).

        Also the keys and values of `ids` (B,), which stand at `positions` (B,): (L, B, 2, K, D). `kept`: those of each
        layer (B, S, 2, K, D), with room for these.
        """
        config, stored = self.config, []
        heads, shared, rows = config.n_heads, config.n_kv_heads, len(ids)
        places = torch.arange(kept[0].shape[1])
        new = (places == positions[:, None])[..., None, None]  # (B, S, 1, 1)
        is_future = (places > positions[:, None])[..., None, None]
        cos, sin = (materialize(table) for table in rope_cos_sin(config, positions[:, None]))
        x = F.embedding(ids, self.model.tok_embeddings.weight).float()  # (B, C)
        for layer, past in zip(self.layers, kept, strict=True):
            qkv = matmul(layer.wqkv, self._normed(x, layer.attention_norm)).view(rows, 1, -1, config.head_dim)
            q, k = materialize(apply_rotary_emb(qkv[:, :, : heads + shared], cos, sin))[:, 0].split(
                [heads, shared], dim=1
            )
            kv = materialize(torch.stack([k, qkv[:, 0, heads + shared :]], dim=1))  # (B, 2, K, D)
            k, v = (torch.where(new, kv[:, None, part], past[:, :, part]) for part in (0, 1))  # (B, S, K, D)
            q = materialize(q * config.head_dim**-0.5).view(rows, 1, shared, -1, config.head_dim)  # (B, 1, K, H/K, D)
            scores = (q * k[:, :, :, None]).sum(-1).masked_fill(is_future, -torch.inf)  # (B, S, K, H/K)
            attn_out = (scores.softmax(1)[..., None] * v[:, :, :, None]).sum(1)  # (B, K, H/K, D)
            x = x + matmul(layer.wo, attn_out.view(rows, -1))
            gate, up = matmul(layer.w13, self._normed(x, layer.ffn_norm)).chunk(2, dim=-1)
            x = x + matmul(layer.w2, F.silu(gate) * up)
            stored.append(kv)
        x = self._normed(x, self.norm)
        return (matmul(self.output, x) if rows == 1 else x), torch.stack(stored)
