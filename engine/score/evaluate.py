"""Compute metrics of held-out rows; a row's fields decide how it is scored.

    {"text"}                            bits per byte, by language and by position          loglikelihood.py
    {"conversations"}                   loss on answers, exact match, F1, by turn           answers.py
    ... with <think> in an answer       well-formed, correct, cut off, length of thinking   answer_matching.py
    {"question", "choices", "answer"}   accuracy by letter and by text                      multiple_choice.py

Every row leaves a record, written as soon as its batch is done, so that a stopped run continues where it was and two
checkpoints are compared row by row:

    results/SFT.scores/<file>-<key>.jsonl   records; the key is made of weights, rows, tokenizer and settings
    results/SFT.scores.json                 {file name: metrics with interval and chance level, digest of the weights}
"""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from engine.checkpoint import trained_rows
from engine.checkpoint.weights import open_chosen
from engine.console import print0
from engine.files import atomic_write, hash_file, to_json, write_json
from engine.flags import Args
from engine.machine import runtime
from engine.score import answers, loglikelihood, multiple_choice, table
from engine.score.answers import Turn
from engine.score.loglikelihood import Text
from engine.score.multiple_choice import Question
from engine.score.records import (
    EvalSettings,
    read_files,
    read_hashes,
    read_records,
    read_scores,
    record_key,
    records_name,
)
from engine.score.statistics import Interval, effective_sample_size, paired_test, t_interval, wilson_interval
from model import SpongeBob

PROPORTIONS = ("exact_match", "f1", "well_formed", "correct", "cut_off")  # and all accuracies

# -------------------------------------------------------------------------------------------------- records


def score_items(
    model: SpongeBob, tokenizer: Tokenizer, items: list, target: Path, settings: EvalSettings, batch: int
) -> list[dict]:
    """Score the items of a file that an earlier run has not scored.

    Args:
        items: Texts, turns and questions.
        target: File of their records; completed.
        settings: As in its name.
        batch: Rows answered at once.
    Returns:
        All records, in the order of the file.
    """
    records = read_records(target)
    atomic_write(target, lambda temporary: temporary.write_bytes(b"".join(map(to_json, records.values()))))
    with tqdm(total=len(items), desc=target.stem, unit="answer", leave=False, disable=None) as bar:
        for item_type, scorer in _scorers(model, tokenizer, items, settings, batch).items():
            # The longest come first, so that memory runs out now or never. Batches do not depend on what is
            # done: in half precision another batch changes the last digits of a metric.
            pending = sorted((item for item in items if type(item) is item_type), key=lambda item: -item.size)
            for start in range(0, len(pending), batch):
                part = pending[start : start + batch]
                if not all((item.row, getattr(item, "turn", 0)) in records for item in part):
                    new = scorer(part)
                    with open(target, "ab") as file:
                        file.writelines(map(to_json, new))
                    records |= {record_key(record): record for record in new}
                bar.update(len(part))
    return [records[key] for key in sorted(records)]


def _scorers(
    model: SpongeBob, tokenizer: Tokenizer, items: list, settings: EvalSettings, batch: int
) -> dict[type, Callable[[list], list[dict]]]:
    scorers: dict[type, Callable[[list], list[dict]]] = {
        Text: partial(loglikelihood.score_texts, model, tokenizer, batch=batch)
    }
    if turns := [item for item in items if isinstance(item, Turn)]:
        scorers[Turn] = partial(
            answers.score_turns,
            model,
            tokenizer,
            batch=batch,
            max_new_tokens=settings.max_new_tokens,
            most_frequent=answers.most_frequent_answer(turns),
        )
    if questions := [item for item in items if isinstance(item, Question)]:
        # One more than needed, since the question itself may be among them.
        examples = multiple_choice.distinct_questions(questions, max(settings.num_fewshot, default=0) + 1)
        scorers[Question] = partial(
            multiple_choice.score_questions,
            model,
            tokenizer,
            batch=batch,
            chats=settings.chats,
            num_fewshot=settings.num_fewshot,
            examples=examples,
        )
    return scorers


# -------------------------------------------------------------------------------------------------- metrics


def is_proportion(name: str) -> bool:
    """Return whether a metric is a mean of scores between 0 and 1."""
    return name in PROPORTIONS or name.startswith("acc")


def _names(records: Sequence[dict]) -> list[str]:
    return list(dict.fromkeys(chain.from_iterable(record["sums"] for record in records)))


def _sum_by_row(values: Iterable[tuple[int, list[float]]]) -> np.ndarray:
    """Add up the values (k,) of the same row: the sampling unit is the row. Return them as (k, rows)."""
    rows: dict[int, np.ndarray] = {}
    for row, numbers in values:
        rows[row] = rows.get(row, 0) + np.array(numbers, dtype=float)
    return np.array(list(rows.values())).T


def _interval(name: str, x: np.ndarray, w: np.ndarray) -> Interval:
    if is_proportion(name):
        return wilson_interval(float(x.sum() / w.sum()), effective_sample_size(w))
    low, high = t_interval(x, w)
    return (None, None) if low is None or high is None else (max(0.0, low), high)  # no metric is below 0


def metrics(records: Sequence[dict]) -> dict[str, dict]:
    """Aggregate records to {metric: {"value", "low", "high", "chance_level", "n", "skipped"}}.

    `chance_level` is None where guessing has no meaning, `low` and `high` if there is only one row. `skipped` counts
    the rows that lack a metric which others of their type have.
    """
    result, skipped = {}, count_skipped(records)
    for name in _names(records):
        scored = [record for record in records if name in record["sums"]]
        x, w, chance = _sum_by_row((record["row"], record["sums"][name]) for record in scored)
        low, high = _interval(name, x, w)
        chance_level = float(chance.sum() / w.sum())
        result[name] = {
            "value": float(x.sum() / w.sum()),
            "low": low,
            "high": high,
            "chance_level": None if math.isnan(chance_level) else chance_level,
            "n": len(scored),
        }
        if name in skipped:
            result[name]["skipped"] = skipped[name]
    return result


def count_skipped(records: Sequence[dict]) -> Counter[str]:
    """Count the rows that lack each metric: they do not fit into the context, or there are too few examples."""
    return Counter(chain.from_iterable(record.get("skipped", []) for record in records))


def summarize(records: Sequence[dict]) -> dict:
    """Aggregate a file's records: overall, by every group with several values, and by position."""
    result = {"rows": len({record["row"] for record in records}), "metrics": metrics(records)}
    if missing := {name: n for name, n in count_skipped(records).items() if name not in result["metrics"]}:
        result["missing"] = missing
    for group in ("language", "task", "turn", "start"):
        grouped = [record for record in records if group in record["groups"]]
        values = sorted({record["groups"][group] for record in grouped})
        if len(values) > 1:
            result[f"by_{group}"] = {str(v): metrics([r for r in grouped if r["groups"][group] == v]) for v in values}
    if curves := _curves(records):
        result["by_position"] = curves
    return result


def _curves(records: Sequence[dict]) -> dict[str, dict[str, float]]:
    """Return {metric: {position: value}}."""
    totals: dict[str, dict[int, np.ndarray]] = defaultdict(lambda: defaultdict(lambda: np.zeros(2)))
    for record in records:
        for name, points in record.get("curve", {}).items():
            for position, sums in points.items():
                totals[name][int(position)] += sums
    return {name: {str(at): x / w for at, (x, w) in sorted(curve.items())} for name, curve in totals.items()}


def compare(records: Sequence[dict], baseline: Sequence[dict]) -> dict[str, dict]:
    """Compare two checkpoints by row, over the answers that both have.

    Returns:
        {metric: {"before", "after", "difference", "low", "high", "p", "n"}}.
    """
    baseline_sums = {record_key(record): record["sums"] for record in baseline}
    result = {}
    for name in _names(records):
        pairs = []
        for record in records:
            before = baseline_sums.get(record_key(record), {}).get(name)
            after = record["sums"].get(name)
            if before and after and before[1] == after[1]:  # a longer context may hold more of an answer
                pairs.append((record["row"], [before[0], *after[:2]]))
        if pairs:
            before, after, w = _sum_by_row(pairs)
            means = {"before": float(before.sum() / w.sum()), "after": float(after.sum() / w.sum()), "n": len(w)}
            result[name] = means | paired_test(after, before, w, is_proportion(name))
    return result


# -------------------------------------------------------------------------------------------- checkpoints


def score_files(
    model: SpongeBob,
    tokenizer: Tokenizer,
    files: Mapping[Path, list],
    folder: Path,
    settings: EvalSettings,
    batch: int,
    weights: str,
) -> tuple[dict[str, dict], dict[str, list[dict]]]:
    """Score files.

    Args:
        files: Their items (records.read_files).
        folder: Of the records.
        batch: Rows answered at once.
        weights: Digest of the model's weights.
    Returns:
        ({file name: summary}, {file name: records}).
    Raises:
        FloatingPointError: The weights hold NaN or infinity, or a loss is not finite.
    """
    model.eval()
    if broken := [name for name, weight in model.state_dict().items() if not weight.isfinite().all()]:
        raise FloatingPointError(f"{broken[0]} holds NaN or infinity: no metric can be computed with it")
    results, records = {}, {}
    for path, items in files.items():
        began = time.perf_counter()
        content = hash_file(path)
        target = folder / records_name(path.name, weights, content, model, tokenizer, settings)
        records[path.name] = score_items(model, tokenizer, items, target, settings, batch)
        results[path.name] = summarize(records[path.name]) | {
            "weights": weights,
            "content": content,
            "settings": asdict(settings),
            "seconds": round(time.perf_counter() - began, 1),
            "records": f"{folder.name}/{target.name}",
        }
    return results, records


def scores_file(checkpoint: Path, folder: Path, weights: str) -> Path:
    """Name a checkpoint's scores file; a namesake from elsewhere must not replace that of the folder's own."""
    own = folder / checkpoint.name
    foreign = own.is_file() and not own.samefile(checkpoint)
    return folder / f"{checkpoint.stem}{'-' + weights if foreign else ''}.scores.json"


def run(args: Args, tokenizer: Tokenizer) -> None:
    """Score the checkpoint, and the baseline on the same rows; print tables and store the metrics."""
    rt = runtime.start(args.precision, seed=0)
    path, baseline = args.checkpoint.path, args.scoring.baseline
    files = read_files(args.scoring.score, args.scoring.max_eval_rows)
    target, results, records = _score_checkpoint(path, files, args, rt, tokenizer)
    for file, items in files.items():
        rows = trained_rows.read(path, results[file.name]["weights"])
        results[file.name]["trained_rows"] = rows and rows.overlap(read_hashes(file, items))
    tables = [table.format_scores(results)]
    if baseline:
        _, before, earlier = _score_checkpoint(Path(baseline), files, args, rt, tokenizer)
        changes = {name: compare(records[name], earlier[name]) for name in records}
        tables.append(table.format_comparison(changes, baseline))
        for name, change in changes.items():
            source = {key: before[name][key] for key in ("weights", "records")}
            results[name]["baseline"] = {"checkpoint": baseline, "metrics": change} | source
    write_json(target, read_scores(target) | results)  # by file name
    for text in (*tables, f"wrote {target}", table.format_markdown(path.stem, results)):
        print0(text)  # after the file: stdout may be full or closed


def _score_checkpoint(
    path: Path, files: Mapping[Path, list], args: Args, rt: runtime.Runtime, tokenizer: Tokenizer
) -> tuple[Path, dict, dict]:
    scoring, save_dir = args.scoring, Path(args.checkpoint.save_dir)
    model, meta = open_chosen(args.checkpoint, tokenizer, path)
    target = scores_file(path, save_dir, meta["weights"])
    read_scores(target)  # one that cannot be read is refused before the work
    settings = EvalSettings(
        rows=scoring.max_eval_rows,
        max_new_tokens=args.answers.max_new_tokens,
        num_fewshot=tuple(scoring.num_fewshot),
        chats=args.checkpoint.chats(meta),
        dtype=str(rt.dtype),
    )
    folder = save_dir / f"{path.stem}.scores"
    model = model.to(rt.device)  # pyright: ignore[reportArgumentType] (transformers wraps to)
    with rt.autocast():  # as in validation, so that the metrics compare
        try:
            batch = scoring.eval_batch_size
            return target, *score_files(model, tokenizer, files, folder, settings, batch, meta["weights"])
        except FloatingPointError as error:
            raise ValueError(f"{path}: {error}") from None
