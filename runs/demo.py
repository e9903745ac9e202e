"""Train and score all stages on the bundled sample with a small model, and show their answers.

    python runs/demo.py                 # writes demo/, in a quarter to half an hour on two CPU cores
    python runs/demo.py --seed 1 --save_dir demo1

It runs the scripts as you would type them; each command is shown before it starts. Independent stages run
at the same time, on half of the cores each. At its end it asks every stage the same questions and leaves
demo/report.html (all metrics), demo/demo.json (the same as data) and demo/play.html (three of the models in one page).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = "data/sample"

# Muon and about a thousand tokens per step; docs/experiments.md says what else was tried.
SHAPE = "--dim 128 --n_layers 4 --n_heads 4 --rope_theta 10000"
STAGES = {  # name: script, data, steps, rate, rows per step
    "pretrain": (f"pretrain.py {SHAPE}", "pretrain.jsonl", 1800, 1e-2, 2),
    "SFT": ("SFT.py", "sft_512.jsonl", 600, 2e-3, 2),
    "SFT_long": ("SFT.py --long", "sft_1024.jsonl", 150, 1e-3, 1),
    "distill": ("distill.py", "r1_1024.jsonl", 2600, 7e-4, 1),
    "distill_long": ("distill.py --long", "r1_1024.jsonl", 2400, 7e-4, 1),
}
BRANCHES = [["distill"], ["SFT_long", "distill_long"]]  # after SFT, at the same time
PARENTS = {"SFT": "pretrain", "SFT_long": "SFT", "distill": "SFT", "distill_long": "SFT_long"}
# Each checkpoint's mode, and the held-out rows it is scored on: of its own stage and of the stages before it.
SCORES = {
    "pretrain": ("--model_mode 0", ["pretrain_heldout"]),
    "SFT": ("--model_mode 1", ["pretrain_heldout", "facts", "everyday_heldout"]),
    "SFT_long": ("--model_mode 1 --long --max_seq_len 1024", ["facts", "everyday_heldout", "sft_1024_heldout"]),
    "distill": ("--model_mode 2 --max_seq_len 1024", ["facts", "everyday_heldout", "r1_1024_heldout", "talks_heldout"]),
    "distill_long": ("--model_mode 2 --long", ["facts", "everyday_heldout", "r1_1024_heldout", "talks_heldout"]),
}
MAIN = {
    "pretrain_heldout": "bits_per_byte",
    "sft_1024_heldout": "answer_loss",
    "r1_1024_heldout": "correct",
    "talks_heldout": "correct",
}  # else exact_match
QUESTIONS = ["你好！", "你是谁？", "请问，林小满的家在哪里？", "请算一算四七+二八-一零等于多少？", "今天天气怎么样？"]
BEGINNINGS = ["贝壳湾", "林小满的家在", "灯塔立在"]  # a pretrained model continues texts


def run(flags: str, *more: str, label: str = "") -> str:
    """Show and run a script with its flags, and return its output.

    One with a label runs at the same time as another: its lines begin with the label, and it takes half of the cores.
    """
    command = [*flags.split(), *more]
    label = label and f"{label:12} | "
    print(f"\n{label}$ python {' '.join(command)}", flush=True)
    # Threads that spin at each other's barriers starve when another program runs at the same time; a short spin keeps
    # most of the speed alone, and much more of it in company. GNU's OpenMP reads this before torch is loaded.
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2))} if label else {}
    environment = {"GOMP_SPINCOUNT": "3000", "PYTHONUTF8": "1"} | threads | os.environ
    options: Any = {"text": True, "stdout": subprocess.PIPE, "encoding": "utf-8", "errors": "replace"}
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, **options)
    output = ""
    for line in process.stdout or ():
        output += line
        print(label + line, end="", flush=True)
    if process.wait():
        sys.exit(f"error: python {' '.join(command)} ended with code {process.returncode}")
    return output


def two_at_a_time(do: Callable[[Any], Any], items: Iterable) -> list:
    """Return [do(item), ...]. With matrices so small, two programs of one core each do more than one of two cores."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(do, items))


def write_facts(folder: Path) -> None:
    """Write the held-out questions about facts that pretraining tells and no training conversation asks about."""
    rows = (ROOT / SAMPLE / "sft_512_heldout.jsonl").read_text(encoding="utf-8").splitlines()
    facts = [row for row in rows if json.loads(row)["task"] == "fact"]
    (folder / "facts.jsonl").write_text("\n".join(facts) + "\n", encoding="utf-8")


def metrics_of(stage: dict) -> dict:
    """Return {file and its main metric: the values before and after a stage}, of a stage in report.json."""
    metrics = {"validation": stage["validation"]["val_bits_per_byte"]}
    for file, result in (stage["new"] | stage["retained"]).items():
        stem = file.split(".")[0]
        for name in {MAIN.get(stem, "exact_match"), *({"well_formed"} & result["metrics"].keys())}:
            metric = result["metrics"][name]
            values = {key: metric[key] for key in ("before", "after", "n", "low", "high")}
            metrics[f"{stem} {name}"] = values | {"p": metric["change"] and metric["change"]["p"]}
    return dict(sorted(metrics.items()))


def train(name: str, out: str, seed: int, dtype: str, label: str = "") -> float:
    """Train a stage and return the minutes it took."""
    script, data, steps, rate, batch = STAGES[name]
    began = time.time()
    run(
        f"{script} --data_path {SAMPLE}/{data} --save_dir {out} --overwrite --max_steps {steps} --batch_size {batch} "
        f"--accumulation_steps 1 --optimizer muon --schedule linear --learning_rate {rate} --warmup_iters 20 "
        f"--eval_step {steps // 12} --save_step 0 --seed {seed} --dtype {dtype}",
        label=label,
    )
    return round((time.time() - began) / 60, 2)


def score(name: str, out: str) -> None:
    """Score a stage on every held-out file, compared with the checkpoint it started from."""
    mode, files = SCORES[name]
    baseline = f" --baseline {out}/{PARENTS[name]}.pth" if name in PARENTS else ""
    for file in files:
        path = f"{out if file == 'facts' else SAMPLE}/{file}.jsonl"
        rows = 24 if file == "sft_1024_heldout" else 0  # 17 answers in each of them
        flags = f"--score {path} --max_eval_rows {rows} --max_new_tokens 160{baseline}"
        run(f"eval_model.py {mode} --save_dir {out} {flags}", label=name)


def ask(name: str, out: str) -> dict[str, str]:
    """Return a stage's greedy answers to the same questions."""
    questions = BEGINNINGS if name == "pretrain" else QUESTIONS
    flags = f"{SCORES[name][0]} --save_dir {out} --temperature 0 --max_new_tokens 120 --prompt"
    answers = [part.split("\n", 1)[1].strip() for part in run(f"eval_model.py {flags}", *questions).split("> ")[1:]]
    return dict(zip(questions, answers, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save_dir", default="demo", help="folder of everything it leaves (default: demo)")
    parser.add_argument("--seed", type=int, default=42, help="random seed of every stage (default: 42)")
    parser.add_argument("--dtype", default="auto", help="dtype of matrix products (default: auto)")
    args = parser.parse_args()
    began, out = time.time(), args.save_dir
    folder = ROOT / out
    folder.mkdir(exist_ok=True)
    write_facts(folder)

    minutes = {name: train(name, out, args.seed, args.dtype) for name in ("pretrain", "SFT")}

    def train_branch(names: list[str]) -> dict[str, float]:
        return {name: train(name, out, args.seed, args.dtype, label=name) for name in names}

    for taken in two_at_a_time(train_branch, BRANCHES):
        minutes |= taken
    two_at_a_time(lambda name: score(name, out), STAGES)
    run(f"eval_model.py --save_dir {out} --report")
    (folder / "play.html").unlink(missing_ok=True)  # of an earlier demo
    run(f"export.py --format page {out}/play.html --save_dir {out} --stages pretrain SFT distill")
    answers = {name: ask(name, out) for name in STAGES}

    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    metrics = {stage["name"]: metrics_of(stage) for stage in report["stages"]}
    total = round((time.time() - began) / 60, 1)
    run_metadata = {
        "minutes": total,
        "stage_minutes": {name: minutes[name] for name in STAGES},
        "cores": os.cpu_count(),
        "seed": args.seed,
    }
    text = json.dumps(run_metadata | {"metrics": metrics, "answers": answers}, ensure_ascii=False, indent=1) + "\n"
    (folder / "demo.json").write_text(text, encoding="utf-8")

    print(f"\n{'=' * 70}\nHeld-out metrics of every stage, before and after it")
    for stage, values in metrics.items():
        for name, value in values.items():
            before = "" if value["before"] is None else f"{value['before']:.3f}"
            print(f"  {stage:14}{name:32}{before:>9} -> {value['after']:.3f}")
    print(f"\n{'=' * 70}\nWhat each stage can do now (greedy answers)")
    for name, pairs in answers.items():
        print(f"\n{name}")
        for question, answer in pairs.items():
            print(f"  > {question}\n    " + answer.replace("\n", "\n    "))
    print(f"\nAll of it took {total} minutes; {out}/report.html shows every metric.")
    print(f"Next, talk to it yourself: open {out}/play.html, or python eval_model.py --save_dir {out} --model_mode 2")


if __name__ == "__main__":
    main()
