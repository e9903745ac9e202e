"""The whole road on the bundled sample with a small model: every stage, its scores, and what it can do now.

    python runs/demo.py                 # writes demo/, in about a quarter of an hour on two CPU cores
    python runs/demo.py --seed 1 --save_dir demo1

It runs the scripts as you would type them; each command is shown before it starts. At its end it asks every stage the
same questions and leaves demo/report.html (all figures) and demo/demo.json (the same as data).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = "data/sample"

# Muon and about a thousand tokens per step; docs/experiments.md says what else was tried.
SHAPE = "--dim 128 --n_layers 4 --n_heads 4"
STAGES = {  # name: script, data, steps, rate, rows per step
    "pretrain": (f"pretrain.py {SHAPE}", "pretrain.jsonl", 950, 1e-2, 2),
    "SFT": ("SFT.py", "sft_512.jsonl", 450, 2e-3, 2),
    "SFT_long": ("SFT.py --long", "sft_1024.jsonl", 200, 1e-3, 1),
    "distill": ("distill.py", "r1_1024.jsonl", 1400, 2e-3, 1),
    "distill_long": ("distill.py --long", "r1_1024.jsonl", 1200, 2e-3, 1),
}
PARENTS = {"SFT": "pretrain", "SFT_long": "SFT", "distill": "SFT", "distill_long": "SFT_long"}
# What each checkpoint is asked: its mode, and the held-out files that it and the stages before it were taught.
CHAT = ["facts", "everyday_heldout"]
SCORES = {
    "pretrain": ("--model_mode 0", ["pretrain_heldout"]),
    "SFT": ("--model_mode 1", [*CHAT, "sft_512_heldout", "pretrain_heldout"]),
    "SFT_long": ("--model_mode 1 --long", [*CHAT, "sft_1024_heldout"]),
    "distill": ("--model_mode 2", [*CHAT, "r1_1024_heldout"]),
    "distill_long": ("--model_mode 2 --long", [*CHAT, "r1_1024_heldout"]),
}
QUESTIONS = ["你好！", "你是谁？", "请问，林小满的家在哪里？", "请算一算四七+二八-一零等于多少？", "今天天气怎么样？"]
BEGINNINGS = ["贝壳湾", "林小满的家在", "灯塔立在"]  # a pretrained model continues texts


def run(words: str, *more: str) -> str:
    """A script with its flags, shown and run; what it says."""
    command = [*words.split(), *more]
    print(f"\n$ python {' '.join(command)}", flush=True)
    # Two threads that spin at each other's barriers starve when another program runs beside them; a short spin keeps
    # most of the speed alone, and much more of it in company. GNU's OpenMP reads this before torch is loaded.
    environment = {"GOMP_SPINCOUNT": "3000", "PYTHONUTF8": "1", **os.environ}
    done = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
                            encoding="utf-8", errors="replace")  # fmt: skip
    said = []
    for line in done.stdout or ():
        said.append(line)
        print(line, end="", flush=True)
    if done.wait():
        sys.exit(f"error: python {' '.join(command)} ended with code {done.returncode}")
    return "".join(said)


def write_facts(folder: Path) -> None:
    """The held-out questions about facts that pretraining tells and no training conversation asks about."""
    rows = (ROOT / SAMPLE / "sft_512_heldout.jsonl").read_text(encoding="utf-8").splitlines()
    kept = [row for row in rows if json.loads(row)["task"] == "fact"]
    (folder / "facts.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save_dir", default="demo", help="folder of everything it leaves (default: demo)")
    parser.add_argument("--seed", type=int, default=42, help="random seed of every stage (default: 42)")
    parser.add_argument("--dtype", default="auto", help="dtype of matrix products (default: auto)")
    chosen = parser.parse_args()
    began, out = time.time(), chosen.save_dir
    folder = ROOT / out
    folder.mkdir(exist_ok=True)
    write_facts(folder)

    minutes = {}
    for name, (script, data, steps, rate, batch) in STAGES.items():
        started = time.time()
        run(
            f"{script} --data_path {SAMPLE}/{data} --save_dir {out} --overwrite --max_steps {steps} "
            f"--batch_size {batch} --accumulation_steps 1 --optimizer muon --schedule linear --learning_rate {rate} "
            f"--warmup_iters 20 --eval_step {steps // 12} --save_step 0 --seed {chosen.seed} --dtype {chosen.dtype}"
        )
        minutes[name] = round((time.time() - started) / 60, 2)

    for name, (mode, files) in SCORES.items():
        paths = [f"{out}/facts.jsonl" if file == "facts" else f"{SAMPLE}/{file}.jsonl" for file in files]
        longer = " --max_seq_len 1024" if name in ("SFT_long", "distill") else ""
        baseline = f" --baseline {out}/{PARENTS[name]}.pth" if name in PARENTS else ""
        run(
            f"eval_model.py {mode} --save_dir {out} --score_rows 0 --max_new_tokens 160{longer}{baseline} --score",
            *paths,
        )
    run(f"eval_model.py --save_dir {out} --report")

    answers = {}
    for name, (mode, _) in SCORES.items():
        asked = BEGINNINGS if name == "pretrain" else QUESTIONS
        said = run(f"eval_model.py {mode} --save_dir {out} --temperature 0 --max_new_tokens 120 --prompt", *asked)
        answers[name] = dict(
            zip(asked, (part.split("\n", 1)[1].strip() for part in said.split("> ")[1:]), strict=False)
        )
    total = round((time.time() - began) / 60, 1)
    about = {"minutes": total, "stage_minutes": minutes, "cores": os.cpu_count(), "machine": platform.machine(),
             "seed": chosen.seed, "answers": answers}  # fmt: skip
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    text = json.dumps(about | {"report": report}, ensure_ascii=False, indent=1) + "\n"
    (folder / "demo.json").write_text(text, encoding="utf-8")

    print(f"\n{'=' * 70}\nWhat each stage can do now (greedy answers)")
    for name, pairs in answers.items():
        print(f"\n{name}")
        for question, answer in pairs.items():
            print(f"  > {question}\n    " + answer.replace("\n", "\n    "))
    print(
        f"\nAll of it took {total} minutes. Figures: {out}/report.html\n"
        f"Next: talk to it yourself: python eval_model.py --save_dir {out} --model_mode 2"
    )


if __name__ == "__main__":
    main()
