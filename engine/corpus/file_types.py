"""The type of a file, by its first bytes and never by its name, and the command that makes JSONL of it."""

import codecs
import csv
import json
import re
import shlex
import tarfile
from pathlib import Path
from typing import NamedTuple

HEADER_BYTES = 1 << 16  # bytes that are looked at; the header of a tar takes 512 of them
GZIP = b"\x1f\x8b"
BOM = b"\xef\xbb\xbf"

# The types of files that prepare_data.py reads (readers.py), and the advice of the training stages about them.
PREPARED_TYPES = ("text", "html", "table", "json", "python", "parquet", "arrow", "packed")
PREPARE = "Get the rows with: python prepare_data.py PATH --out prepared/"

# Programs for python -c "..." FILE > ROWS, of what prepare_data.py does not read; a note names what is to be installed.
PRINT_ROWS = "[print(json.dumps(row,default=str)) for row in "
PRINT_TEXTS = "[print(json.dumps({'text':text.strip()})) for text in "
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
PICKLE = f"import json,pickle,sys; {PRINT_ROWS}pickle.load(open(sys.argv[1],'rb'))]"
SQLITE = (
    "import json,sqlite3,sys; data=sqlite3.connect(sys.argv[1]); data.row_factory=sqlite3.Row; "
    "table=data.execute('select name from sqlite_master').fetchone()[0]; "
    f"{PRINT_ROWS}map(dict,data.execute('select * from '+table))]"
)
NPY_TEXTS = f"import json,numpy,sys; {PRINT_TEXTS}map(str,numpy.load(sys.argv[1]).ravel())]"
DECODE = (
    "import json,numpy,sys,tiktoken; text=tiktoken.get_encoding('gpt2').decode(NUMBERS.tolist()); "
    f"{PRINT_TEXTS}text.split('<|endoftext|>') if text.strip()]"
)
NPY_IDS = DECODE.replace("NUMBERS", "numpy.load(sys.argv[1]).ravel()")
UINT16_IDS = DECODE.replace("NUMBERS", "numpy.fromfile(sys.argv[1],'uint16')")
UNPACK = "import gzip,shutil,sys; shutil.copyfileobj(gzip.open(sys.argv[1]),sys.stdout.buffer)"

GPT2 = "; pip install tiktoken; only for ids of GPT-2, as nanoGPT's are: others need the tokenizer that made them"
TRUSTED = "; a pickle can run any program: only if its author is trusted"
NO_TEXT = "It holds no text to learn from"
AGAIN = "Fetch it again"
FOLDER = "python -m {} -e PATH FOLDER"

# (pattern of the first bytes, name, the type by which prepare_data.py reads it, or else a program above, a command or a
# sentence; note on it)
FILE_SIGNATURES = [
    (rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff", "UTF-32 text", "text", ""),
    (rb"\xff\xfe|\xfe\xff", "UTF-16 text", "text", ""),
    (rb"(?:[\t\n\r -~]\x00){8}", "UTF-16 text", "text", ""),
    (rb"(?:\x00[\t\n\r -~]){8}", "UTF-16 text", "text", ""),
    (rb"PK\x03\x04.{26}[^/]{1,99}/(?:data\.pkl|\.format_v|byteorder)", "a checkpoint of torch", NO_TEXT, ""),
    (rb"PK\x03\x04.*?word/", "a Word file", WORD, "; pip install python-docx"),
    (rb"PK(?:\x03\x04|\x05\x06|\x07\x08)", "a zip archive", FOLDER.format("zipfile"), ""),
    (rb"PAR1", "a parquet file", "parquet", ""),
    (rb"ARROW1|FEA1", "an arrow file", "arrow", ""),
    (rb"\xff\xff\xff\xff", "an arrow stream", "arrow", ""),
    (rb"%PDF-", "a PDF file", PDF, "; pip install pypdf"),
    (rb"\x93NUMPY[^{]*\{'descr': '[<>|=]?[iufb]", "numbers in NPY, as of token ids", NPY_IDS, GPT2),
    (rb"\x93NUMPY", "an NPY file", NPY_TEXTS, ""),
    (rb"\x80[\x02-\x05]", "a pickle", PICKLE, TRUSTED),
    (rb"SQLite format 3\x00", "an SQLite file", SQLITE, "; it takes the first table"),
    (rb"\xfd7zXZ\x00", "packed by xz", "packed", ""),
    (rb"BZh[1-9]1AY&SY", "packed by bzip2", "packed", ""),
    (rb"[\x22-\x28]\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", "packed by zstd", "packed", ""),
    (rb"\x04\x22\x4d\x18", "packed by lz4", "lz4 -dc PATH > OUT", "; it needs lz4"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z e PATH", "; it needs 7-Zip"),
    (rb"Rar!\x1a\x07", "a rar archive", "unrar e PATH", "; it needs unrar"),
    (rb"\x1f\x8b", "packed by gzip twice", UNPACK, ""),
    (rb"\x89PNG|\xff\xd8\xff|GIF8[79]a|RIFF.{4}WEBP|BM.{4}\x00{4}|II\*\x00|MM\x00\*|\s*<svg", "an image", NO_TEXT, ""),
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
        "html",
        "; if it is none of yours, fetch it again",
    ),
    (rb"\s*(?:<\?xml|<mediawiki)", "an XML file", XML, ""),
    (rb"\s*\[\s*\{\s*'", "a Python list", "python", ""),
    (rb"\s*\[\s*\{|\s*\[\s*\n", "a JSON array", "json", ""),
    (rb"\s*\{\s*\n|\s*\{[^\n]*[\[{]\s*\n|\s*\{\"[^\n]*,\s*\n\s*\"", "JSON in several lines", "json", ""),
]  # fmt: skip

_FIELD = rb'"[^"\n]*"\s*:\s*(?:"[^"\n]*"|[\w.+-]+)\s*,\s*'
WRAPPED = re.compile(
    rb'\s*\{\s*(?:%s)*"([\w -]+)"\s*:\s*\[\s*\{\s*"(?!(?:role|from|content|value|type|name)")' % _FIELD
)
# Of a single row, which is bad: (pattern, name, type).
ONE_ROW_SIGNATURES = [
    (rb'\s*\[\s*"', "a JSON array", "json"),
    (rb'\s*\{\s*"[^"]+"\s*:\s*\{\s*"0"\s*:', "a table by columns", "json"),
    (rb'\s*\{\s*"\w*\d"\s*:\s*\{\s*"', "an object of objects", "json"),
]


class FileType(NamedTuple):
    """The type of a file that is no JSONL."""

    name: str
    type: str  # by which prepare_data.py reads it, or ""
    remedy: str  # a command, with PATH for the file, OUT for the rows, FOLDER for what is unpacked


def detect_file_type(head: bytes, is_one_row: bool = False) -> FileType | None:
    """Return what a file is that begins so; None where it may be JSONL.

    Args:
        head: The first HEADER_BYTES.
        is_one_row: The file is one row of JSON, which cannot be used.
    """
    head = head.removeprefix(BOM)
    if (match := WRAPPED.match(head)) and (is_one_row or b"\n" in match[0].strip()):
        return _file_type("an object that holds a list", "json")
    if is_one_row:
        matching = (entry for entry in ONE_ROW_SIGNATURES if re.match(entry[0], head))
        return next((_file_type(name, way) for _, name, way in matching), None)
    for pattern, name, way, note in FILE_SIGNATURES:
        if re.match(pattern, head, re.DOTALL):
            return _file_type(name, way, note)
    if _is_tar(head[:512]):
        return _file_type("a tar archive", FOLDER.format("tarfile"))
    # A row is looked for in all of them: a file whose first line is bad is read, and the line is counted.
    if re.search(rb'(?m)^(?:\xef\xbb\xbf)*\s*\{\s*["}]', head) or not head.strip():
        return None
    return _detect_text(head)


def _detect_text(head: bytes) -> FileType | None:
    """Tell texts apart that hold no JSON object in their beginning."""
    if not is_utf8(head):
        if re.search(rb"[\x00-\x08\x0e-\x1a]", head):
            return _file_type("binary, perhaps token ids in uint16", UINT16_IDS, GPT2)
        return _file_type("text that is not UTF-8", "text")
    text = head.decode(errors="ignore").strip()
    first, _, rest = text.partition("\n")
    if first.startswith("{"):
        return _file_type("Python's repr", "python") if re.match(r"\{\s*'", first) else None
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        if delimiter := find_delimiter(first, rest):
            return _file_type(f"a table of columns ({delimiter!r} between them)", "table")
        return _file_type("plain text", "text", "; with --split_text line or paragraph, if it holds many texts")
    return None  # JSON, but no object: named row by row


def is_utf8(head: bytes) -> bool:
    """Return whether the beginning of a file is UTF-8 text; its last character may be cut."""
    try:
        return "\0" not in codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False


def find_delimiter(first: str, rest: str) -> str:
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


def _file_type(name: str, way: str, note: str = "") -> FileType:
    if way in PREPARED_TYPES:
        return FileType(name, way, f"{PREPARE}{note and f' ({note[2:]})'}")
    return FileType(name, "", _remedy(way, note))


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
    name, remedy = file_type.name, file_type.remedy
    if is_packed and name != "a tar archive":
        name += ", packed by gzip"
        remedy = remedy if file_type.type else _remedy(UNPACK)
    stem = path.name.split(".")[0] or "rows"
    while Path(f"{stem}.jsonl").exists() or Path(stem).exists():
        stem += ".rows"
    names = {"PATH": str(path), "OUT": f"{stem}.jsonl", "FOLDER": stem}
    return f"{name}, not JSONL. " + re.sub("PATH|OUT|FOLDER", lambda match: shlex.quote(names[match[0]]), remedy)
