"""Lines of most documents of a source are found in bounded memory, and removed."""

import random

from engine.corpus import boilerplate
from engine.corpus.boilerplate import LineSample
from engine.corpus.rules import clean

FOOTER = "版权所有，转载请注明出处。"


def documents(count):
    return [
        f"# The story of a garden\n\nStory number {i} of a garden.\n| name | size |\n{FOOTER}" for i in range(count)
    ]


def sample(texts):
    lines = LineSample()
    for text in texts:
        lines.add(text)
    return lines


def test_footer_of_most_documents_goes_and_headings_stay():
    texts = documents(12)
    found = sample(texts).boilerplate()
    assert len(found) == 1
    assert clean(texts[0], {"boilerplate"}, found).content == texts[0].removesuffix("\n" + FOOTER)
    assert clean(FOOTER, {"boilerplate"}, found) == (None, "boilerplate", {})
    assert clean(texts[0], {"nfc"}, found).edits == {} and clean(texts[0], {"boilerplate"}).edits == {}
    chat = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": FOOTER}]
    assert clean(chat, {"boilerplate"}, found).content == chat  # a question that all rows ask is theirs


def test_line_of_half_of_the_documents_or_of_nine_is_no_boilerplate():
    assert sample(documents(9)).boilerplate() == frozenset()
    half = [text if i % 2 else f"Story {i}" for i, text in enumerate(documents(40))]
    assert sample(half).boilerplate() == frozenset()
    assert len(sample([*half, "Story\n" + FOOTER]).boilerplate()) == 1


def test_sample_is_bounded_and_the_same_in_any_order_and_of_any_parts(monkeypatch):
    monkeypatch.setattr(boilerplate, "MAX_DOCUMENTS", 20)
    texts = documents(100)
    whole = sample(texts)
    assert len(whole.lines_of) < 40
    random.Random(1).shuffle(texts)
    parts = [sample(texts[:30]), sample(texts[30:60]), sample(texts[60:])]
    parts[2].merge(parts[0])
    parts[2].merge(parts[1])
    assert parts[2].boilerplate() == whole.boilerplate() and parts[2].lines_of == whole.lines_of
    assert len(whole.lines_of) == 20
