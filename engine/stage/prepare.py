"""The verbs of a recipe before it trains: load the parent, open the documents, pack them into rows."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from engine.checkpoint.weights import open_checkpoint
from engine.console import print0
from engine.corpus.held_out import describe_repeated
from engine.corpus.source import files_of, find_other_tokenizer
from engine.corpus.token_cache import Dataset, TokenCache, open_or_build
from engine.flags import Args
from engine.generate.sample_text import choose_prompt
from engine.machine.runtime import Runtime
from engine.options import Data, weights_of
from engine.packing import Batches, PackedRows, Segments, Sources, pack_dense, rows_per_epoch
from engine.packing import pack as pack_rows
from engine.stage.plan import describe_epochs, describe_files, describe_rows, describe_texts
from engine.stage.resume_key import DATA_FILES
from model import SpongeBob, supports_varlen_attention


class Parent(NamedTuple):
    """The weights that a stage starts from."""

    path: str
    weights: list[str]  # their digest, and those of the weights that they descend from
    stage: str  # that made them; "": not known


@dataclass(frozen=True)
class Rows:
    """Packed rows of a stage's files.

    Args:
        cache: The token cache of all documents.
        training: Rows to train on.
        validation: Rows of the held-out documents, except for texts next to conversations.
        texts: Rows of the held-out texts next to conversations.
        prompt: Ids of the beginning of a held-out document, continued in the log.
        num_held_out: Held-out documents.
        held_out: Digest of their content hashes.
        trained_hashes: Returns the content hashes of the documents to train on, (n,) uint64.
        names: Names of the parts that are packed apart: the files with --data_epochs, else one for all of them.
        epochs: How often an epoch reads each part, or all of them.
    """

    cache: TokenCache
    training: PackedRows
    validation: PackedRows
    texts: PackedRows
    prompt: list[int]
    num_held_out: int
    held_out: str
    trained_hashes: Callable[[], np.ndarray]
    names: Sequence[str]
    epochs: Sequence[float]

    def sources(self, loss_weights: Mapping[int, float]) -> Sources:
        """Make the sources of batches whose labels weigh `loss_weights` {label class: loss weight}."""
        files = self.cache.meta["sources"]
        data, data_files = [], []
        for file, times in zip(files, self.cache.times, strict=True):
            data += [{name: file[name] for name in ("content", "documents")}] * times
            data_files += [[file["name"], file["counts"]["rows"]]] * times
        lines = [
            describe_files(files, self.num_held_out, loss_weights),
            describe_repeated(self.cache.row_hashes()),
            describe_rows(self.training, self.validation),
        ]
        if self.cache.is_replay.any():
            lines.append(describe_texts(self.cache, self.training, self.epochs, self.texts))
        if any(self.names):
            lines.append(describe_epochs(self.names, self.training, self.epochs))
        validation = {}
        for prefix, rows in {"val": self.validation, "val_text": self.texts}.items():
            parts = zip(self.names, np.eye(len(self.names)), np.diff(rows.parts), strict=True)
            make = partial(Batches, self.cache, rows, loss_weights)
            validation[prefix] = {name: partial(make, epochs=only_it) for name, only_it, size in parts if size}
        return Sources(
            partial(Batches, self.cache, self.training, loss_weights, epochs=self.epochs),
            validation,
            resume_key={
                "data": data,
                DATA_FILES: data_files,
                "dataset": self.cache.meta["dataset"],
                "encoding": self.cache.meta["encoding"],
                "held_out": {"documents": self.num_held_out, "content": self.held_out},
                "row_len": self.training.row_len,
                "loss_weights": {str(label_class): float(weight) for label_class, weight in loss_weights.items()},
            },
            prompt=self.prompt,
            description="\n".join(filter(None, lines)),
            trained_hashes=self.trained_hashes,
        )


def load_parent(args: Args, tokenizer: Tokenizer) -> tuple[SpongeBob, Parent]:
    """Load the model to start from, with this stage's max_seq_len, and say which weights it has.

    Raises:
        ValueError: It does not fit the flags, or has the place of what this run would write.
    """
    start = args.init_from
    path = Path(start.init_from) if start.init_from else weights_of(args.output.save_dir, start.parent_stage)
    if path.resolve() == args.output.weights.resolve():
        raise ValueError(f"--init_from {path} is what --name {args.output.name} would replace: take another --name")
    model, meta = open_checkpoint(
        path,
        tokenizer,
        args.data.tokenizer_dir,
        max_seq_len=args.data.max_seq_len,
        n_heads=start.n_heads,
        rope_theta=start.rope_theta,
        rope_scaling=args.data.rope_scaling,
        flag="--init_from",
    )
    if meta.get("on_sample") and not args.data.on_sample:
        print0(f"note: {path} was trained on the bundled sample; for a real model run the earlier stages on real data")
    return model, Parent(str(path), [meta["weights"], *meta.get("ancestors", [])], meta.get("stage", ""))


def open_documents(dataset: type[Dataset], tokenizer: Tokenizer, data: Data, rt: Runtime) -> TokenCache:
    """Open the documents of the stage's files as token ids on disk.

    The main process encodes them if they are not there yet, the others wait.

    Args:
        dataset: What a line of the files means (dataset.py).
        tokenizer: Encodes it.
        data: The user's flags.
        rt: Ranks.
    """

    for path in data.paths:
        if warning := find_other_tokenizer(path, tokenizer):
            print0(warning)

    def open_cache() -> TokenCache:
        return open_or_build(
            files_of(data),
            dataset,
            tokenizer,
            cache_dir=data.cache_dir,
            num_workers=data.num_workers,
            strict=data.strict_data,
            allow_dropped=data.allow_dropped,
        )

    return rt.main_process_first(open_cache)


def files_of_cache(documents: TokenCache) -> tuple[list[str], list[int]]:
    """Return the files that --data_epochs packs apart: their names, and the first token of each but the first.

    Raises:
        ValueError: A file is given more than once.
    """
    files = documents.meta["sources"]
    names = [file["name"] for file in files]
    for name, times in zip(names, documents.times, strict=True):
        if times > 1:
            raise ValueError(f"--data_epochs: {name} is given {times} times; give it once, with its number")
    if len(set(names)) < len(names):
        names = [file["path"] for file in files]
    ends = np.cumsum([file["documents"] for file in files])
    return names, documents.offsets[ends[:-1]].tolist()


def pack(documents: TokenCache, fit: Callable[..., Segments], args: Args, rt: Runtime, model: SpongeBob) -> Rows:
    """Split off the held-out documents and pack both parts into rows.

    Args:
        documents: The token cache.
        fit: Makes documents fit a row: split_documents or truncate_conversations (packing.py).
        args: The user's flags.
        rt: Decides with the model whether rows may be joined.
        model: Its max_seq_len bounds --max_seq_len.
    Raises:
        ValueError: --max_seq_len is more than the model's, or --data_epochs leaves no row of a file in an epoch.
    """
    length, seed = args.data.max_seq_len, args.training.seed
    if length > model.config.max_seq_len:  # model.attention would compute such documents wrongly, without an error
        raise ValueError(f"--max_seq_len {length} is more than the {model.config.max_seq_len} of the model")
    training, validation = documents.split(args.data.val_fraction)
    epochs, (names, borders) = [1.0], ([""], [])
    if args.data.data_epochs:
        epochs, (names, borders) = args.data.data_epochs, files_of_cache(documents)
    # A mask over a whole row costs the square of its length.
    can_join = supports_varlen_attention(rt.device, rt.dtype, model.config.head_dim)
    max_join = args.training.batch_size if can_join else 1
    rows = pack_dense(fit(documents, training, length), length, max_join, seed, borders=borders)
    empty = [name for name, count in zip(names, rows_per_epoch(rows, epochs), strict=True) if not count]
    if any(empty):  # without --data_epochs there is no name, and the source refuses to have no row
        raise ValueError(
            f"--data_epochs: an epoch has no packed row of {', '.join(empty)}; raise its number or leave it out"
        )
    is_replay = documents.is_replay[validation]
    held_out, texts = (fit(documents, part, length) for part in (validation[~is_replay], validation[is_replay]))
    return Rows(
        documents,
        rows,
        pack_rows(held_out, rows.row_len, seed, length, borders),
        pack_rows(texts, rows.row_len, seed, length, borders),
        choose_prompt(documents, validation[~is_replay], length),
        len(validation),
        hashlib.blake2b(documents.hashes[validation].tobytes(), digest_size=8).hexdigest(),
        lambda: documents.hashes[documents.split(args.data.val_fraction)[0]],
        names,
        epochs,
    )
