"""Figures for held-out rows: exact answers, the form of thoughts, bits per byte.

A conversation's last assistant turn is answered greedily, given everything before it, and compared with the row's own.
A row of plain text is predicted, not continued.
"""

import json
import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from dataset import BadRow, PretrainDataset, SFTDataset, parse_line, token_bytes
from engine import checkpoint, jsonl
from engine.generate import complete
from model import SpongeBob

_NO_TAG = r"((?:(?!</?(?:think|answer)>).)*)"
WELL_FORMED = re.compile(rf"\s*<think>{_NO_TAG}</think>\s*<answer>{_NO_TAG}</answer>\s*", re.DOTALL)
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
COLUMNS = ("rows", "exact", "well_formed", "correct", "cut_off", "too_long", "bits_per_byte")


def read_rows(path: Path, limit: int) -> tuple[list[str], list[list[dict]]]:
    """The first `limit` good rows (0: all) as (texts, conversations); bad ones are counted and named."""
    texts, conversations, report = [], [], jsonl.RowReport()
    for number, line in (pair for block in jsonl.blocks(path) for pair in jsonl.lines(*block)):
        bad = []
        try:
            row = parse_line(line)
            if SFTDataset.field in row:
                messages = SFTDataset.read(row)
                last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
                conversations.append(messages[: last + 1])
            else:
                texts.append(PretrainDataset.read(row))
        except BadRow as error:
            bad = [(number, str(error))]
        report.add(path, 1, bad)
        if len(texts) + len(conversations) == limit:
            break
    report.finish()
    return texts, conversations


def normalised(text: str) -> str:
    """What two answers are compared by: no width, case, spaces or closing full stop."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".。")


def judge(answer: str, reference: str) -> dict[str, bool]:
    """The figures of one answer: the tags' form and the text between them for a thought, else the exact words."""
    if "<think>" not in reference:
        return {"exact": answer.strip() == reference.strip()}
    given, wanted = ANSWER.search(answer), ANSWER.search(reference)
    figures = {"well_formed": WELL_FORMED.fullmatch(answer) is not None}
    if wanted:
        figures["correct"] = given is not None and normalised(given[1]) == normalised(wanted[1])
    return figures


def _batches(items: list, size: int, label: str) -> Iterator[list]:
    """Batches of similar length; the longest come first, so that memory runs out now or never."""
    items.sort(key=lambda item: len(item[0]), reverse=True)
    with tqdm(total=len(items), desc=label, unit="row", leave=False, disable=None) as bar:
        for start in range(0, len(items), size):
            batch = items[start : start + size]
            yield batch
            bar.update(len(batch))


def score_conversations(
    model: SpongeBob, tokenizer: Tokenizer, rows: list[list[dict]], *, batch: int, max_new_tokens: int, label: str
) -> dict:
    """Shares over the rows each figure applies to; `cut_off` answers met the limit, `too_long` prompts were skipped."""
    dataset, context, marks = SFTDataset(tokenizer), model.config.max_seq_len, []
    items = [(dataset.prompt(messages[:-1]), messages[-1]["content"]) for messages in rows]
    fitting = [item for item in items if len(item[0]) < context]
    for part in _batches(fitting, batch, label):
        prompts = [prompt for prompt, _ in part]
        limits = [min(max_new_tokens, context - len(prompt)) for prompt in prompts]
        answers = complete(model, prompts, max_new_tokens=max(limits), end_id=dataset.eos, temperature=0)
        for (_, reference), limit, ids in zip(part, limits, answers, strict=True):
            answer = tokenizer.decode(ids[:limit], skip_special_tokens=False)
            marks.append({"cut_off": len(ids) >= limit} | judge(answer, reference))
    shares = {}
    for name in ("exact", "well_formed", "correct", "cut_off"):
        if values := [mark[name] for mark in marks if name in mark]:
            shares[name] = sum(values) / len(values)
    return {"conversations": len(marks), "too_long": len(items) - len(fitting)} | shares


@torch.inference_mode()
def score_texts(model: SpongeBob, tokenizer: Tokenizer, texts: list[str], *, batch: int, label: str) -> dict:
    """Bits a byte of text costs. A text longer than the context is read in pieces; control tokens cost nothing."""
    device, context = model.tok_embeddings.weight.device, model.config.max_seq_len
    size_of = torch.from_numpy(token_bytes(tokenizer)).to(device)
    dataset, pieces = PretrainDataset(tokenizer), []
    for document in dataset.encode(texts):
        ids = torch.from_numpy(document.ids.astype("int64"))
        pieces += [(ids[start : start + context + 1],) for start in range(0, len(ids) - 1, context)]
    nats, size = 0.0, 0
    for part in _batches(pieces, batch, label):
        ids = pad_sequence([piece for (piece,) in part], batch_first=True, padding_value=dataset.eos).to(device)
        labels = ids[:, 1:]
        logits = model.output(model.hidden_states(ids[:, :-1])).float()  # (B, T, V)
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
        sizes = size_of[labels]  # 0 for control tokens, so for the padding too
        nats += losses[sizes > 0].double().sum().item()
        size += sizes.sum().item()
    return {"texts": len(texts), "bytes": size, "bits_per_byte": nats / size / math.log(2)}


def score(
    model: SpongeBob, tokenizer: Tokenizer, paths: Sequence[str | Path], *, rows: int, batch: int, max_new_tokens: int
) -> dict[str, dict]:
    """{file name: its figures} for JSONL files of either schema; the first `rows` rows of each (0: all)."""
    model.eval()
    results = {}
    for path in jsonl.source_files(paths):
        texts, conversations = read_rows(path, rows)
        figures = {"rows": len(texts) + len(conversations)}
        if conversations:
            options = {"batch": batch, "max_new_tokens": max_new_tokens, "label": path.name}
            figures |= score_conversations(model, tokenizer, conversations, **options)
        if texts:
            figures |= score_texts(model, tokenizer, texts, batch=batch, label=path.name)
        results[path.name] = figures
    return results


def table(results: dict[str, dict]) -> str:
    """One line a file, a dash where a figure does not apply."""
    width = max(map(len, results))
    lines = [" ".join([" " * width, *(f"{name:>13}" for name in COLUMNS)])]
    for name, figures in results.items():
        cells = [figures.get(column, "-") for column in COLUMNS]
        cells = [f"{cell:13.4f}" if isinstance(cell, float) else f"{cell:>13}" for cell in cells]
        lines.append(" ".join([f"{name:{width}}", *cells]))
    return "\n".join(lines)


def save(path: Path, results: dict[str, dict]) -> None:
    """Merge into the file of earlier scores, by file name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    checkpoint.write_json(path, earlier | results)
