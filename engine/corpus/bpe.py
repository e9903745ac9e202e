"""Byte-level BPE: reading the texts it learns from, training it, and saying how good it is."""

import json
import re
from array import array
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from dataset import CHAT_TEMPLATE, PretrainDataset, SFTDataset
from engine.corpus.held_out import held_out_hashes, line_hash
from engine.corpus.jsonl import RowCounts, RowReport, blocks, lines, parse_line
from engine.reasoning import TAGS
from engine.schemas import BadRow
from engine.tokenizer import BOS, EOS, UNK

# BPE counts pairs inside "words", and a run of Chinese without punctuation is one word however long it is: fed whole,
# such text costs several times the time and memory. Cut after punctuation first, else every 512 characters.
PIECE = re.compile(r"[^。！？；，\n.!?;,]{0,511}[。！？；，\n.!?;,]|[^。！？；，\n.!?;,]{1,512}")


def texts_of(texts: type[PretrainDataset], row: dict, notes: set[str] | None = None) -> list[str]:
    """The texts of a row of any schema, or BadRow; `texts` says what a row of the pretraining schema means."""
    if SFTDataset.holds(row):
        return [message["content"] for message in SFTDataset.read(row, notes)]
    return texts.parts(texts.read(row, notes))


def first_pass(
    paths: list[Path], val_fraction: float, strict: bool, texts: type[PretrainDataset] = PretrainDataset
) -> tuple[int, set[int]]:
    """First reading: the bytes of text in all, and the hashes of the rows that are held out."""
    report, size, hashes = RowReport.of(paths, strict), 0, [array("Q") for _ in paths]
    with tqdm(desc="reading", total=sum(path.stat().st_size for path in paths), unit="B", unit_scale=True) as bar:
        for path, found in zip(paths, hashes, strict=True):
            for first, block in blocks(path, bar.update):
                counts = RowCounts()
                for number, line in lines(first, block):
                    if (found_texts := counts.read(number, line, partial(texts_of, texts))) is not None:
                        size += sum(len(text.encode()) for text in found_texts)
                        found.append(line_hash(line))
                report.add(path, counts)
    report.finish(PretrainDataset.valid)
    return size, set(held_out_hashes([np.array(found, np.uint64) for found in hashes], val_fraction).tolist())


def texts_of_examples(
    path: Path,
    held_out: set[int],
    share: float,
    unseen: bool = False,
    texts: type[PretrainDataset] = PretrainDataset,
) -> Iterator[str]:
    """Second reading: the texts of an evenly spread `share` of the rows that training reads, or of those held out."""
    due = 0.0
    for first, block in blocks(path):
        for _, line in lines(first, block):
            try:
                found = texts_of(texts, parse_line(line))
            except BadRow:
                continue
            if (line_hash(line) in held_out) == unseen:
                due += share
                if due >= 1:
                    due -= 1
                    yield from found


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
        "| held-out text | characters per token | bytes per token |",
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
