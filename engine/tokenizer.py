"""A tokenizer: load one, tell whether it can be used, know it again, count the bytes its tokens stand for.

Usable are byte-level ones that lose no text, and whose special tokens no text can spell.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from engine.console import warn

UNK, BOS, EOS = "<unk>", "<s>", "</s>"
LARGEST = 2**16  # ids are stored in 16 bits


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Read `folder`/tokenizer.json so that control tokens typed by a user stay ordinary characters."""
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{path}: no tokenizer there; train one with: python train_tokenizer.py --save_dir {folder}")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for whatever is wrong with the file
        raise ValueError(f"{path}: not a tokenizer file ({error})") from None
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()  # files of other programs carry both: texts would be cut, or filled with <unk>
    tokenizer.no_padding()
    if problem := tokenizer_problem(tokenizer, (UNK, BOS, EOS)):
        raise ValueError(f"{path}: {problem}")
    if lost := count_missing_bytes(tokenizer):
        warn(f"warning: {path}: no token for {lost} of the 256 bytes; text that holds them loses them")
    return tokenizer


def fingerprint(tokenizer: Tokenizer, *, of_all: bool = False) -> str:
    """Twelve hex digits that change whenever a text might be encoded differently; programs that save a tokenizer again
    change what does not decide the ids. `of_all`: as it was reckoned before, of everything in the file."""
    content = json.loads(tokenizer.to_str())
    if not of_all:
        content = {name: content[name] for name in ("model", "normalizer", "pre_tokenizer", "added_tokens")}
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """(vocab,) int32: how many bytes of text each token stands for; control tokens stand for none.

    Counted on the byte-level symbols (one character a byte), never on decoded strings: a token may hold half
    a Chinese character, and decoding it would count the replacement character instead.
    """
    added = tokenizer.get_added_tokens_decoder()
    lengths = np.zeros(tokenizer.get_vocab_size(), dtype=np.int32)
    for token, index in tokenizer.get_vocab().items():
        if index not in added:
            lengths[index] = len(token)
        elif not added[index].special:
            lengths[index] = len(token.encode())
    return lengths


def tokenizer_problem(tokenizer: Tokenizer, control: Sequence[str]) -> str | None:
    """Why a tokenizer cannot be used, or None; `control` are the tokens that stand between documents and turns."""
    content, size = json.loads(tokenizer.to_str()), tokenizer.get_vocab_size()
    if missing := [token for token in control if tokenizer.token_to_id(token) is None]:
        return f"has no {' '.join(missing)}; this project needs {' '.join(control)}"
    if size > LARGEST:
        return f"{size} tokens; ids are stored in 16 bits, at most {LARGEST}"
    if (last := max(tokenizer.get_vocab().values())) >= size:
        return f"{size} tokens, but ids up to {last}: ids without a token between them are not supported"
    if content["model"].get("dropout"):
        return f"dropout {content['model']['dropout']} in its model: a text would get other ids each time"
    alphabet, added = set(byte_characters().values()), tokenizer.get_added_tokens_decoder()
    words = {word for word, index in tokenizer.get_vocab().items() if index not in added and word not in control}
    strange = next((word for word in words if not alphabet.issuperset(word)), None)
    if not _cuts_bytes(content["pre_tokenizer"]) or strange is not None:
        example = f" (a token is {strange!r})" if strange is not None else ""
        return f"not a byte-level tokenizer{example}; this project needs one, as train_tokenizer.py makes it"
    for token in control:
        texts = [token, f"a{token}b", f" {token} ", f"\n{token}\n"]
        ids = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
        if any(tokenizer.token_to_id(token) in one for one in ids):
            return f'a text can spell {token}, which ends documents and turns: give it "special": true in added_tokens'
    return None


def count_missing_bytes(tokenizer: Tokenizer) -> int:
    """How many of the 256 bytes have no token: text that holds them loses them."""
    return len(set(byte_characters().values()) - tokenizer.get_vocab().keys())


def _cuts_bytes(pre_tokenizer: dict | None) -> bool:
    parts = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer or {}])
    return any(part.get("type") == "ByteLevel" for part in parts)


def byte_characters() -> dict[int, str]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
