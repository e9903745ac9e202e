from types import SimpleNamespace

import pytest

from runs.datatrove_pipeline import Units, apply_rules


@pytest.mark.parametrize(
    ("row", "result", "metadata", "text"),
    [
        ({"text": "zero\u200bwidth", "id": 7}, (True, ""), {"text": "zerowidth"}, "zerowidth"),
        (
            {"prompt": "1+1?", "completion": "2"},
            (True, ""),
            {"conversations": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]},
            "1+1?\n2",
        ),
        ({"text": " "}, (False, "empty_row"), {}, "{'text': ' '}"),
        ({"number": 3}, (False, "broken_row"), {}, "{'number': 3}"),
        ({"prompt": "AKIAQ3EGWXMPL5ZT7YRC"}, (False, "broken_row"), {}, "{'prompt': '[API_KEY]'}"),
    ],
)
def test_a_document_is_cleaned_or_dropped_by_a_named_rule(row, result, metadata, text):
    document = SimpleNamespace(text=str(row), metadata=row)
    assert apply_rules(document) == result
    assert (document.metadata, document.text) == (metadata, text)


def test_minhash_reads_chinese_characters_and_words():
    assert Units().word_tokenize("红茶 tea, 2024年") == ["红", "茶", "tea", "2024", "年"]
