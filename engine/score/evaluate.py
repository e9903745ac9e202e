"""Figures for held-out rows, whatever they hold; a row's schema says how it is scored.

    {"text"}                            bits per byte, by language and by position          loglikelihood.py
    {"conversations"}                   loss on answers, exact match, F1, by turn           answers.py
    ... with <think> in an answer       well-formed, correct, cut off, length of thinking   judge.py
    {"question", "choices", "answer"}   right by letter and by text                         multiple_choice.py

Every row leaves a record, written as soon as its batch is done, so a stopped run goes on where it was and two
checkpoints are compared row by row:

    results/SFT.scores/<file>-<key>.jsonl   records; the key is made of weights, rows, tokenizer and settings
    results/SFT.scores.json                 {file name: figures with interval and chance level, digest of the weights}
"""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from engine.checkpoint.weights import open_chosen, weights_hash
from engine.console import print0
from engine.corpus import jsonl
from engine.corpus.digests import hash_file
from engine.files import atomic_write, to_json, write_json
from engine.flags import Args
from engine.machine import runtime
from engine.score import answers, loglikelihood, multiple_choice, table
from engine.score.answers import Turn
from engine.score.loglikelihood import Text
from engine.score.multiple_choice import Question
from engine.score.records import (
    Settings,
    key_of,
    read_items,
    read_records,
    records_path,
)
from engine.score.statistics import Interval, effective_sample_size, paired_test, t_interval, wilson_interval
from model import SpongeBob

SHARES = ("exact", "f1", "well_formed", "correct", "cut_off", "too_long")  # of marks from 0 to 1, and all of choices


# -------------------------------------------------------------------------------------------------- records


def score_file(
    model: SpongeBob, tokenizer: Tokenizer, path: Path, folder: Path, settings: Settings, batch: int
) -> tuple[list[dict], Path]:
    """Score a file's rows, or what an earlier run left of them; the records, in file order, and where they lie."""
    items = read_items(path, settings.rows)
    target = records_path(model, tokenizer, path, folder, settings)
    records = read_records(target)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(target, lambda temporary: temporary.write_bytes(b"".join(map(to_json, records.values()))))
    with tqdm(total=len(items), desc=path.name, unit="answer", leave=False, disable=None) as bar:
        for kind, scorer in _scorers(model, tokenizer, items, settings, batch).items():
            # The longest come first, so that memory runs out now or never. Batches do not depend on what is done.
            chosen = sorted((item for item in items if type(item) is kind), key=lambda item: -item.size)
            for start in range(0, len(chosen), batch):
                part = chosen[start : start + batch]
                if not all((item.row, getattr(item, "turn", 0)) in records for item in part):
                    made = scorer(part)
                    with open(target, "ab") as file:
                        file.writelines(map(to_json, made))
                    records |= {key_of(record): record for record in made}
                bar.update(len(part))
    return [records[key] for key in sorted(records)], target


def _scorers(model, tokenizer, items: list, settings: Settings, batch: int) -> dict[type, Callable[[list], list[dict]]]:
    scorers: dict[type, Callable[[list], list[dict]]] = {
        Text: partial(loglikelihood.score_texts, model, tokenizer, batch=batch)
    }
    if conversations := [item for item in items if isinstance(item, Turn)]:
        scorers[Turn] = partial(
            answers.score_turns,
            model,
            tokenizer,
            batch=batch,
            max_new_tokens=settings.max_new_tokens,
            frequent=answers.most_frequent(conversations),
        )
    if questions := [item for item in items if isinstance(item, Question)]:
        scorers[Question] = partial(
            multiple_choice.score_questions,
            model,
            tokenizer,
            batch=batch,
            chats=settings.chats,
            shots=settings.shots,
            examples=multiple_choice.examples(questions, max(settings.shots, default=0) + 1),
        )
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


def is_proportion(name: str) -> bool:
    return name in SHARES or name.rsplit("_", 1)[0] in ("letter", "text", "text_norm")


def _interval(name: str, x: np.ndarray, w: np.ndarray) -> Interval:
    if is_proportion(name):
        return wilson_interval(float(x.sum() / w.sum()), effective_sample_size(w))
    low, high = t_interval(x, w)
    return (None, None) if low is None or high is None else (max(0.0, low), high)  # no figure is below 0


def figures(records: Sequence[dict]) -> dict[str, dict]:
    """{figure: {"value", "low", "high", "chance", "n", "left_out"}}.

    `chance` is None where guessing has no meaning, `low` and `high` where one row is all there is. `left_out` counts
    the rows that have no such figure though others of their kind have.
    """
    found, left_out = {}, left_out_of(records)
    for name in dict.fromkeys(name for record in records for name in record["sums"]):
        x, w, chance, count = np.array(list(_by_row(records, name).values())).T
        if not w.sum():
            continue
        value, luck = float(x.sum() / w.sum()), float(chance.sum() / w.sum())
        low, high = _interval(name, x, w)
        luck = None if math.isnan(luck) else luck
        found[name] = {"value": value, "low": low, "high": high, "chance": luck, "n": int(count.sum())}
        found[name] |= {"left_out": left_out[name]} if name in left_out else {}
    return found


def left_out_of(records: Sequence[dict]) -> Counter[str]:
    """How many rows have no such figure: their examples do not fit into the context, or there are too few."""
    return Counter(name for record in records for name in record.get("left_out", []))


def summary(records: Sequence[dict]) -> dict:
    """All figures of a file: overall, by every group that has several, and by position."""
    result = {"rows": len({record["row"] for record in records}), "figures": figures(records)}
    if missing := {name: n for name, n in left_out_of(records).items() if name not in result["figures"]}:
        result["missing"] = missing
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
    earlier, found = {key_of(record): record for record in baseline}, {}
    for name in dict.fromkeys(name for record in records for name in record["sums"]):
        rows: dict[int, np.ndarray] = {}
        for record in records:
            before, after = (one.get("sums", {}).get(name) for one in (earlier.get(key_of(record), {}), record))
            if before and after and before[1] == after[1]:  # a longer context may hold more of an answer
                rows[record["row"]] = rows.get(record["row"], 0) + np.array([before[0], *after])
        if rows:
            before, after, w = np.array(list(rows.values())).T
            if total := float(w.sum()):
                means = {"before": float(before.sum()) / total, "after": float(after.sum()) / total, "n": len(rows)}
                found[name] = means | paired_test(after, before, w, is_proportion(name))
    return found


def score(
    model: SpongeBob, tokenizer: Tokenizer, paths: Sequence[str | Path], folder: Path, settings: Settings, batch: int
) -> tuple[dict[str, dict], dict[str, list[dict]]]:
    """({file name: summary}, {file name: records}) of JSONL files; the records lie in `folder`."""
    model.eval()
    if broken := [name for name, weight in model.state_dict().items() if not weight.isfinite().all()]:
        raise FloatingPointError(f"{broken[0]} holds NaN or infinity: no figure can be made with it")
    weights = weights_hash(model.state_dict())
    results, records, files = {}, {}, jsonl.source_files(paths)
    if len({path.name for path in files}) < len(files):
        raise ValueError("--score: two files have one name, by which their figures are kept; rename one of them")
    for path in files:
        began = time.perf_counter()
        records[path.name], written = score_file(model, tokenizer, path, folder, settings, batch)
        seconds = round(time.perf_counter() - began, 1)
        results[path.name] = summary(records[path.name]) | {
            "weights": weights,
            "content": hash_file(path),
            "settings": asdict(settings),
            "seconds": seconds,
            "records": f"{folder.name}/{written.name}",
        }
    return results, records


def save(path: Path, results: dict[str, dict]) -> None:
    """Merge into the file of earlier scores, by file name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(path, earlier | results)


# ------------------------------------------------------------------------------------------------- one command


def run(args: Args, tokenizer: Tokenizer) -> None:
    """Score the checkpoint, and the baseline on the same rows; print tables and keep the figures."""
    rt = runtime.start(args.precision, seed=0)
    path, baseline = args.checkpoint.path, args.scoring.baseline
    results, records = _score_checkpoint(path, args, rt, tokenizer)
    print0(table.table(results))
    if baseline:
        before, earlier = _score_checkpoint(Path(baseline), args, rt, tokenizer)
        changes = {name: compare(records[name], earlier[name]) for name in records}
        print0(table.comparison(changes, baseline))
        for name, change in changes.items():
            source = {key: before[name][key] for key in ("weights", "records")}
            results[name]["baseline"] = {"checkpoint": baseline, "figures": change} | source
    target = scores_file(path, Path(args.checkpoint.save_dir), next(iter(results.values()))["weights"])
    save(target, results)
    print0(f"wrote {target}")
    print0(table.markdown(path.stem, results))


def _score_checkpoint(path: Path, args: Args, rt: runtime.Runtime, tokenizer: Tokenizer) -> tuple[dict, dict]:
    scoring = args.scoring
    model, meta = open_chosen(args.checkpoint, tokenizer, path)
    settings = Settings(
        rows=scoring.max_eval_rows,
        max_new_tokens=args.answers.max_new_tokens,
        shots=tuple(scoring.num_fewshot),
        chats=args.checkpoint.chats(meta),
        dtype=str(rt.dtype),
    )
    records = Path(args.checkpoint.save_dir) / f"{path.stem}.scores"
    model = model.to(rt.device)  # pyright: ignore[reportArgumentType] (transformers wraps to)
    with rt.autocast():  # as in validation, so that the figures compare
        try:
            return score(model, tokenizer, scoring.score, records, settings, scoring.eval_batch_size)
        except FloatingPointError as error:
            raise ValueError(f"{path}: {error}") from None


def scores_file(checkpoint: Path, folder: Path, weights: str) -> Path:
    """Name a checkpoint's scores file; a namesake from elsewhere must not replace that of the folder's own."""
    own = folder / checkpoint.name
    foreign = own.is_file() and not own.samefile(checkpoint)
    return folder / f"{checkpoint.stem}{'-' + weights if foreign else ''}.scores.json"
