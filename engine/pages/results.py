"""Collect the results in a folder of checkpoints: report.json, the source of the page and of the terminal's summary.

Weights are known by their digest, never by the name of their file: a .json holds the digests of the weights that a
stage descends from, and scores hold that of the weights they are of. A stage's scored files are "retained" if an
ancestor was scored on them, since that ancestor taught them, else "new". Before and after are compared row by row: with
the --baseline, else with the parent's own records of the same file, if its rows and settings are the same.
"""

import time
from pathlib import Path
from typing import NamedTuple

from Config import LLMConfig
from engine.checkpoint.weights import load_model, read_meta
from engine.log.tracker import rows_until
from engine.options import ROAD
from engine.score.evaluate import compare
from engine.score.records import read_records, read_scores

VALIDATION = ("val_loss", "val_bits_per_byte", "val_tag_loss", "val_text_loss", "val_text_bits_per_byte")
NUM_SAMPLES = 3  # of every scored file
FREE_SETTINGS = ("rows", "chats")  # may differ between parent and child: answers are compared row by row

Scores = dict[str, dict[str, dict]]  # {digest of weights: {file: result}}


class Stage(NamedTuple):
    """A checkpoint of the folder, with what is known of its weights and of no others."""

    meta: dict
    config: LLMConfig
    scores: dict[str, dict]  # {file: result}
    stale: list[str]  # files whose scores, under its name, are of other weights
    log: list[dict]  # up to the step of the weights
    notes: list[str]  # on what is left out


def read_all_scores(folder: Path) -> Scores:
    """Read the scores of all weights, whatever the names of their files."""
    scores: Scores = {}
    for path in sorted(folder.glob("*.scores.json")):
        for file, result in read_scores(path).items():
            scores.setdefault(result["weights"], {})[file] = result
    return scores


def read_stages(folder: Path, scores: Scores) -> dict[str, Stage]:
    """Read a folder's checkpoints, in the order of the stages; ValueError if there are none."""
    names = [path.stem for path in folder.glob("*.pth") if "stage" in read_meta(path)]
    if not names:
        raise ValueError(
            f"{folder}: no checkpoint with its .json there to report on; train one with: python pretrain.py"
        )
    return {name: read_stage(folder, name, scores) for name in dict.fromkeys([*ROAD, *names]) if name in names}


def read_stage(folder: Path, name: str, scores: Scores) -> Stage:
    """Read one checkpoint, and note which files of its name are of other weights or of another run."""
    weights = folder / f"{name}.pth"
    model, meta = load_model(weights)
    own = scores.get(meta["weights"], {})
    stale = sorted(read_scores(folder / f"{name}.scores.json").keys() - own.keys())
    notes = [f"{file}: stale, of other weights than {weights.name}; score it again" for file in stale]
    if read_meta(weights).get("weights", meta["weights"]) != meta["weights"]:
        notes.append(f"{name}.json: of other weights than {weights.name}; its figures are left out")
    started_from = meta.get("ancestors", [])[:1]
    if meta.get("parent") and not started_from:
        notes.append(f"{name}.json: does not say which weights {meta['parent']} had; not compared with them")
    elif own and started_from and started_from[0] not in scores:
        notes.append(f"no value before: no scores here of the weights it started from, {started_from[0]}")
    log = rows_until(folder / f"{name}.metrics.jsonl", meta.get("step", -1))
    if log[-1:] != meta.get("log_ends", log[-1:]):
        notes.append(f"{name}.metrics.jsonl: of another run than {weights.name}; not drawn")
        log = []
    return Stage(meta, model.config, own, stale, log, notes)


def are_comparable(result: dict, other: dict) -> bool:
    """Return whether two results are of the same rows and settings."""
    differ = [key for key, value in result["settings"].items() if other["settings"].get(key) != value]
    return result["content"] == other["content"] and set(differ) <= set(FREE_SETTINGS)


def find_baseline(folder: Path, result: dict, parent_result: dict | None) -> tuple[dict, str, dict]:
    """Return (changes by metric, digest of the baseline, its records by row and turn), all empty if there is none.

    Args:
        folder: Of the checkpoints.
        result: Scores of one file.
        parent_result: The parent's scores of the same file.
    """
    if baseline := result.get("baseline"):
        return baseline["metrics"], baseline["weights"], read_records(folder / baseline["records"])
    if parent_result is None or not are_comparable(result, parent_result):
        return {}, "", {}
    earlier = read_records(folder / parent_result["records"])
    records = read_records(folder / result["records"])
    return compare(list(records.values()), list(earlier.values())), parent_result["weights"], earlier


def file_metrics(result: dict, changes: dict[str, dict]) -> dict[str, dict]:
    """Return a file's metrics with the value before, the change, its interval and its p-value."""
    metrics = {}
    for name, metric in result["metrics"].items():
        change = changes.get(name, {})
        others = {key: number for key, number in metric.items() if key != "value"}
        metrics[name] = {"before": change.get("before"), "after": metric["value"], **others, "change": change or None}
    return metrics


def file_samples(folder: Path, result: dict, earlier: dict) -> list[dict]:
    """Return some answers before and after, of as many tasks as there are."""
    samples: dict[str, dict] = {}
    for key, record in sorted(read_records(folder / result["records"]).items()):
        task = record["groups"].get("task")
        if task and task not in samples and "answer" in record:
            sample = {"task": task, "question": record["question"], "reference": record["reference"]}
            if earlier:
                sample["before"] = scored_answer(earlier.get(key, {}))
            samples[task] = sample | {"after": scored_answer(record)}
    return list(samples.values())[:NUM_SAMPLES]


def scored_answer(record: dict) -> dict:
    """Return a record's answer, None if it has none, and whether it is correct."""
    sums = record.get("sums", {})
    scores = sums.get("correct", sums.get("exact_match"))
    return {"answer": record.get("answer"), "correct": bool(scores[0]) if scores else None}


def resources(stage: Stage) -> dict:
    """Return a stage's size, work, time and machine."""
    meta = stage.meta
    seconds, tokens = meta.get("seconds"), meta.get("tokens")
    return {
        "layers": stage.config.n_layers,
        "width": stage.config.dim,
        "steps": meta.get("step"),
        "tokens": tokens,
        "minutes": seconds / 60 if seconds else None,
        "tokens_per_second": tokens / seconds if tokens and seconds else None,
        "machine": meta.get("machine"),
        "flags": meta.get("flags", {}),
    }


def collect(folder: Path) -> tuple[dict, dict[str, Stage]]:
    """Collect all of it as data, and the stages that it was made of; what is of other weights is only named."""
    scores = read_all_scores(folder)
    stages = read_stages(folder, scores)
    names = {stage.meta["weights"]: name for name, stage in stages.items()}
    reports = []
    for name, stage in stages.items():
        meta = stage.meta
        ancestors = meta.get("ancestors", [])
        parent_scores = scores.get(ancestors[0], {}) if ancestors else {}
        before = meta.get("initial_validation", {})
        validation = {key: {"before": before.get(key), "after": meta[key]} for key in VALIDATION if key in meta}
        report = {
            "name": name,
            "parent": meta.get("parent"),
            "ancestors": ancestors,
            "weights": meta["weights"],
            **resources(stage),
            "validation": validation,
            "new": {},
            "retained": {},
            "samples": [],
            "stale": stage.stale,
            "notes": stage.notes,
        }
        if isinstance(meta.get("sample"), str):
            report["continued"] = {"before": before.get("sample"), "after": meta["sample"]}
        for file, result in stage.scores.items():
            changes, baseline, earlier = find_baseline(folder, result, parent_scores.get(file))
            metrics = file_metrics(result, changes)
            compared_with = baseline and names.get(baseline, f"weights {baseline}")
            status = "retained" if any(file in scores.get(weights, {}) for weights in ancestors) else "new"
            report[status][file] = {"rows": result["rows"], "compared_with": compared_with, "metrics": metrics}
            report["samples"] += [{"file": file} | sample for sample in file_samples(folder, result, earlier)]
        reports.append(report)
    return {"folder": str(folder), "made": time.strftime("%Y-%m-%d %H:%M"), "stages": reports}, stages
