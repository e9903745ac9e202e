"""tiktoken in the place of tokenizers where it is installed: the same merges, the same ids, about twice as fast."""

import json
import os
from importlib.util import find_spec
from typing import NamedTuple

from tokenizers import Tokenizer

from engine.console import print0, warn
from engine.tokenizer import byte_characters

CHECKED = 32  # texts of every batch that both encode
HINT_BYTES = 10**9  # so much to encode takes minutes, and tiktoken saves half of them
# What tokenizers' ByteLevel cuts a text into before merging, by its regular expression.
PIECE_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
PRE_TOKENIZER = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
PLAIN_BPE = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}


class Encoding(NamedTuple):
    """The part of tokenizers' Encoding that dataset.py uses."""

    ids: list[int]


def fastest(tokenizer: Tokenizer) -> "Tokenizer | TiktokenEncoder":
    """Return the fastest that encodes as `tokenizer` does: tiktoken, if it is installed and can hold its vocabulary."""
    known = _ranks(json.loads(tokenizer.to_str()))
    if known is None or find_spec("tiktoken") is None:
        return tokenizer
    import tiktoken

    ranks, added = known
    fast = tiktoken.Encoding("same", pat_str=PIECE_PATTERN, mergeable_ranks=ranks, special_tokens=added)
    return TiktokenEncoder(tokenizer, fast, set(added))


def start_encoder(tokenizer_json: str, use_tiktoken: bool) -> "Tokenizer | TiktokenEncoder":
    """Return the encoder of a tokenizing process, one of several.

    Args:
        tokenizer_json: Content of tokenizer.json.
        use_tiktoken: Take tiktoken where it can be: it pays for more than some MB.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.encode_special_tokens = True  # not part of the JSON
    return fastest(tokenizer) if use_tiktoken else tokenizer


def print_hint(tokenizer: Tokenizer, num_bytes: int) -> None:
    """Name the group that installs tiktoken where it is missing, could be used, and there is much to encode."""
    if num_bytes > HINT_BYTES and find_spec("tiktoken") is None and _ranks(json.loads(tokenizer.to_str())):
        size = f"{num_bytes / 1e9:.1f} GB"
        print0(f"tiktoken would encode these {size} about twice as fast: pip install -e .[fast-tokenizer]")


class TiktokenEncoder:
    """The part of a Tokenizer that dataset.py uses.

    Some texts of every batch are encoded by both. Should they ever differ, a warning says so and tokenizers does the
    rest.
    """

    def __init__(self, tokenizer: Tokenizer, fast, added: set[str]):
        self.tokenizer = tokenizer
        self.fast, self.added = fast, added
        # tiktoken looks a whole piece up before it merges; for no token may that make a difference.
        self.is_trusted = self._agree([text for text in map(self._spelled, tokenizer.get_vocab().values()) if text])

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token, or None."""
        return self.tokenizer.token_to_id(token)

    def encode_batch_fast(self, texts: list[str], add_special_tokens: bool = False) -> list:
        """Encode texts; the ids are those of tokenizers."""
        step = max(1, len(texts) // CHECKED)
        if add_special_tokens or not (self.is_trusted and self._agree(texts[::step])):
            return self.tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        return [Encoding(self._encode(text)) for text in texts]

    def _encode(self, text: str) -> list[int]:
        try:
            return self.fast.encode(text, allowed_special=self.added, disallowed_special=())
        except ValueError:  # its regular expressions have a stack, which a run of a million spaces fills
            return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _spelled(self, token: int) -> str | None:
        text = self.tokenizer.decode([token], skip_special_tokens=False)
        return None if "\N{REPLACEMENT CHARACTER}" in text else text  # half a character is no text

    def _agree(self, texts: list[str]) -> bool:
        slow = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        for text, encoding in zip(texts, slow, strict=True):
            if self._encode(text) != encoding.ids:
                warn(f"tiktoken and tokenizers differ on {text[:80]!r}: tokenizers encodes the rest")
                self.is_trusted = False
                return False
        return True


def _ranks(tokenizer: dict) -> tuple[dict[bytes, int], dict[str, int]] | None:
    """Return {bytes of a token: id} and {added token that a text may spell: id}, or None where ids would differ.

    tiktoken merges the pair whose result has the lowest id first, tokenizers the pair that was learned first: the same
    as long as ids grow in the order of learning.
    """
    model, split = dict(tokenizer["model"]), tokenizer["pre_tokenizer"] or {}
    vocabulary, merges = model.pop("vocab"), model.pop("merges", [])
    learned = [vocabulary.get("".join(pair)) for pair in merges]
    same = model == PLAIN_BPE and split | PRE_TOKENIZER == split and not tokenizer["normalizer"]
    if not same or None in learned or learned != sorted(set(learned)):
        return None
    alphabet = {character: byte for byte, character in byte_characters().items()}
    added = {token["content"]: token for token in tokenizer["added_tokens"]}
    if any(token["single_word"] or token["lstrip"] or token["rstrip"] for token in added.values()):
        return None
    ranks = {bytes(alphabet[c] for c in word): index for word, index in vocabulary.items() if word not in added}
    if len(ranks) != 256 + len(merges):
        return None
    return ranks, {word: token["id"] for word, token in added.items() if not token["special"]}
