"""The text that a run continues at every validation."""

import numpy as np
import pytest
from factories import write_rows

from dataset import NO_LOSS, PretrainDataset, SFTDataset
from engine.corpus.token_cache import open_or_build
from engine.generate.sample_text import choose_prompt
from engine.options import SAMPLE


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
        assert 16 <= len(prompt) < 200 and prompt == cache.ids[begin : begin + len(prompt)].tolist()
    assert choose_prompt(cache, np.array([3]), 200) == []


@pytest.mark.parametrize("stage", ["pretrain", "sft_512", "r1_1024"])
def test_prompt_from_sample_leaves_room_in_every_context(stage, tokenizer, tmp_path):
    rows = (SAMPLE / f"{stage}.jsonl").read_bytes().splitlines(keepends=True)[:150]
    (tmp_path / "rows.jsonl").write_bytes(b"".join(rows))
    dataset_class = PretrainDataset if stage == "pretrain" else SFTDataset
    cache = open_or_build([tmp_path / "rows.jsonl"], dataset_class, tokenizer, cache_dir=tmp_path)
    starts = [int(np.argmax(classes != NO_LOSS)) for classes in np.split(cache.classes, cache.offsets[1:-1])]
    for context in range(2, 131):
        lengths = [len(choose_prompt(cache, np.array([document]), context)) for document in range(len(cache))]
        assert max(lengths) < context
        assert [length > 0 for length in lengths] == [start < context for start in starts]
