"""The loss of texts equals a direct computation, by batch, window, position and language."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factories import TOKENIZER, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring import evaluate_file
from tiny_model import tiny

from dataset import PretrainDataset
from engine.score.loglikelihood import detect_language, rolling_windows, token_losses

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("batch", [1, 3])
def test_uniform_model_costs_log2_of_the_vocabulary_per_token(tmp_path, batch):
    model = tiny()
    model.tok_embeddings.weight.data.zero_()
    texts = ["你好，世界", "long " * 200, "😀"]
    path = write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    result, records = evaluate_file(model, path, batch=batch)
    num_tokens = sum(len(TOKENIZER.encode(text, add_special_tokens=False).ids) for text in texts)
    size = sum(len(text.encode()) for text in texts)
    assert sum(record["sums"]["bits_per_byte"][1] for record in records) == size
    metric = result["metrics"]["bits_per_byte"]
    assert metric["value"] == pytest.approx(math.log2(6400) * num_tokens / size, rel=1e-5) == metric["chance_level"]
    assert metric["low"] <= metric["value"] <= metric["high"] and metric["n"] == 3
    assert set(result["by_language"]) == {"zh", "en", "other"}


def test_bits_per_byte_do_not_depend_on_the_batch(tmp_path):
    path = write_rows(tmp_path / "texts.jsonl", [{"text": "猫" * n} for n in (1, 30, 7, 300)])
    results = [evaluate_file(tiny(), path, batch=batch, folder=tmp_path / str(batch))[0] for batch in (1, 4)]
    values = [result["metrics"]["bits_per_byte"]["value"] for result in results]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 400), st.integers(1, 64))
def test_rolling_windows_predict_each_token_once_with_full_context(length, context):
    predicted = []
    for ids, first in rolling_windows(list(range(length)), context):
        assert len(ids) <= context + 1 and ids == list(range(ids[0], ids[-1] + 1))
        assert length <= context or ids[0] == 0 or len(ids) == context + 1
        predicted += ids[first:]
    assert predicted == list(range(1, length))


def test_curve_adds_up_and_names_positions_by_the_fewest_tokens_seen(tmp_path):
    model, text = tiny(max_seq_len=256), "海风吹过码头，" * 60
    result, (record,) = evaluate_file(model, write_rows(tmp_path / "texts.jsonl", [{"text": text}]))
    total = np.array(list(record["curve"]["bits_per_byte"].values())).sum(0)
    assert total == pytest.approx(record["sums"]["bits_per_byte"][:2])
    assert list(result["by_position"]["bits_per_byte"]) == ["1", "65", "129", "193"]

    ids = torch.from_numpy(PretrainDataset(TOKENIZER).encode([text])[0].ids[:-1].astype("int64"))
    with torch.no_grad():
        losses = F.cross_entropy(model(ids[None, :256]).logits[0], ids[1:257], reduction="none")
    bits = losses[:64].sum().item() / math.log(2)
    assert record["curve"]["bits_per_byte"]["1"][0] == pytest.approx(bits, rel=1e-4)


@pytest.mark.parametrize(
    "text, language",
    [
        ("海风吹过 boat。", "zh"),
        ("A boat 船", "en"),
        ("Žluťoučký kůň", "en"),
        ("12 + 3", "other"),
        ("これはテスト", "other"),
    ],
)
def test_detect_language_goes_by_most_words(text, language):
    assert detect_language(text) == language


def test_token_losses_refuse_a_loss_that_overflows():
    model = tiny()
    model.norm.weight.data.fill_(3e38)
    with pytest.raises(FloatingPointError, match="no finite number.* --dtype float32"):
        token_losses(model, [[1, 2, 3]], 1)
