"""Recipe before the first: from files as they are to the rows that the stages read.

    python prepare_data.py notes/ chats.csv wiki.jsonl.gz
    python prepare_data.py notes/ --out mine --against questions.jsonl --too_short
    python prepare_data.py notes/ --dry_run              # the report alone

Leaves prepared/ with pretrain.jsonl, sft_512.jsonl, sft_1024.jsonl and r1_1024.jsonl, those that have rows, with what
was left out in dropped.jsonl.gz, and report.html.
"""

import os
from dataclasses import dataclass, make_dataclass
from pathlib import Path

from engine import cli
from engine.console import print0
from engine.corpus.cleaned_rows import clean_files, read_held_out
from engine.corpus.dropped_rows import DroppedRows
from engine.corpus.prepared import (
    RECORDS,
    describe,
    describe_left,
    drop_repeats,
    next_commands,
    remove_others,
    summarize,
    write_rows,
)
from engine.corpus.readers import find_files
from engine.corpus.rules import RULES, check_rules
from engine.files import replace_folder, write_json
from engine.flags import ROOT, Args, Flags, flag, parse
from engine.pages.prepared import write_report
from engine.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Preparation(Flags):
    """files"""

    paths: list[str] = flag((), "files and folders", called="paths", metavar="PATH", nargs="*", type=str, path="any")
    out: Path = flag(Path("prepared"), "folder to write", path="folder")
    overwrite: bool = flag(False, "replace the folder that is there")
    dry_run: bool = flag(False, "write the report alone")
    against: list[str] | None = flag(
        None, "files of rows that are held out: no row that says the same gets in", nargs="+", type=str, path="any"
    )
    encoding: str | None = flag(None, "of the texts that are neither UTF-8 nor UTF-16; default: guessed")
    split_text: str = flag(
        "none", "what is a document in a text file: all, a line or a paragraph", choices=("none", "line", "paragraph")
    )
    tokenizer_dir: Path = flag(ROOT / "spongebob_tokenizer", "folder with tokenizer.json", path="folder")
    num_workers: int = flag(os.cpu_count() or 1, "processes", ge=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.paths:
            raise ValueError("no files or folders: python prepare_data.py notes/ chats.csv --out prepared")
        if self.out.exists() and (self.dry_run or not self.overwrite):
            remedy = "choose another --out" if self.dry_run else "choose another --out, or --overwrite"
            raise ValueError(f"--out {self.out} exists already: {remedy}")


# A flag for each rule that can be switched.
Cleaning = make_dataclass(
    "Cleaning",
    [(rule.name, bool | None, flag(rule.on, rule.help)) for rule in RULES if rule.on is not None],
    bases=(Flags,),
    namespace={"__doc__": "rules of cleaning"},
    frozen=True,
)


def parse_args(argv: list[str] | None = None) -> Args:
    return parse(__doc__, argv, Preparation, Cleaning)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    flags, on = args.preparation, {name for name, is_on in vars(args.cleaning).items() if is_on}
    check_rules(on)
    tokenizer = load_tokenizer(flags.tokenizer_dir)

    # 1. Read: a file's type is known by its first bytes (engine/corpus/readers.py); what is no text is named, and left.
    files, left = find_files(flags.paths, encoding=flags.encoding, split_text=flags.split_text)
    held_out = read_held_out(find_files(flags.against, encoding=flags.encoding)[0], on) if flags.against else None
    if left:
        print0(describe_left(left))

    with replace_folder(flags.out) as folder:
        with DroppedRows(folder / "dropped.jsonl.gz") as dropped:
            # 2. Clean every text and every turn by the rules of one table (engine/corpus/rules.py).
            rows = clean_files(files, folder / "rows.tmp", on, held_out, dropped, flags.num_workers)

            # 3. Drop repeats: of equal and of nearly equal rows the longest stays (engine/corpus/repeats.py).
            repeats = drop_repeats(rows, on, dropped)

            # 4. Cut conversations by their tokens, and write the rows of each stage (engine/corpus/prepared.py).
            written = write_rows(rows, repeats.keep, folder, tokenizer, dropped, flags.num_workers)

        prepared = summarize(rows, on, repeats, written, dropped, left, tokenizer)
        write_report(prepared, folder / "report.html")
        write_json(folder / "prepared.json", prepared)
        remove_others(folder, {"report.html"} if flags.dry_run else {*prepared["outputs"], *RECORDS})

    print0(describe(prepared))
    print0(f"{flags.out}/report.html shows what was kept, changed and left out, with examples")
    if not flags.dry_run:
        print0("\n".join(next_commands(prepared, flags.out, flags.tokenizer_dir)))


if __name__ == "__main__":
    cli.run(main)
