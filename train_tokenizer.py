"""Recipe 0: learn a byte-level BPE tokenizer from JSONL and say how good it is.

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
from engine.corpus.bpe import first_pass, report, save, texts_of_examples, train
from engine.corpus.jsonl import source_files
from engine.files import resolve_download_path
from engine.flags import ROOT, Flags, flag, parse, shown
from engine.options import SAMPLE
from engine.reasoning import TAGS
from engine.tokenizer import load_tokenizer

SMALLEST = 260  # tokens: the 256 bytes, three control tokens, one that is learned


@dataclass(frozen=True)
class TokenizerTraining(Flags):
    """tokenizer"""

    data_path: list[str] | None = flag(
        None, "JSONL files (also .gz); default: pretrain.jsonl, else the bundled sample", nargs="+", type=str
    )
    save_dir: Path = flag(ROOT / "spongebob_tokenizer", "folder to write")
    overwrite: bool = flag(False, "replace the tokenizer that is already there")
    vocab_size: int = flag(6400, f"tokens in all, at least {SMALLEST} and at most 65536", ge=SMALLEST)
    max_bytes: int = flag(64_000_000, "bytes of text to learn from; memory grows by about 60 times as much", gt=0)
    tag_tokens: bool = flag(False, "make each of the four tags one token (distill.py then has less to weight)")
    val_fraction: float = flag(0.01, "the share of rows that training holds out, as in every stage", ge=0)
    strict_data: bool = flag(False, "stop at the first bad row instead of counting it")
    split_on_special_tokens: bool = flag(
        False, "<s> and </s> written in the texts are borders of documents, not letters"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vocab_size > 65536:
            raise ValueError(f"--vocab_size {self.vocab_size} must be at most 65536: ids are stored in 16 bits")
        if self.tag_tokens and self.vocab_size < SMALLEST + len(TAGS):
            raise ValueError(
                f"--vocab_size {self.vocab_size} must be at least {SMALLEST + len(TAGS)} with --tag_tokens"
            )
        if (self.save_dir / "tokenizer.json").exists() and not self.overwrite:
            raise ValueError(
                f"{self.save_dir}/tokenizer.json exists, and its weights need it: choose another --save_dir, or "
                "--overwrite"
            )


def main(argv: list[str] | None = None) -> None:
    args = parse(__doc__, argv, TokenizerTraining).tokenizer_training

    # 1. Which texts: the stage's own file, else the sample; not those that validation holds out.
    paths = args.data_path or ["pretrain.jsonl"]
    if not args.data_path and not Path("pretrain.jsonl").exists():
        paths = [SAMPLE / "pretrain.jsonl"]
        print0(f"pretrain.jsonl is not here: learning from the bundled sample {shown(paths[0])}")
    files = source_files([resolve_download_path(Path(path)) for path in paths])
    texts = BorderedDataset if args.split_on_special_tokens else PretrainDataset
    total, held_out = first_pass(files, args.val_fraction, args.strict_data, texts)
    print0(f"learning from {min(total, args.max_bytes):,} of {total:,} bytes")

    # 2. Learn merges from an evenly spread share of them.
    share = min(1.0, args.max_bytes / total)
    seen = (text for path in files for text in texts_of_examples(path, held_out, share, texts=texts))
    if (first := next(seen, None)) is None:
        raise ValueError(f"--max_bytes {args.max_bytes} leaves no row of {total:,} bytes to learn from: raise it")
    tokenizer = train(chain([first], seen), args.vocab_size, args.tag_tokens)
    if (size := tokenizer.get_vocab_size()) < args.vocab_size:
        print0(f"the texts hold no more pairs to merge: {size:,} tokens instead of {args.vocab_size:,}")
    save(tokenizer, args.save_dir)

    # 3. How good it is on the texts it has not seen.
    unseen = [text for path in files for text in texts_of_examples(path, held_out, 1.0, True, texts)]
    random.Random(0).shuffle(unseen)
    print0(report(load_tokenizer(args.save_dir), unseen[:4000]))
    print0(f"wrote {shown(args.save_dir)}/tokenizer.json and tokenizer_config.json")


if __name__ == "__main__":
    cli.run(main)
