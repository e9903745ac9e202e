"""Recipe 0: learn a byte-level BPE tokenizer from JSONL and say how good it is.

    python train_tokenizer.py --data_path pretrain.jsonl --save_dir mine

Reads the pretraining and the conversation schema. It learns only from rows that training learns from: the rows
that validation holds out (dataset.held_out) stay unseen here too. Memory is bounded by --max_bytes, whatever the size
of the files: of a larger corpus an evenly spread part is taken.
"""

import json
import random
import re
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from dataset import (
    BOS,
    CHAT_TEMPLATE,
    EOS,
    TAGS,
    UNK,
    BadRow,
    PretrainDataset,
    SFTDataset,
    held_out,
    line_hash,
    load_tokenizer,
    parse_line,
)  # fmt: skip
from engine import flags
from engine.jsonl import RowReport, blocks, lines, source_files

# BPE counts pairs inside "words", and a run of Chinese without punctuation is one word however long it is: fed whole,
# such text costs several times the time and memory. Cut after punctuation first, else every 512 characters.
PIECE = re.compile(r"[^。！？；，\n.!?;,]{0,511}[。！？；，\n.!?;,]|[^。！？；，\n.!?;,]{1,512}")


def texts_of(row: dict) -> list[str]:
    """The texts of a row of either schema, or BadRow."""
    if SFTDataset.field in row:
        return [message["content"] for message in SFTDataset.read(row)]
    return [PretrainDataset.read(row)]


def survey(paths: list[Path], val_fraction: float, strict: bool) -> tuple[int, list[set[int]]]:
    """First reading: the bytes of text in all, and for every file the hashes of the rows that are held out."""
    report, size, hidden = RowReport(strict), 0, []
    with tqdm(desc="reading", total=sum(path.stat().st_size for path in paths), unit="B", unit_scale=True) as bar:
        for path in paths:
            hashes = array("Q")
            for first, block in blocks(path, bar.update):
                rows, bad = 0, []
                for number, line in lines(first, block):
                    rows += 1
                    try:
                        size += sum(len(text.encode()) for text in texts_of(parse_line(line)))
                        hashes.append(line_hash(line))
                    except BadRow as error:
                        bad.append((number, str(error)))
                report.add(path, rows, bad)
            hashes = np.array(hashes)
            hidden.append(set(hashes[held_out(hashes, val_fraction)].tolist()))
    report.finish()
    return size, hidden


def sample(path: Path, hidden: set[int], share: float, wanted_hidden: bool = False) -> Iterator[str]:
    """Second reading: the texts of an evenly spread `share` of the rows that are not (or, wanted, that are) hidden."""
    owed = 0.0
    for first, block in blocks(path):
        for _, line in lines(first, block):
            try:
                texts = texts_of(parse_line(line))
            except BadRow:
                continue
            if (line_hash(line) in hidden) == wanted_hidden:
                owed += share
                if owed >= 1:
                    owed -= 1
                    yield from texts


def train(texts: Iterator[str], vocab_size: int, tag_tokens: bool) -> Tokenizer:
    """Byte-level BPE with GPT-2's split, which llama.cpp knows by name ("gpt-2")."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - (len(TAGS) if tag_tokens else 0),
        special_tokens=[UNK, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator((piece for text in texts for piece in PIECE.findall(text)), trainer)
    if tag_tokens:  # not "special": a reader of the answer wants to see them
        tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """The two files from which transformers' AutoTokenizer and this project load the same tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        # The name every version of transformers from 4 on can load; 5 writes another one of its own.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": UNK,
        "unk_token": UNK,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 32768,
        "chat_template": CHAT_TEMPLATE,
    }
    content = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(content, encoding="utf-8")


def report(tokenizer: Tokenizer, texts: list[str]) -> str:
    """Markdown: what a token is worth in each language on texts the tokenizer has not seen."""
    rows = [
        f"vocabulary {tokenizer.get_vocab_size()} tokens",
        "",
        "| held-out text | characters a token | bytes a token |",
    ]
    rows.append("|---|---|---|")
    chinese = [bool(re.search("[一-鿿]", text)) for text in texts]
    for name, chosen in (
        ("Chinese", [text for text, han in zip(texts, chinese, strict=True) if han]),
        ("English", [text for text, han in zip(texts, chinese, strict=True) if not han]),
        ("all", texts),
    ):
        encodings = tokenizer.encode_batch_fast(chosen, add_special_tokens=False)
        if count := sum(len(encoding.ids) for encoding in encodings):
            characters, size = sum(map(len, chosen)), sum(len(text.encode()) for text in chosen)
            rows.append(f"| {name} ({size:,} bytes) | {characters / count:.2f} | {size / count:.2f} |")
        broken = [
            t for t, e in zip(chosen, encodings, strict=True) if tokenizer.decode(e.ids, skip_special_tokens=False) != t
        ]
        if broken:
            raise ValueError(
                f"{len(broken)} texts do not survive encoding and decoding, the first: {broken[0][:200]!r}"
            )
    costs = ", ".join(f"`{tag}` {len(tokenizer.encode(tag, add_special_tokens=False).ids)}" for tag in TAGS)
    return "\n".join([*rows, "", f"tokens of each tag: {costs}; all {len(texts):,} texts survive a round trip"])


def main(argv: list[str] | None = None) -> None:
    parser = flags.parser(__doc__)
    parser.add_argument(
        "--data_path",
        nargs="+",
        default=None,
        help="JSONL files (also .gz), default pretrain.jsonl, else the bundled sample",
    )
    parser.add_argument("--save_dir", default=str(flags.ROOT / "spongebob_tokenizer"), help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the tokenizer that is already there")
    parser.add_argument("--vocab_size", type=int, default=6400, help="tokens in all, at least 260 and at most 65536")
    parser.add_argument(
        "--max_bytes",
        type=int,
        default=64_000_000,
        help="bytes of text to learn from; memory grows by about 60 times as much",
    )
    parser.add_argument(
        "--tag_tokens",
        action="store_true",
        help="make each of the four tags one token (distill.py then has less to weight)",
    )
    parser.add_argument(
        "--val_fraction", type=float, default=0.01, help="the share of rows that training holds out, as in every stage"
    )
    parser.add_argument("--strict_data", action="store_true", help="stop at the first bad row instead of counting it")
    args = parser.parse_args(argv)

    folder = Path(args.save_dir)
    if not 260 <= args.vocab_size <= 65536:
        raise ValueError(
            f"--vocab_size {args.vocab_size} must be from 260 (the bytes and the control tokens) to 65536 (16 bits)"
        )
    if args.max_bytes < 1:
        raise ValueError(f"--max_bytes {args.max_bytes} must be at least 1")
    if (folder / "tokenizer.json").exists() and not args.overwrite:
        raise ValueError(
            f"{folder}/tokenizer.json exists, and its weights need it: choose another --save_dir, or --overwrite"
        )

    if not args.data_path and not Path("pretrain.jsonl").exists():
        print(f"pretrain.jsonl is not here: learning from the bundled sample {flags.SAMPLE / 'pretrain.jsonl'}")
        args.data_path = [flags.SAMPLE / "pretrain.jsonl"]
    paths = source_files(args.data_path or ["pretrain.jsonl"])
    total, hidden = survey(paths, args.val_fraction, args.strict_data)
    share = min(1.0, args.max_bytes / total)
    print(f"learning from {min(total, args.max_bytes):,} of {total:,} bytes")
    seen = (text for path, hashes in zip(paths, hidden, strict=True) for text in sample(path, hashes, share))
    tokenizer = train(seen, args.vocab_size, args.tag_tokens)
    save(tokenizer, folder)
    unseen = [
        text
        for path, hashes in zip(paths, hidden, strict=True)
        for text in sample(path, hashes, 1.0, wanted_hidden=True)
    ]
    random.Random(0).shuffle(unseen)
    print(report(load_tokenizer(folder), unseen[:4000]))
    print(f"wrote {folder}/tokenizer.json and tokenizer_config.json")


if __name__ == "__main__":
    flags.run(main)
