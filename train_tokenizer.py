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
from engine.console import say
from engine.corpus.bpe import first_pass, report, save, texts_of_examples, train
from engine.corpus.jsonl import source_files
from engine.files import file_inside
from engine.flags import ROOT, Flags, flag, parse, shown
from engine.options import SAMPLE
from engine.reasoning import TAGS
from engine.tokenizer import load_tokenizer

SMALLEST = 260  # tokens: the 256 bytes, three control tokens, one that is learned


@dataclass(frozen=True)
class Learning(Flags):
    """tokenizer"""

    data_path: list[str] | None = flag(
        None, "JSONL files (also .gz); default: pretrain.jsonl, else the bundled sample", nargs="+", type=str
    )
    save_dir: Path = flag(ROOT / "spongebob_tokenizer", "folder to write")
    overwrite: bool = flag(False, "replace the tokenizer that is already there")
    vocab_size: int = flag(6400, f"tokens in all, at least {SMALLEST} and at most 65536", least=SMALLEST)
    max_bytes: int = flag(64_000_000, "bytes of text to learn from; memory grows by about 60 times as much", above=0)
    tag_tokens: bool = flag(False, "make each of the four tags one token (distill.py then has less to weight)")
    val_fraction: float = flag(0.01, "the share of rows that training holds out, as in every stage", least=0)
    strict_data: bool = flag(False, "stop at the first bad row instead of counting it")
    marks_are_borders: bool = flag(False, "<s> and </s> written in the texts are borders of documents, not letters")

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
    chosen = parse(__doc__, argv, Learning).learning

    # 1. Which texts: the stage's own file, else the sample; not those that validation holds out.
    paths = chosen.data_path or ["pretrain.jsonl"]
    if not chosen.data_path and not Path("pretrain.jsonl").exists():
        paths = [SAMPLE / "pretrain.jsonl"]
        say(f"pretrain.jsonl is not here: learning from the bundled sample {shown(paths[0])}")
    files = source_files([file_inside(Path(path)) for path in paths])
    texts = BorderedDataset if chosen.marks_are_borders else PretrainDataset
    total, held_out = first_pass(files, chosen.val_fraction, chosen.strict_data, texts)
    say(f"learning from {min(total, chosen.max_bytes):,} of {total:,} bytes")

    # 2. Learn merges from an evenly spread share of them.
    share = min(1.0, chosen.max_bytes / total)
    seen = (text for path in files for text in texts_of_examples(path, held_out, share, texts=texts))
    if (first := next(seen, None)) is None:
        raise ValueError(f"--max_bytes {chosen.max_bytes} leaves no row of {total:,} bytes to learn from: raise it")
    tokenizer = train(chain([first], seen), chosen.vocab_size, chosen.tag_tokens)
    if (size := tokenizer.get_vocab_size()) < chosen.vocab_size:
        say(f"the texts hold no more pairs to merge: {size:,} tokens instead of {chosen.vocab_size:,}")
    save(tokenizer, chosen.save_dir)

    # 3. How good it is on the texts it has not seen.
    unseen = [text for path in files for text in texts_of_examples(path, held_out, 1.0, True, texts)]
    random.Random(0).shuffle(unseen)
    say(report(load_tokenizer(chosen.save_dir), unseen[:4000]))
    say(f"wrote {shown(chosen.save_dir)}/tokenizer.json and tokenizer_config.json")


if __name__ == "__main__":
    cli.run(main)
