"""Draw the pictures of this folder: the flow of data, the model, and answers of the demo's stages.

    python docs/figures/make.py

Plain SVG without any library; the same bytes each time.
"""

import sys
from pathlib import Path

from draw import ORANGE, arrow, box, picture, text

FOLDER = Path(__file__).resolve().parent
NO_LOSS_COLOR = "#d0d4da"
LOSS_COLOR = "#8fb8e8"
FILE_COLOR = "#0b5393"

# Boxes, and between two of them an arrow: (name, content), (file, action), (name, content), ...
FLOW = {
    "en": [
        ("rows.jsonl", "one example per line"),
        ("dataset.py", "encodes an example: token ids, and a label class for each of them"),
        ("documents", "ids, label class per token"),
        ("engine/corpus/token_cache.py", "writes them to disk once; later runs map the file into memory"),
        ("token cache", "uint16 ids, uint8 classes, offsets"),
        ("engine/packing.py", "packs segments into rows; attention is masked between documents"),
        ("packed rows", "T positions, several segments"),
        ("engine/packing.py, Batches", "shifts the labels by one; looks up each label's loss weight"),
        ("Batch", "inputs, labels, loss_weights, ..."),
        ("model.py, engine/loss.py", "logits; sum of loss weight × cross-entropy of each micro-batch"),
        ("sums", "(4,) weighted, plain, tags, text"),
        ("engine/loop.py, engine/optim.py", "÷ loss weights of the whole step, backward, clip, finite?, step"),
        ("weights", "after one more step"),
        ("engine/log/, engine/checkpoint/", "write what is due"),
        ("results/", ".metrics.jsonl .png .pth .json .state/"),
    ],
    "zh": [
        ("rows.jsonl", "每行一条样本（example）"),
        ("dataset.py", "编码样本：token id，以及每个 token 的标签类别"),
        ("documents", "id，每个 token 一个标签类别"),
        ("engine/corpus/token_cache.py", "写盘一次，以后用内存映射读取"),
        ("token cache", "uint16 id、uint8 类别、offsets"),
        ("engine/packing.py", "把文档的片段（segment）打包成行；文档之间互相看不见"),
        ("packed rows", "每行 T 个位置，装若干片段"),
        ("engine/packing.py 的 Batches", "标签错开一位；查到每个标签的损失权重"),
        ("Batch", "inputs, labels, loss_weights, ..."),
        ("model.py、engine/loss.py", "logits；每个 micro-batch 的损失权重 × 交叉熵之和"),
        ("sums", "(4,) weighted, plain, tags, text"),
        ("engine/loop.py、engine/optim.py", "÷ 整步的损失权重，反向，裁剪，是否有限，更新权重"),
        ("weights", "又走了一步"),
        ("engine/log/、engine/checkpoint/", "到时候就写出"),
        ("results/", ".metrics.jsonl .png .pth .json .state/"),
    ],
}
LABELS = [  # of one packed row in distillation: (label, label class)
    ("user", 0),
    ("6+7=?", 0),
    ("</s>", 0),
    ("<think>", 2),
    ("6+7", 1),
    ("</think>", 2),
    ("13", 1),
    ("</s>", 1),
]
CLASSES = {0: ("0", NO_LOSS_COLOR), 1: ("1", LOSS_COLOR), 2: ("10", ORANGE)}  # label class: loss weight, color
LINE_NAMES = {"en": ("label", "label class", "loss weight"), "zh": ("标签", "标签类别", "损失权重")}

WIDTH = 800
LEFT = 20
BOX_WIDTH = 250
BOX_HEIGHT = 62
STEP_HEIGHT = 104  # from one box to the next
TEXT_LEFT = 300
CELL_WIDTH = 50


def action(y: float, file: str, words: str) -> list[str]:
    """Draw an arrow from the box above `y` to the next one, with a file and its action on the right."""
    x = LEFT + BOX_WIDTH / 2
    return [
        arrow((x, y + 2), (x, y + STEP_HEIGHT - BOX_HEIGHT - 4)),
        text(TEXT_LEFT, y + 16, file, anchor="start", bold=True, color=FILE_COLOR),
        text(TEXT_LEFT, y + 35, words, anchor="start"),
    ]


def labels(y: float, language: str) -> list[str]:
    """Draw the labels of a row with their class and loss weight, next to the box Batch."""
    left = WIDTH - 20 - CELL_WIDTH * len(LABELS)
    parts = []
    for line, name in enumerate(LINE_NAMES[language]):
        parts.append(text(left - 8, y + 15 + 17 * line, name, size=12, anchor="end"))
    for column, (label, label_class) in enumerate(LABELS):
        x = left + CELL_WIDTH * column
        loss_weight, color = CLASSES[label_class]
        parts.append(f'<rect x="{x}" y="{y}" width="{CELL_WIDTH - 3}" height="54" fill="{color}"/>')
        for line, words in enumerate((label, str(label_class), loss_weight)):
            parts.append(text(x + (CELL_WIDTH - 3) / 2, y + 15 + 17 * line, words, size=11))
    return parts


def flow(language: str) -> str:
    """Draw the flow of data from a line of JSONL to the files of a run."""
    stations = FLOW[language]
    parts = []
    for number, (name, words) in enumerate(stations):
        y = 20 + STEP_HEIGHT * (number // 2)
        if number % 2:
            parts += action(y + BOX_HEIGHT, name, words)
        else:
            parts.append(box(LEFT, y, BOX_WIDTH, BOX_HEIGHT, words=[name, words]))
        if name == "Batch":
            parts += labels(y + 1, language)
    height = STEP_HEIGHT * (len(stations) // 2) + BOX_HEIGHT + 40
    return picture(WIDTH, height, parts, {"en": "The flow of data", "zh": "数据的流向"}[language])


def pictures() -> dict[str, str]:
    """Return {file name: SVG} of all pictures."""
    import architecture
    import results

    drawings = {}
    for language in FLOW:
        drawings[f"flow_{language}.svg"] = flow(language)
        drawings[f"architecture_{language}.svg"] = architecture.svg(language)
        for stage in ("pretrain", "SFT", "distill"):
            drawings[f"{stage}_{language}.svg"] = results.svg(stage, language)
    return drawings


if __name__ == "__main__":
    sys.path.insert(0, str(FOLDER.parents[1]))  # for the model's shape
    for name, content in pictures().items():
        (FOLDER / name).write_text(content, encoding="utf-8", newline="\n")
