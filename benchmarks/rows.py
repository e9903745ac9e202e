"""The rows all contenders train on: read from one token cache, so that they are the same, the held-out ones too."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from torch import Tensor

from Config import LLMConfig
from dataset import PretrainDataset, SFTDataset
from engine.checkpoint.weights import config_dict, save_weights
from engine.corpus.jsonl import RowCounts, parse_line, read_lines, source_files
from engine.corpus.token_cache import ARRAYS, TokenCache, open_cache, open_or_build
from engine.tokenizer import fingerprint

DATASETS = {"pretrain": PretrainDataset, "SFT": SFTDataset, "distill": SFTDataset}  # by stage


def stage_of(path: Path) -> str:
    """Return "pretrain" or "SFT", by the first row of a JSONL file or by a token cache."""
    if (path / "meta.json").is_file():
        dataset = json.loads((path / "meta.json").read_text(encoding="utf-8"))["dataset"]
        return next(stage for stage, dataset_class in DATASETS.items() if dataset_class.__name__ == dataset)
    for _, line in read_lines(source_files([path])[0]):
        return "SFT" if SFTDataset.holds(parse_line(line)) else "pretrain"
    raise ValueError(f"{path}: no rows")


def open_rows(path: Path, tokenizer: Tokenizer, cache_dir: Path, num_workers: int) -> TokenCache:
    """The token cache of a JSONL file, or a finished cache folder."""
    dataset = DATASETS[stage_of(path)]
    return open_or_build([path], dataset, tokenizer, cache_dir=cache_dir, num_workers=num_workers)


def reopen(job: dict, tokenizer: Tokenizer) -> tuple[TokenCache, np.ndarray, np.ndarray]:
    """In a contender's process: the cache, the numbers of its training documents and of the held-out ones."""
    cache = open_cache(Path(job["cache"]), DATASETS[job["stage"]], tokenizer)
    return cache, *cache.split(job["val_fraction"])


def spread_by_length(cache: TokenCache, documents: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` of the documents, drawn evenly over all lengths and shuffled, so that a few represent the file."""
    if count >= len(documents):
        return documents
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(documents)  # equal lengths at random
    by_length = shuffled[np.argsort(np.diff(cache.offsets)[shuffled], kind="stable")]
    places = (np.arange(count) + generator.random(count)) * len(documents) / count
    return generator.permutation(by_length[places.astype(np.int64)])


def write_part(cache: TokenCache, documents: np.ndarray, folder: Path) -> Path:
    """A token cache of some documents only."""
    folder.mkdir(parents=True)
    segments = [slice(cache.offsets[document], cache.offsets[document + 1]) for document in documents]
    lengths = np.diff(cache.offsets)[documents]
    arrays = {
        "ids": np.concatenate([cache.ids[piece] for piece in segments]),
        "classes": np.concatenate([cache.classes[piece] for piece in segments]),
        "offsets": np.concatenate([[0], lengths]).cumsum(),
        "hashes": cache.hashes[documents],
        "row_starts": np.ones(len(documents)),
    }
    for name, dtype in ARRAYS.items():
        arrays[name].astype(dtype).tofile(folder / f"{name}.bin")
    counts = asdict(RowCounts(rows=len(documents)))
    source = {"name": cache.folder.name, "path": str(folder), "content": "a part", "documents": len(documents)}
    source |= {"counts": counts}
    meta = cache.meta | {"sources": [source], "tokens": int(lengths.sum()), "rows": len(documents)}
    (folder / "meta.json").write_text(json.dumps(meta, ensure_ascii=False), encoding="utf-8")
    return folder


def texts(cache: TokenCache, documents: np.ndarray, tokenizer: Tokenizer) -> list[str]:
    """The documents as text with their special tokens, for programs that tokenize while they train."""
    ids = [cache.ids[cache.offsets[document] : cache.offsets[document + 1]].tolist() for document in documents]
    return tokenizer.decode_batch(ids, skip_special_tokens=False)


def leave(path: Path, weights: dict[str, Tensor], config: LLMConfig, tokenizer: Tokenizer) -> None:
    """A peer's weights, under our names, as a checkpoint that eval_model.py reads."""
    meta = {"config": config_dict(config), "tokenizer": fingerprint(tokenizer)}
    save_weights(path, {name: weight.cpu().float() for name, weight in weights.items()}, meta)
