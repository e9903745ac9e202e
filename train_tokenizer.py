"""Recipe 0: learn a byte-level BPE tokenizer from JSONL and report how well it compresses.

    python train_tokenizer.py --data_path pretrain.jsonl --save_dir mine

Reads the pretraining and the conversation schema. It learns only from rows that training learns from: the rows
that validation holds out stay unseen here too. Memory is bounded by --max_bytes, whatever the size
of the files: of a larger corpus an evenly spread part is taken.
"""

import random
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from dataset import BorderedDataset, PretrainDataset
from engine import cli
from engine.console import print0
from engine.corpus.bpe import compression_report, sample_texts, save_tokenizer, scan_corpus, train_bpe
from engine.corpus.jsonl import source_files
from engine.files import resolve_download_path
from engine.flags import ROOT, Args, Flags, flag, parse, shown
from engine.options import SAMPLE
from engine.reasoning import TAGS
from engine.tokenizer import MAX_VOCAB_SIZE, load_tokenizer

MIN_VOCAB_SIZE = 260  # the 256 bytes, three special tokens, one that is learned


@dataclass(frozen=True)
class TokenizerTraining(Flags):
    """tokenizer"""

    data_path: list[str] | None = flag(
        None,
        "JSONL files (also .gz); default: pretrain.jsonl, else the bundled sample",
        nargs="+",
        type=str,
        path="data",
    )
    save_dir: Path = flag(ROOT / "spongebob_tokenizer", "folder to write", path="folder")
    overwrite: bool = flag(False, "replace the tokenizer that is already there")
    vocab_size: int = flag(
        6400, f"tokens in all, {MIN_VOCAB_SIZE} to {MAX_VOCAB_SIZE}", ge=MIN_VOCAB_SIZE, le=MAX_VOCAB_SIZE
    )
    max_bytes: int = flag(64_000_000, "bytes of text to learn from; memory grows by about 60 times as much", gt=0)
    tag_tokens: bool = flag(False, "make each of the four tags one token (distill.py then has less to weight)")
    val_fraction: float = flag(0.01, "the share of rows that training holds out, as in every stage", ge=0)
    strict_data: bool = flag(False, "stop at the first bad row instead of counting it")
    split_on_special_tokens: bool = flag(False, "<s> and </s> written in the texts separate documents")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tag_tokens and self.vocab_size < MIN_VOCAB_SIZE + len(TAGS):
            limit = f"must be at least {MIN_VOCAB_SIZE + len(TAGS)} with --tag_tokens"
            raise ValueError(f"--vocab_size {self.vocab_size} {limit}")
        if (self.save_dir / "tokenizer.json").exists() and not self.overwrite:
            remedy = "choose another --save_dir, or --overwrite"
            raise ValueError(f"{self.save_dir}/tokenizer.json exists, and its weights need it: {remedy}")


def parse_args(argv: list[str] | None = None) -> Args:
    return parse(__doc__, argv, TokenizerTraining)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv).tokenizer_training

    # 1. Choose the texts: the stage's own file, else the sample; not those that validation holds out.
    paths = args.data_path or ["pretrain.jsonl"]
    if not args.data_path and not Path("pretrain.jsonl").exists():
        paths = [SAMPLE / "pretrain.jsonl"]
        print0(f"pretrain.jsonl is not here: learning from the bundled sample {shown(paths[0])}")
    files = source_files([resolve_download_path(Path(path)) for path in paths])
    dataset_class = BorderedDataset if args.split_on_special_tokens else PretrainDataset
    num_bytes, held_out = scan_corpus(files, args.val_fraction, args.strict_data, dataset_class)
    print0(f"learning from {min(num_bytes, args.max_bytes):,} of {num_bytes:,} bytes")

    # 2. Learn merges from an evenly spread part of them.
    share = min(1.0, args.max_bytes / num_bytes)
    texts = sample_texts(files, held_out, share, dataset_class=dataset_class)
    first = next(texts, None)
    if first is None:
        raise ValueError(f"--max_bytes {args.max_bytes} leaves no row of {num_bytes:,} bytes to learn from: raise it")
    tokenizer = train_bpe(chain([first], texts), args.vocab_size, args.tag_tokens)
    if (size := tokenizer.get_vocab_size()) < args.vocab_size:
        print0(f"the texts hold no more pairs to merge: {size:,} tokens instead of {args.vocab_size:,}")
    save_tokenizer(tokenizer, args.save_dir)

    # 3. Report how well it compresses texts that it has not seen.
    unseen = list(sample_texts(files, held_out, from_held_out=True, dataset_class=dataset_class))
    random.Random(0).shuffle(unseen)
    print0(compression_report(load_tokenizer(args.save_dir), unseen[:4000]))
    print0(f"wrote {shown(args.save_dir)}/tokenizer.json and tokenizer_config.json")


if __name__ == "__main__":
    cli.run(main)
