"""Figures for held-out rows, whatever they hold; a row's schema says how it is scored.

    {"text"}                            bits per byte, by language and by position          score_likelihood.py
    {"conversations"}                   loss on answers, exact match, F1, by turn           score_answers.py
    ... with <think> in an answer       well-formed, correct, cut off, length of thinking   score_judge.py
    {"question", "choices", "answer"}   right by letter and by text                         score_choices.py

Every row leaves a record, written as soon as its batch is done, so a stopped run goes on where it was and two
checkpoints are compared row by row:

    results/SFT.scores/<file>-<key>.jsonl   records; the key is made of weights, rows, tokenizer and settings
    results/SFT.scores.json                 {file name: figures with interval and chance level}
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from dataset import BadRow, PretrainDataset, SFTDataset, fingerprint, parse_line
from engine import checkpoint, jsonl, score_answers, score_choices, score_likelihood
from engine.score_answers import Turn
from engine.score_choices import Question
from engine.score_likelihood import Text
from engine.score_statistics import bootstrap, paired, wilson
from model import SpongeBob

VERSION = 1  # part of the records' key: raise it when a row would be scored differently than before
SHARES = ("exact", "well_formed", "correct", "cut_off", "too_long")  # of right-or-wrong marks, and all of choices


@dataclass(frozen=True)
class Settings:
    """What figures depend on beside weights and rows."""

    rows: int = 200  # first good rows of each file (0: all)
    max_new_tokens: int = 512
    shots: tuple[int, ...] = (0, 5)  # examples before a multiple-choice question
    chats: bool = True  # whether multiple choice is asked with roles
    dtype: str = "float32"


# -------------------------------------------------------------------------------------------------- records


def read_items(path: Path, limit: int) -> list:
    """Text, Turn and Question items of the first `limit` good rows (0: all); bad rows are counted and named."""
    items, rows, report = [], 0, jsonl.RowReport()
    for number, line in (pair for block in jsonl.blocks(path) for pair in jsonl.lines(*block)):
        bad = []
        try:
            row = parse_line(line)
            task = str(row["task"]) if "task" in row else None
            if SFTDataset.field in row:
                items += score_answers.turns(number, SFTDataset.read(row), task)
            elif "choices" in row:
                items.append(score_choices.read_question(number, row))
            else:
                items.append(Text(number, PretrainDataset.read(row), task))
            rows += 1
        except BadRow as error:
            bad = [(number, str(error))]
        report.add(path, 1, bad)
        if rows == limit and limit:
            break
    report.finish()
    return items


def weights_digest(model: SpongeBob) -> str:
    """Twelve hex digits of the weights: where the file lies and what it is called does not matter."""
    digest = hashlib.blake2b(digest_size=6)
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode() + weight.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def records_path(model: SpongeBob, tokenizer: Tokenizer, path: Path, folder: Path, settings: Settings) -> Path:
    with open(path, "rb") as file:
        rows = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    shape = checkpoint.shape_json(model.config)
    identity = [VERSION, weights_digest(model), shape, rows, fingerprint(tokenizer), asdict(settings)]
    key = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=6).hexdigest()
    return folder / f"{path.name.split('.')[0]}-{key}.jsonl"


def read_records(path: Path) -> dict[tuple, dict]:
    """The whole records of a file by (row, turn)."""
    return {_key(record): record for record in jsonl.read_log(path)}


def _key(record: dict) -> tuple[int, int]:
    return record["row"], record.get("turn", 0)


def score_file(
    model: SpongeBob, tokenizer: Tokenizer, path: Path, folder: Path, settings: Settings, batch: int
) -> tuple[list[dict], Path]:
    """Score a file's rows, or what an earlier run left of them; the records, in file order, and where they lie."""
    items = read_items(path, settings.rows)
    target = records_path(model, tokenizer, path, folder, settings)
    records = read_records(target)
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records.values())
    checkpoint.write_whole(target, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    with tqdm(total=len(items), desc=path.name, unit="answer", leave=False, disable=None) as bar:
        for kind, scorer in _scorers(model, tokenizer, items, settings, batch).items():
            # The longest come first, so that memory runs out now or never. Batches do not depend on what is done.
            chosen = sorted((item for item in items if type(item) is kind), key=lambda item: -item.size)
            for start in range(0, len(chosen), batch):
                part = chosen[start : start + batch]
                if not all((item.row, getattr(item, "turn", 0)) in records for item in part):
                    made = scorer(part)
                    with open(target, "a", encoding="utf-8") as file:
                        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in made)
                    records |= {_key(record): record for record in made}
                bar.update(len(part))
    return [records[key] for key in sorted(records)], target


def _scorers(model, tokenizer, items: list, settings: Settings, batch: int) -> dict[type, Callable[[list], list[dict]]]:
    scorers = {Text: partial(score_likelihood.score_texts, model, tokenizer, batch=batch)}
    if conversations := [item for item in items if isinstance(item, Turn)]:
        scorers[Turn] = partial(
            score_answers.score_turns, model, tokenizer, batch=batch, max_new_tokens=settings.max_new_tokens,
            frequent=score_answers.most_frequent(conversations),
        )  # fmt: skip
    if questions := [item for item in items if isinstance(item, Question)]:
        scorers[Question] = partial(
            score_choices.score_questions, model, tokenizer, batch=batch, chats=settings.chats, shots=settings.shots,
            examples=questions[: max(settings.shots, default=0) + 1],
        )  # fmt: skip
    return scorers


# -------------------------------------------------------------------------------------------------- figures


def _by_row(records: Sequence[dict], name: str) -> dict[int, np.ndarray]:
    """{row: (x, w, chance x, answers)} of a figure: the unit of chance is the row."""
    rows: dict[int, np.ndarray] = {}
    for record in records:
        if name in record["sums"]:
            values = np.array([*record["sums"][name], record["chance"].get(name, np.nan), 1.0])
            rows[record["row"]] = rows.get(record["row"], 0) + values
    return rows


def is_share(name: str) -> bool:
    return name in SHARES or name.rsplit("_", 1)[0] in ("letter", "text", "text_norm")


def figures(records: Sequence[dict]) -> dict[str, dict]:
    """{figure: {"value", "low", "high", "chance", "n"}}; `chance` is None where guessing has no meaning."""
    found = {}
    for name in dict.fromkeys(name for record in records for name in record["sums"]):
        x, w, chance, count = np.array(list(_by_row(records, name).values())).T
        if not w.sum():
            continue
        value, luck = float(x.sum() / w.sum()), float(chance.sum() / w.sum())
        low, high = wilson(value, len(x)) if is_share(name) else bootstrap(x, w)
        luck = None if math.isnan(luck) else luck
        found[name] = {"value": value, "low": low, "high": high, "chance": luck, "n": int(count.sum())}
    return found


def summary(records: Sequence[dict]) -> dict:
    """All figures of a file: overall, by every group that has several, and by position."""
    result = {"rows": len({record["row"] for record in records}), "figures": figures(records)}
    for group in ("language", "task", "turn", "start"):
        values = sorted({record["groups"][group] for record in records if group in record["groups"]})
        if len(values) > 1:
            result[f"by_{group}"] = {
                str(value): figures([record for record in records if record["groups"].get(group) == value])
                for value in values
            }
    curves: dict[str, dict[int, np.ndarray]] = {}
    for record in records:
        for name, points in record.get("curve", {}).items():
            for position, sums in points.items():
                curve = curves.setdefault(name, {})
                curve[int(position)] = curve.get(int(position), 0) + np.array(sums)
    if curves:
        result["by_position"] = {
            name: {str(position): x / w for position, (x, w) in sorted(curve.items())} for name, curve in curves.items()
        }
    return result


def compare(records: Sequence[dict], baseline: Sequence[dict]) -> dict[str, dict]:
    """{figure: {"before", "after", "difference", "low", "high", "p", "n"}} over the answers that both have, by row."""
    earlier, found = {_key(record): record for record in baseline}, {}
    for name in dict.fromkeys(name for record in records for name in record["sums"]):
        rows: dict[int, np.ndarray] = {}
        for record in records:
            before, after = (one.get("sums", {}).get(name) for one in (earlier.get(_key(record), {}), record))
            if before and after and before[1] == after[1]:  # a longer context may hold more of an answer
                rows[record["row"]] = rows.get(record["row"], 0) + np.array([before[0], *after])
        if rows:
            before, after, w = np.array(list(rows.values())).T
            if total := float(w.sum()):
                means = {"before": float(before.sum()) / total, "after": float(after.sum()) / total, "n": len(rows)}
                found[name] = means | paired(after, before, w)
    return found


def score(
    model: SpongeBob, tokenizer: Tokenizer, paths: Sequence[str | Path], folder: Path, settings: Settings, batch: int
) -> tuple[dict[str, dict], dict[str, list[dict]]]:
    """({file name: summary}, {file name: records}) of JSONL files; the records lie in `folder`."""
    model.eval()
    results, records, files = {}, {}, jsonl.source_files(paths)
    if len({path.name for path in files}) < len(files):
        raise ValueError("--score: two files have one name, by which their figures are kept; rename one of them")
    for path in files:
        began = time.perf_counter()
        records[path.name], written = score_file(model, tokenizer, path, folder, settings, batch)
        seconds = round(time.perf_counter() - began, 1)
        results[path.name] = summary(records[path.name]) | {
            "settings": asdict(settings), "seconds": seconds, "records": f"{folder.name}/{written.name}",
        }  # fmt: skip
    return results, records


def save(path: Path, results: dict[str, dict]) -> None:
    """Merge into the file of earlier scores, by file name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    checkpoint.write_json(path, earlier | results)
