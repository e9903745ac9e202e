"""Distillation step by step: how soon answers are well-formed, and how many are right, by the weight of the tags.

    python -m benchmarks.tags --parent demo/SFT.pth                     # the bundled sample, tag weights 1, 3, 10, 30
    python -m benchmarks.tags --parent demo/SFT.pth --weights 10 --no_thoughts      # answers without their thoughts

Every run starts from the same checkpoint, with rows in an order of its own; every --every steps the model answers
held-out questions greedily. Not a timing: as many runs as there are cores go on at once, one thread each. Leaves a
table and a picture beside --results.
"""

import argparse
import json
import re
import shlex
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks import compare
from engine.flags import ROOT
from engine.options import SAMPLE

THOUGHT = re.compile(r"<think>(.*?)(?:</think>|$)", re.DOTALL)
FORMED = 0.95  # share of well-formed answers that counts as learned


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = compare.parser(__doc__)
    add = parser.add_argument
    add("--parent", required=True, help="checkpoint to start from")
    add("--data_path", default=SAMPLE / "r1_1024.jsonl", help="rows to learn")
    add("--heldout", default=SAMPLE / "r1_1024_heldout.jsonl", help="rows to answer")
    add("--weights", type=float, nargs="+", default=[1, 3, 10, 30], help="tag weights")
    add("--no_thoughts", action="store_true", help="also learn the answers with empty thoughts, at the first weight")
    add("--seeds", type=int, default=3, help="runs of each way")
    add("--steps", type=int, default=300, help="optimizer steps")
    add("--every", type=int, default=25, help="steps between answers")
    add("--answers", type=int, default=100, help="held-out rows that are answered each time")
    add("--max_new_tokens", type=int, default=160, help="of an answer")
    add(
        "--ours",
        default="--batch_size 1 --accumulation_steps 1 --optimizer muon --schedule linear "
        "--learning_rate 4e-3 --warmup_iters 10",
        help="flags of distill.py",
    )
    add("--results", default=compare.RESULTS, help="file the table is appended to")
    return parser.parse_args(argv)


def main(job: dict) -> dict:
    """One run of distill.py whose validations answer questions too: {"history": [[step, well-formed, correct]]}."""
    import distill
    from engine import loop
    from engine.files import read_log
    from engine.score import answers, records
    from engine.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(ROOT / "spongebob_tokenizer")
    items = records.read_items(Path(job["heldout"]), job["answers"])
    losses = loop.validate

    def validate(run: loop.Run) -> dict:
        figures = losses(run)
        run.model.eval()
        answered = answers.score_turns(
            run.model, tokenizer, items, 32, max_new_tokens=job["max_new_tokens"], most_frequent=""
        )
        run.model.train()
        return figures | {
            mark: statistics.mean(record["sums"][mark][0] for record in answered) for mark in ("well_formed", "correct")
        }

    loop.validate = validate
    folder = Path(job["folder"])
    words = {
        "init_from": job["parent"],
        "data_path": job["data_path"],
        "save_dir": folder,
        "cache_dir": folder / "cache",
        "num_workers": 1,
        "device": "cpu",
        "dtype": "float32",
        "tag_weight": job["tag_weight"],
        "seed": job["seed"],
        "max_steps": job["steps"],
        "eval_step": job["every"],
        "save_step": 0,
        "log_step": job["every"],
    }
    argv = [str(word) for name, value in words.items() for word in (f"--{name}", value)]
    distill.main([*argv, *shlex.split(job["flags"])])
    log = read_log(folder / "distill.metrics.jsonl")
    return {"history": [[row["step"], row["well_formed"], row["correct"]] for row in log if "well_formed" in row]}


def without_thoughts(path: Path, out: Path) -> Path:
    """The same rows with empty thoughts: what the answers alone teach."""
    with open(path, encoding="utf-8") as lines, open(out, "w", encoding="utf-8") as file:
        for row in map(json.loads, lines):
            for message in row["conversations"]:
                if message["role"] == "assistant":
                    message["content"] = THOUGHT.sub("<think>\n</think>", message["content"])
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return out


def table(found: dict[str, list[dict]]) -> list[str]:
    lines = [["", f"steps until {FORMED:.0%} well-formed", "well-formed at the end", "correct at the end", "each"]]
    for name, runs in found.items():
        if failed := next((one["failed"] for one in runs if "failed" in one), None):
            lines.append([name, f"not measured: {failed}", "", "", ""])
            continue
        soon = [next((step for step, formed, _ in one["history"] if formed >= FORMED), None) for one in runs]
        last = [one["history"][-1] for one in runs]
        correct = [right for *_, right in last]
        lines.append(
            [
                name,
                ", ".join("never" if step is None else str(step) for step in soon),
                f"{statistics.mean(formed for _, formed, _ in last):.1%}",
                compare.mean(correct, "{:.1%}"),
                ", ".join(f"{right:.0%}" for right in correct),
            ]
        )
    return compare.table(lines)


def draw(found: dict[str, list[dict]], path: Path) -> None:
    """Mean over seeds, and from the lowest to the highest as a shade."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained", sharex=True)
    for axes, column, title in zip(panels, (1, 2), ("well-formed", "correct"), strict=True):
        for name, runs in found.items():
            steps = [point[0] for point in runs[0]["history"]]
            shares = [[100 * one["history"][at][column] for one in runs] for at in range(len(steps))]
            (line,) = axes.plot(steps, [statistics.mean(share) for share in shares], label=name, linewidth=1.3)
            axes.fill_between(steps, list(map(min, shares)), list(map(max, shares)), alpha=0.12, color=line.get_color())
        axes.set(xlabel="optimizer step", ylabel="% of held-out answers", title=title, ylim=(-2, 102))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def run_all(argv: list[str] | None = None) -> None:
    args = parse(argv)
    before = compare.machine()
    shared = compare.select(args, "steps", "every", "answers", "max_new_tokens") | {
        "parent": str(Path(args.parent).resolve()),
        "heldout": str(Path(args.heldout).resolve()),
        "data_path": str(Path(args.data_path).resolve()),
        "flags": args.ours,
    }
    with tempfile.TemporaryDirectory() as folder:
        ways = {f"tag weight {weight:g}": {"tag_weight": weight} for weight in args.weights}
        if args.no_thoughts:
            path = without_thoughts(Path(args.data_path), Path(folder) / "r1_1024.jsonl")
            ways[f"without thoughts, tag weight {args.weights[0]:g}"] = {
                "tag_weight": args.weights[0],
                "data_path": str(path),
            }
        jobs = [(name, shared | way | {"seed": 42 + seed}) for name, way in ways.items() for seed in range(args.seeds)]
        found = compare.side_by_side(jobs, "benchmarks.tags")
    lines, picture = table(found), Path(args.results).with_name("tags.png")
    complete = {name: runs for name, runs in found.items() if not any("failed" in one for one in runs)}
    if complete:
        draw(complete, picture)
        lines += ["", f"![well-formed and correct answers by step]({picture.name})"]
    words = sys.argv[1:] if argv is None else argv
    compare.publish(
        f"tag weights, {Path(args.data_path).name}", "benchmarks.tags", words, lines, Path(args.results), before
    )


if __name__ == "__main__":
    compare.entry(run_all, main)
