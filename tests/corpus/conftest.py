"""Token caches of a tokenizer that is read in a millisecond."""

import json
from pathlib import Path

import pytest

from dataset import PretrainDataset
from engine.corpus.token_cache import open_or_build


@pytest.fixture
def build(small, tmp_path):
    """build(file or rows, ...) -> the token cache of these files, or of files that hold these rows (dicts or lines)."""

    def build(*sources, dataset_class=PretrainDataset, tokenizer=small, cache_dir="cache", **options):
        paths = []
        for number, source in enumerate(sources):
            path = source if isinstance(source, (str, Path)) else tmp_path / f"{number}.jsonl"
            if path is not source:
                lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in source]
                path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
            paths.append(path)
        return open_or_build(paths, dataset_class, tokenizer, cache_dir=tmp_path / cache_dir, **options)

    return build


@pytest.fixture
def texts(small):
    """texts(cache) -> the texts of its documents."""

    def texts(cache):
        bounds = zip(cache.offsets[:-1], cache.offsets[1:], strict=True)
        return [small.decode(cache.ids[begin:end].tolist(), skip_special_tokens=True) for begin, end in bounds]

    return texts
