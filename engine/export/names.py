"""Tensor names of one model in three conventions: ours (Meta's), Hugging Face's and llama.cpp's."""

import re
from collections.abc import Mapping

NAMES = {  # ours: (Hugging Face's, llama.cpp's); N is the number of a block
    "tok_embeddings.weight": ("model.embed_tokens.weight", "token_embd.weight"),
    "layers.N.attention_norm.weight": ("model.layers.N.input_layernorm.weight", "blk.N.attn_norm.weight"),
    "layers.N.attention.wq.weight": ("model.layers.N.self_attn.q_proj.weight", "blk.N.attn_q.weight"),
    "layers.N.attention.wk.weight": ("model.layers.N.self_attn.k_proj.weight", "blk.N.attn_k.weight"),
    "layers.N.attention.wv.weight": ("model.layers.N.self_attn.v_proj.weight", "blk.N.attn_v.weight"),
    "layers.N.attention.wo.weight": ("model.layers.N.self_attn.o_proj.weight", "blk.N.attn_output.weight"),
    "layers.N.ffn_norm.weight": ("model.layers.N.post_attention_layernorm.weight", "blk.N.ffn_norm.weight"),
    "layers.N.feed_forward.w1.weight": ("model.layers.N.mlp.gate_proj.weight", "blk.N.ffn_gate.weight"),
    "layers.N.feed_forward.w2.weight": ("model.layers.N.mlp.down_proj.weight", "blk.N.ffn_down.weight"),
    "layers.N.feed_forward.w3.weight": ("model.layers.N.mlp.up_proj.weight", "blk.N.ffn_up.weight"),
    "norm.weight": ("model.norm.weight", "output_norm.weight"),
    "output.weight": ("lm_head.weight", "output.weight"),
}
TO_HF = {name: hf for name, (hf, _) in NAMES.items()}
TO_GGUF = {name: gguf for name, (_, gguf) in NAMES.items()}
FROM_HF = {hf.removeprefix("model."): name for name, hf in TO_HF.items()}  # some files have the inner model alone


def translate(name: str, table: Mapping[str, str]) -> str:
    """Look a tensor name up in one of the tables above; a name that is not there keeps its spelling."""
    layer = re.match(r"layers\.(\d+)\.", name)
    if layer is None:
        return table.get(name, name)
    pattern = f"layers.N.{name[layer.end() :]}"
    return table.get(pattern, pattern).replace(".N.", f".{layer[1]}.")
