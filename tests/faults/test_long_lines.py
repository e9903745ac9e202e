"""Very long lines of odd characters, through both encoders: good rows get their ids, bad ones are named."""

import json
import resource
import sys

import pytest

from dataset import PretrainDataset, SFTDataset
from engine.corpus import jsonl, token_cache
from engine.corpus.tiktoken_backend import TiktokenEncoder, fastest
from engine.corpus.token_cache import open_or_build

HALF = "\ud83d"  # of a surrogate pair


def texts(n: int) -> dict[str, str]:
    """Return texts of about `n` bytes each."""
    return {
        "spaces": " " * n,
        "spaces at the end": "a" + " " * n,
        "line breaks": "\r\n" * (n // 2) + "b",
        "spaces of two bytes": "\u00a0" * (n // 2) + "c",
        "one word": "a" * n,
        "one Chinese word": "雨停了船" * (n // 12),
        "NULs": "\0" * n,
        "special tokens": "<s></s><think>" * (n // 14),
        "accents": "e" + "\u0301" * (n // 2),
        "escapes": "\x1b[31m\u2028\ufeff" * (n // 11),
    }


def turns(answer: str) -> list[dict]:
    return [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]


def write_lines(path, n: int, chat: bool) -> tuple[list[str], list[int]]:
    """Write the file; return (the texts of its good rows, the numbers of its bad lines)."""

    def wrap(text: str) -> dict:
        return {"messages": turns(text)} if chat else {"text": text}

    good, bad = [], []
    lines = []
    for text in texts(n).values():
        lines += [json.dumps(wrap("x" + text), ensure_ascii=False).encode(), json.dumps(wrap("海" + text)).encode()]
        good += ["x" + text, "海" + text]
    for line in (
        json.dumps(wrap(HALF + "a" * n)).encode(),  # spelt as an escape: JSON, and no text
        json.dumps(wrap("a" * n + HALF)).encode(),
        json.dumps(wrap("a" * n), ensure_ascii=False).encode() + HALF.encode("utf-8", "surrogatepass"),
        b"\0" * n,  # a file after a crash
        json.dumps(wrap("a\0" * (n // 2))).encode().replace(b"\\u0000", b"\0"),  # raw ones
        b"{" * n,
        b'{"text": ' + b"9" * n + b"}",
        json.dumps(wrap("b" * n)).encode()[:-3],
    ):
        lines.append(line)
        bad.append(len(lines))
    lines.append(b" " * n)  # blank, no row
    lines += [json.dumps(wrap(f"好{number}")).encode() for number in range(900)]  # bad ones are no more than 1 %
    path.write_bytes(b"\r\n".join(lines))
    return [*good, *(f"好{number}" for number in range(900))], bad


def check(tmp_path, tokenizer, monkeypatch, encoder: str, kind, n: int) -> None:
    monkeypatch.setattr(token_cache, "TIKTOKEN_MIN_BYTES", 0 if encoder == "tiktoken" else sys.maxsize)
    if encoder == "tiktoken" and not isinstance(fastest(tokenizer), TiktokenEncoder):
        pytest.skip("tiktoken is not installed")
    good, bad = write_lines(tmp_path / "rows.jsonl", n, kind is SFTDataset)
    cache = open_or_build([tmp_path / "rows.jsonl"], kind, tokenizer, cache_dir=tmp_path / "cache")
    counts = cache.meta["sources"][0]["counts"]
    assert counts["rows"] == len(good) + len(bad) and counts["bad"] == len(bad) and len(cache) == len(good)
    named = [int(line.split(":")[0]) for line in counts["examples"]]
    assert named == bad[:5] and all(len(line) < 300 for line in counts["examples"])
    for document, text in enumerate(good):
        ids = cache.ids[cache.offsets[document] : cache.offsets[document + 1]].tolist()
        assert tokenizer.decode(ids, skip_special_tokens=True).rstrip("\n").endswith(text), f"row {document}"
    plain = kind(tokenizer)
    for document in (0, 1, 2, 7, len(good) - 1):
        read = good[document]
        if kind is SFTDataset:
            read = turns(read)
        expected = plain.encode([read])[0].ids
        assert (cache.ids[cache.offsets[document] : cache.offsets[document + 1]] == expected).all()


@pytest.mark.parametrize("kind", [PretrainDataset, SFTDataset])
@pytest.mark.parametrize("encoder", ["tiktoken", "tokenizers"])
def test_long_lines_of_odd_characters_are_read_or_named(tmp_path, tokenizer, monkeypatch, encoder, kind):
    monkeypatch.setattr(jsonl, "READ_BLOCK_BYTES", 1 << 10)  # lines are longer than what is read at a time
    check(tmp_path, tokenizer, monkeypatch, encoder, kind, 5_000)


@pytest.mark.faults
@pytest.mark.parametrize(
    "encoder, kind", [("tiktoken", PretrainDataset), ("tiktoken", SFTDataset), ("tokenizers", PretrainDataset)]
)
def test_a_million_spaces_and_more_are_read_or_named(tmp_path, tokenizer, monkeypatch, encoder, kind):
    """Regular expressions that look back have a stack, which a million fills."""
    check(tmp_path, tokenizer, monkeypatch, encoder, kind, 1_100_000)


@pytest.mark.faults
@pytest.mark.parametrize("name", texts(0))
def test_a_line_of_ten_megabytes_is_read_in_bounded_memory(tmp_path, tokenizer, name):
    text = "x" + texts(10_000_000)[name]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": text}) + "\n" + '{"text": "好"}\n')
    cache = open_or_build([tmp_path / "rows.jsonl"], PretrainDataset, tokenizer, cache_dir=tmp_path / "cache")
    assert tokenizer.decode(cache.ids[: cache.offsets[1]].tolist(), skip_special_tokens=True) == text
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB at most so far")
