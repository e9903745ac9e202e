"""The step of a single answer as one function of machine code: the mathematics of decoder.py, written for a compiler.

Started operation by operation, a step of one row spends half of its time between the products. Here a product is a sum,
which torch.compile joins with what stands around it.

Shapes: C dim, H query heads, K key-value heads, D head dim, L layers, S positions that are looked at, V vocabulary
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.generate.decoder import Cache, Decoder
from engine.generate.kv_cache import KVCache
from engine.machine.parallel import keep_compiled_code_by_cpu
from model import SpongeBob, rope_table, rotate

OPTIONS = {
    # Of all that the function reads, only the number of positions ever changes: to look at each weight again takes
    # 0.2 ms a step.
    "guard_filter_fn": lambda guards: [False] * len(guards),
    "cpp.enable_floating_point_contract_flag": "fast",  # a product and its sum in one instruction, rounded once
}


def once(x: Tensor) -> Tensor:
    """x, stored. Without it the compiler computes it anew for every row of the matrix that it is multiplied by."""
    return x.as_strided(x.shape, x.stride())  # a view, and only what is stored can have one


class Compiled(Decoder):
    """A Decoder on a CPU that has compiled the step of one row; several rows are read as it reads them."""

    def __init__(self, model: SpongeBob, kind: str | None = None):
        super().__init__(model, kind)
        keep_compiled_code_by_cpu()
        self._compiled = torch.compile(
            self._one_row,
            fullgraph=True,
            dynamic=False,
            isolate_recompiles=True,
            options=OPTIONS,  # pyright: ignore
        )
        empty = KVCache(self.config, 1, self.config.max_seq_len, model.device, model.dtype)
        empty.length = 2
        with torch.inference_mode():
            self(torch.tensor([0]), torch.tensor([1]), empty)

    def __call__(self, ids: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        if len(ids) > 1:
            return super().__call__(ids, positions, cache)
        kept = cache.kv[:, 0, : cache.length]
        layers = kept.unbind()
        for layer in layers:
            torch._dynamo.mark_dynamic(layer, 0)
        logits, kv = self._compiled(ids, positions, layers)
        kept[:, -1] = kv
        return logits

    def _one_row(self, ids: Tensor, positions: Tensor, kept: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (1, V) after the token `ids` (1,), which stands at the last of S `positions` (1,).

        Also its keys and values (L, 2, K, D), for which each layer's `kept` (S, 2, K, D) has room at its end.
        """
        config, stored = self.config, []
        heads, shared = config.n_heads, config.n_kv_heads
        cos, sin = (once(table) for table in rope_table(config, positions[None]))
        new = (torch.arange(len(kept[0])) == positions)[:, None, None]  # (S, 1, 1)
        x = F.embedding(ids, self.model.tok_embeddings.weight)[0].float()  # (C,)
        for layer, past in zip(self.layers, kept, strict=True):
            qkv = layer.wqkv.dot(once(self._normed(x, layer.attention_norm))).view(1, 1, -1, config.head_dim)
            q, k = once(rotate(qkv[:, :, : heads + shared], cos, sin))[0, 0].split([heads, shared])  # (H, D), (K, D)
            kv = once(torch.stack([k, qkv[0, 0, heads + shared :]]))
            k, v = (torch.where(new, kv[part], past[:, part]) for part in (0, 1))  # (S, K, D)
            q = once(q * config.head_dim**-0.5).view(shared, -1, config.head_dim)  # (K, H/K, D)
            seen = (q * k[:, :, None]).sum(-1).softmax(0)  # (S, K, H/K): how much each position counts
            x = x + layer.wo.dot(once((seen[..., None] * v[:, :, None]).sum(0).flatten()))
            gate, up = layer.w13.dot(once(self._normed(x, layer.ffn_norm))).chunk(2)
            x = x + layer.w2.dot(once(F.silu(gate) * up))
            stored.append(kv)
        return self.output.dot(once(self._normed(x, self.norm)))[None], torch.stack(stored)
