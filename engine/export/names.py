"""Tensor names of one model in three conventions: ours (Meta's), Hugging Face's and llama.cpp's."""

from engine.checkpoint.weights import split_layer

# Names inside a block are without its prefix: layers.N. (ours), model.layers.N. (Hugging Face), blk.N. (llama.cpp).
NAMES = {  # ours: (Hugging Face's, llama.cpp's)
    "tok_embeddings.weight": ("embed_tokens.weight", "token_embd.weight"),
    "attention_norm.weight": ("input_layernorm.weight", "attn_norm.weight"),
    "attention.wq.weight": ("self_attn.q_proj.weight", "attn_q.weight"),
    "attention.wk.weight": ("self_attn.k_proj.weight", "attn_k.weight"),
    "attention.wv.weight": ("self_attn.v_proj.weight", "attn_v.weight"),
    "attention.wo.weight": ("self_attn.o_proj.weight", "attn_output.weight"),
    "ffn_norm.weight": ("post_attention_layernorm.weight", "ffn_norm.weight"),
    "feed_forward.w1.weight": ("mlp.gate_proj.weight", "ffn_gate.weight"),
    "feed_forward.w2.weight": ("mlp.down_proj.weight", "ffn_down.weight"),
    "feed_forward.w3.weight": ("mlp.up_proj.weight", "ffn_up.weight"),
    "norm.weight": ("norm.weight", "output_norm.weight"),
    "output.weight": ("lm_head.weight", "output.weight"),
}
FROM_HF = {hf: name for name, (hf, _) in NAMES.items()}


def hf_name(name: str) -> str:
    """Return Hugging Face's name: layers.0.attention.wq.weight -> model.layers.0.self_attn.q_proj.weight."""
    layer, part = split_layer(name)
    return NAMES[part][0] if part == "output.weight" else f"model.{layer}{NAMES[part][0]}"


def name_from_hf(name: str) -> str:
    """Return our name of one of Hugging Face's; an unknown name keeps its spelling, and loading refuses it."""
    layer, part = split_layer(name.removeprefix("model."))
    return layer + FROM_HF.get(part, part)


def gguf_name(name: str) -> str:
    """Return llama.cpp's name: layers.0.attention.wq.weight -> blk.0.attn_q.weight."""
    layer, part = split_layer(name)
    return layer.replace("layers", "blk") + NAMES[part][1]
