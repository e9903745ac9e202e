"""The documentation cannot drift: numbers and pictures are made again, commands parsed, languages compared."""

import argparse
import contextlib
import importlib.util
import io
import re
import shlex
import sys
from collections import Counter
from pathlib import Path
from unittest import mock

import cogapp
import pytest

from benchmarks import results
from engine.flags import ROOT

FOLDERS = ("benchmarks", "data", "docs", "runs", "spongebob_tokenizer", "tests")
PAGES = sorted(ROOT.glob("*.md"))
for folder in FOLDERS:
    PAGES += sorted(ROOT.glob(f"{folder}/**/*.md"))
PAIRS = [(page.with_name(page.name.replace("_zh", "")), page) for page in PAGES if page.stem.endswith("_zh")]
FRONT = [ROOT / "README.md", ROOT / "README_zh.md"]
GENERATED = ["README.md", "README_zh.md", "docs/data.md", "docs/data_zh.md", "docs/experiments.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def names(pages):
    return pytest.mark.parametrize("page", pages, ids=lambda page: page.relative_to(ROOT).as_posix())


def prose(page: Path) -> str:
    """Return a page without its blocks of code and its comments."""
    return re.sub(r"<!--.*?-->", "", FENCE.sub("", page.read_text("utf-8")), flags=re.DOTALL)


# ----------------------------------------------------------------------------------------------- what is generated


def test_generated_figures_are_those_of_the_demo_and_the_benchmarks(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])
    code = cogapp.Cog().main(["cog", "--check", "--diff", *GENERATED])
    assert code == 0, f"run `cog -r {' '.join(GENERATED)}`:\n{capsys.readouterr().out}"


def test_summary_of_measurements_holds_figures_of_the_sections_it_names():
    head, *_ = (ROOT / "benchmarks" / "RESULTS.md").read_text("utf-8").partition("## How to read")
    rows = re.findall(r"^\| (.+) \| (.+) \| (.+) \| (\d\d-\d\d \d\d:\d\d.*) \|$", head, re.MULTILINE)
    assert len(rows) > 10 and len(head.splitlines()) <= 30
    for _, ours, against, times in rows:
        moments = [f"{times[:5]} {time}" for time in re.findall(r"\d\d:\d\d", times)]
        measured = []
        for heading, lines in results.sections().items():
            if any(moment in heading for moment in moments):
                table = " ".join(line for line in lines if line.startswith("|")).replace(",", "")
                measured += [float(number) for number in re.findall(r"\d+(?:\.\d+)?", table)]
        for number in re.findall(r"\d[\d,]*(?:\.\d+)?", re.sub(r"`[^`]*`", "", f"{ours} {against}")):
            value, digits = float(number.replace(",", "")), len(number.partition(".")[2])
            assert any(value in (round(figure, digits), round(figure / 1024, digits)) for figure in measured), number


def test_committed_pictures_are_those_that_the_program_draws(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "figures")
    pictures = importlib.import_module("make").pictures()
    assert len(pictures) >= 10
    for name, content in pictures.items():
        assert (ROOT / "docs" / "figures" / name).read_text("utf-8") == content, f"{name}: python docs/figures/make.py"


@names(FRONT)
def test_the_front_page_is_short_and_has_few_figures(page):
    words = re.sub(r"`[^`]*`|\]\([^)]*\)", "", prose(page))
    figures = re.findall(r"(?<![\w.#-])\d[\d,.]*", words)
    assert len(page.read_text("utf-8").split()) <= 1800 and len(figures) <= 50, figures


def test_the_page_to_download_is_small_and_holds_the_three_stages():
    page = ROOT / "docs" / "play.html"
    text = page.read_text("utf-8")
    assert page.stat().st_size <= 8e6 and all(f'"{stage}"' in text for stage in ("pretrain", "SFT", "distill"))


# ------------------------------------------------------------------------------------------------------- commands


def commands(page: Path) -> list[list[str]]:
    """Return the programs that a page calls, each with its arguments."""
    text = page.read_text("utf-8")
    blocks = "\n".join(content for language, content in FENCE.findall(text) if language in ("", "bash"))
    lines = [*blocks.replace("\\\n", " ").splitlines(), *re.findall(r"^ {4}(.+)$", text, re.MULTILINE)]
    lines += re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    programs = []
    for line in lines:
        if not re.search(r"\b(python|torchrun|make|bash|sbatch) [\w./-]", line):
            continue
        argv = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word not in ("&&", "|", ";"):
                argv.append(word)
                continue
            while argv and re.match(r"\w+=", argv[0]):  # variables before a command
                argv = argv[1:]
            if argv:
                programs.append(argv)
            argv = []
    return programs


def parse(module: str, argv: list[str]) -> None:
    """Let a program read its command line and do nothing more; AssertionError with its message where it refuses."""

    class Parsed(Exception):
        pass

    real, stderr = argparse.ArgumentParser.parse_args, io.StringIO()

    def stop(parser, *args):
        real(parser, *args)
        raise Parsed

    program = importlib.import_module(module)
    start = getattr(program, "run_all", program.main)  # of a benchmark whose main() does one contender's work
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", stop),
        mock.patch.object(sys, "argv", [module, *argv]),
    ):
        try:
            with contextlib.redirect_stderr(stderr):
                start()
        except Parsed:
            return
        except (SystemExit, ValueError) as error:
            stderr.write(f"error: {error}")
    raise AssertionError(f"{module} {shlex.join(argv)}: {stderr.getvalue()}")


THIRD_PARTY = {"pip", "venv", "pytest"}
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def module_of(argv: list[str]) -> tuple[str, list[str]] | None:
    """Return the module of ours that a command runs and its arguments; None where it runs another program."""
    if argv[0] == "-m":
        return None if argv[1] in THIRD_PARTY else (argv[1], argv[2:])
    scripts = [word for word in argv if word.endswith((".py", ".sh", ".sbatch"))]  # of torchrun and bash, too
    for script in scripts:
        assert (ROOT / script).is_file(), script
    if not scripts or not scripts[-1].endswith(".py"):
        return None
    return scripts[-1].removesuffix(".py").replace("/", "."), argv[argv.index(scripts[-1]) + 1 :]


@names(PAGES)
def test_every_command_is_one_that_its_program_reads(page):
    for program, *argv in commands(page):
        if program == "make":
            assert set(argv) <= TARGETS, f"make {argv}"
        elif argv and Path(program).name in ("python", "python3", "torchrun", "bash", "sbatch"):
            module, arguments = module_of(argv) or ("", [])
            assert not module or importlib.util.find_spec(module), module
            if arguments:  # a bare name is often a mention
                parse(module, arguments)


def test_a_command_with_a_flag_that_is_none_is_noticed():
    parse("pretrain", ["--dim", "8"])
    for module, *argv in (("pretrain", "--dims", "8"), ("benchmarks.train", "--rows", "many"), ("runs.demo", "x")):
        with pytest.raises(AssertionError, match="error: "):
            parse(module, argv)


# ----------------------------------------------------------------------------------------------- files and names


def headings(page: Path) -> list[str]:
    return re.findall(r"^(#+ .*)$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE)


def anchor(heading: str) -> str:
    """Return the anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lstrip("# ").lower()).replace(" ", "-")


@names(PAGES)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text("utf-8")):
        path, _, place = target.partition("#")
        other = page.parent / path if path else page
        assert other.exists(), target
        assert not place or place in map(anchor, headings(other)), target


ROOMS = r"(?:engine|docs|benchmarks|runs|tests|data|spongebob_tokenizer)/[\w./-]*\w"


@names(PAGES)
def test_files_and_tests_that_a_page_names_exist(page):
    text = page.read_text("utf-8")
    for word in re.findall(r"`([^`\s]+)`", prose(page)):
        if re.fullmatch(ROOMS, word) and page.name not in ("CHANGELOG.md", "RESULTS.md"):
            assert (ROOT / word).exists(), word
    missing = set(re.findall(r"\btest_\w+", text)) - TESTS
    assert not missing, missing


TESTS = set()
for path in ROOT.glob("tests/**/*.py"):
    TESTS |= {path.stem, *re.findall(r"def (test_\w+)", path.read_text("utf-8"))}


# ------------------------------------------------------------------------------------------------- two languages


def blocks(page: Path) -> list[tuple[str, object]]:
    """Return of each block of code its language and, without comments, what both languages must have in common."""
    common = []
    for language, content in FENCE.findall(page.read_text("utf-8")):
        numbers = re.findall(r"\d+(?:[,.]\d+)*", content)
        common.append((language, re.sub(r"(^|\s)#.*", "", content).split() if language else numbers))
    return common


def tables(page: Path) -> list[list[int]]:
    """Return the number of cells in each line of each table."""
    lines_of_tables = re.findall(r"(?:^\|.*\n?)+", prose(page), re.MULTILINE)
    return [[line.replace("\\|", "").count("|") - 1 for line in lines.splitlines()] for lines in lines_of_tables]


def links(page: Path) -> Counter:
    targets = re.findall(r"\]\(([^)\s#]+)\)", page.read_text("utf-8"))
    return Counter(re.sub(r"_(zh|en)(?=\.)", "", target).replace(".md", "") for target in targets)


def figures(page: Path) -> Counter:
    """Count the numbers outside links and code blocks; "1.6 M" and "160 万" are the same."""
    text = re.sub(r"\]\([^)]*\)", "", prose(page)).replace(",", "")
    numbers = re.findall(r"(?<![\w.#])(\d+(?:\.\d+)?)(?: (M(?![a-zA-Z])|万))?", text)
    return Counter(round(float(number) * {"M": 1e6, "万": 1e4}.get(unit, 1), 4) for number, unit in numbers)


def numbers_in_code(page: Path) -> Counter:
    return Counter(re.findall(r"\d+", " ".join(re.findall(r"`([^`\n]+)`", prose(page)))))


@pytest.mark.parametrize("english, chinese", PAIRS, ids=[english.name for english, _ in PAIRS])
@pytest.mark.parametrize(
    "part",
    [
        lambda page: [heading.split()[0] for heading in headings(page)],
        blocks,
        tables,
        links,
        figures,
        numbers_in_code,
    ],
    ids=["headings", "blocks of code", "tables", "links", "figures", "numbers in code"],
)
def test_both_languages_have_the_same(part, english, chinese):
    assert part(english) == part(chinese)
