"""Draw answers of the model of each stage, from docs/demo.json: the texts that the demo printed."""

import json
from pathlib import Path

from draw import BLUE, GRAY, ORANGE, QUIET, box, picture, text, wrapped

DEMO = Path(__file__).resolve().parents[1] / "demo.json"
TITLES = {
    "en": {
        "pretrain": "Pretrained: it continues a text",
        "SFT": "Fine-tuned: it answers",
        "distill": "Distilled: it thinks, then answers",
        "thought": "thought",
        "answer": "answer",
    },
    "zh": {
        "pretrain": "预训练之后：续写文本",
        "SFT": "微调之后：回答问题",
        "distill": "蒸馏之后：先思考，再回答",
        "thought": "思考",
        "answer": "回答",
    },
}
WIDTH = 760
MARGIN = 24
SIZE = 15


def svg(stage: str, language: str) -> str:
    """Draw one card: each question on the right, the model's answer on the left."""
    words = TITLES[language]
    answers = json.loads(DEMO.read_text(encoding="utf-8"))["answers"][stage]
    parts, y = [text(MARGIN, 36, words[stage], size=17, anchor="start", bold=True)], 58.0
    for question, answer in answers.items():
        if stage == "pretrain":
            y = _bubble(parts, y, [(question, "#24292f", True), (answer, "#24292f", False)], GRAY, right=False)
            continue
        y = _bubble(parts, y, [(question, "#24292f", False)], BLUE, right=True)
        pieces = []
        if "</think>" in answer:
            thought, answer = answer.split("</think>", 1)
            pieces.append((f"{words['thought']}: {_plain(thought)}", QUIET, False))
        pieces.append((_plain(answer), "#24292f", False))
        y = _bubble(parts, y, pieces, ORANGE if len(pieces) > 1 else GRAY, right=False)
    return picture(WIDTH, y + 10, parts, words[stage])


def _plain(words: str) -> str:
    for tag in ("<think>", "<answer>", "</answer>"):
        words = words.replace(tag, "")
    return words.strip()


def _bubble(parts: list[str], y: float, pieces: list[tuple[str, str, bool]], fill: str, right: bool) -> float:
    """Draw words in a rounded box on one side and return the y below it."""
    room = WIDTH * 0.74
    lines = []
    for words, color, bold in pieces:
        lines += [(line, color, bold) for line in wrapped(words, SIZE, room - 28)]
    height = 20 + 23 * len(lines)
    x = WIDTH - MARGIN - room if right else MARGIN
    parts.append(box(x, y, room, height, fill))
    for number, (line, color, bold) in enumerate(lines):
        parts.append(text(x + 14, y + 27 + 23 * number, line, size=SIZE, anchor="start", color=color, bold=bold))
    return y + height + 12
