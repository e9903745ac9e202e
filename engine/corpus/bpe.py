"""Byte-level BPE: read the texts it learns from, train it, save it, and report how well it compresses."""

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from dataset import CHAT_TEMPLATE, PretrainDataset
from engine.console import print0
from engine.corpus.held_out import describe_repeated, read_row, split_kinds
from engine.corpus.jsonl import RowCounts, RowReport, find_zero_fields, parse_line, read_lines
from engine.files import atomic_write, to_json
from engine.reasoning import TAGS
from engine.schemas import BadRow
from engine.tokenizer import BOS, EOS, UNK

# BPE counts pairs inside "words", and a run of Chinese without punctuation is one word however long it is: fed whole,
# such text costs several times the time and memory. Cut after punctuation first, else every 512 characters.
PIECE_RE = re.compile(r"[^。！？；，\n.!?;,]{0,511}[。！？；，\n.!?;,]|[^。！？；，\n.!?;,]{1,512}")

# ------------------------------------------------------------------------------------------- texts to learn from


class ScannedFile(NamedTuple):
    """The rows of a file, in order.

    Attributes:
        hashes: Their hashes, (rows,) uint64.
        num_bytes: Bytes of their texts, (rows,) uint64.
        is_chat: Which of them are chats, (rows,) bool.
    """

    hashes: np.ndarray
    num_bytes: np.ndarray
    is_chat: np.ndarray

    def describe(self, rows: np.ndarray) -> str:
        """Describe how many bytes of how many the rows have that have these hashes, (n,) uint64."""
        return f"{self.num_bytes[np.isin(self.hashes, rows)].sum():,} of {self.num_bytes.sum():,}"


def scan_corpus(
    paths: Sequence[Path], strict: bool, dataset_class: type[PretrainDataset] = PretrainDataset
) -> list[ScannedFile]:
    """Read all files once.

    Args:
        paths: JSONL files.
        strict: Stop at the first bad row.
        dataset_class: As in `read_row`.
    """
    report = RowReport(strict, {str(path): RowCounts() for path in paths})
    read = partial(read_row, dataset_class)
    files = []
    with tqdm(desc="reading", total=sum(path.stat().st_size for path in paths), unit="B", unit_scale=True) as bar:
        for path in paths:
            counts = report.files[str(path)]
            hashes, num_bytes = array("Q"), array("Q")
            is_chat = array("B")
            zero_fields = find_zero_fields(path)
            for number, line in read_lines(path, bar.update):
                row = counts.read(number, line, read, zero_fields)
                report.check_strict()
                if row is not None:
                    hashes.append(row[0])
                    num_bytes.append(sum(len(text.encode()) for text in row[1]))
                    is_chat.append(row[2])
            files.append(
                ScannedFile(np.array(hashes, np.uint64), np.array(num_bytes, np.uint64), np.array(is_chat, bool))
            )
    report.check_bad_rows(PretrainDataset.valid)
    report.warn_skipped()
    if copies := describe_repeated([file.hashes for file in files]):
        print0(copies)
    return files


def row_hashes(files: Sequence[ScannedFile]) -> list[np.ndarray]:
    """Return the hashes of each file's rows, of chats and of texts apart, as rows are held out; (rows,) uint64 each."""
    return [*chain.from_iterable(split_kinds(file.hashes, file.is_chat) for file in files)]


def draw_rows(files: Sequence[ScannedFile], excluded: np.ndarray, max_bytes: int) -> list[np.ndarray]:
    """Return the hashes of random rows of every file, at most `max_bytes` of text, each file in proportion.

    A row is drawn by its hash, with the bytes in another order than for holding out: with --val_fraction 0, too, rows
    are drawn that training would hold out otherwise. Copies of a row are drawn together. A row that is larger than the
    share of its file is not drawn.

    Args:
        files: The rows of each file.
        excluded: Hashes of rows that are not drawn, (n,) uint64.
        max_bytes: Bytes of text in all.
    Returns:
        The hashes drawn from each file, (rows,) uint64 each.
    """
    rest = []
    for file in files:
        mask = ~np.isin(file.hashes, excluded)
        rest.append(ScannedFile(*(column[mask] for column in file)))
    share = min(1.0, max_bytes / max(1, sum(int(file.num_bytes.sum()) for file in rest)))
    drawn = []
    for hashes, num_bytes, _ in rest:
        limit = share * int(num_bytes.sum())
        keys, row = np.unique(hashes.byteswap(), return_inverse=True)
        sizes = np.bincount(row, weights=num_bytes, minlength=len(keys))
        keys, sizes = keys[sizes <= limit], sizes[sizes <= limit]
        drawn.append(keys[sizes.cumsum() <= limit].byteswap())
    return drawn


def read_texts(
    paths: Iterable[Path], rows: Iterable[np.ndarray], dataset_class: type[PretrainDataset] = PretrainDataset
) -> Iterator[str]:
    """Yield the texts of some rows of each file.

    Args:
        paths: JSONL files.
        rows: Hashes of the rows to read of each file, (rows,) uint64 each.
        dataset_class: As in `read_row`.
    """
    for path, hashes in zip(paths, rows, strict=True):
        wanted = set(hashes.tolist())
        for _, line in read_lines(path):
            try:
                row_id, texts, _ = read_row(dataset_class, parse_line(line))
            except BadRow:
                continue
            if row_id in wanted:
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
    contents = {  # save() raises no OSError on a full disk
        "tokenizer.json": tokenizer.to_str(pretty=True).encode(),
        "tokenizer_config.json": to_json(tokenizer_config(32768), indent=2),
    }
    for name, content in contents.items():
        atomic_write(folder / name, partial(Path.write_bytes, data=content))


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
        "| unseen text | characters per token | bytes per token |",
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
