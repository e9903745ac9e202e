"""The documentation cannot drift: figures and pictures are made again, commands parsed, languages compared."""

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
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in ROOT.glob(f"{folder}/**/*.md"))])
PAIRS = [
    (page, page.with_name(f"{page.stem}_zh.md")) for page in PAGES if page.with_name(f"{page.stem}_zh.md") in PAGES
]
FRONT = [ROOT / "README.md", ROOT / "README_zh.md"]
GENERATED = ["README.md", "README_zh.md", "docs/experiments.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def names(pages):
    return pytest.mark.parametrize("page", pages, ids=lambda page: page.relative_to(ROOT).as_posix())


def prose(page: Path) -> str:
    """A page without its blocks of code and its comments."""
    return re.sub(r"<!--.*?-->", "", FENCE.sub("", page.read_text("utf-8")), flags=re.DOTALL)


# --------------------------------------------------------------------------------------------------- what is made


def test_figures_of_the_front_page_are_those_of_the_demo_and_the_benchmarks(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])
    code = cogapp.Cog().main(["cog", "--check", "--diff", *GENERATED])
    assert code == 0, f"run `cog -r {' '.join(GENERATED)}`:\n{capsys.readouterr().out}"


def test_the_summary_of_measurements_holds_figures_of_the_sections_that_it_names():
    head, *_ = (ROOT / "benchmarks" / "RESULTS.md").read_text("utf-8").partition("## How to read")
    rows = re.findall(r"^\| (.+) \| (.+) \| (.+) \| (\d\d-\d\d \d\d:\d\d.*) \|$", head, re.MULTILINE)
    assert len(rows) > 10 and len(head.splitlines()) <= 30
    for _, ours, against, times in rows:
        day = times[:5]
        wanted = [
            heading
            for heading in results.sections()
            if any(f"{day} {time}" in heading for time in re.findall(r"\d\d:\d\d", times))
        ]
        there = " ".join(line for heading in wanted for line in results.sections()[heading] if line.startswith("|"))
        measured = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", there.replace(",", ""))]
        for number in re.findall(r"\d[\d,]*(?:\.\d+)?", re.sub(r"`[^`]*`", "", f"{ours} {against}")):
            value, digits = float(number.replace(",", "")), len(number.partition(".")[2])
            assert any(value in (round(figure, digits), round(figure / 1024, digits)) for figure in measured), number


def test_the_pictures_are_those_that_the_program_draws(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "figures")
    pictures = importlib.import_module("make").pictures()
    assert len(pictures) >= 10
    for name, content in pictures.items():
        assert (ROOT / "docs" / "figures" / name).read_text("utf-8") == content, f"{name}: python docs/figures/make.py"


@names(FRONT)
def test_the_front_page_is_short_and_has_few_figures(page):
    words = re.sub(r"`[^`]*`|\]\([^)]*\)", "", prose(page))
    figures = re.findall(r"(?<![\w.#-])\d[\d,.]*", words)
    assert len(page.read_text("utf-8").split()) <= 1700 and len(figures) <= 40, figures


def test_the_page_to_download_is_small_and_holds_the_three_stages():
    page = ROOT / "docs" / "play.html"
    text = page.read_text("utf-8")
    assert page.stat().st_size <= 8e6 and all(f'"{stage}"' in text for stage in ("pretrain", "SFT", "distill"))


# ------------------------------------------------------------------------------------------------------- commands


def commands(page: Path) -> list[list[str]]:
    """The programs that a page calls, each with its arguments."""
    text = page.read_text("utf-8")
    blocks = "\n".join(content for language, content in FENCE.findall(text) if language in ("", "bash"))
    lines = [*blocks.replace("\\\n", " ").splitlines(), *re.findall(r"^ {4}(.+)$", text, re.MULTILINE)]
    lines += re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    found = []
    for line in lines:
        if not re.search(r"\b(python|torchrun|make|bash|sbatch) [\w./-]", line):
            continue
        words, part = shlex.split(line, comments=True), []
        for word in [*words, "&&"]:
            if word not in ("&&", "|", ";"):
                part.append(word)
                continue
            while part and re.match(r"\w+=", part[0]):  # variables before a command
                part = part[1:]
            found += [part] if part else []
            part = []
    return found


def parse(module: str, words: list[str]) -> None:
    """Let a program read its command line and do nothing more; AssertionError with its words where it refuses."""

    class Parsed(Exception):
        pass

    real, said = argparse.ArgumentParser.parse_args, io.StringIO()

    def stop(parser, *given):
        real(parser, *given)
        raise Parsed

    program = importlib.import_module(module)
    start = getattr(program, "run_all", program.main)  # of a benchmark whose main() does one contender's work
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", stop),
        mock.patch.object(sys, "argv", [module, *words]),
    ):
        try:
            with contextlib.redirect_stderr(said):
                start()
        except Parsed:
            return
        except SystemExit:
            pass
    raise AssertionError(f"{module} {shlex.join(words)}: {said.getvalue()}")


PROGRAMS_OF_OTHERS = {"pip", "venv", "pytest"}
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def module_of(words: list[str]) -> tuple[str, list[str]] | None:
    """Which module of ours a command runs and with what arguments; None where it runs another program."""
    if words[0] == "-m":
        return None if words[1] in PROGRAMS_OF_OTHERS else (words[1], words[2:])
    scripts = [at for at, word in enumerate(words) if word.endswith((".py", ".sh", ".sbatch"))]
    for at in scripts:
        assert (ROOT / words[at]).is_file(), words[at]
    if not scripts or not words[scripts[-1]].endswith(".py"):
        return None
    return words[scripts[-1]].removesuffix(".py").replace("/", "."), words[scripts[-1] + 1 :]  # torchrun and bash, too


@names(PAGES)
def test_every_command_is_one_that_its_program_reads(page):
    for program, *words in commands(page):
        if program == "make":
            assert set(words) <= TARGETS, f"make {words}"
        elif words and Path(program).name in ("python", "python3", "torchrun", "bash", "sbatch"):
            module, arguments = module_of(words) or ("", [])
            assert not module or importlib.util.find_spec(module), module
            if arguments:  # a bare name is often a mention
                parse(module, arguments)


def test_a_command_with_a_flag_that_is_none_is_noticed():
    parse("pretrain", ["--dim", "8"])
    for module, words in (
        ("pretrain", ["--dims", "8"]),
        ("benchmarks.train", ["--rows", "many"]),
        ("runs.demo", ["x"]),
    ):
        with pytest.raises(AssertionError, match="error: "):
            parse(module, words)


# ----------------------------------------------------------------------------------------------- files and names


def headings(page: Path) -> list[str]:
    return re.findall(r"^(#+ .*)$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE)


def anchor(heading: str) -> str:
    """What GitHub makes of a heading."""
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


TESTS = {path.stem for path in ROOT.glob("tests/**/*.py")} | {
    name for path in ROOT.glob("tests/**/*.py") for name in re.findall(r"def (test_\w+)", path.read_text("utf-8"))
}


# ------------------------------------------------------------------------------------------------- two languages


def blocks(page: Path) -> list[tuple[str, object]]:
    """Each block of code: its language and, without comments, what both languages must have in common."""
    found = []
    for language, content in FENCE.findall(page.read_text("utf-8")):
        bare = re.sub(r"(^|\s)#.*", "", content)
        common = bare.split() if language else re.findall(r"\d+(?:[,.]\d+)*", content)
        found.append((language, common))
    return found


def tables(page: Path) -> list[list[int]]:
    """The number of cells in each line of each table."""
    found, before = [], ""
    for line in prose(page).splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                found.append([])
            found[-1].append(line.replace("\\|", "").count("|") - 1)
        before = line
    return found


def links(page: Path) -> Counter:
    return Counter(
        re.sub(r"_(zh|en)(?=\.)", "", target).replace(".md", "")
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
        if "#" not in target
    )


def figures(page: Path) -> Counter:
    """Numbers outside links and code blocks; "1.6 M" and "160 万" are the same."""
    words = re.sub(r"\]\([^)]*\)", "", prose(page)).replace(",", "")
    found = re.findall(r"(?<![\w.#])(\d+(?:\.\d+)?)(?: (M(?![a-zA-Z])|万))?", words)
    return Counter(round(float(number) * {"M": 1e6, "万": 1e4}.get(unit, 1), 4) for number, unit in found)


def numbers_in_code(page: Path) -> Counter:
    return Counter(number for code in re.findall(r"`([^`\n]+)`", prose(page)) for number in re.findall(r"\d+", code))


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
