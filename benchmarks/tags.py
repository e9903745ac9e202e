"""Follow distillation: how soon answers are well-formed, and how many are correct, by the weight of the tags.

    python -m benchmarks.tags --parent demo/SFT.pth                     # the bundled sample, tag weights 1, 3, 10, 30
    python -m benchmarks.tags --parent demo/SFT.pth --weights 10 --no_thoughts      # answers without their thoughts

Every run starts from the same checkpoint, with rows in an order of its own; every --every steps the model answers
held-out questions greedily. Nothing is timed: there are as many runs at once as there are cores, one thread each.
Writes a table, and a picture next to --results.
"""

import argparse
import json
import re
import shlex
import statistics
import tempfile
from itertools import product
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
    """Run distill.py with validations that also answer questions: {"history": [[step, well-formed, correct]]}."""
    import distill
    from engine import loop
    from engine.files import read_log
    from engine.score import answers, records
    from engine.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(ROOT / "spongebob_tokenizer")
    items = records.read_items(Path(job["heldout"]), job["answers"])
    validate_loss = loop.validate

    def validate(run: loop.Run) -> dict:
        values = validate_loss(run)
        run.model.eval()
        scored = answers.score_turns(
            run.model, tokenizer, items, 32, max_new_tokens=job["max_new_tokens"], most_frequent=""
        )
        run.model.train()
        for metric in ("well_formed", "correct"):
            values[metric] = statistics.mean(record["sums"][metric][0] for record in scored)
        return values

    loop.validate = validate
    folder = Path(job["folder"])
    flags = {
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
    argv = [f"--{name}={value}" for name, value in flags.items()]
    distill.main([*argv, *shlex.split(job["flags"])])
    log = read_log(folder / "distill.metrics.jsonl")
    return {"history": [[row["step"], row["well_formed"], row["correct"]] for row in log if "well_formed" in row]}


def without_thoughts(path: Path, out: Path) -> Path:
    """Write the same rows with empty thoughts, to learn from the answers alone."""
    with open(path, encoding="utf-8") as lines, open(out, "w", encoding="utf-8") as file:
        for row in map(json.loads, lines):
            for message in row["conversations"]:
                if message["role"] == "assistant":
                    message["content"] = THOUGHT.sub("<think>\n</think>", message["content"])
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return out


def table(results: dict[str, list[dict]]) -> list[str]:
    """Format when answers became well-formed, and how many were correct at the end."""
    lines = [["", f"steps until {FORMED:.0%} well-formed", "well-formed at the end", "correct at the end", "each"]]
    for name, runs in results.items():
        if failed := compare.failure(runs):
            lines.append([name, failed, "", "", ""])
            continue
        first = []
        for run in runs:
            reached = [str(step) for step, formed, _ in run["history"] if formed >= FORMED]
            first.append(reached[0] if reached else "never")
        formed = statistics.mean(run["history"][-1][1] for run in runs)
        correct = [run["history"][-1][2] for run in runs]
        each = ", ".join(f"{share:.0%}" for share in correct)
        lines.append([name, ", ".join(first), f"{formed:.1%}", compare.mean(correct, "{:.1%}"), each])
    return compare.table(lines)


def draw(results: dict[str, list[dict]], path: Path) -> None:
    """Draw the mean over seeds, with the range from lowest to highest shaded."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained", sharex=True)
    for axes, column, title in zip(panels, (1, 2), ("well-formed", "correct"), strict=True):
        for name, runs in results.items():
            steps = [point[0] for point in runs[0]["history"]]
            shares = [[100 * run["history"][i][column] for run in runs] for i in range(len(steps))]
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
        settings = {f"tag weight {weight:g}": {"tag_weight": weight} for weight in args.weights}
        if args.no_thoughts:
            path = without_thoughts(Path(args.data_path), Path(folder) / "r1_1024.jsonl")
            name = f"without thoughts, tag weight {args.weights[0]:g}"
            settings[name] = {"tag_weight": args.weights[0], "data_path": str(path)}
        jobs = []
        for (name, setting), seed in product(settings.items(), range(args.seeds)):
            jobs.append((name, shared | setting | {"seed": 42 + seed}))
        results = compare.side_by_side(jobs, "benchmarks.tags")
    lines, picture = table(results), Path(args.results).with_name("tags.png")
    complete = {name: runs for name, runs in results.items() if not compare.failure(runs)}
    if complete:
        draw(complete, picture)
        lines += ["", f"![well-formed and correct answers by step]({picture.name})"]
    title = f"tag weights, {Path(args.data_path).name}"
    compare.publish(title, "benchmarks.tags", argv, lines, Path(args.results), before)


if __name__ == "__main__":
    compare.entry(run_all, main)
