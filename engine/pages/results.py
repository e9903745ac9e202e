"""What a folder of checkpoints holds, as data: report.json, of which the page and the terminal's summary are made.

A stage's scored files are of two kinds. One that an ancestor was scored on is what the ancestor taught, and here is
"kept"; the others are what the stage itself "taught". Before and after are compared row by row: with the --baseline,
else with the parent's own records of the same file, where its rows and settings are the same.
"""

import json
import time
from pathlib import Path

from engine.checkpoint.weights import read_meta
from engine.options import ROAD
from engine.score.evaluate import compare
from engine.score.records import digest_of, read_records
from engine.score.table import shown

VALIDATION = ("val_loss", "val_bits_per_byte", "val_tag_loss")
SAMPLES = 3  # of every scored file
FREE = ("rows", "chats")  # settings that may differ between parent and child: answers are compared row by row


def read_stages(folder: Path) -> dict[str, dict]:
    """{name: its .json} of the checkpoints in a folder, in the order of the road; ValueError where there are none."""
    found = {path.stem: read_meta(path) for path in folder.glob("*.pth")}
    found = {name: meta for name, meta in found.items() if "stage" in meta}
    if not found:
        raise ValueError(
            f"{folder}: no checkpoint with its .json there to report on; train one with: python pretrain.py"
        )
    road = list(ROAD)
    return dict(sorted(found.items(), key=lambda item: road.index(item[0]) if item[0] in road else len(road)))


def read_scores(folder: Path, name: str) -> dict[str, dict]:
    path = folder / f"{name}.scores.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def ancestors(stages: dict[str, dict], name: str) -> list[str]:
    """The checkpoints of the folder that this one came from, its parent first."""
    found: list[str] = []
    while (parent := Path(stages[name].get("parent") or "").stem) in stages and parent not in [name, *found]:
        found.append(parent)
        name = parent
    return found


def comparable(result: dict, other: dict) -> bool:
    """Whether two files of records are of the same rows, asked alike."""
    settings = [{key: value for key, value in one["settings"].items() if key not in FREE} for one in (result, other)]
    return settings[0] == settings[1] and result["content"] == other["content"]


def earlier_of(folder: Path, result: dict, parents: dict[str, dict], parent: str, file: str) -> tuple[dict, str, dict]:
    """(changes by figure, of whom, records by row) of what stood before; empty where nothing does."""
    if "baseline" in result:
        base = result["baseline"]
        return base["figures"], base["checkpoint"], read_records(folder / base["records"])
    other = parents.get(file)
    if other is None or not comparable(result, other):
        return {}, "", {}
    records = read_records(folder / other["records"])
    ours = read_records(folder / result["records"])
    return compare(list(ours.values()), list(records.values())), parent, records


def file_figures(result: dict, changes: dict[str, dict], of: str) -> dict:
    """A file's figures: value, interval, chance and n, and what was before, the change and its p-value."""
    figures = {}
    for name, found in shown(result["figures"]).items():
        change = changes.get(name, {})
        figures[name] = {"before": change.get("before"), "after": found["value"]}
        figures[name] |= {key: found[key] for key in ("low", "high", "chance", "n", "left_out") if key in found}
        figures[name] |= (
            {"change": {key: change[key] for key in ("difference", "low", "high", "p", "n")}} if change else {}
        )
    return {"rows": result["rows"], "compared_with": of, "figures": figures}


def file_samples(folder: Path, result: dict, earlier: dict) -> list[dict]:
    """Some answers before and after, of as many tasks as there are."""
    answered = {key: one for key, one in read_records(folder / result["records"]).items() if "answer" in one}
    first_of = {record["groups"].get("task"): key for key, record in sorted(answered.items(), reverse=True)}
    samples = []
    for key in [key for task, key in sorted(first_of.items(), key=lambda pair: pair[1]) if task][:SAMPLES]:
        record, before = answered[key], earlier.get(key)
        sample = {"task": record["groups"]["task"], "question": record["question"], "wanted": record["reference"]}
        sample |= {"before": said(before)} if earlier else {}
        samples.append(sample | {"after": said(record)})
    return samples


def said(record: dict | None) -> dict:
    """An answer, None where it was not asked for, and whether it is right."""
    sums = (record or {}).get("sums", {})
    right = next((bool(sums[name][0]) for name in ("correct", "exact") if name in sums), None)
    return {"answer": (record or {}).get("answer"), "right": right}


def effort(meta: dict) -> dict:
    """What a stage took and on what."""
    seconds, tokens, shape = meta.get("seconds", 0), meta.get("tokens", 0), meta["config"]
    return {
        "layers": shape["n_layers"],
        "width": shape["dim"],
        "steps": meta.get("step", 0),
        "tokens": tokens,
        "minutes": seconds / 60,
        "tokens_per_second": tokens / seconds if seconds else None,
        "machine": meta.get("machine"),
        "flags": meta.get("flags", {}),
    }


def collect(folder: Path) -> dict:
    """All of it, in the order of the road; figures of other weights than a checkpoint's are only named ("stale")."""
    stages = read_stages(folder)
    scores = {name: read_scores(folder, name) for name in stages}
    weights = {name: digest_of(folder / f"{name}.pth") for name in stages}
    fresh = {
        name: {file: result for file, result in scores[name].items() if result.get("weights") == weights[name]}
        for name in stages
    }
    found = []
    for name, meta in stages.items():
        road = ancestors(stages, name)
        before = meta.get("initial_validation", {})
        stage = {"name": name, "parent": meta.get("parent"), "weights": weights[name], **effort(meta)}
        stage["validation"] = {
            key: {"before": before.get(key), "after": meta[key]} for key in VALIDATION if key in meta
        }
        if isinstance(meta.get("sample"), str):
            stage["continued"] = {"before": before.get("sample"), "after": meta["sample"]}
        stage |= {"taught": {}, "kept": {}, "samples": [], "stale": sorted(scores[name].keys() - fresh[name].keys())}
        for file, result in fresh[name].items():
            kind = "kept" if any(file in scores[one] for one in road) else "taught"
            parent = road[0] if road else ""
            changes, of, earlier = earlier_of(folder, result, fresh.get(parent, {}), parent, file)
            stage[kind][file] = file_figures(result, changes, of)
            stage["samples"] += [{"file": file} | one for one in file_samples(folder, result, earlier)]
        found.append(stage)
    return {"folder": str(folder), "made": time.strftime("%Y-%m-%d %H:%M"), "stages": found}
