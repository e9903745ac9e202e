"""Chat with a checkpoint, let it answer prompts, score it, or report on all stages.

    python eval_model.py                                # chat with results/SFT.pth
    python eval_model.py --model_mode 2 --long          # results/distill_long.pth
    python eval_model.py --model_mode 0 --prompt 从前     # results/pretrain.pth continues a text
    python eval_model.py --prompt_file questions.txt > answers.jsonl
    python eval_model.py --score data/sample/sft_512_heldout.jsonl --baseline results/pretrain.pth
    python eval_model.py --report                       # all stages on one page: results/report.html

export.py writes a checkpoint for other programs.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from engine import cli
from engine.checkpoint.weights import open_chosen
from engine.console import print0
from engine.flags import Args, Flags, check_flags_used, flag, flag_names, parse
from engine.generate.sampling import Sampling
from engine.machine import runtime
from engine.options import Checkpoint, Device, Precision
from engine.pages import report
from engine.score import evaluate
from engine.talk import terminal
from engine.talk.chat_model import Answers, ChatModel, Quantization
from engine.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Talk(Flags):
    """chat"""

    prompt: list[str] | None = flag(
        None, "answer each of these texts (one that begins with -: --prompt=-1+2)", nargs="+", type=str
    )
    prompt_file: str | None = flag(
        None, "answer every line of a file (-: stdin) and print JSON lines", metavar="FILE", path="file"
    )
    history_cnt: int = flag(4, "earlier question-answer pairs that the model sees (0: none)", ge=0)
    system: str | None = flag(None, 'system message (default: the one used in training; "": none)')
    stream: bool = flag(True, "print an answer while it is generated", action=argparse.BooleanOptionalAction)


@dataclass(frozen=True)
class Scoring(Flags):
    """scores"""

    score: list[str] | None = flag(
        None,
        "JSONL files to score, greedy: SAVE_DIR/CHECKPOINT.scores.json",
        nargs="+",
        metavar="FILE",
        type=str,
        path="file",
    )
    baseline: str | None = flag(
        None, "checkpoint scored on the same rows, to test the difference", metavar="CKPT", path="file"
    )
    max_eval_rows: int = flag(200, "rows of each file to score, from the first (0: all)", ge=0)
    eval_batch_size: int = flag(16, "rows answered in one batch", gt=0)
    num_fewshot: list[int] = flag((0, 5), "examples in front of a multiple-choice question", nargs="+", type=int)


@dataclass(frozen=True)
class Report(Flags):
    """report"""

    report: str | None = flag(
        None,
        "HTML page about all stages; default: SAVE_DIR/report.html",
        nargs="?",
        const="",
        metavar="HTML",
        path="file",
    )


ANSWERING = flag_names(Checkpoint, Device, Quantization, Answers, Sampling)
READS = {  # the flags of each mode
    "a chat": {*ANSWERING, "history_cnt", "system", "stream"},
    "--prompt": {*ANSWERING, "prompt", "system", "stream"},
    "--prompt_file": {*ANSWERING, "prompt_file", "system"},
    "--score": {*flag_names(Checkpoint, Precision, Answers, Scoring)},
    "--report": {"report", "save_dir"},
}


def parse_args(argv: list[str] | None) -> tuple[str, Args]:
    """Return the mode and its flags; a flag of another mode is refused."""
    args = parse(__doc__, argv, Checkpoint, Precision, Quantization, Answers, Sampling, Talk, Scoring, Report)
    modes = [mode for mode in ("prompt", "prompt_file", "score", "report") if mode in args.explicit]
    if len(modes) > 1:
        raise ValueError(f"--{' and --'.join(modes)}: choose one")
    mode = f"--{modes[0]}" if modes else "a chat"
    check_flags_used(args.explicit, mode, READS)
    if min(args.scoring.num_fewshot) < 0:
        raise ValueError(f"--num_fewshot {min(args.scoring.num_fewshot)} must not be negative")
    baseline = args.scoring.baseline
    if baseline and not Path(baseline).is_file():
        raise ValueError(f"--baseline {baseline}: no such checkpoint")
    return mode, args


def answer(args: Args, tokenizer: Tokenizer) -> None:
    """Chat, or answer --prompt or --prompt_file.

    Raises:
        ValueError: --system for a model that has no roles.
    """
    talk = args.talk
    model, meta = open_chosen(args.checkpoint, tokenizer)
    chats = args.checkpoint.chats(meta)
    rt = runtime.start(args.precision, args.sampling.seed)  # after reading: a fresh model draws random weights
    if talk.system is not None and not chats:
        raise ValueError(f"--system: {args.checkpoint.path} continues a text and has no system message")
    decoder = args.quantization.make_decoder(model, rt.device)
    chat_model = ChatModel(decoder, tokenizer, chats, talk.system, args.answers.max_new_tokens, args.sampling)
    if talk.prompt_file is not None:
        terminal.answer_file(chat_model, Path(talk.prompt_file))
    elif talk.prompt:
        terminal.answer_once(chat_model, talk.prompt, talk.stream)
    else:
        terminal.chat(chat_model, talk.history_cnt, talk.stream, on_sample=bool(meta.get("on_sample")))


def main(argv: list[str] | None = None) -> None:
    mode, args = parse_args(argv)
    if mode == "--report":
        folder = Path(args.checkpoint.save_dir)
        path = Path(args.report.report or folder / "report.html")
        print0(report.write(folder, path))
        print0(f"wrote {path}")
        return
    tokenizer = load_tokenizer(args.checkpoint.tokenizer_dir)
    if mode == "--score":
        evaluate.run(args, tokenizer)
    else:
        answer(args, tokenizer)


if __name__ == "__main__":
    cli.run(main, output_is_result=True)
