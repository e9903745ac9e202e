"""A tokenizer: load it, check that it can be used, know it again, count the bytes of its tokens.

Usable are byte-level ones that lose no text, and whose special tokens no text can spell.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from engine.console import warn

SPECIAL_TOKENS = UNK, BOS, EOS = "<unk>", "<s>", "</s>"
MAX_VOCAB_SIZE = 2**16  # ids are stored in 16 bits


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Read `folder`/tokenizer.json so that special tokens typed by a user stay ordinary characters.

    Raises:
        ValueError: The file is missing, is no tokenizer, or is one that cannot be used.
    """
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
    if problem := tokenizer_problem(tokenizer, SPECIAL_TOKENS):
        raise ValueError(f"{path}: {problem}")
    if missing := set(byte_characters().values()) - tokenizer.get_vocab().keys():
        warn(f"warning: {path}: no token for {len(missing)} of the 256 bytes; text that holds them loses them")
    return tokenizer


def fingerprint(tokenizer: Tokenizer, *, of_all: bool = False) -> str:
    """Return twelve hex digits that change whenever a text might be encoded differently.

    Programs that save a tokenizer again change what does not decide the ids. `of_all`: of everything in the file, as
    it was calculated before version 0.2.
    """
    return _hash(tokenizer.to_str(), of_all)


@lru_cache(maxsize=4)  # a run asks three times
def _hash(file: str, of_all: bool) -> str:
    content = json.loads(file)
    if not of_all:
        content = {name: content[name] for name in ("model", "normalizer", "pre_tokenizer", "added_tokens")}
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """Return the number of bytes of text that each token spells, (vocab,) int32; special tokens spell none.

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


def tokenizer_problem(tokenizer: Tokenizer, special: Sequence[str]) -> str | None:
    """Return the reason why a tokenizer cannot be used, or None; `special` are the tokens that delimit turns."""
    content, size = json.loads(tokenizer.to_str()), tokenizer.get_vocab_size()
    if missing := [token for token in special if tokenizer.token_to_id(token) is None]:
        return f"has no {' '.join(missing)}; this project needs {' '.join(special)}"
    if size > MAX_VOCAB_SIZE:
        return f"{size} tokens; ids are stored in 16 bits, at most {MAX_VOCAB_SIZE}"
    if (last := max(tokenizer.get_vocab().values())) >= size:
        return f"{size} tokens, but ids up to {last}: ids without a token between them are not supported"
    if content["model"].get("dropout"):
        return f"dropout {content['model']['dropout']} in its model: a text would get other ids each time"
    alphabet, added = set(byte_characters().values()), tokenizer.get_added_tokens_decoder()
    tokens = [token for token, index in tokenizer.get_vocab().items() if index not in added]
    strange = [token for token in tokens if token not in special and not alphabet.issuperset(token)]
    split = content["pre_tokenizer"] or {}
    if strange or "ByteLevel" not in [part.get("type") for part in split.get("pretokenizers", [split])]:
        example = f" (a token is {strange[0]!r})" if strange else ""
        return f"not a byte-level tokenizer{example}; this project needs one, as train_tokenizer.py makes it"
    for token in special:
        texts = [token, f"a{token}b", f" {token} ", f"\n{token}\n"]
        encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
        if any(tokenizer.token_to_id(token) in encoding.ids for encoding in encodings):
            return f'a text can spell {token}, which ends documents and turns: give it "special": true in added_tokens'
    return None


def byte_characters() -> dict[int, str]:
    """Return the printable character of each byte in a byte-level vocabulary (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
