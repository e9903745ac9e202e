"""Collect the results in a folder of checkpoints: report.json, the source of the page and of the terminal's summary.

A stage's scored files are "retained" if an ancestor was scored on them, since that ancestor taught them, else "new".
Before and after are compared row by row: with the --baseline, else with the parent's own records of the same file, if
its rows and settings are the same.
"""

import time
from pathlib import Path

from engine.checkpoint.weights import load_model, read_meta, weights_hash
from engine.options import ROAD
from engine.score.evaluate import compare
from engine.score.records import read_records, read_scores

VALIDATION = ("val_loss", "val_bits_per_byte", "val_tag_loss")
NUM_SAMPLES = 3  # of every scored file
FREE_SETTINGS = ("rows", "chats")  # may differ between parent and child: answers are compared row by row


def read_stages(folder: Path) -> dict[str, dict]:
    """Read {name: its .json} of a folder's checkpoints, in the order of the stages; ValueError if there are none."""
    stages = {path.stem: read_meta(path) for path in folder.glob("*.pth")}
    stages = {name: meta for name, meta in stages.items() if "stage" in meta}
    if not stages:
        raise ValueError(
            f"{folder}: no checkpoint with its .json there to report on; train one with: python pretrain.py"
        )
    order = dict.fromkeys([*ROAD, *stages])
    return {name: stages[name] for name in order if name in stages}


def ancestors(stages: dict[str, dict], name: str) -> list[str]:
    """Return the checkpoints of the folder that this one descends from, its parent first."""
    names: list[str] = []
    while (parent := Path(stages[name].get("parent") or "").stem) in stages and parent not in [name, *names]:
        names.append(parent)
        name = parent
    return names


def are_comparable(result: dict, other: dict) -> bool:
    """Return whether two results are of the same rows and settings."""
    differ = [key for key, value in result["settings"].items() if other["settings"].get(key) != value]
    return result["content"] == other["content"] and set(differ) <= set(FREE_SETTINGS)


def find_baseline(folder: Path, result: dict, parent: str, parent_result: dict | None) -> tuple[dict, str, dict]:
    """Return (changes by metric, baseline, its records by row and turn), all empty if there is none.

    Args:
        folder: Of the checkpoints.
        result: Scores of one file.
        parent: Name of the parent.
        parent_result: The parent's scores of the same file.
    """
    if "baseline" in result:
        baseline = result["baseline"]
        return baseline["metrics"], baseline["checkpoint"], read_records(folder / baseline["records"])
    if parent_result is None or not are_comparable(result, parent_result):
        return {}, "", {}
    earlier = read_records(folder / parent_result["records"])
    records = read_records(folder / result["records"])
    return compare(list(records.values()), list(earlier.values())), parent, earlier


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


def resources(meta: dict) -> dict:
    """Return a stage's size, work, time and machine."""
    seconds, tokens = meta.get("seconds", 0), meta.get("tokens", 0)
    return {
        "layers": meta["config"]["n_layers"],
        "width": meta["config"]["dim"],
        "steps": meta.get("step", 0),
        "tokens": tokens,
        "minutes": seconds / 60,
        "tokens_per_second": tokens / seconds if seconds else None,
        "machine": meta.get("machine"),
        "flags": meta.get("flags", {}),
    }


def collect(folder: Path) -> dict:
    """Collect all of it, in the order of the stages; metrics of other weights than a checkpoint's are only named."""
    stages = read_stages(folder)
    weights = {name: weights_hash(load_model(folder / f"{name}.pth")[0].state_dict()) for name in stages}
    scores = {name: read_scores(folder / f"{name}.scores.json") for name in stages}
    current = {n: {f: r for f, r in scores[n].items() if r.get("weights") == weights[n]} for n in stages}
    reports = []
    for name, meta in stages.items():
        road = ancestors(stages, name)
        parent = road[0] if road else ""
        before = meta.get("initial_validation", {})
        validation = {key: {"before": before.get(key), "after": meta[key]} for key in VALIDATION if key in meta}
        report = {
            "name": name,
            "parent": meta.get("parent"),
            "weights": weights[name],
            **resources(meta),
            "validation": validation,
            "new": {},
            "retained": {},
            "samples": [],
            "stale": sorted(scores[name].keys() - current[name].keys()),
        }
        if isinstance(meta.get("sample"), str):
            report["continued"] = {"before": before.get("sample"), "after": meta["sample"]}
        for file, result in current[name].items():
            status = "retained" if any(file in scores[ancestor] for ancestor in road) else "new"
            parent_result = current.get(parent, {}).get(file)
            changes, compared_with, earlier = find_baseline(folder, result, parent, parent_result)
            metrics = file_metrics(result, changes)
            report[status][file] = {"rows": result["rows"], "compared_with": compared_with, "metrics": metrics}
            report["samples"] += [{"file": file} | sample for sample in file_samples(folder, result, earlier)]
        reports.append(report)
    return {"folder": str(folder), "made": time.strftime("%Y-%m-%d %H:%M"), "stages": reports}
