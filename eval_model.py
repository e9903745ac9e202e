"""The front door to any checkpoint: chat with it, ask it one thing, score it, export it.

python eval_model.py                              # chat with results/SFT.pth
python eval_model.py --model_mode 2 --long        # results/distill_long.pth
python eval_model.py --model_mode 0 --prompt 从前   # results/pretrain.pth continues a text
python eval_model.py --score data/sample/sft_512_heldout.jsonl
python eval_model.py --export hf exported         # a folder for transformers
"""

import argparse
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

from dataset import EOS, PretrainDataset, SFTDataset, load_tokenizer
from engine import export, flags, runtime, score, stage
from engine.generate import complete, generate, stream_text
from model import SpongeBob

STAGES = ("pretrain", "SFT", "distill")
MADE_BY = stage.MADE_BY | {"distill": "python distill.py", "distill_long": "python distill.py --long"}


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
    group = parser.add_argument_group("instead of a chat")
    add = group.add_mutually_exclusive_group().add_argument
    add("--prompt", nargs="+", help="answer each of these texts, in one batch")
    add("--export", nargs=2, metavar=("FORMAT", "DIR"), help="write DIR for other programs; FORMAT is hf")
    add("--score", nargs="+", metavar="FILE", help="figures for JSONL files, into SAVE_DIR/CHECKPOINT.scores.json")
    group.add_argument("--score_rows", type=int, default=200, help="first rows of each file that are scored (0: all)")
    group.add_argument("--score_batch", type=int, default=16, help="rows answered at once")
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
    if args.export and args.export[0] != "hf":
        raise ValueError(f"--export {args.export[0]}: no such format, only hf")
    return args


class Speaker(NamedTuple):
    """A model that is ready to talk, and how it talks. `chats`: with roles; otherwise it continues a text."""

    model: SpongeBob
    tokenizer: Tokenizer
    chats: bool
    system: str | None
    max_new_tokens: int
    sampling: dict

    def encode(self, question: str, history: list[tuple[str, str]]) -> list[int]:
        question = question.encode("utf-8", "replace").decode()  # a shell's broken bytes are no text to the tokenizer
        if not self.chats:
            return PretrainDataset(self.tokenizer).encode([question])[0].ids[:-1].tolist()
        turns = [("system", self.system)] if self.system else []
        for asked, answered in history:
            turns += [("user", asked), ("assistant", answered)]
        turns.append(("user", question))
        return SFTDataset(self.tokenizer).prompt([{"role": role, "content": content} for role, content in turns])

    def prompt(self, question: str, history: Iterable[tuple[str, str]] = ()) -> list[int]:
        """Ids to continue. The oldest pairs are left out until a quarter of the context is free for the answer.

        ValueError: the question alone fills the context.
        """
        history, context = list(history), self.model.config.max_seq_len
        ids = self.encode(question, history)
        while history and len(ids) + min(self.max_new_tokens, context // 4) > context:
            ids = self.encode(question, history := history[1:])
        if len(ids) >= context:
            raise ValueError(
                f"the question takes {len(ids)} tokens of a context of {context}, which leaves no room for an answer: "
                "shorten it, or raise --max_seq_len"
            )
        return ids

    def limit(self, ids: list[int]) -> int:
        return min(self.max_new_tokens, self.model.config.max_seq_len - len(ids))

    def stream(self, ids: list[int]) -> Iterator[str]:
        steps = generate(self.model, [ids], max_new_tokens=self.limit(ids), **self.sampling)
        return stream_text(self.tokenizer, (step[0] for step in steps))

    def answers(self, prompts: list[list[int]]) -> list[str]:
        """All at once, each no longer than it would be alone."""
        limits = [self.limit(ids) for ids in prompts]
        answers = complete(self.model, prompts, max_new_tokens=max(limits), **self.sampling)
        cut = [ids[:limit] for ids, limit in zip(answers, limits, strict=True)]
        return self.tokenizer.decode_batch(cut, skip_special_tokens=False)


def load(args: argparse.Namespace, tokenizer: Tokenizer) -> tuple[SpongeBob, dict, Path]:
    """The model, its .json and its path; a missing checkpoint is an error that says which command makes it."""
    name = STAGES[args.model_mode] + ("_long" if args.long else "")
    path = Path(args.ckpt or f"{args.save_dir}/{name}.pth")
    if not path.is_file():
        made_by = MADE_BY.get(path.stem, "an earlier stage, or a published checkpoint")
        raise ValueError(f"{path}: no such checkpoint. Make it with: {made_by} (or name another with --ckpt)")
    options = flags.select(args, "n_heads", "rope_theta", "max_seq_len", "tokenizer_dir")
    model, meta = stage.load_parent(path, tokenizer, on_sample=True, **options)  # silent about the sample
    return model.eval(), meta, path


def chat(speaker: Speaker, history_cnt: int, stream: bool) -> None:
    """Ask and answer until the input ends. Ctrl-C stops an answer; what was said of it is remembered."""
    print("Ctrl-C stops an answer, Ctrl-D ends the talk.")
    history: deque[tuple[str, str]] = deque(maxlen=history_cnt)
    while True:
        try:
            question = input("> ").strip()
            if not question:
                continue
            ids = speaker.prompt(question, history)
        except (EOFError, KeyboardInterrupt):
            print("\nbye")
            return
        except ValueError as error:
            print(error)
            continue
        history.append((question, say(speaker.stream(ids), stream)))


def reply(speaker: Speaker, questions: list[str], stream: bool) -> None:
    """Answer and end: one question as in the chat, several in one batch."""
    prompts = [speaker.prompt(question) for question in questions]
    if len(prompts) == 1:
        say(speaker.stream(prompts[0]), stream)
        return
    for question, answer in zip(questions, speaker.answers(prompts), strict=True):
        print(f"> {question}\n{answer}")


def say(pieces: Iterator[str], stream: bool) -> str:
    """Print an answer, piece by piece or when it is whole, and return it."""
    said = []
    try:
        for piece in pieces:
            said.append(piece)
            if stream:
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(" (stopped)", end="")
    answer = "".join(said)
    print("" if stream else answer)
    return answer


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    for stream in (sys.stdin, sys.stdout):  # bytes that are no text, a console without Chinese
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    tokenizer = load_tokenizer(args.tokenizer_dir)
    model, meta, path = load(args, tokenizer)
    if args.export:
        export.to_hf(model, args.tokenizer_dir, args.export[1])
        print(f"wrote {args.export[1]}")
        return

    rt = runtime.start(device=args.device, dtype=args.dtype, seed=args.seed)
    model.to(rt.device)
    if args.score:
        options = {"rows": args.score_rows, "batch": args.score_batch, "max_new_tokens": args.max_new_tokens}
        with rt.autocast():  # as in validation, so that the figures compare
            results = score.score(model, tokenizer, args.score, **options)
        score.save(Path(args.save_dir) / f"{path.stem}.scores.json", results)
        print(score.table(results))
        return

    chats = (meta.get("stage") or STAGES[args.model_mode]) != "pretrain"
    if args.system and not chats:
        raise ValueError(f"--system: {path} continues a text and has no system message")
    sampling = flags.select(args, "temperature", "top_k", "top_p", "repetition_penalty")
    sampling["end_id"] = tokenizer.token_to_id(EOS)
    speaker = Speaker(model.to(rt.dtype), tokenizer, chats, args.system, args.max_new_tokens, sampling)
    if args.prompt:
        reply(speaker, args.prompt, args.stream)
    else:
        chat(speaker, args.history_cnt, args.stream)


if __name__ == "__main__":
    flags.run(main)
