"""Print digests of everything a refactor must leave bitwise the same: python tests/digests.py > before.txt

Trains every stage for a few steps from a fixed seed (one and two processes, float32 and bfloat16) and hashes each loss,
gradient norm and weight; then hashes greedy answers and the exported hf and gguf files. Digests depend on the CPU and
on torch, so compare two commits on one machine: run it on both and `diff` what it prints.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data" / "sample"
COMMON = (
    "--device cpu --num_workers 1 --max_seq_len 256 --batch_size 2 --accumulation_steps 2 --max_steps 4 --log_step 1 "
    "--eval_step 0 --save_step 0 --warmup_iters 1 --seed 7"
).split()
SHAPE = "--dim 64 --n_layers 2 --n_heads 4 --n_kv_heads 2 --dropout 0.1".split()
STAGES = {  # name: script, its flags, the sample's file
    "pretrain": ("pretrain.py", SHAPE, "pretrain.jsonl"),
    "SFT": ("SFT.py", ["--optimizer", "muon"], "sft_512.jsonl"),
    "SFT_long": ("SFT.py", ["--long", "--loss_chunk", "100"], "sft_1024.jsonl"),
    "distill": ("distill.py", ["--z_loss", "1e-4"], "r1_1024.jsonl"),
    "distill_long": ("distill.py", ["--long", "--activation_checkpointing"], "r1_1024.jsonl"),
}
QUESTIONS = ["你好", "请问，林小满的家在哪里？", "请算一算四七+二八-一零等于多少？"]


def start(folder: Path, processes: int, script: str, *argv: str) -> str:
    """Run a script in `folder` and return its stdout; its stderr where it fails."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, str(ROOT / script), *argv]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def digest(*parts: bytes) -> str:
    """Return twelve hex digits of the parts, one after another."""
    return hashlib.blake2b(b"".join(parts), digest_size=6).hexdigest()


def digest_of_weights(path: Path) -> str:
    weights = torch.load(path, weights_only=True)
    return digest(*(name.encode() + weights[name].numpy().tobytes() for name in sorted(weights)))


def digest_of_log(path: Path) -> str:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    kept = [{key: row[key] for key in ("step", "loss", "grad_norm", "val_loss") if key in row} for row in rows]
    return digest(json.dumps(kept).encode())


def train_all(folder: Path, processes: int, dtype: str) -> list[str]:
    """Train every stage after its parent, and return a line of digests for each."""
    lines = []
    for name, (script, argv, file) in STAGES.items():
        start(folder, processes, script, *argv, *COMMON, "--dtype", dtype, "--data_path", str(SAMPLE / file))
        log, weights = folder / "results" / f"{name}.metrics.jsonl", folder / "results" / f"{name}.pth"
        digests = f"log {digest_of_log(log)} weights {digest_of_weights(weights)}"
        lines.append(f"{name:12} {processes} x {dtype:8} {digests}")
    return lines


def sharpen(path: Path) -> None:
    """Enlarge the matrices of a checkpoint: after a few steps a model would repeat one token, whatever it is asked."""
    weights = torch.load(path, weights_only=True)
    torch.save({name: tensor * 8 if tensor.dim() > 1 else tensor for name, tensor in weights.items()}, path)


def use(folder: Path) -> list[str]:
    """Return digests of greedy answers and exported files of the checkpoints in `folder`."""
    lines = []
    for path in (folder / "results").glob("*.pth"):
        sharpen(path)
    for mode in ("0", "1", "2"):
        chosen = ["--model_mode", mode, "--device", "cpu"]
        answers = start(
            folder, 1, "eval_model.py", *chosen, "--temperature", "0", "--max_new_tokens", "48", "--prompt", *QUESTIONS
        )
        lines.append(f"answers of mode {mode}: {digest(answers.encode())}")
    for kind, target, more in (
        ("hf", "folder", []),
        ("gguf", "f32.gguf", []),
        ("gguf", "q8.gguf", ["--dtype", "q8_0"]),
    ):
        start(folder, 1, "export.py", "--format", kind, target, "--model_mode", "2", *more)
        written = folder / target
        files = sorted(written.iterdir()) if written.is_dir() else [written]
        lines += [f"{kind} {path.name}: {digest(path.read_bytes())}" for path in files]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one process and float32 alone")
    quick = parser.parse_args().quick
    runs = [(1, "float32"), (1, "bfloat16"), (2, "float32"), (2, "bfloat16")][: 1 if quick else 4]
    with tempfile.TemporaryDirectory() as root, ThreadPoolExecutor(2) as pool:
        folders = [Path(root) / str(number) for number in range(len(runs))]
        for folder in folders:
            folder.mkdir()
        for lines in pool.map(train_all, folders, *zip(*runs, strict=True)):
            print("\n".join(lines), flush=True)
        print("\n".join(use(folders[0])))


if __name__ == "__main__":
    main()
