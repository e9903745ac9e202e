"""The documentation cannot drift: pictures are drawn again, both languages have one shape, links lead somewhere."""

import re
import subprocess
import sys

import pytest

from engine.flags import ROOT

PAIRS = [(path, path.with_name(f"{path.stem}_zh.md")) for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))
         if not path.stem.endswith("_zh")]  # fmt: skip


def test_the_pictures_are_those_that_the_program_draws():
    program = ("import sys; sys.path[:0] = ['docs/figures', '.']; import make, pathlib; "
               "print([n for n, c in make.pictures().items() "
               "if pathlib.Path('docs/figures', n).read_text('utf-8') != c])")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("english, chinese", PAIRS, ids=lambda path: path.name)
def test_both_languages_have_the_same_headings_and_tables(english, chinese):
    texts = [path.read_text("utf-8") for path in (english, chinese)]
    outside = [re.sub(r"```.*?```", "", text, flags=re.DOTALL) for text in texts]
    levels = [re.findall(r"^#+(?= )", text, re.MULTILINE) for text in outside]
    tables = [len(re.findall(r"^\|[-|: ]+\|$", text, re.MULTILINE)) for text in outside]
    assert levels[0] == levels[1] and tables[0] == tables[1]


@pytest.mark.parametrize("path", [path for pair in PAIRS for path in pair], ids=lambda path: path.name)
def test_links_lead_to_files(path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text("utf-8")):
        assert (path.parent / target).exists(), target
