"""Measure how speed and memory grow with width, depth, row length, batch and threads: a table and a picture."""

import argparse
import os
from pathlib import Path

from benchmarks import compare

HEAD = 64  # size of a head at every width; four query heads share a key-value head


def variants(job: dict) -> list[tuple[str, int, dict]]:
    """Return (the setting that grows, its value, the change of the job), one setting at a time."""
    cores, changes = os.cpu_count() or 1, []
    for dim in (256, 512, 768, 1024):
        shape = {"dim": dim, "n_heads": dim // HEAD, "n_kv_heads": dim // HEAD // 4}
        changes.append(("width", dim, {"shape": job["shape"] | shape}))
    for layers in (2, 4, 8, 16):
        changes.append(("depth", layers, {"shape": job["shape"] | {"n_layers": layers}}))
    tokens = job["max_seq_len"] * job["batch_size"]
    for length in (128, 512, 1024, 2048):  # the same number of tokens in a step
        changes.append(("row length", length, {"max_seq_len": length, "batch_size": max(1, tokens // length)}))
    for batch in (1, 4, 16, 32):
        changes.append(("batch", batch, {"batch_size": batch}))
    for threads in sorted({1, 2, cores // 2, cores} & set(range(1, cores + 1))):
        changes.append(("threads", threads, {"threads": threads}))
    return changes


def measure(args: argparse.Namespace, job: dict, steps: int = 6) -> list[str]:
    """Return the table's lines; the picture is written next to --results."""
    if "parent" in job:
        raise ValueError('--grow makes fresh models: --data_path must hold rows with "text"')
    job |= {"flags": args.ours[0], "steps": steps if job["device"] == "cpu" else 20 * steps}
    table, points = [["", "", "real tokens/s", "peak memory, MiB"]], []
    for what, value, change in variants(job):
        name = f"{what} {value}"
        results = compare.in_turn(lambda _, n=name, c=change: {n: ("benchmarks.ours", job | c)}, args.rounds)[name]
        speeds, memory = (compare.metrics_of(results, key) for key in ("tokens_per_second", "memory"))
        failed = compare.failure(results)
        table.append([what, str(value), failed or compare.spread(speeds), compare.spread(memory)])
        if not failed:
            points.append((what, value, sorted(speeds)[len(speeds) // 2], max(memory)))
    picture = Path(args.results).with_name("growth.png")
    draw(points, picture)
    return [*compare.table(table), "", f"![speed and memory]({picture.name})"]


def draw(points: list[tuple[str, int, float, float]], path: Path) -> None:
    """Draw a panel for each setting: tokens a second on the left axis, memory on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(what for what, *_ in points))
    figure = pyplot.figure(figsize=(10.5, 5.6), layout="constrained")
    for place, name in enumerate(names, 1):
        axes = figure.add_subplot(2, 3, place)
        values, speeds, memory = zip(*(rest for what, *rest in points if what == name), strict=True)
        axes.plot(values, speeds, "o-", color="tab:blue")
        axes.set(xlabel=name, xscale="log", xticks=values, xticklabels=values, ylim=(0, None))
        axes.minorticks_off()
        axes.set_ylabel("real tokens/s", color="tab:blue")
        right = axes.twinx()
        right.plot(values, memory, "s--", color="tab:orange")
        right.set_ylim(0, None)
        right.set_ylabel("peak memory, MiB", color="tab:orange")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
