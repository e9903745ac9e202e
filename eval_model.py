"""The front door to any checkpoint: chat with it, ask it one thing, score it, export it, report on all stages.

python eval_model.py                              # chat with results/SFT.pth
python eval_model.py --model_mode 2 --long        # results/distill_long.pth
python eval_model.py --model_mode 0 --prompt 从前   # results/pretrain.pth continues a text
python eval_model.py --score data/sample/sft_512_heldout.jsonl --baseline results/pretrain.pth
python eval_model.py --export hf exported         # a folder for transformers
python eval_model.py --report                     # all stages on one page: results/report.html
"""

import argparse
import sys
from pathlib import Path

from tokenizers import Tokenizer

from dataset import EOS, load_tokenizer
from engine import export, flags, report, runtime, score, score_table, stage, talk
from model import SpongeBob

STAGES = ("pretrain", "SFT", "distill")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = flags.parser(__doc__)
    add = parser.add_argument_group("checkpoint").add_argument
    add("--model_mode", type=int, choices=range(len(STAGES)), default=1, help="0 pretrain, 1 SFT, 2 distill")
    add("--long", action="store_true", help="the long-context sibling of mode 1 or 2")
    add("--ckpt", help="any .pth; its .json says whether it chats or continues, without one --model_mode does")
    add("--save_dir", default="results", help="folder of the checkpoints, and of the scores")
    add("--tokenizer_dir", default=str(flags.ROOT / "spongebob_tokenizer"), help="folder with tokenizer.json")
    add("--n_heads", type=int, default=None, help="of a checkpoint without .json; default 8")
    add("--rope_theta", type=float, default=None, help="of a checkpoint without .json; default 1e6")
    add("--max_seq_len", type=int, default=None, help="tokens of context, question and answer; default the model's")
    add = parser.add_argument_group("answers").add_argument
    add("--temperature", type=float, default=0.7, help="divides the logits (0: greedy)")
    add("--top_p", type=float, default=0.9, help="sample from the likeliest tokens with this much in sum (1: off)")
    add("--top_k", type=int, default=0, help="sample from this many likeliest tokens (0: off)")
    add("--repetition_penalty", type=float, default=1.0, help="weakens tokens the answer already holds (1: off)")
    add("--max_new_tokens", type=int, default=512, help="longest answer in tokens")
    add("--history_cnt", type=int, default=4, help="earlier question-answer pairs the chat remembers (0: none)")
    add("--system", type=str, default=None, help="system message instead of the one the model was trained with")
    add("--stream", action=argparse.BooleanOptionalAction, default=True, help="print an answer while it is made")
    add("--seed", type=int, default=42, help="of the sampling")
    add("--device", default="auto", help="auto, cuda, cuda:N, mps or cpu")
    add("--dtype", choices=["auto", *runtime.DTYPES], default="auto", help="of matrix products; exports are float32")
    add = parser.add_argument_group("instead of a chat").add_mutually_exclusive_group().add_argument
    add("--prompt", nargs="+", help="answer each of these texts, in one batch")
    add("--export", nargs=2, metavar=("FORMAT", "DIR"), help="write DIR for other programs; FORMAT is hf")
    add("--score", nargs="+", metavar="FILE", help="figures for JSONL files, greedy: SAVE_DIR/CHECKPOINT.scores.json")
    add("--report", nargs="?", const="", metavar="HTML", help="all stages on one page; default SAVE_DIR/report.html")
    add = parser.add_argument_group("scores").add_argument
    add("--baseline", metavar="CKPT", help="score this checkpoint on the same rows, and test the difference")
    add("--score_rows", type=int, default=200, help="first rows of each file that are scored (0: all)")
    add("--score_batch", type=int, default=16, help="rows answered at once")
    add("--shots", type=int, nargs="+", default=[0, 5], help="examples before a multiple-choice question")
    return _checked(parser.parse_args(argv))


def _checked(args: argparse.Namespace) -> argparse.Namespace:
    for name in ("temperature", "top_k", "history_cnt", "score_rows"):
        if not getattr(args, name) >= 0:
            raise ValueError(f"--{name} {getattr(args, name)} must not be negative")
    positive = "top_p", "repetition_penalty", "max_new_tokens", "score_batch", "max_seq_len", "n_heads", "rope_theta"
    for name in positive:
        if getattr(args, name) is not None and not getattr(args, name) > 0:
            raise ValueError(f"--{name} {getattr(args, name)} must be more than 0")
    if args.top_p > 1:
        raise ValueError(f"--top_p {args.top_p} must be at most 1")
    if args.long and (args.ckpt or args.model_mode == 0):
        raise ValueError("--long is for --model_mode 1 and 2, without --ckpt")
    if args.baseline and not args.score:
        raise ValueError("--baseline compares scores: name the rows with --score FILE")
    if args.baseline and not Path(args.baseline).is_file():
        raise ValueError(f"--baseline {args.baseline}: no such checkpoint")
    if min(args.shots) < 0:
        raise ValueError(f"--shots {min(args.shots)} must not be negative")
    if args.export and args.export[0] != "hf":
        raise ValueError(f"--export {args.export[0]}: no such format, only hf")
    return args


def load(args: argparse.Namespace, path: Path, tokenizer: Tokenizer) -> tuple[SpongeBob, bool]:
    """A checkpoint, and whether it chats or continues a text; a missing one is an error that names what makes it."""
    options = flags.select(args, "n_heads", "rope_theta", "max_seq_len", "tokenizer_dir")
    # Whether it was trained on the sample matters to stages only.
    model, meta = stage.load_parent(path, tokenizer, on_sample=True, flag="--ckpt", **options)
    return model.eval(), (meta.get("stage") or STAGES[args.model_mode]) != "pretrain"


def write_scores(args: argparse.Namespace, path: Path, tokenizer: Tokenizer) -> None:
    """Score the checkpoint, and the baseline on the same rows; print tables and keep the figures."""
    rt = runtime.start(device=args.device, dtype=args.dtype, seed=args.seed)

    def measure(path: Path) -> tuple[dict, dict]:
        model, chats = load(args, path, tokenizer)
        settings = score.Settings(args.score_rows, args.max_new_tokens, tuple(args.shots), chats, str(rt.dtype))
        folder = Path(args.save_dir) / f"{path.stem}.scores"
        with rt.autocast():  # as in validation, so that the figures compare
            return score.score(model.to(rt.device), tokenizer, args.score, folder, settings, args.score_batch)

    results, records = measure(path)
    print(score_table.table(results))
    if args.baseline:
        before, earlier = measure(Path(args.baseline))
        changes = {name: score.compare(records[name], earlier[name]) for name in records}
        print(score_table.comparison(changes, args.baseline))
        for name, figures in changes.items():
            results[name]["baseline"] = {
                "checkpoint": args.baseline, "figures": figures, "records": before[name]["records"],
            }  # fmt: skip
    score.save(Path(args.save_dir) / f"{path.stem}.scores.json", results)
    print(score_table.markdown(path.stem, results))


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    for stream in (sys.stdin, sys.stdout):  # bytes that are no text, a console without Chinese
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    if args.report is not None:
        print(report.summary(Path(args.save_dir)))
        print(f"wrote {report.write(Path(args.save_dir), Path(args.report or f'{args.save_dir}/report.html'))}")
        return

    tokenizer = load_tokenizer(args.tokenizer_dir)
    path = Path(args.ckpt or f"{args.save_dir}/{STAGES[args.model_mode]}{'_long' * args.long}.pth")
    if args.export:
        export.to_hf(load(args, path, tokenizer)[0], args.tokenizer_dir, args.export[1])
        print(f"wrote {args.export[1]}")
        return

    if args.score:
        write_scores(args, path, tokenizer)
        return

    model, chats = load(args, path, tokenizer)
    rt = runtime.start(device=args.device, dtype=args.dtype, seed=args.seed)  # seeded after the weights were drawn
    if args.system and not chats:
        raise ValueError(f"--system: {path} continues a text and has no system message")
    sampling = flags.select(args, "temperature", "top_k", "top_p", "repetition_penalty")
    sampling["end_id"] = tokenizer.token_to_id(EOS)
    model.to(rt.device, rt.dtype)
    speaker = talk.Speaker(model, tokenizer, chats, args.system, args.max_new_tokens, sampling)
    if args.prompt:
        talk.reply(speaker, args.prompt, args.stream)
    else:
        talk.chat(speaker, args.history_cnt, args.stream)


if __name__ == "__main__":
    flags.run(main)
