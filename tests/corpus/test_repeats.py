"""Of rows that say the same the longest is kept, in any order; rows of a template and held-out rows are told apart."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.corpus.held_out import row_hash
from engine.corpus.repeats import REPRESENTATIVES, HeldOut, are_near, find_repeats, read_content, row_text
from engine.corpus.shingles import BANDS, sign_many

ZH = "春天来了，小河边的柳树发出了嫩绿的新芽，孩子们在草地上放风筝，远处的山上开满了粉红色的桃花，天空蓝得像一块宝石。"
ZH += "爷爷坐在门前的竹椅上，一边喝茶，一边给我们讲他小时候的故事。"
EN = (
    "The old harbor is at the mouth of the river, where fishing boats come in every morning before the sun is up "
    "and sell what they have caught to the people who wait on the stone steps below the market hall."
)
NEAR = {
    "punctuation": ZH.replace("，", "、").replace("。", "！！"),
    "traditional": ZH.translate(
        str.maketrans("来边树发绿风筝远处开满红蓝块宝爷门给们讲时", "來邊樹發綠風箏遠處開滿紅藍塊寶爺門給們講時")
    ),
    "cut": ZH[:-8],
    "joined": ZH + "真美丽啊。",
    "swapped": ZH.replace("春天来了", "来了春天"),
}
OTHER = {
    "a number": (
        "第12次会议于昨天下午在市政府大楼的第一会议室举行，",
        "第13次会议于昨天下午在市政府大楼的第一会议室举行，",
    ),
    "a name": ("亲爱的王小明同学：", "亲爱的李华同学："),
    "a word": ("请根据下面的文章写出一个题目：", "请找出下面文章里的全部关键词："),
}


def repeats_of(texts: list[str], **others):
    exact = np.array([row_hash(text) for text in texts], np.uint64)
    lengths = np.array([len(text) for text in texts])
    return find_repeats(exact, sign_many(texts), lengths, others.get("text_of", texts.__getitem__))


def kept(texts: list[str]) -> set[str]:
    return {text for text, keep in zip(texts, repeats_of(texts).keep, strict=True) if keep}


@pytest.mark.parametrize("copy", NEAR.values(), ids=NEAR)
def test_near_copies_are_dropped_and_the_longest_is_kept(copy):
    assert kept([copy, EN, ZH]) == {EN, max(ZH, copy, key=lambda text: (len(text), -row_hash(text)))}


@pytest.mark.parametrize("first, second", OTHER.values(), ids=OTHER)
def test_rows_of_a_template_are_kept(first, second):
    assert len(kept([first + ZH, second + ZH])) == 2


def test_english_rows_that_differ_in_a_word_are_kept():
    assert len(kept([EN, EN.replace("harbor", "station")])) == 2


@pytest.mark.parametrize(
    "first, second",
    [
        ("《承闻河北诸道节度入朝欢喜口号绝句十二首 十》", "《承闻河北诸道节度入朝欢喜口号绝句十二首 十二》"),
        ("Which number is missing: ? 370 860 1550 2440? " + EN, "Which number is missing: 370 ? 860 2440 1550? " + EN),
    ],
    ids=["one more number in a title", "another order"],
)
def test_rows_with_other_numbers_are_kept(first, second):
    assert len(kept([first, second])) == 2


def test_a_long_row_may_hold_a_variant_of_a_character():
    """Few traditional characters have two simplified ones; not all of them are told apart."""
    text = "".join(f"他说的第{i}件事情，和昨天听说的那些都不一样。" for i in range(20))
    assert len(kept([text + "请坐", text + "请座"])) == 1
    assert len(kept([ZH + "请坐", ZH + "请座"])) == 2


def test_short_rows_are_compared_exactly():
    assert kept(["3 + 4 = 7", "3 + 4 = 7.", "谢谢你！", "谢谢你", "谢谢你"]) == {
        "3 + 4 = 7",
        "3 + 4 = 7.",
        "谢谢你！",
        "谢谢你",
    }


def test_equal_rows_are_told_from_near_ones_in_their_cluster():
    repeats = repeats_of([ZH, EN, ZH, NEAR["cut"], NEAR["cut"], EN])
    assert repeats.keep.tolist() == [True, True, False, False, False, False]
    assert repeats.exact.tolist() == [False, False, True, False, True, True]
    assert [cluster.tolist() for cluster in repeats.clusters()] == [[0, 2, 3, 4], [1, 5]]
    assert [cluster.tolist() for cluster in repeats.clusters(1)] == [[0, 2, 3, 4]]


@settings(max_examples=8, deadline=None)
@given(st.permutations([ZH, EN, ZH, *NEAR.values(), ZH[:-4], EN[:-20], *(first + ZH for first, _ in OTHER.values())]))
def test_kept_rows_do_not_depend_on_the_order(texts):
    assert kept(texts) == kept(sorted(texts))


def test_no_rows_and_rows_without_words_have_no_repeats():
    assert repeats_of([]).keep.tolist() == []
    assert repeats_of(["", "。", "?!"]).keep.all()


def test_a_huge_cluster_is_read_about_once_a_row():
    texts = [f"{ZH}{'好' * (i % 7)}{'！' * i}" for i in range(200)]
    reads = []
    repeats = repeats_of(texts, text_of=lambda row: reads.append(row) or texts[row])
    assert repeats.keep.sum() == 1 and len(reads) <= 200


def test_a_huge_template_is_not_compared_each_with_each(monkeypatch):
    texts = [f"{ZH}编号{i}" for i in range(200)]
    pairs = []
    monkeypatch.setattr("engine.corpus.repeats.are_near", lambda *pair: pairs.append(pair) or are_near(*pair))
    assert repeats_of(texts).keep.all()
    assert len(pairs) <= 200 * 3 * REPRESENTATIVES


def test_copies_within_a_huge_template_find_each_other():
    """All rows share most bands: those that differ in punctuation alone share the last one, too."""
    texts = [f"{ZH}编号{i // 2}{'。' * (i % 2)}" for i in range(120)]
    assert repeats_of(texts).keep.sum() == 60


HELD_OUT = HeldOut([ZH, EN, "谢谢", "thank you", "What is 3 + 4?\nIt is 7, of course."])


@pytest.mark.parametrize(
    "text, reason",
    [
        (f" {ZH}\n", "exact"),
        ("谢谢", "exact"),
        (NEAR["traditional"], "near"),
        ("what is 3+4 -- it is 7, of course", "near"),
        (
            f"昨天老师读了一篇文章。{ZH[:64]}大家都很喜欢，也想写一篇，于是各自回家去写，第二天再读给别人听。",
            "contained",
        ),
        (
            f"I read this today: {EN[20:]} It is by a writer whom few know, and I liked all of it a lot.",
            "contained",
        ),
        (f"{ZH[:20]}别的都和它不一样，说的是另外一件事情。", ""),
        ("谢谢，再见", ""),
        ("What is 3 + 5? It is 8, of course.", ""),
        ("I said thank you and left.", ""),
        ("", ""),
    ],
    ids=range(11),
)
def test_held_out_rows_are_found(text, reason):
    assert HELD_OUT.reason(text) == reason


def test_held_out_rows_are_found_in_many_texts_as_in_each():
    texts = [*NEAR.values(), EN, "", "别的", f"前言 {EN} 后记"]
    assert HELD_OUT.reasons(texts) == [HELD_OUT.reason(text) for text in texts]
    assert HeldOut([]).reasons(texts) == [""] * len(texts)


def test_held_out_rows_of_a_template_are_found():
    """Of 40 rows that say the same but for their ends, each is looked up by all that it says."""
    ends = [f"{i}号题：{chr(0x5000 + i) * 6}" for i in range(40)]
    held_out = HeldOut([ZH + end for end in ends])
    assert held_out.reasons([f"{ZH}{ends[i]}，又如何？" for i in (0, 20, 39)]) == ["near"] * 3
    assert held_out.reason(f"前言：{EN}。{ZH[-8:]}{ends[39]}") == ""


def test_row_text_is_the_turns_without_the_system_message():
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hi "}]
    assert row_text([*turns, {"role": "assistant", "content": "Hello!\n"}]) == "Hi\nHello!"
    assert row_text(" Hi ") == "Hi"


def test_similarity_of_texts_without_shingles_is_none():
    assert not are_near(read_content(""), read_content(""))


def test_rows_that_repeat_none_take_thirty_bytes_more():
    rows = 100_000
    exact, *bands = np.random.default_rng(0).integers(1, 2**63, (BANDS + 1, rows)).astype(np.uint64)
    bands = np.stack(bands, axis=1)
    tracemalloc.start()
    keep = find_repeats(exact, bands, np.ones(rows, np.uint8), str).keep
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert keep.all() and peak < 32 * rows  # with the 165 bytes that are there, fewer than 200
