"""Teach the demo's model the notes of a folder, and show what it knows now and what it knew before.

    make demo                           # once: its pretrained model learns the notes, too
    python runs/notes.py my_notes       # writes notes/, in about five minutes on two CPU cores
    python eval_model.py --save_dir notes

The folder holds files of any kind that prepare_data.py reads. A questions.jsonl in it is not learned: its questions are
asked at the end, and a reply is right if it holds the row's "answer". Without one, some lines of the notes are held
out, and their bits per byte are the result. Old texts are read again between the notes, so that they are not forgotten.
"""

import argparse
import json
import re
import sys
import time
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from engine.tokenizer import load_tokenizer
from runs.demo import ROOT, SAMPLE, run, write_facts

QUESTIONS = "questions.jsonl"
OLD_TEXTS, OLD_CHATS = f"{SAMPLE}/pretrain.jsonl", f"{SAMPLE}/sft_512.jsonl"
EVERYDAY, OLD_HELD_OUT = f"{SAMPLE}/everyday_heldout.jsonl", f"{SAMPLE}/pretrain_heldout.jsonl"
FLAGS = (
    "--overwrite --batch_size 2 --accumulation_steps 1 --optimizer muon --schedule linear --warmup_iters 20 "
    "--val_fraction 0 --save_step 0"
)
PRETRAIN_RATE, SFT_RATE = 6e-3, 2e-3
CHAT_EPOCHS = 1.9, 8, 1  # of the old conversations, of those in the folder, and of those made of sentences
SFT_SHARE = 0.1  # of the old texts that pretraining reads again, those that SFT reads once more
GO_ON, SENTENCE = "请接着说：", (8, 60)  # what asks for a sentence, and the characters that it may have
LEAST_BYTES = 0.75  # that a token of the notes must hold, as a share of those of an old one
HELD_OUT_LINE = 30  # characters; a shorter line is learned, as it may be a heading


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the notes")
    parser.add_argument("--from", dest="parent", default="demo", help="folder of the demo (default: demo)")
    parser.add_argument("--save_dir", default="notes", help="folder of everything it leaves (default: notes)")
    parser.add_argument("--epochs", type=float, default=16, help="times that the notes are read (default: 16)")
    parser.add_argument("--replay", type=float, default=0.5, help="share of old texts in what is read (default: 0.5)")
    parser.add_argument("--seed", type=int, default=42, help="random seed of every stage (default: 42)")
    parser.add_argument("--dtype", default="auto", help="dtype of matrix products (default: auto)")
    args = parser.parse_args()
    if not args.folder.is_dir() or not any(path.name != QUESTIONS for path in args.folder.iterdir()):
        sys.exit(f"error: {args.folder} is no folder with notes")
    if not 0 <= args.replay < 1:
        sys.exit(f"error: --replay {args.replay} must be from 0 to below 1")
    if (ROOT / args.save_dir).resolve() == (ROOT / args.parent).resolve():
        sys.exit(f"error: --save_dir {args.save_dir} is the folder of the demo; choose another")
    for stage in ("pretrain", "SFT"):
        if not (ROOT / args.parent / f"{stage}.pth").is_file():
            sys.exit(
                f"error: {args.parent}/{stage}.pth is not there; run `make demo` first, or name its folder: --from"
            )
    return args


def read_texts(path: Path) -> list[str]:
    """Return the texts of a JSONL file."""
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def write_texts(path: Path, texts: list[str]) -> None:
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
    path.write_text("".join(lines), encoding="utf-8")


def measure(texts: list[str]) -> dict[str, float]:
    """Return the number of tokens, their bytes, and the share of Chinese among the letters."""
    encodings = load_tokenizer(ROOT / "spongebob_tokenizer").encode_batch_fast(texts, add_special_tokens=False)
    tokens = sum(len(encoding.ids) for encoding in encodings)
    letters = [char for char in "".join(texts) if char.isalpha()]
    return {
        "tokens": tokens,
        "bytes_per_token": sum(len(text.encode()) for text in texts) / max(1, tokens),
        "chinese": sum("一" <= char <= "鿿" for char in letters) / max(1, len(letters)),
    }


def check_fit(notes: dict[str, float], old: dict[str, float]) -> None:
    """Print how the notes compare with the old texts, and stop if the model cannot read them well."""
    print(f"\n{'':12}{'tokens':>10}{'bytes/token':>13}{'Chinese':>10}")
    for name, values in (("notes", notes), ("old texts", old)):
        print(f"{name:12}{values['tokens']:10,}{values['bytes_per_token']:13.2f}{values['chinese']:10.0%}")
    reasons = []
    if notes["bytes_per_token"] < LEAST_BYTES * old["bytes_per_token"]:
        reasons.append("the tokenizer cuts the notes into much smaller pieces than the old texts")
    if abs(notes["chinese"] - old["chinese"]) > 0.5:
        reasons.append("the model has read little in the language of the notes")
    if reasons:
        sys.exit(
            f"error: {' and '.join(reasons)}. They need a model of their own: pretrain.py on a larger corpus in their "
            "language, perhaps with train_tokenizer.py before it, then pretrain.py --init_from with the notes"
        )


def hold_out_lines(texts: list[str]) -> tuple[list[str], list[str]]:
    """Take every twentieth long line out of each text; return the texts without them, and the lines."""
    learned, held_out = [], []
    for text in texts:
        lines = text.splitlines()
        long = [number for number, line in enumerate(lines) if len(line) >= HELD_OUT_LINE]
        chosen = set(Random(text).sample(long, round(len(long) / 20)))
        held_out += [lines[number] for number in sorted(chosen)]
        learned.append("\n".join(line for number, line in enumerate(lines) if number not in chosen))
    return learned, held_out


def prepare(args: argparse.Namespace, out: Path) -> dict[str, float]:
    """Turn the folder into texts, sentences and, without questions, held-out lines; return what `measure` says."""
    questions = (args.folder / QUESTIONS).resolve()
    against = ["--against", str(questions)] if questions.is_file() else []  # which leaves out these rows themselves
    run("prepare_data.py", str(args.folder.resolve()), *against, "--out", str(out / "prepared"), "--overwrite")
    texts = read_texts(out / "prepared" / "pretrain.jsonl")
    if not questions.is_file():
        texts, held_out = hold_out_lines(texts)
        write_texts(out / "held_out.jsonl", held_out)
    write_texts(out / "texts.jsonl", texts)
    write_sentences(out / "sentences.jsonl", texts, Random(args.seed))
    return measure(texts)


def write_sentences(path: Path, texts: list[str], rng: Random) -> None:
    """Write a conversation for each sentence: its beginning, and the whole. No question is made up.

    A model that has never chatted about a name says of it what it says of strangers: that it does not know.
    """
    rows = []
    for sentence in re.findall(r"[^#|>。！？\n]+[。！？]", "\n".join(texts)):
        sentence = sentence.strip(" -*”」")
        if SENTENCE[0] <= len(sentence) <= SENTENCE[1]:
            beginning = sentence[: rng.randint(len(sentence) // 4, 2 * len(sentence) // 3)]
            turns = [{"role": "user", "content": GO_ON + beginning}, {"role": "assistant", "content": sentence}]
            rows.append(json.dumps({"conversations": turns}, ensure_ascii=False) + "\n")
    path.write_text("".join(rows), encoding="utf-8")


def train(script: str, rate: float, files: dict[str, float], args: argparse.Namespace, *more: str) -> None:
    """Train a stage, which reads each file as often as is said."""
    files = {path: times for path, times in files.items() if times}
    epochs = " ".join(f"{times:.3g}" for times in files.values())
    run(
        f"{script} --data_path {' '.join(files)} --data_epochs {epochs} {FLAGS} --save_dir {args.save_dir} "
        f"--learning_rate {rate} --seed {args.seed} --dtype {args.dtype}",
        *more,
    )


def teach(notes: dict[str, float], old: dict[str, float], args: argparse.Namespace) -> None:
    """Pretraining on the notes between old texts, then SFT on what taught the demo to answer, with some of both."""
    replay = args.epochs * notes["tokens"] / old["tokens"] * args.replay / (1 - args.replay)
    texts = {f"{args.save_dir}/texts.jsonl": args.epochs, OLD_TEXTS: replay}
    train("pretrain.py", PRETRAIN_RATE, texts, args, "--name", "pretrain", "--init_from", f"{args.parent}/pretrain.pth")
    chats = [OLD_CHATS, f"{args.save_dir}/prepared/sft_512.jsonl", f"{args.save_dir}/sentences.jsonl"]
    files = {path: times for path, times in zip(chats, CHAT_EPOCHS, strict=True) if (ROOT / path).is_file()}
    train("SFT.py", SFT_RATE, files | {OLD_TEXTS: replay * SFT_SHARE}, args)


def score(stage: str, files: list[str], args: argparse.Namespace) -> dict[str, dict]:
    """Score a stage and the demo's on the same rows; return what is stored of each file."""
    run(
        f"eval_model.py --model_mode {int(stage == 'SFT')} --save_dir {args.save_dir} "
        f"--baseline {args.parent}/{stage}.pth --max_eval_rows 0 --max_new_tokens 60 --score",
        *files,
    )
    return json.loads((ROOT / args.save_dir / f"{stage}.scores.json").read_text(encoding="utf-8"))


def read_replies(records: Path, questions: Path) -> list[dict]:
    """Return question, answer and reply of each row, and whether the reply holds the answer."""
    replies = {record["row"]: record["answer"] for record in map(json.loads, records.read_text("utf-8").splitlines())}
    result = []
    for number, row in enumerate(map(json.loads, questions.read_text("utf-8").splitlines()), 1):
        question, answer = (turn["content"] for turn in row["conversations"][-2:])
        answer, reply = row.get("answer", answer), replies.get(number, "")
        result.append({"question": question, "answer": answer, "reply": reply, "right": answer in reply})
    return result


def compare(args: argparse.Namespace, out: Path) -> dict:
    """Score both stages and the demo's; return the table's rows as (name, before, after), replies and samples."""
    questions, held_out = (args.folder / QUESTIONS).resolve(), out / "held_out.jsonl"
    write_facts(out)
    has_questions = questions.is_file()
    pretrained = score("pretrain", [OLD_HELD_OUT, *([] if has_questions else [str(held_out)])], args)
    asked = [str(out / "facts.jsonl"), EVERYDAY, OLD_HELD_OUT, *([str(questions)] if has_questions else [])]
    chat = score("SFT", asked, args)

    def row(name: str, scores: dict[str, dict], file: str, metric: str) -> dict:
        change = scores[Path(file).name]["baseline"]["metrics"][metric]
        return {"name": name, "before": change["before"], "after": change["after"]}

    table = [
        row("facts of the old town, right", chat, "facts.jsonl", "exact_match"),
        row("everyday questions, right", chat, EVERYDAY, "exact_match"),
        row("old texts, bits per byte", pretrained, OLD_HELD_OUT, "bits_per_byte"),
        row("the same after SFT", chat, OLD_HELD_OUT, "bits_per_byte"),
    ]
    if not has_questions:
        table.insert(0, row("held-out lines, bits per byte", pretrained, "held_out.jsonl", "bits_per_byte"))
        beginnings = [text[: HELD_OUT_LINE // 3] for text in Random(args.seed).sample(read_texts(held_out), 5)]
        return {"table": table, "samples": continue_texts(beginnings, args)}
    replies, before = (
        read_replies(out / result["records"], questions) for result in (chat[QUESTIONS], chat[QUESTIONS]["baseline"])
    )
    right = [sum(reply["right"] for reply in side) / len(replies) for side in (before, replies)]
    table.insert(0, {"name": "questions about the notes, right", "before": right[0], "after": right[1]})
    return {"table": table, "replies": replies}


def continue_texts(beginnings: list[str], args: argparse.Namespace) -> list[str]:
    """Return how the pretrained model continues the beginnings of lines."""
    flags = f"eval_model.py --model_mode 0 --save_dir {args.save_dir} --temperature 0 --max_new_tokens 60 --prompt"
    return [part.strip().replace("\n", " ") for part in run(flags, *beginnings).split("> ")[1:]]


def show(result: dict, args: argparse.Namespace) -> None:
    print(f"\n{'=' * 70}\n{args.folder}, seed {args.seed}, {result['minutes']} minutes")
    print(f"{'':36}{'before':>10}{'after':>10}")
    for row in result["table"]:
        print(f"{row['name']:36}{row['before']:10.3f}{row['after']:10.3f}")
    for reply in result.get("replies", [])[:5]:
        print(
            f"\n> {reply['question']}\n{reply['reply']}" + ("" if reply["right"] else f"\n(right: {reply['answer']})")
        )
    for sample in result.get("samples", []):
        print(f"\n> {sample}")
    print(f"\nTalk to it: python eval_model.py --save_dir {args.save_dir}")


def main() -> None:
    args = parse_args()
    began, out = time.time(), ROOT / args.save_dir
    out.mkdir(parents=True, exist_ok=True)
    notes, old = prepare(args, out), measure(read_texts(ROOT / OLD_TEXTS))
    check_fit(notes, old)
    teach(notes, old, args)
    result = compare(args, out)
    result = {"seed": args.seed, "minutes": round((time.time() - began) / 60, 1)} | result
    (out / "notes.json").write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    show(result, args)


if __name__ == "__main__":
    main()
