"""What a text costs is a hand count, whatever the batch and the context."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from making import measure, tiny, write_rows

from dataset import PretrainDataset
from engine.score.likelihood import language, windows

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("batch", [1, 3])
def test_a_model_that_knows_nothing_pays_log2_of_the_vocabulary_a_token(tmp_path, batch, tokenizer):
    model = tiny()
    model.tok_embeddings.weight.data.zero_()
    texts = ["你好，世界", "long " * 200, "😀"]
    path = write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    result, records = measure(model, path, batch=batch)
    tokens = sum(len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts)
    size = sum(len(text.encode()) for text in texts)
    assert sum(record["sums"]["bits_per_byte"][1] for record in records) == size
    found = result["figures"]["bits_per_byte"]
    assert found["value"] == pytest.approx(math.log2(6400) * tokens / size, rel=1e-5) == found["chance"]
    assert found["low"] <= found["value"] <= found["high"] and found["n"] == 3
    assert set(result["by_language"]) == {"zh", "en", "other"}


def test_bits_per_byte_do_not_depend_on_the_batch(tmp_path):
    path = write_rows(tmp_path / "texts.jsonl", [{"text": "猫" * n} for n in (1, 30, 7, 300)])
    values = [
        measure(tiny(), path, batch=batch, folder=tmp_path / str(batch))[0]["figures"]["bits_per_byte"]["value"]
        for batch in (1, 4)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 400), st.integers(1, 64))
def test_windows_predict_every_token_once_and_see_all_that_fits(length, context):
    seen = []
    for ids, first in windows(list(range(length)), context):
        assert len(ids) <= context + 1 and ids == list(range(ids[0], ids[-1] + 1))
        assert length <= context or ids[0] == 0 or len(ids) == context + 1
        seen += ids[first:]
    assert seen == list(range(1, length))


def test_the_curve_by_position_adds_up_and_shows_where_a_model_is_worse(tmp_path, tokenizer):
    model = tiny(max_seq_len=256)
    path = write_rows(tmp_path / "texts.jsonl", [{"text": "海风吹过码头，" * 60}])
    result, (record,) = measure(model, path)
    parts = np.array(list(record["curve"]["bits_per_byte"].values())).sum(0)
    assert parts == pytest.approx(record["sums"]["bits_per_byte"])
    assert list(result["by_position"]["bits_per_byte"]) == ["0", "64", "128", "192"]

    ids = PretrainDataset(tokenizer).encode(["海风吹过码头，" * 60])[0].ids[:-1].astype("int64")
    with torch.no_grad():
        nats = F.cross_entropy(model(torch.from_numpy(ids)[None, :256]).logits[0], torch.from_numpy(ids)[1:257],
                               reduction="none")  # fmt: skip
    first = nats[:64].sum().item() / math.log(2)
    assert record["curve"]["bits_per_byte"]["0"][0] == pytest.approx(first, rel=1e-4)


@pytest.mark.parametrize("text, expected", [
    ("海风吹过 boat。", "zh"), ("A boat 船", "en"), ("Žluťoučký kůň", "en"), ("12 + 3", "other"),
    ("これはテスト", "other"),
])  # fmt: skip
def test_a_text_is_chinese_or_english_by_most_of_its_letters(text, expected):
    assert language(text) == expected
