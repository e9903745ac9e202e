"""All that people have becomes rows: each type of file, packed or not, in blocks that any process can parse."""

import bz2
import gzip
import json
import lzma
import pickle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.corpus import input_files, jsonl, packed_files, readers
from engine.corpus.readers import find_files, parse_block, read_blocks
from engine.schemas import BadRow

TEXTS = ['第一条船 one, "quoted"', "two\nlines; and | a tab\t.", "三 three", "{four}"]
OBJECTS = [{"text": text, "id": number} for number, text in enumerate(TEXTS)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in OBJECTS)


def read(path, **options):
    """Return [(number, row or its error)] of a file, through pickles as a worker process gets them."""
    (file,), _ = find_files([path], **options)
    numbered = []
    for block in read_blocks(file):
        for number, row in parse_block(*pickle.loads(pickle.dumps((file, block)))):
            numbered.append((number, str(row) if isinstance(row, BadRow) else row))
    return numbered


def rows_of(path, **options):
    return [row for _, row in read(path, **options)]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def table(delimiter):
    cells = [f'"{text}"'.replace('"quoted"', '""quoted""') for text in TEXTS]
    return "\r\n".join([f"text{delimiter}id", *(f"{cell}{delimiter}{n}" for n, cell in enumerate(cells))])


def arrow(kind):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    content, file = pyarrow.Table.from_pylist(OBJECTS), pyarrow.BufferOutputStream()
    if kind == "parquet":
        parquet.write_table(content, file, row_group_size=3)
    else:
        new = pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file
        with new(file, content.schema) as writer:
            writer.write_table(content, max_chunksize=3)
    return file.getvalue().to_pybytes()


def zstd(content):
    return pytest.importorskip("pyarrow").Codec("zstd").compress(content, asbytes=True)


PACKINGS = {
    "plain": bytes,
    "gz": gzip.compress,
    "zst": zstd,
    "xz": lzma.compress,
    "bz2": bz2.compress,
}
CONTENTS = {
    "rows.jsonl": LINES,
    "rows.txt": "\ufeff" + LINES,
    "array.json": json.dumps(OBJECTS, indent=2),
    "lines.json": LINES,
    "repr.jsonl": "\n".join(map(repr, OBJECTS)),
    "list.py": repr(OBJECTS),
    "rows.csv": "\ufeff" + table(","),
    "europe.csv": table(";"),
    "rows.tsv": table("\t"),
    "rows.parquet": lambda: arrow("parquet"),
    "file.arrow": lambda: arrow("file"),
    "stream.arrow": lambda: arrow("stream"),
}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", CONTENTS)
def test_each_type_gives_its_rows_packed_or_not(tmp_path, name, packing):
    content = CONTENTS[name]
    content = content() if callable(content) else content.encode()
    path = write(tmp_path / name, PACKINGS[packing](content))  # also without the suffix of its packing
    rows = [{"text": row["text"], "id": int(row["id"])} for row in rows_of(path)]
    assert rows == OBJECTS


PAGE = """<!DOCTYPE html><html><head><script>track()</script></head><body><nav><a href="/">Home</a></nav>
<h1>潮水</h1><p>Two &amp; three boats.</p><pre>if tide:
    sail()</pre><table><tr><td>rope</td><td>3 m</td></tr></table><footer>Imprint</footer></body></html>"""
PAGE_TEXT = "潮水\n\nTwo & three boats.\n\nif tide:\n    sail()\nrope\t\t3 m"


@pytest.mark.parametrize(
    "name, content, text",
    [
        ("story.txt", "\ufeffOne.\r\nTwo, three.\r\n\r\n  Four. ", "One.\nTwo, three.\n\n  Four. "),
        ("notes.md", '---\ntags: [a]\n---\n# 标题\n\n```json\n{"text": 1}\n```\n', None),
        ("set.txt", "[{'a'} is a set]\nand no list.", None),
        ("link.md", "[\n a link\n", None),
        ("letter.txt", "Dear Ann, Bob\nWe sailed, far\n", None),
        ("program.py", "{\n    print(1)\n}\nx = [\n    {'a': 1},\n]\n", None),
        ("page.txt", PAGE, PAGE_TEXT),
        ("page.html.gz", gzip.compress(PAGE.encode()), PAGE_TEXT),
        ("part.htm", "<h1>One</h1><p>Two", "One\n\nTwo"),
        ("no_name", "A text without any suffix.", None),
    ],
)
def test_a_text_is_one_document(tmp_path, name, content, text):
    """A text as it is, with the line breaks of this system; a web page without its markup and menus."""
    assert read(write(tmp_path / name, content)) == [(1, {"text": text or content})]


def test_lines_and_paragraphs_can_be_documents(tmp_path, monkeypatch):
    path = write(tmp_path / "many.txt", "one\r\ntwo\r\n \r\n\r\n  three\r\nfour\n\n\nfive")
    monkeypatch.setattr(jsonl, "READ_BLOCK_BYTES", 8)
    lines = [(1, "one"), (2, "two"), (5, "  three"), (6, "four"), (9, "five")]
    assert read(path, split_text="line") == [(number, {"text": text}) for number, text in lines]
    paragraphs = [(1, "one\ntwo"), (5, "  three\nfour"), (9, "five")]
    assert read(path, split_text="paragraph") == [(number, {"text": text}) for number, text in paragraphs]
    assert rows_of(path) == [{"text": "one\ntwo\n \n\n  three\nfour\n\n\nfive"}]


@pytest.mark.parametrize(
    "name, content, row",
    [
        ("a.csv", ",Content\n0,boats\n", {"index": "0", "text": "boats"}),
        ("a.csv", "Question,Answer,id\nWhy?,So.,\n", {"prompt": "Why?", "completion": "So."}),
        ("a.csv", "问题,答案\n为什么？,因为。\n", {"prompt": "为什么？", "completion": "因为。"}),
        ("a.csv", "instruction,input,output,system\nSay,,Hi,\n", {"instruction": "Say", "output": "Hi"}),
        ("a.csv", "text,system\n,\n", {"text": "", "system": ""}),
        ("a.csv", "text\nboats\n", {"text": "boats"}),
        ("a.csv", "question,A,B,answer\nWhy?,so,no,A\n", {"question": "Why?", "a": "so", "b": "no", "answer": "A"}),
        ("a.csv", "text,label\none\n", "1 cells, and 2 columns"),
        ("a.csv", 'text,label\n"on"e,1\n', "not CSV (',' expected after '\"')"),
        ("a.json", '["boats"]', {"text": "boats"}),
        ("a.json", "[12]", "expected an object, found int"),
        ("a.jsonl", '{"query": "Why?", "response": "So."}', {"prompt": "Why?", "completion": "So."}),
        ("a.jsonl", '{"question": "W", "choices": [1], "answer": 0}', {"question": "W", "choices": [1], "answer": 0}),
        ("a.jsonl", "{'text': x}", "not Python's repr of an object (malformed node or string on line 1"),
    ],
)
def test_columns_have_the_names_that_people_give_them(tmp_path, name, content, row):
    path = write(tmp_path / name, content)
    assert rows_of(path) == [row] or rows_of(path)[0].startswith(row)


def test_a_zero_of_a_label_means_the_same_in_every_type(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"prompt": "Why?", "completion": f"So {number}.", "label": number % 2} for number in range(4)]
    write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    write(tmp_path / "b.json", json.dumps(rows, indent=1))
    write(tmp_path / "c.csv", "prompt,completion,label\n" + "".join("{},{},{}\n".format(*row.values()) for row in rows))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    labels = [[row["label"] for row in rows_of(path)] for path in sorted(tmp_path.iterdir())]
    assert labels == [[False, True, False, True]] * 4
    with_two = [*rows, rows[0] | {"label": 2}]
    write(tmp_path / "b.json", json.dumps(with_two))
    assert [row["label"] for row in rows_of(tmp_path / "b.json")] == [0, 1, 0, 1, 2]


LABEL_0 = '{"prompt": "Why?", "completion": "So.", "label": 0}'
LINES_OF_ALL_KINDS = [
    *('{"text": "船"}', LABEL_0, LABEL_0.replace("0", "1"), LABEL_0.replace("0", "2"), "{broken", "[1]", "", "\ufeff"),
    *('  {"text": NaN}\r', '{"messages": "[{\\"role\\": \\"user\\"}]"}', '{"conversations": [{"label": 0}]}', "\udcff"),
]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(st.sampled_from(LINES_OF_ALL_KINDS), max_size=12, unique=True), is_packed=st.booleans())
def test_jsonl_is_read_as_training_reads_it(tmp_path, lines, is_packed):
    content = "\n".join(["# a title", *['{"text": "boats"}'] * 12, *lines]).encode("utf-8", "surrogateescape")
    path = write(tmp_path / "a.jsonl", gzip.compress(content) if is_packed else content)
    expected, zero_fields = [], jsonl.find_zero_fields(path)
    for number, line in jsonl.read_lines(path):
        try:
            expected.append((number, jsonl.parse_row(line, zero_fields)))
        except BadRow as error:
            expected.append((number, str(error)))
    assert read(path) == expected


# ------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize(
    "name, content, problem",
    [
        ("a.parquet", lambda: arrow("parquet")[:-9], "damaged parquet file"),
        ("a.arrow", lambda: arrow("stream")[:-99], "damaged arrow file"),
        ("a.json", lambda: json.dumps(OBJECTS, indent=1).encode()[:-9], "a.json:16: broken JSON: it breaks off"),
        ("a.csv", lambda: b'text,id\n"boats",1\n"one', "a.csv:3: a quote that opens in this row is never closed"),
        ("a.csv", lambda: b"text,text\nboats,1\n", "a.csv:1: two columns of one name among text, text"),
    ],
)
def test_a_file_that_breaks_off_is_an_error_that_names_it(tmp_path, name, content, problem):
    with pytest.raises(ValueError, match=f"{problem}"):
        read(write(tmp_path / name, content()))


def test_a_text_with_bytes_that_are_no_text_is_a_bad_row(tmp_path):
    content = "第一行\n".encode() * 20 + b"\xe7\xac\n" + "第二行\n".encode() * 20
    assert read(write(tmp_path / "a.txt", content)) == [(21, "invalid utf-8")]
    rows = rows_of(tmp_path / "a.txt", split_text="line")
    assert rows[0] == {"text": "第一行"} and rows[20] == {"text": "\udce7\udcac"} and len(rows) == 41


def test_a_text_that_is_too_long_for_one_document_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(input_files, "MAX_DOCUMENT_BYTES", 1 << 20)
    path = write(tmp_path / "a.txt", (b"a line of a long book" * 9 + b"\n") * (1 << 13))
    with pytest.raises(ValueError, match=r"a.txt: a text of more than 1 MiB; give --split_text line or paragraph"):
        read(path)
    with pytest.raises(ValueError, match=r"a.txt: a text of more than 1 MiB"):
        read(path, split_text="paragraph")
    assert len(read(path, split_text="line")) == 1 << 13


def test_memory_does_not_grow_with_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "READ_BLOCK_BYTES", 1 << 20)
    (file,), _ = find_files([write(tmp_path / "a.csv", "text,id\n" + f"{'boats ' * 50},1\n" * (1 << 14))])
    advanced = []
    blocks = [(block.first, len(block.rows)) for block in read_blocks(file, advanced.append)]
    assert len(blocks) >= 4 and sum(count for _, count in blocks) == 1 << 14 and blocks[1][0] == blocks[0][1] + 2
    assert sum(advanced) == (tmp_path / "a.csv").stat().st_size


@pytest.mark.parametrize(
    "package, name", [("pyarrow", "a.parquet"), ("pyarrow", "a.jsonl.zst"), ("resiliparse", "a.html")]
)
def test_a_missing_package_is_named_with_its_file(tmp_path, monkeypatch, package, name):
    contents = {"a.parquet": lambda: arrow("parquet"), "a.jsonl.zst": lambda: zstd(b"{}"), "a.html": PAGE.encode}
    path = write(tmp_path / name, contents[name]())

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(packed_files, "import_module", missing)
    with pytest.raises(ValueError, match=f"{name}: .* needs {package}: pip install {package}$"):
        read(path)
