"""Recipe 0: learn a byte-level BPE tokenizer from JSONL and report how well it compresses.

    python train_tokenizer.py --data_path pretrain.jsonl --save_dir mine

Reads the pretraining and the conversation schema. It learns only from rows that training learns from: the rows
that validation holds out stay unseen here too. Memory is bounded by --max_bytes, whatever the size
of the files: of a larger corpus random rows of every file are taken.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset import BorderedDataset, PretrainDataset
from engine import cli
from engine.console import print0
from engine.corpus.bpe import (
    compression_report,
    draw_rows,
    read_texts,
    row_hashes,
    save_tokenizer,
    scan_corpus,
    train_bpe,
)
from engine.corpus.held_out import held_out_hashes, merge_same_files
from engine.corpus.jsonl import source_files
from engine.files import resolve_download_path
from engine.flags import ROOT, Args, Flags, flag, parse, shown
from engine.options import SAMPLE
from engine.reasoning import TAGS
from engine.tokenizer import MAX_VOCAB_SIZE, load_tokenizer

REPORT_BYTES = 8_000_000  # of text that the report is on where no row is held out
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
    files, times = merge_same_files(files, [path.resolve() for path in files])
    dataset_class = BorderedDataset if args.split_on_special_tokens else PretrainDataset
    rows = scan_corpus(files, args.strict_data, dataset_class)
    held_out = held_out_hashes(row_hashes(rows), args.val_fraction)

    # 2. Learn merges from random rows of them, of every file in proportion; one that is given twice is read twice.
    order = np.repeat(np.arange(len(files)), times).tolist()
    learned = draw_rows([rows[number] for number in order], held_out, args.max_bytes)
    if not any(map(len, learned)):
        num_bytes = sum(int(file.num_bytes.sum()) for file in rows)
        raise ValueError(f"--max_bytes {args.max_bytes} leaves no row of {num_bytes:,} bytes to learn from: raise it")
    for number, drawn in zip(order, learned, strict=True):
        print0(f"learning from {rows[number].describe(drawn)} bytes of {shown(files[number])}")
    texts = read_texts([files[number] for number in order], learned, dataset_class)
    tokenizer = train_bpe(texts, args.vocab_size, args.tag_tokens)
    if (size := tokenizer.get_vocab_size()) < args.vocab_size:
        print0(f"the texts hold no more pairs to merge: {size:,} tokens instead of {args.vocab_size:,}")
    save_tokenizer(tokenizer, args.save_dir)

    # 3. Report how well it compresses texts that it has not seen: those held out, else some of those left over.
    unseen = [held_out] * len(files)
    if not len(held_out):
        unseen = draw_rows(rows, np.concatenate(learned), REPORT_BYTES)
    texts = list(read_texts(files, unseen, dataset_class))
    random.Random(0).shuffle(texts)
    report = compression_report(load_tokenizer(args.save_dir), texts[:4000])
    print0(report if texts else "no report: every row is learned from (--val_fraction 0 holds out none)")
    print0(f"wrote {shown(args.save_dir)}/tokenizer.json and tokenizer_config.json")


if __name__ == "__main__":
    cli.run(main)
