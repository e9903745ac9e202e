"""Draw the pictures of this folder: the flow of data, the model, and what the stages of the demo say.

    python docs/figures/make.py

Plain SVG without any library; the same bytes each time.
"""

import sys
from html import escape
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
FONT = "Segoe UI, Helvetica, Arial, PingFang SC, Microsoft YaHei, Noto Sans CJK SC, sans-serif"
WIDTH, BOX, STEP = 800, 62, 104  # pixels: the picture, a box's height, from one box to the next
LEFT, MIDDLE = 20, 250  # where boxes begin, and where they end
NO_LOSS, LOSS, TAG = "#d0d4da", "#8fb8e8", "#f2a65a"

# Each box: its name, what is in it. Between two boxes: who does it, and what is done.
FLOW = {
    "en": [
        ("rows.jsonl", "one example per line"),
        ("dataset.py", "what an example means: its token ids, and a class for each of them"),
        ("documents", "ids, class per token"),
        ("engine/corpus/token_cache.py", "written to disk once, then mapped into memory"),
        ("token cache", "uint16 ids, uint8 classes, offsets"),
        ("engine/packing.py", "pieces of documents fill rows; a document never sees its neighbours"),
        ("rows", "T positions, several pieces"),
        ("engine/packing.py, Batches", "labels are shifted here; each label's cost comes from the recipe's table"),
        ("Batch", "inputs, labels, classes, cost, cu_seqlens"),
        ("model.py, engine/loss.py", "logits; the sum of cost × cross-entropy of each micro-batch"),
        ("sums", "(4,) weighted, plain, tags, text"),
        ("engine/loop.py, engine/optim.py", "÷ cost of the whole step, backward, clip, finite?, step"),
        ("weights", "after one more step"),
        ("engine/log/, engine/checkpoint/", "when they are due"),
        ("results/", ".metrics.jsonl  .png  .pth  .json  .state/"),
    ],
    "zh": [
        ("rows.jsonl", "每行一条样本（example）"),
        ("dataset.py", "样本的含义：token id，以及每个 token 的类别"),
        ("documents", "id，每个 token 一个类别"),
        ("engine/corpus/token_cache.py", "写盘一次，以后用内存映射读取"),
        ("token cache", "uint16 id、uint8 类别、offsets"),
        ("engine/packing.py", "把文档切成 piece 装进行里；文档之间互相看不见"),
        ("rows", "每行 T 个位置，装若干 piece"),
        ("engine/packing.py 的 Batches", "标签只在这里错开一位；每个标签的 cost 查脚本里的表"),
        ("Batch", "inputs, labels, classes, cost, cu_seqlens"),
        ("model.py、engine/loss.py", "logits；每个 micro-batch 的 cost × 交叉熵之和"),
        ("sums", "(4,) weighted, plain, tags, text"),
        ("engine/loop.py、engine/optim.py", "÷ 整步的 cost，反向，裁剪，是否有限，更新权重"),
        ("weights", "又走了一步"),
        ("engine/log/、engine/checkpoint/", "到期时写出"),
        ("results/", ".metrics.jsonl  .png  .pth  .json  .state/"),
    ],
}
# One row of a distillation batch: (label, class).
ROW = [
    ("user", 0),
    ("6+7=?", 0),
    ("</s>", 0),
    ("<think>", 2),
    ("6+7", 1),
    ("</think>", 2),
    ("13", 1),
    ("</s>", 1),
]
COST = {0: ("0", NO_LOSS), 1: ("1", LOSS), 2: ("10", TAG)}
ROW_WORDS = {"en": ("label", "class", "cost"), "zh": ("标签", "类别", "cost")}


def text(x: float, y: float, words: str, size: int = 14, **more: str) -> str:
    extra = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}"{extra}>{escape(words)}</text>'


def box(y: float, name: str, content: str) -> list[str]:
    """A thing that flows, and what is in it."""
    frame = f'<rect x="{LEFT}" y="{y}" width="{MIDDLE}" height="{BOX}" rx="8" fill="#f4f6f9" stroke="#57606a"/>'
    middle = LEFT + MIDDLE / 2
    return [
        frame,
        text(middle, y + 26, name, 16, font_weight="bold", text_anchor="middle"),
        text(middle, y + 47, content, 12, text_anchor="middle", fill="#57606a"),
    ]


def arrow(y: float, who: str, does: str) -> list[str]:
    """From the box above to the one below, with the file that does it on the right."""
    x = LEFT + MIDDLE / 2
    line = (
        f'<path d="M{x:g} {y + 2:g} V{y + STEP - BOX - 4:g}" stroke="#57606a" stroke-width="2" marker-end="url(#tip)"/>'
    )
    return [line, text(300, y + 16, who, 14, font_weight="bold", fill="#0b5394"), text(300, y + 35, does)]


def row_of_labels(y: float, language: str) -> list[str]:
    """A row's labels with their class and cost, coloured by class, beside the box Batch."""
    shapes, x, width = [], 350, 54
    for line, word in enumerate(ROW_WORDS[language]):
        shapes.append(text(x - 8, y + 15 + 17 * line, word, 12, text_anchor="end", fill="#57606a"))
    for label, number in ROW:
        cost, colour = COST[number]
        shapes.append(f'<rect x="{x}" y="{y}" width="{width - 3}" height="54" fill="{colour}"/>')
        for line, word in enumerate((label, str(number), cost)):
            shapes.append(text(x + (width - 3) / 2, y + 15 + 17 * line, word, 11, text_anchor="middle"))
        x += width
    return shapes


def draw(language: str) -> str:
    flow = FLOW[language]
    height = STEP * (len(flow) // 2) + BOX + 40
    shapes = []
    for number, (name, content) in enumerate(flow):
        y = 20 + STEP * (number // 2)
        shapes += arrow(y + BOX, name, content) if number % 2 else box(y, name, content)
        if name == "Batch":
            shapes += row_of_labels(y + 1, language)
    arrow_head = '<path d="M0 0 L6 3 L0 6 z" fill="#57606a"/>'
    tip = f'<marker id="tip" markerWidth="8" markerHeight="8" refX="4" refY="3" orient="auto">{arrow_head}</marker>'
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{FONT}"><defs>{tip}</defs>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *shapes, "</svg>", ""])


def pictures() -> dict[str, str]:
    """{file name: SVG} of all of them."""
    import architecture
    import results

    found = {}
    for language in FLOW:
        found[f"flow_{language}.svg"] = draw(language)
        found[f"architecture_{language}.svg"] = architecture.svg(language)
        for stage in ("pretrain", "SFT", "distill"):
            found[f"{stage}_{language}.svg"] = results.svg(stage, language)
    return found


if __name__ == "__main__":
    sys.path.insert(0, str(FOLDER.parents[1]))  # for the model's shape
    for name, content in pictures().items():
        (FOLDER / name).write_text(content, encoding="utf-8", newline="\n")
