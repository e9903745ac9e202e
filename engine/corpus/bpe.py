"""Byte-level BPE: read the texts it learns from, train it, save it, and report how well it compresses."""

import re
from array import array
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from dataset import CHAT_TEMPLATE, PretrainDataset, SFTDataset
from engine.console import print0
from engine.corpus.held_out import describe_repeated, held_out_hashes, row_hash
from engine.corpus.jsonl import RowCounts, RowReport, parse_line, read_lines
from engine.files import to_json
from engine.reasoning import TAGS
from engine.schemas import BadRow
from engine.tokenizer import BOS, EOS, UNK

# BPE counts pairs inside "words", and a run of Chinese without punctuation is one word however long it is: fed whole,
# such text costs several times the time and memory. Cut after punctuation first, else every 512 characters.
PIECE_RE = re.compile(r"[^。！？；，\n.!?;,]{0,511}[。！？；，\n.!?;,]|[^。！？；，\n.!?;,]{1,512}")

# ------------------------------------------------------------------------------------------- texts to learn from


def read_row(dataset_class: type[PretrainDataset], row: dict, notes: set[str] | None = None) -> tuple[int, list[str]]:
    """Return (hash, texts) of a row of any schema, or raise BadRow.

    Args:
        dataset_class: The meaning of a row that is no chat.
        row: A parsed JSONL line.
        notes: As in dataset.py.
    """
    if SFTDataset.holds(row):
        messages = SFTDataset.read(row, notes)
        return row_hash(messages), [message["content"] for message in messages]
    text = dataset_class.read(row, notes)
    return row_hash(text), dataset_class.parts(text)


def scan_corpus(
    paths: list[Path], val_fraction: float, strict: bool, dataset_class: type[PretrainDataset] = PretrainDataset
) -> tuple[int, set[int]]:
    """Read all files once, and return (bytes of text in all, hashes of the rows that are held out).

    Args:
        paths: JSONL files.
        val_fraction: Share of the rows that training holds out.
        strict: Stop at the first bad row.
        dataset_class: As in `read_row`.
    """
    report = RowReport(strict, {str(path): RowCounts() for path in paths})
    read = partial(read_row, dataset_class)
    num_bytes, hashes = 0, []
    with tqdm(desc="reading", total=sum(path.stat().st_size for path in paths), unit="B", unit_scale=True) as bar:
        for path in paths:
            counts, file_hashes = report.files[str(path)], array("Q")
            for number, line in read_lines(path, bar.update):
                row = counts.read(number, line, read)
                report.check_strict()
                if row is not None:
                    num_bytes += sum(len(text.encode()) for text in row[1])
                    file_hashes.append(row[0])
            hashes.append(np.array(file_hashes, np.uint64))
    report.check_bad_rows(PretrainDataset.valid)
    report.warn_skipped()
    if copies := describe_repeated(hashes):
        print0(copies)
    return num_bytes, set(held_out_hashes(hashes, val_fraction).tolist())


def sample_texts(
    paths: Iterable[Path],
    held_out: set[int],
    share: float = 1.0,
    *,
    from_held_out: bool = False,
    dataset_class: type[PretrainDataset] = PretrainDataset,
) -> Iterator[str]:
    """Yield the texts of an evenly spread part of each file.

    Args:
        paths: JSONL files.
        held_out: Hashes of the rows that are held out.
        share: The part of the rows to take, at most 1.
        from_held_out: Take the rows that are held out instead of the others.
        dataset_class: As in `read_row`.
    """
    for path in paths:
        due = 0.0
        for _, line in read_lines(path):
            try:
                row_id, texts = read_row(dataset_class, parse_line(line))
            except BadRow:
                continue
            if (row_id in held_out) == from_held_out:
                due += share
                if due >= 1:
                    due -= 1
                    yield from texts


# ---------------------------------------------------------------------------------------------- the tokenizer


def train_bpe(texts: Iterable[str], vocab_size: int, tag_tokens: bool) -> Tokenizer:
    """Train byte-level BPE with GPT-2's split, which llama.cpp knows by name ("gpt-2").

    Args:
        texts: Texts to learn from.
        vocab_size: Tokens in all; fewer where the texts hold no more pairs.
        tag_tokens: Make each tag of an answer that reasons one token.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - (len(TAGS) if tag_tokens else 0),
        special_tokens=[UNK, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(map(PIECE_RE.findall, texts), trainer)
    if tag_tokens:  # not "special": a reader of the answer wants to see them
        tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return tokenizer


def tokenizer_config(max_seq_len: int, **settings: object) -> dict:
    """Return what transformers 4 and 5 read from tokenizer_config.json, with more `settings` of theirs."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",  # loads in every version from 4 on; 5 writes another name
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": UNK,
        "unk_token": UNK,
        **settings,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_seq_len,
        "chat_template": CHAT_TEMPLATE,  # how every stage renders a chat
    }


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the two files from which transformers' AutoTokenizer and this project load the same tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_bytes(to_json(tokenizer_config(32768), indent=2))


def compression_report(tokenizer: Tokenizer, texts: list[str]) -> str:
    """Return a Markdown table of characters and bytes per token, by language, of texts it has not seen.

    Raises:
        ValueError: A text does not survive encoding and decoding.
    """
    ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    decoded = tokenizer.decode_batch(ids, skip_special_tokens=False)
    broken = [text for text, copy in zip(texts, decoded, strict=True) if text != copy]
    if broken:
        raise ValueError(f"{len(broken)} texts do not survive encoding and decoding, the first: {broken[0][:200]!r}")
    groups: dict[str, list[str]] = {"Chinese": [], "English": [], "all": texts}
    for text in texts:
        groups["Chinese" if re.search("[一-鿿]", text) else "English"].append(text)
    report = [
        f"vocabulary {tokenizer.get_vocab_size()} tokens",
        "",
        "| held-out text | characters per token | bytes per token |",
        "|---|---|---|",
    ]
    for name, group in groups.items():
        encodings = tokenizer.encode_batch_fast(group, add_special_tokens=False)
        if num_tokens := sum(len(encoding.ids) for encoding in encodings):
            num_bytes = sum(len(text.encode()) for text in group)
            ratios = f"{sum(map(len, group)) / num_tokens:.2f} | {num_bytes / num_tokens:.2f}"
            report.append(f"| {name} ({num_bytes:,} bytes) | {ratios} |")
    lengths = ", ".join(f"`{tag}` {len(tokenizer.encode(tag, add_special_tokens=False).ids)}" for tag in TAGS)
    return "\n".join([*report, "", f"tokens of each tag: {lengths}; all {len(texts):,} texts survive a round trip"])
