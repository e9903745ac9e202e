"""A row that is held out is held out everywhere: across files, for the tokenizer too, and never more than half."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from factories import write_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset import DEFAULT_SYSTEM, BorderedDataset, PretrainDataset, SFTDataset
from engine.corpus.bpe import row_hashes, scan_corpus
from engine.corpus.held_out import describe_repeated, held_out_hashes, read_row
from engine.corpus.jsonl import parse_line
from engine.options import SAMPLE

TEXT_SPELLINGS = {
    "as the sample": lambda text: json.dumps({"text": text}, ensure_ascii=False, separators=(",", ":")),
    "with spaces": lambda text: json.dumps({"text": text}, ensure_ascii=False),
    "escaped": lambda text: json.dumps({"text": text}),
    "another id first": lambda text: json.dumps({"id": hash(text), "text": text}),
    "a url behind": lambda text: json.dumps({"text": text, "url": "https://a.example/b"}),
    "outer white space": lambda text: json.dumps({"text": f" \n{text}\t "}),
    "between special tokens": lambda text: json.dumps({"text": f"<s>{text}</s>"}),
}


def chat(*turns, **fields) -> str:
    messages = [dict(zip(("role", "content"), turn, strict=True)) for turn in turns]
    return json.dumps({"conversations": messages, **fields})


CHAT_SPELLINGS = {
    "as the sample": lambda q, a: chat(("user", q), ("assistant", a)),
    "with an id": lambda q, a: chat(("user", q), ("assistant", a), id=hash(q)),
    "messages": lambda q, a: chat(("user", q), ("assistant", a)).replace("conversations", "messages"),
    "ShareGPT": lambda q, a: json.dumps(
        {"conversations": [{"from": "human", "value": q}, {"value": a, "from": "gpt"}]}
    ),
    "Alpaca": lambda q, a: json.dumps({"output": a, "instruction": q, "input": ""}),
    "the default system message": lambda q, a: chat(("system", DEFAULT_SYSTEM), ("user", q), ("assistant", a)),
    "a system message that says there is none": lambda q, a: chat(("system", " "), ("user", q), ("assistant", a)),
    "outer white space": lambda q, a: chat(("user", f"{q}\n"), ("assistant", f" {a} ")),
    "a list of parts": lambda q, a: chat(("user", [{"type": "text", "text": q}]), ("assistant", a)),
    "a turn that is only read": lambda q, a: chat(("user", q), ("assistant", a)).replace(
        '"role"', '"loss": 0, "role"', 1
    ),
}
words = st.text(st.sampled_from('ab 海é"\\\n1'), min_size=1, max_size=8).filter(str.strip)


def hash_of(line: str, dataset_class: type = PretrainDataset) -> int:
    return read_row(dataset_class, parse_line(line.encode()))[0]


def held_out(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Return a mask of the rows of a file that is read alone which are held out, (n,) bool."""
    return np.isin(hashes, held_out_hashes([hashes], fraction))


def held(cache):
    """Return the content hashes that validation keeps, of each source file."""
    ends = np.cumsum([source["documents"] for source in cache.meta["sources"]])[:-1]
    is_held_out = np.zeros(len(cache), bool)
    is_held_out[cache.split(0.01)[1]] = True
    parts = zip(np.split(cache.hashes, ends), np.split(is_held_out, ends), strict=True)
    return [set(hashes[mask].tolist()) for hashes, mask in parts]


def held_out_of(paths, fraction, dataset_class=PretrainDataset):
    """Return the content hashes that the tokenizer does not learn from."""
    files = scan_corpus(paths, strict=False, dataset_class=dataset_class)
    return {*held_out_hashes(row_hashes(files), fraction).tolist()}


def numbered(count, word):
    return [{"text": f"{word} {number}"} for number in range(count)]


def test_a_row_held_out_of_one_file_is_trained_on_from_none(build, tmp_path):
    a = write_rows(tmp_path / "a.jsonl", numbered(200, "boat"))
    b = write_rows(tmp_path / "b.jsonl", numbered(1500, "boat"))
    cache = build(a, b)
    training, validation = (set(cache.hashes[part].tolist()) for part in cache.split(0.01))
    assert not training & validation and len(validation) >= 64
    assert held(build(a))[0] <= validation
    assert held_out_of([a, b], 0.01) == validation


def test_a_file_holds_out_the_same_rows_whatever_file_is_read_with_it(build, tmp_path):
    a = write_rows(tmp_path / "a.jsonl", [*numbered(300, "a"), {}])
    b = write_rows(tmp_path / "b.jsonl", numbered(40, "b"))
    of_a, of_b = held(build(a))[0], held(build(b))[0]
    assert [of_a, of_b] == held(build(a, b)) == held(build(b, a))[::-1]
    assert len(of_a) == 64 and len(of_b) == 20


def test_the_tokenizer_learns_from_the_rows_that_training_learns_from(build, tmp_path):
    rows = [*numbered(300, "a"), *numbered(9, "a")], numbered(200, "b")
    a = write_rows(tmp_path / "a.jsonl", [{}, *rows[0]])
    b = write_rows(tmp_path / "b.jsonl", rows[1])
    b.write_bytes(b"\xef\xbb\xbf" + b.read_bytes().replace(b"\n", b"\r\n\r\n"))
    files = scan_corpus([a, b], strict=False)
    parts = held(build(a, b))
    assert held_out_of([a, b], 0.01) == set().union(*parts) and all(len(part) >= 60 for part in parts)
    assert [file.num_bytes.tolist() for file in files] == [[len(row["text"].encode()) for row in part] for part in rows]


@pytest.mark.parametrize("equal, others, expected", [(20, 0, 0), (61, 39, 39), (50, 50, 50), (2, 98, 50), (1, 0, 0)])
def test_of_equal_rows_all_or_none_are_held_out_and_never_more_than_half(equal, others, expected):
    hashes = np.array([0] * equal + list(range(1, others + 1)), np.uint64)
    mask = held_out(hashes, 0.01)
    assert mask.sum() == expected and mask[:equal].all() == mask[:equal].any()


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.lists(st.lists(st.integers(0, 40), max_size=60), min_size=1, max_size=4), st.sampled_from([0.01, 0.3, 0.9]))
def test_of_no_file_more_than_half_is_held_out(files, fraction):
    files = [np.array(rows, np.uint64) for rows in files]
    hashes = held_out_hashes(files, fraction)
    assert (np.diff(hashes.astype(np.int64)) > 0).all()
    assert all(2 * np.isin(rows, hashes).sum() <= len(rows) for rows in files)
    assert len(held_out_hashes(files, 0)) == 0


def some_hashes(count: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(0)).integers(0, 2**64, count, dtype=np.uint64)


@pytest.mark.parametrize(
    "rows, fraction, expected",
    [
        (10_000, 0.01, 100),
        (1000, 0.01, 64),
        (500_000, 0.01, 2000),
        (100, 0.01, 50),
        (11, 0.5, 5),
        (1000, 0.9, 500),
        (1000, 0, 0),
        (1, 0.1, 0),
        (0, 0.1, 0),
    ],
)
def test_64_to_2000_rows_are_held_out_and_never_more_than_half(rows, fraction, expected):
    assert held_out(some_hashes(rows), fraction).sum() == expected


def test_held_out_rows_depend_on_content_alone():
    hashes = np.tile(some_hashes(5000), 3)
    mask = held_out(hashes, 0.01)
    assert mask.any() and (mask[:5000] == mask[5000:10_000]).all() and (mask[:5000] == mask[10_000:]).all()
    assert (held_out(hashes[::-1], 0.01)[::-1] == mask).all()


@pytest.mark.parametrize("name", ["pretrain", "sft_512", "sft_1024", "r1_1024"])
def test_the_samples_rows_are_known_by_the_hashes_of_their_lines(name):
    lines = (SAMPLE / f"{name}.jsonl").read_bytes().splitlines()
    assert [hash_of(line.decode()) for line in lines] == [
        int.from_bytes(hashlib.blake2b(line, digest_size=8).digest(), "little") for line in lines
    ]


@settings(deadline=None, derandomize=True, max_examples=30)
@given(words, words)
def test_all_spellings_of_a_row_are_one_row(first, second):
    texts = {hash_of(spell(first)) for spell in TEXT_SPELLINGS.values()}
    texts |= {hash_of(spell(first), BorderedDataset) for spell in TEXT_SPELLINGS.values()}
    chats = {hash_of(spell(first, second)) for spell in CHAT_SPELLINGS.values()}
    assert len(texts) == len(chats) == 1 and texts != chats
    assert (hash_of(chat(("user", second), ("assistant", first))) in chats) == (first.strip() == second.strip())
    assert hash_of(json.dumps({"text": f"{first}."})) not in texts
    assert hash_of(chat(("system", "x"), ("user", first), ("assistant", second))) not in chats


def test_no_spelling_of_a_held_out_text_is_trained_on(build):
    cache = build(*([spell(f"boat {number}") for number in range(100)] for spell in TEXT_SPELLINGS.values()))
    training, validation = ({*(part % 100).tolist()} for part in cache.split(0.01))
    assert not training & validation and len(validation) == 50


def test_no_spelling_of_a_held_out_chat_is_trained_on(build):
    files = [[spell(f"q{number}", f"a{number}") for number in range(100)] for spell in CHAT_SPELLINGS.values()]
    training, validation = ({*(part % 100).tolist()} for part in build(*files, dataset_class=SFTDataset).split(0.01))
    assert not training & validation and len(validation) == 50


@pytest.mark.parametrize("seed", range(3))
def test_rows_of_several_documents_are_held_out_as_rows(build, tmp_path, seed):
    lengths = np.random.default_rng(seed).choice([1, 8], 1500)
    rows = ["</s>".join(f"boat {row} {part}" for part in range(length)) for row, length in enumerate(lengths)]
    path = write_rows(tmp_path / "rows.jsonl", [{"text": row} for row in rows])
    cache = build(path, dataset_class=BorderedDataset)
    training, validation = (set(cache.hashes[part].tolist()) for part in cache.split(0.05))
    assert len(validation) == 75 and not training & validation
    assert held_out_of([path], 0.05, BorderedDataset) == validation
    assert [len(hashes) for hashes in cache.row_hashes()] == [1500]


@pytest.mark.parametrize("other", ["rows.jsonl", "./rows.jsonl", "link.jsonl", "copy.jsonl"])
def test_a_file_given_twice_is_read_twice_and_held_out_once(build, tmp_path, monkeypatch, capsys, other):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", numbered(200, "boat"))
    (tmp_path / "link.jsonl").symlink_to("rows.jsonl")
    shutil.copy("rows.jsonl", "copy.jsonl")
    training, validation = (part.tolist() for part in build("rows.jsonl").split(0.01))
    assert not capsys.readouterr().out
    cache = build("rows.jsonl", other)
    assert [part.tolist() for part in cache.split(0.01)] == [sorted(2 * training), validation]
    assert f"{Path(other)}: the same file 2 times; its rows are read as often, and held out" in capsys.readouterr().out
    assert cache.folder == build("rows.jsonl").folder
    mixed = build(write_rows(tmp_path / "b.jsonl", numbered(3, "b")), "rows.jsonl", other, "rows.jsonl")
    assert mixed.times == [1, 3] and np.bincount(mixed.split(0)[0]).tolist() == [1] * 3 + [3] * 200


def test_copies_of_rows_are_counted():
    files = [np.array(rows, np.uint64) for rows in ([1, 2, 2, 2], [2, 3], [])]
    assert describe_repeated(files).startswith("copies 3 of 6 rows say the same as another one")
    assert describe_repeated(files[1:]) == ""


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5])
def test_a_share_that_is_none_is_refused(fraction):
    with pytest.raises(ValueError, match=f"val_fraction={fraction}"):
        held_out(some_hashes(10), fraction)


def test_same_conversations_are_held_out_with_texts_beside_them(build, tmp_path):
    """In their file or in another one, and by the tokenizer, too: losses on them can be compared."""
    chats = [json.loads(chat(("user", f"q{number}"), ("assistant", "a"))) for number in range(300)]
    texts = numbered(500, "boat")
    alone, replay = build(chats, dataset_class=SFTDataset), build(texts)
    mixed = [build(chats + texts, dataset_class=SFTDataset), build(chats, texts, dataset_class=SFTDataset)]
    expected = [set(cache.hashes[cache.split(0.01)[1]].tolist()) for cache in (alone, replay)]
    assert list(map(len, expected)) == [64, 64]
    for cache in mixed:
        validation = cache.split(0.01)[1]
        is_replay = cache.is_replay[validation]
        assert [set(cache.hashes[validation[mask]].tolist()) for mask in (~is_replay, is_replay)] == expected
    path = write_rows(tmp_path / "mixed.jsonl", chats + texts)
    assert held_out_of([path], 0.01) == expected[0] | expected[1]
    assert not alone.is_replay.any() and not replay.is_replay.any() and mixed[0].is_replay.sum() == 500
