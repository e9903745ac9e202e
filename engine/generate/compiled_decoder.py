"""Compile the decoder's step (--compile), with matmuls and attention that torch.compile can fuse.

An eager step works in place and through few large operations; half of its time is still outside of matmuls. Here matmul
and attention are written out without in-place writes and oneDNN calls, and torch.compile fuses what is between the
matmuls. For one row a matmul is a sum like the others, and the whole step becomes a single function. The layers are
walked by Decoder._hidden in both.

Shapes: B rows, C dim, H query heads, K key-value heads, D head dim, L layers, S visible positions of the cache
"""

import gc
from collections.abc import Callable, Sequence
from types import FunctionType, MethodType

import torch
from torch import Tensor

from engine.generate.fast_decoder import Decoder, LinearWeight
from engine.generate.kv_cache import KVCache
from engine.machine.parallel import use_inductor_cache_per_cpu
from model import SpongeBob, apply_rotary_emb, rope_cos_sin

OPTIONS = {
    # Only the number of rows and positions ever changes, and both are dynamic: checking every weight again would take
    # 0.2 ms a step.
    "guard_filter_fn": lambda guards: [False] * len(guards),
    "size_asserts": False,  # in compiled code: 0.05 ms a step of the demo's shape
    "compile_threads": 1,  # more would stay as processes while the server runs
    "cpp.enable_floating_point_contract_flag": "fast",  # fused multiply-add, rounded once
}


def materialize(x: Tensor) -> Tensor:
    """Make the compiler store x (any shape), instead of computing it again for every row of the next matrix."""
    return x.as_strided(x.shape, x.stride())  # a view, which needs a stored tensor


def matmul(matrix: LinearWeight, x: Tensor) -> Tensor:
    """Multiply x (B, I) float32 by a matrix (O, I) -> (B, O) float32."""
    x = materialize(x)
    return matrix.dot(x[0])[None] if len(x) == 1 else matrix(x).float()


class CompiledDecoder(Decoder):
    """A Decoder on a CPU that compiles its steps when it is made.

    Several rows of a model with large matrices are computed by the Decoder's own step: torch.compile cannot fuse the
    matmuls of oneDNN.
    """

    def __init__(self, model: SpongeBob, weight_dtype: str | None = None):
        super().__init__(model, weight_dtype)
        use_inductor_cache_per_cpu()
        self.step_single = self._compile(rows=1)
        layer = self.layers[0]
        uses_onednn = any(matrix.uses_onednn for matrix in (layer.wqkv, layer.wo, layer.w13, layer.w2))
        self.step_batch = None if uses_onednn else self._compile(rows=16)
        # Freeze the compiler's objects: garbage collection would traverse them in the middle of an answer (0.26 s).
        # Collect models that are no longer used first; frozen, they would stay in memory.
        gc.unfreeze()
        gc.collect()
        gc.freeze()

    def _compile(self, rows: int) -> Callable[[Tensor, Tensor, Sequence[Tensor]], tuple[Tensor, Tensor]]:
        """Compile `_step` by a typical call: its sizes decide what is split among cores."""
        # Dynamo finds compiled code by the code object of a function, and without guards one model would use another
        # model's code: so each has a code object of its own. Copy OPTIONS, because torch.compile removes entries.
        function = FunctionType(CompiledDecoder._step.__code__.replace(), CompiledDecoder._step.__globals__)
        method = MethodType(function, self)
        step = torch.compile(method, fullgraph=True, dynamic=False, options={**OPTIONS})  # pyright: ignore
        # Use distinct example sizes: torch.compile would specialize on equal ones. The cache also has one unused
        # position, for the same reason.
        kv_cache = KVCache(self.config, rows, 128, self.model.device, self.model.dtype).kv[:, :, :127].unbind()
        ids, positions = torch.zeros(rows, dtype=torch.int64), torch.full((rows,), 100)
        if rows > 1:
            for tensor in (ids, positions, *kv_cache):
                torch._dynamo.mark_dynamic(tensor, 0)
        for layer in kv_cache:
            torch._dynamo.mark_dynamic(layer, 1)
        with torch.inference_mode():
            step(ids, positions, kv_cache)
        return step

    def __call__(self, ids: Tensor, positions: Tensor, cache: KVCache) -> Tensor:
        """Compute the logits of the next tokens, (B, V) float32, as Decoder does.

        Args:
            ids: Newest token of each of the cache's first B rows, (B,) int64.
            positions: Their positions in their rows, (B,) int64.
            cache: Keys and values of the tokens before.
        """
        rows = len(ids)
        kv_cache = cache.kv[:, :rows, : cache.length].unbind()
        if rows == 1:
            logits, kv = self.step_single(ids, positions, kv_cache)
        elif self.step_batch:
            x, kv = self.step_batch(ids.contiguous(), positions.contiguous(), kv_cache)
            logits = self.output(x).float()
        else:
            return super().__call__(ids, positions, cache)
        cache.kv.flatten(1, 2).index_copy_(1, cache.flat_positions(positions), kv)
        return logits

    def _step(self, ids: Tensor, positions: Tensor, kv_cache: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Compute a step without writing to the cache.

        Args:
            ids: Newest token of each row, (B,) int64.
            positions: Their positions, (B,) int64.
            kv_cache: Keys and values of each layer, (B, S, 2, K, D), with unused positions for the new ones.
        Returns:
            For one row its logits (1, V), for more the input of the output matrix (B, C); and the keys and values of
            `ids`, (L, B, 2, K, D).
        """
        # Names of arguments decide the order of torch's symbols, and so what is fused: with `past`,
        # `past_kv` or `cached_kv` a loop of its own converts the input of every matmul of several rows to bfloat16.
        config, rows = self.config, len(ids)
        heads, kv_heads = config.n_heads, config.n_kv_heads
        new_kv = []
        cache_positions = torch.arange(kv_cache[0].shape[1])
        is_new = (cache_positions == positions[:, None])[..., None, None]  # (B, S, 1, 1)
        is_future = (cache_positions > positions[:, None])[..., None, None]
        cos, sin = (materialize(table) for table in rope_cos_sin(config, positions[:, None]))

        def attend(layer: int, qkv: Tensor) -> Tensor:
            qkv = qkv.view(rows, 1, -1, config.head_dim)
            qk = materialize(apply_rotary_emb(qkv[:, :, : heads + kv_heads], cos, sin))[:, 0]
            q, k = qk.split([heads, kv_heads], dim=1)
            kv = materialize(torch.stack([k, qkv[:, 0, heads + kv_heads :]], dim=1))  # (B, 2, K, D)
            new_kv.append(kv)
            past = kv_cache[layer]
            k, v = (torch.where(is_new, kv[:, None, part], past[:, :, part]) for part in (0, 1))  # (B, S, K, D)
            q = materialize(q * config.head_dim**-0.5).view(rows, 1, kv_heads, -1, config.head_dim)  # (B, 1, K, H/K, D)
            scores = (q * k[:, :, :, None]).sum(-1).masked_fill(is_future, -torch.inf)  # (B, S, K, H/K)
            return (scores.softmax(1)[..., None] * v[:, :, :, None]).sum(1).view(rows, -1)  # (B, C)

        x = self._hidden(ids, attend, matmul)
        return (matmul(self.output, x) if rows == 1 else x), torch.stack(new_kv)
