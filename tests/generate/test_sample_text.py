"""The text that a run continues at every validation."""

import numpy as np
import pytest
from factories import write_rows

from dataset import SFTDataset
from engine.corpus.token_cache import open_or_build
from engine.generate.sample_text import choose_prompt


@pytest.fixture
def cache(small, tmp_path):
    texts = [("q", "a"), ("q", "b" * 400), ("q", "c" * 400), ("q" * 400, "d")]
    rows = [{"instruction": question, "output": answer} for question, answer in texts]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    return open_or_build([path], SFTDataset, small, cache_dir=tmp_path / "cache")


def test_prompt_to_continue_is_never_longer_than_a_row(cache):
    for order in ([3, 0], [0, 3], [3, 2, 1]):
        prompt = choose_prompt(cache, np.array(order), 200)
        first = next(document for document in order if document != 3)
        begin = cache.offsets[first]
        assert 16 <= len(prompt) <= 200 and prompt == cache.ids[begin : begin + len(prompt)].tolist()
    assert choose_prompt(cache, np.array([3]), 200) == []
