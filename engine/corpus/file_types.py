"""The type of a file, by its first bytes and never by its name, and the command that makes JSONL of it."""

import codecs
import csv
import json
import re
import shlex
import tarfile
from pathlib import Path

HEADER_BYTES = 1 << 16  # bytes that are looked at; the header of a tar takes 512 of them
GZIP = b"\x1f\x8b"
BOM = b"\xef\xbb\xbf"

# Programs for python -c "..." FILE > ROWS; a note names what is to be installed.
OPEN = "open(sys.argv[1],encoding='utf-8-sig')"
PRINT_ROWS = "[print(json.dumps(row,default=str)) for row in "
PRINT_TEXTS = "[print(json.dumps({'text':text.strip()})) for text in "
LINES = f"import json,sys; {PRINT_TEXTS}{OPEN} if text.strip()]"
PARAGRAPHS = rf"import json,re,sys; {PRINT_TEXTS}re.split(r'\n\s*\n',{OPEN}.read()) if text.strip()]"
WEB_PAGE = (
    rf"import html,json,re,sys; page=re.sub(r'(?is)<(script|style).*?</\1>|<[^>]*>','',{OPEN}.read()); "
    f"{PRINT_TEXTS}html.unescape(page).splitlines() if text.strip()]"
)
XML = (
    f"import json,sys,xml.etree.ElementTree as tree; {PRINT_TEXTS}"
    "(' '.join(part.itertext()) for part in tree.parse(sys.argv[1]).getroot()) if text.strip()]"
)
WORD = (
    f"import docx,json,sys; {PRINT_TEXTS}(part.text for part in docx.Document(sys.argv[1]).paragraphs) if text.strip()]"
)
PDF = (
    f"import json,pypdf,sys; {PRINT_TEXTS}"
    "(page.extract_text() for page in pypdf.PdfReader(sys.argv[1]).pages) if text.strip()]"
)
TABLE = (
    "import csv,json,sys; csv.field_size_limit(1<<30); "
    f"{PRINT_ROWS}csv.DictReader(open(sys.argv[1],encoding='utf-8-sig',newline=''),delimiter='DELIMITER')]"
)
JSON_ARRAY = (
    f"import json,sys; {PRINT_ROWS}(part if isinstance(part,dict) else {{'text':part}} for part in json.load({OPEN}))]"
)
JSON_WRAPPED = f"import json,sys; {PRINT_ROWS}json.load({OPEN})['KEY']]"
JSON_COLUMNS = (
    f"import json,sys; data=json.load({OPEN}); "
    f"{PRINT_ROWS}(dict(zip(data,cells)) for cells in zip(*(column.values() for column in data.values())))]"
)
JSON_BY_NAME = f"import json,sys; {PRINT_ROWS}json.load({OPEN}).values()]"
JSON_INDENTED = rf"import json,re,sys; {PRINT_ROWS}json.loads('['+re.sub(r'\}}\s*\n\s*\{{','}},{{',{OPEN}.read())+']')]"
PYTHON_LINES = f"import ast,json,sys; {PRINT_ROWS}map(ast.literal_eval,filter(str.strip,{OPEN}))]"
PYTHON_LIST = f"import ast,json,sys; {PRINT_ROWS}ast.literal_eval({OPEN}.read())]"
PICKLE = f"import json,pickle,sys; {PRINT_ROWS}pickle.load(open(sys.argv[1],'rb'))]"
SQLITE = (
    "import json,sqlite3,sys; data=sqlite3.connect(sys.argv[1]); data.row_factory=sqlite3.Row; "
    "table=data.execute('select name from sqlite_master').fetchone()[0]; "
    f"{PRINT_ROWS}map(dict,data.execute('select * from '+table))]"
)
PARQUET = f"import json,pyarrow.parquet,sys; {PRINT_ROWS}pyarrow.parquet.read_table(sys.argv[1]).to_pylist()]"
ARROW_FILE = f"import json,pyarrow.feather,sys; {PRINT_ROWS}pyarrow.feather.read_table(sys.argv[1]).to_pylist()]"
ARROW_STREAM = (
    f"import json,pyarrow,sys; {PRINT_ROWS}pyarrow.ipc.open_stream(open(sys.argv[1],'rb')).read_all().to_pylist()]"
)
NPY_TEXTS = f"import json,numpy,sys; {PRINT_TEXTS}map(str,numpy.load(sys.argv[1]).ravel())]"
DECODE = (
    "import json,numpy,sys,tiktoken; text=tiktoken.get_encoding('gpt2').decode(NUMBERS.tolist()); "
    f"{PRINT_TEXTS}text.split('<|endoftext|>') if text.strip()]"
)
NPY_IDS = DECODE.replace("NUMBERS", "numpy.load(sys.argv[1]).ravel()")
UINT16_IDS = DECODE.replace("NUMBERS", "numpy.fromfile(sys.argv[1],'uint16')")
RECODE = "import sys; sys.stdout.buffer.write(open(sys.argv[1],encoding='ENCODING').read().encode())"
UNPACK = "import MODULE,shutil,sys; shutil.copyfileobj(MODULE.open(sys.argv[1]),sys.stdout.buffer)"

GPT2 = "; pip install tiktoken; only for ids of GPT-2, as nanoGPT's are: others need the tokenizer that made them"
TRUSTED = "; a pickle can run any program: only if its author is trusted"
NO_TEXT = "It holds no text to learn from"
AGAIN = "Fetch it again"
FOLDER = "python -m {} -e PATH FOLDER"

# (pattern of the first bytes, name, the program above, or else a command or sentence; note on it)
FILE_SIGNATURES = [
    (rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff", "UTF-32 text", RECODE.replace("ENCODING", "utf-32"), ""),
    (rb"\xff\xfe|\xfe\xff", "UTF-16 text", RECODE.replace("ENCODING", "utf-16"), ""),
    (rb"(?:[\t\n\r -~]\x00){8}", "UTF-16 text", RECODE.replace("ENCODING", "utf-16-le"), ""),
    (rb"(?:\x00[\t\n\r -~]){8}", "UTF-16 text", RECODE.replace("ENCODING", "utf-16-be"), ""),
    (rb"PK\x03\x04.{26}[^/]{1,99}/(?:data\.pkl|\.format_v|byteorder)", "a checkpoint of torch", NO_TEXT, ""),
    (rb"PK\x03\x04.*?word/", "a Word file", WORD, "; pip install python-docx"),
    (rb"PK(?:\x03\x04|\x05\x06|\x07\x08)", "a zip archive", FOLDER.format("zipfile"), ""),
    (rb"PAR1", "a parquet file", PARQUET, "; pip install pyarrow"),
    (rb"ARROW1|FEA1", "an arrow file", ARROW_FILE, "; pip install pyarrow"),
    (rb"\xff\xff\xff\xff", "an arrow stream", ARROW_STREAM, "; pip install pyarrow"),
    (rb"%PDF-", "a PDF file", PDF, "; pip install pypdf"),
    (rb"\x93NUMPY[^{]*\{'descr': '[<>|=]?[iufb]", "numbers in NPY, as of token ids", NPY_IDS, GPT2),
    (rb"\x93NUMPY", "an NPY file", NPY_TEXTS, ""),
    (rb"\x80[\x02-\x05]", "a pickle", PICKLE, TRUSTED),
    (rb"SQLite format 3\x00", "an SQLite file", SQLITE, "; it takes the first table"),
    (rb"\xfd7zXZ\x00", "packed by xz", UNPACK.replace("MODULE", "lzma"), ""),
    (rb"BZh[1-9]1AY&SY", "packed by bzip2", UNPACK.replace("MODULE", "bz2"), ""),
    (rb"[\x22-\x28]\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", "packed by zstd", "zstd -dc PATH > OUT", "; it needs zstd"),
    (rb"\x04\x22\x4d\x18", "packed by lz4", "lz4 -dc PATH > OUT", "; it needs lz4"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z e PATH", "; it needs 7-Zip"),
    (rb"Rar!\x1a\x07", "a rar archive", "unrar e PATH", "; it needs unrar"),
    (rb"\x1f\x8b", "packed by gzip twice", UNPACK.replace("MODULE", "gzip"), ""),
    (rb"\x89PNG|\xff\xd8\xff|GIF8[79]a|RIFF.{4}WEBP|BM.{4}\x00{4}|II\*\x00|MM\x00\*", "an image", NO_TEXT, ""),
    (rb"RIFF.{4}(?:WAVE|AVI )|OggS\x00|ID3[\x02-\x04]\x00|fLaC\x00", "sound", NO_TEXT, ""),
    (rb"\x00{3}.ftyp|\x1aE\xdf\xa3", "sound or video", NO_TEXT, ""),
    (rb"\x7fELF|MZ.\x00|\xca\xfe\xba\xbe", "a program", NO_TEXT, ""),
    (rb".{4}\x00{4}\{\s*\"", "a safetensors file", NO_TEXT, ""),
    (rb"GGUF.\x00", "a GGUF file", NO_TEXT, ""),
    (rb"\x89HDF", "an HDF5 file", "Write its texts to JSONL with h5py", ""),
    (rb"\xd0\xcf\x11\xe0", "an old Office file", "Save it as plain text", ""),
    (rb"\{\\rtf", "an RTF file", "Save it as plain text", ""),
    (rb"version https://git-lfs", "a pointer of git LFS, without the file's content", "git lfs pull", ""),
    (rb"(?:/annex/objects|(?:\.\./)*\.git/annex)", "a pointer of git-annex", "git annex get PATH", ""),
    (rb"\s*<\?xml[^>]*>\s*<Error", "the error message of a file server", AGAIN, ""),
    (
        rb"(?i:\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype html|html|head))",
        "a web page (of an error or a login?)",
        WEB_PAGE,
        "; if it is none of yours, fetch it again",
    ),
    (rb"\s*(?:<\?xml|<mediawiki)", "an XML file", XML, ""),
    (rb"\s*\[\s*\{\s*'", "a Python list", PYTHON_LIST, ""),
    (rb"\s*\[\s*\{|\s*\[\s*\n", "a JSON array", JSON_ARRAY, ""),
    (rb"\s*\{\s*\n|\s*\{[^\n]*[\[{]\s*\n|\s*\{\"[^\n]*,\s*\n\s*\"", "JSON in several lines", JSON_INDENTED, ""),
]  # fmt: skip

_FIELD = rb'"[^"\n]*"\s*:\s*(?:"[^"\n]*"|[\w.+-]+)\s*,\s*'
WRAPPED = re.compile(
    rb'\s*\{\s*(?:%s)*"([\w -]+)"\s*:\s*\[\s*\{\s*"(?!(?:role|from|content|value|type|name)")' % _FIELD
)
# Of a single row, which is bad: (pattern, name, program).
ONE_ROW_SIGNATURES = [
    (rb'\s*\[\s*"', "a JSON array", JSON_ARRAY),
    (rb'\s*\{\s*"[^"]+"\s*:\s*\{\s*"0"\s*:', "a table by columns", JSON_COLUMNS),
    (rb'\s*\{\s*"\w*\d"\s*:\s*\{\s*"', "an object of objects", JSON_BY_NAME),
]


def detect_file_type(head: bytes, is_one_row: bool = False) -> tuple[str, str] | None:
    """Return (name, remedy) of a file that begins so; None where it may be JSONL.

    The remedy has PATH in place of the file, OUT of the rows, FOLDER of what is unpacked.

    Args:
        head: The first HEADER_BYTES.
        is_one_row: The file is one row of JSON, which cannot be used.
    """
    head = head.removeprefix(BOM)
    if (match := WRAPPED.match(head)) and (is_one_row or b"\n" in match[0].strip()):
        return "an object that holds a list", _remedy(JSON_WRAPPED.replace("KEY", match[1].decode()))
    if is_one_row:
        matching = (entry for entry in ONE_ROW_SIGNATURES if re.match(entry[0], head))
        return next(((name, _remedy(program)) for _, name, program in matching), None)
    for pattern, name, program, note in FILE_SIGNATURES:
        if re.match(pattern, head, re.DOTALL):
            return name, _remedy(program, note)
    if _is_tar(head[:512]):
        return "a tar archive", _remedy(FOLDER.format("tarfile"))
    # A row is looked for in all of them: a file whose first line is bad is read, and the line is counted.
    if re.search(rb'(?m)^(?:\xef\xbb\xbf)*\s*\{\s*["}]', head) or not head.strip():
        return None
    return _detect_text(head)


def _detect_text(head: bytes) -> tuple[str, str] | None:
    """Tell texts apart that hold no JSON object in their beginning."""
    encoding = _encoding(head)
    if not encoding:
        return "binary, perhaps token ids in uint16", _remedy(UINT16_IDS, GPT2)
    if encoding != "utf-8":
        program = RECODE.replace("ENCODING", encoding)
        return "text that is not UTF-8", _remedy(program, f"; {encoding} is a guess, by its bytes")
    text = head.decode(errors="ignore").strip()
    first, _, rest = text.partition("\n")
    if first.startswith("{"):
        return ("Python's repr", _remedy(PYTHON_LINES)) if re.match(r"\{\s*'", first) else None
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        if delimiter := _delimiter(first, rest):
            return f"a table of columns ({delimiter!r} between them)", _remedy(
                TABLE.replace("'DELIMITER'", repr(delimiter))
            )
        return "plain text", _remedy(PARAGRAPHS if re.search(r"\n\s*\n", text) else LINES)
    return None  # JSON, but no object: named row by row


def _encoding(head: bytes) -> str:
    """Return the likely encoding of a text, "" of what is none."""
    for encoding in ("utf-8", "gb18030", "cp1252"):
        try:  # the last character may be cut by the end of `head`
            if "\0" not in codecs.getincrementaldecoder(encoding)().decode(head):
                return encoding if encoding == "utf-8" or not re.search(rb"[\x01-\x08\x0e-\x1a]", head) else ""
        except UnicodeDecodeError:
            continue
    return ""


def _delimiter(first: str, rest: str) -> str:
    """Return what separates columns: the first line names them, and the next row has as many; "" where none does."""
    for delimiter in ("\t", ",", ";", "|"):
        if re.fullmatch(rf'"?text"?|"?[\w -]+"?(?:\{delimiter}"?[\w-][\w -]*"?)+', first.strip()):
            rows = list(csv.reader(rest.splitlines(keepends=True)[:50], delimiter=delimiter))
            names = next(csv.reader([first.strip()], delimiter=delimiter))
            if rows and len(rows[0]) == len(names):
                return delimiter
    return ""


def _is_tar(head: bytes) -> bool:
    """Check the sum of bytes: old archives have no signature."""
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _remedy(program: str, note: str = "") -> str:
    if program.startswith("import "):
        program = f'python -c "{program}" PATH > OUT'
    return f"Get the rows with: {program}{note and f' ({note[2:]})'}" if program[0].islower() else program


def describe_file(path: Path, head: bytes, *, is_packed: bool = False, is_one_row: bool = False) -> str:
    """Return a file's type and the command that makes JSONL of it, which replaces no file; "" where it may be JSONL.

    Args:
        path: The file.
        head: Its first HEADER_BYTES, unpacked.
        is_packed: It is packed by gzip, so most commands need its content first.
        is_one_row: As in detect_file_type.
    """
    file_type = detect_file_type(head, is_one_row)
    if file_type is None:
        return ""
    name, remedy = file_type
    if is_packed and name != "a tar archive":
        name, remedy = f"{name}, packed by gzip", _remedy(UNPACK.replace("MODULE", "gzip"))
    stem = path.name.split(".")[0] or "rows"
    while Path(f"{stem}.jsonl").exists() or Path(stem).exists():
        stem += ".rows"
    names = {"PATH": str(path), "OUT": f"{stem}.jsonl", "FOLDER": stem}
    return f"{name}, not JSONL. " + re.sub("PATH|OUT|FOLDER", lambda match: shlex.quote(names[match[0]]), remedy)
