"""The encoding of a text is known by its bytes, or it is not known: a wrong guess would be learned."""

import chardet
import pytest

from engine.corpus.encodings import guess_encoding

ZH = "清晨，港务长打开了闸门，第一条船随着潮水驶进港口。\n她每天早上走到灯塔，在本子上记下海的颜色。\n"
HANT = "清晨，港務長打開了閘門，第一條船隨著潮水駛進港口。\n這個地方的人都說，他們沒有見過這樣的海。\n"
JA = "港の門は夜明けに開き、最初の船が入ってきました。\n彼女は毎朝、海の色をノートに書きました。\n"
KO = "항구의 문은 새벽에 열렸고 첫 번째 배가 들어왔다.\n그녀는 매일 아침 바다의 색을 공책에 적었다.\n"
FR = "Le maître du port ouvrit la porte à l’aube.\nElle notait chaque matin la couleur de la mer, près du phare.\n"
TEXTS = {
    "gb18030": ZH,
    "cp950": HANT,
    "cp932": JA,
    "euc_jp": JA,
    "cp949": KO,
    "cp1252": FR,
    "utf-16-le": ZH,
    "utf-16-be": ZH,
}


def guess(sample):
    return guess_encoding(sample, lambda text: chardet.detect(text)["encoding"] or "")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_is_known_also_where_a_character_is_cut(encoding):
    for text in ("Boats come home, é", "一条船回来了。\n"):
        sample = (text * 20).encode(encoding)
        for cut in range(4):
            assert guess(sample[: len(sample) - cut]) == encoding.removesuffix("-sig")


@pytest.mark.parametrize("encoding", TEXTS)
def test_a_text_of_two_lines_is_known_also_far_behind_ascii(encoding):
    sample = TEXTS[encoding].encode(encoding)
    assert guess(sample) == guess(sample[:-1]) == encoding
    if not encoding.startswith("utf-16"):
        assert guess(b"A page of English.\n" * 1000 + sample) == encoding


@pytest.mark.parametrize("encoding", ["gb18030", "cp950", "cp932", "cp949"])
def test_a_few_characters_of_two_bytes_are_not_known(encoding):
    assert guess(TEXTS[encoding][:12].encode(encoding)) == ""


@pytest.mark.parametrize("encoding", ["cp437", "cp850", "mac-roman", "cp1250"])
def test_letters_of_dos_or_a_mac_are_not_taken_for_those_of_windows(encoding):
    text = "Zażółć gęślą jaźń" if encoding == "cp1250" else "Le maitre a ouvert près de l'été; il a rêvé d'être là."
    assert guess(f"{text}\n".encode(encoding) * 5) == ""


def test_a_web_page_names_its_encoding_and_is_not_believed_if_it_cannot_be():
    page = '<html><head><meta http-equiv="Content-Type" content="text/html; charset={}"><title>船</title>'
    assert guess(page.format("gb2312").encode("gb18030")) == "gb18030"
    assert guess(page.format("big5").encode("utf-8")) == "utf-8"
    assert guess(page.format("EUC-JP").encode("gb18030") + b"\xff\n") == ""


def test_utf8_with_broken_bytes_is_damaged_utf8_and_no_other_encoding():
    assert guess(ZH.encode() * 3 + b"\xe7\xac\xff\n" + ZH.encode()) == "utf-8"
