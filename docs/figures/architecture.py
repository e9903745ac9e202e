"""Draw the decoder: every part of model.py, and the shape of what goes from one to the next."""

from draw import BLUE, GREEN, ORANGE, arrow, box, picture, text

from Config import LLMConfig

WORDS = {
    "en": {
        "title": "The model: a LLaMA-3 style decoder (default shape, 26 M weights)",
        "ids": "token ids", "embedding": "tok_embeddings", "shared": "tied: one matrix at both ends",
        "times": "{} blocks", "norm": "RMSNorm", "project": "wq, wk, wv", "rope": "rotary embedding (RoPE)",
        "attention": "causal attention", "gqa": "{} query heads share {} key-value heads", "out": "wo",
        "ffn": "SwiGLU: w2( silu(w1 x) · w3 x )", "inner": "inner width {}", "add": "+", "logits": "output",
        "next": "logits of the next token", "legend": "B packed rows of T positions",
        "stream": "residual stream",
    },
    "zh": {
        "title": "模型结构：LLaMA-3 风格的解码器（默认尺寸，26M 参数）",
        "ids": "token id", "embedding": "tok_embeddings", "shared": "首尾共享同一个矩阵",
        "times": "{} 层", "norm": "RMSNorm", "project": "wq、wk、wv", "rope": "旋转位置编码（RoPE）",
        "attention": "因果注意力", "gqa": "{} 个查询头共用 {} 个键值头", "out": "wo",
        "ffn": "SwiGLU：w2( silu(w1 x) · w3 x )", "inner": "中间宽度 {}", "add": "+", "logits": "output",
        "next": "下一个 token 的 logits", "legend": "B 行，每行 T 个位置",
        "stream": "残差流",
    },
}  # fmt: skip


def svg(language: str) -> str:
    words, shape = WORDS[language], LLMConfig()
    dim, head = shape.dim, shape.head_dim
    middle = 330
    left = 190
    width = 280
    stream = f"(B, T, {dim})"
    parts = [text(middle, 34, words["title"], size=16, bold=True)]
    parts += [
        box(left, 56, width, 34, "#f0f1f3", [words["ids"]]),
        arrow((middle, 90), (middle, 116), words="(B, T)"),
        box(left, 116, width, 34, BLUE, [words["embedding"]]),
        arrow((middle, 150), (middle, 196), words=stream),
    ]
    # one block
    parts.append(
        '<rect x="96" y="182" width="500" height="490" rx="10" fill="none" stroke="#8c959f" stroke-dasharray="5 4"/>'
    )
    parts.append(text(588, 204, words["times"].format(shape.n_layers), size=14, anchor="end", bold=True))
    q, k = f"(B, T, {shape.n_heads}, {head})", f"(B, T, {shape.n_kv_heads}, {head})"
    parts += [
        box(left, 210, width, 30, GREEN, [words["norm"]]),
        arrow((middle, 196), (middle, 210)),
        arrow((middle, 240), (middle, 262), words=stream),
        box(left, 262, width, 30, ORANGE, [words["project"]]),
        arrow((middle, 292), (middle, 318), words=f"q {q}   k, v {k}"),
        box(left, 318, width, 30, ORANGE, [words["rope"]]),
        arrow((middle, 348), (middle, 374), words=f"q {q}   k, v {k}"),
        box(left, 374, width, 48, ORANGE, [words["attention"], words["gqa"].format(shape.n_heads, shape.n_kv_heads)]),
        arrow((middle, 422), (middle, 446), words=q),
        box(left, 446, width, 28, ORANGE, [words["out"]]),
        arrow((middle, 474), (middle, 492), words=stream),
        _plus(middle, 502),
        arrow((middle, 200), (130, 200), (130, 502), (middle - 11, 502)),
        text(122, 350, words["stream"], size=12, anchor="middle").replace(
            "<text", '<text transform="rotate(-90 122 350)"'
        ),
        arrow((middle, 513), (middle, 536)),
        box(left, 536, width, 28, GREEN, [words["norm"]]),
        arrow((middle, 564), (middle, 584), words=stream),
        box(left, 584, width, 40, ORANGE, [words["ffn"], words["inner"].format(f"(B, T, {shape.hidden_dim})")]),
        arrow((middle, 624), (middle, 634)),
        _plus(middle, 645),
        arrow((middle, 524), (150, 524), (150, 645), (middle - 11, 645)),
    ]
    parts += [
        arrow((middle, 656), (middle, 690), words=stream),
        box(left, 690, width, 30, GREEN, [words["norm"]]),
        arrow((middle, 720), (middle, 746), words=stream),
        box(left, 746, width, 34, BLUE, [words["logits"]]),
        arrow((middle, 780), (middle, 806), words=f"(B, T, {shape.vocab_size})"),
        text(middle, 824, words["next"], size=14),
        arrow((left, 133), (60, 133), (60, 763), (left, 763)),
        text(48, 448, words["shared"], size=12).replace("<text", '<text transform="rotate(-90 48 448)"'),
        text(640, 824, words["legend"], size=12, anchor="end"),
    ]
    return picture(660, 844, parts, words["title"])


def _plus(x: float, y: float) -> str:
    circle = f'<circle cx="{x:g}" cy="{y:g}" r="11" fill="#ffffff" stroke="#57606a"/>'
    return circle + "\n" + text(x, y + 5, "+", size=16)
