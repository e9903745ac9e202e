"""A page that holds trained models and talks: program, tokenizer and weights in one HTML file that needs nothing else.

engine/export/page/ is model.py, the tokenizer, dataset.py's template and sampling again in plain JavaScript. The
rounded weights (8-bit rows with scales, or float16) are embedded as base64. Tests prove that the page computes what
model.py computes with them.
"""

import base64
import json
import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from dataset import DEFAULT_SYSTEM
from engine.checkpoint.weights import full_state_dict, open_checkpoint
from engine.files import atomic_write
from engine.generate.fast_decoder import quantize_per_row
from engine.options import ROAD, weights_of
from engine.reasoning import TAGS
from engine.talk.terminal import SUGGESTIONS
from engine.tokenizer import BOS, EOS, UNK, load_tokenizer
from model import SpongeBob, check_parameters_known, rope_frequencies

PROGRAM = Path(__file__).with_name("page")
WEIGHT_DTYPES = ("int8", "float16")
SHAPE = ("dim", "n_layers", "n_heads", "n_kv_heads", "hidden_dim", "vocab_size", "max_seq_len", "norm_eps")


# ------------------------------------------------------------------------------------------------------- weights


def pack(weights: dict[str, Tensor], kind: str) -> tuple[bytes, list[list], int]:
    """The bytes of all weights, [name, rows, columns] (a vector: [name, length]) of each, and how many fp32 lead.

    Vectors and scales come first, in fp32; then the matrices row by row.
    """
    numbers, codes = [], []
    for name, weight in weights.items():
        kept = weight.half() if kind == "float16" and weight.dim() > 1 else weight
        if not kept.isfinite().all():
            raise ValueError(f"{name}: holds values that {kind} cannot keep; a page needs finite weights")
        if weight.dim() == 1:
            numbers.append(weight)
        elif kind == "int8":
            matrix, scales = quantize_per_row(weight)
            numbers.append(scales.flatten())
            codes.append(matrix)
        else:
            codes.append(weight.half())
    content = b"".join(part.numpy().tobytes() for part in (*numbers, *codes))
    return content, [[name, *weight.shape] for name, weight in weights.items()], sum(map(len, numbers))


# ------------------------------------------------------------------------------------------------------ contents


def describe_tokenizer(tokenizer: Tokenizer, source: str | Path) -> dict:
    """What tokenizer.js needs. ValueError where the file asks for something that it does not do."""
    content = json.loads(tokenizer.to_str())
    model, before, added = content["model"], content["pre_tokenizer"] or {}, content["added_tokens"]
    expected = {
        "a BPE model": model["type"] == "BPE" and not model.get("byte_fallback") and not model.get("ignore_merges"),
        "no normalizer": content["normalizer"] is None,
        "GPT-2's cutting, without a space in front": before.get("type") == "ByteLevel"
        and before.get("use_regex", True)
        and not before.get("add_prefix_space"),
        f"only {UNK} {BOS} {EOS} as added tokens": {token["content"] for token in added} == {UNK, BOS, EOS},
        "all 256 bytes": len({symbol for symbol in model["vocab"] if len(symbol) == 1}) >= 256,
    }
    if missing := [words for words, found in expected.items() if not found]:
        raise ValueError(f"{source}: a page needs a byte-level tokenizer with {' and '.join(missing)}")
    vocabulary = tokenizer.get_vocab()
    return {
        "tokens": sorted(vocabulary, key=lambda token: vocabulary[token]),
        "merges": [vocabulary[half] for pair in model["merges"] for half in pair],
        "special": {"bos": vocabulary[BOS], "eos": vocabulary[EOS], "unk": vocabulary[UNK]},
        "system": DEFAULT_SYSTEM,
        "tags": TAGS,
    }


def computed_parameters() -> set[str]:
    """Return the names of the weights that model.js reads."""
    source = (PROGRAM / "model.js").read_text(encoding="utf-8")
    in_blocks, outside = re.findall(r'\bw\("(\S+)"\)', source), re.findall(r'this\.w\["(\S+)"\]', source)
    return {*outside, *(f"layers.N.{name}.weight" for name in in_blocks)}


def describe_model(name: str, model: SpongeBob, meta: dict, stage: str, kind: str) -> tuple[dict, bytes]:
    """What the page needs of a model beside the bytes, and the bytes."""
    config = model.config
    weights = full_state_dict(model)
    del weights["output.weight"]  # the embedding
    check_parameters_known(weights, computed_parameters(), "model.js of the page")
    known = model.num_known_tokens  # the other rows have no text, and are neither read nor sampled
    weights["tok_embeddings.weight"] = weights["tok_embeddings.weight"][:known]
    content, tensors, floats = pack(weights, kind)
    chats = stage != "pretrain"
    about = {
        "name": name,
        "chats": chats,
        "questions": SUGGESTIONS[chats] if meta.get("on_sample") else [],
        "weights": kind,
        "tensors": tensors,
        "floats": floats,
        "parameters": sum(weight.numel() for weight in weights.values()),
        "shape": {field: getattr(config, field) for field in SHAPE} | {"vocab_size": known},
        "frequencies": rope_frequencies(config, torch.device("cpu")).tolist(),
    }
    return about, content


def assemble(data: dict, weights: list[bytes]) -> str:
    """The page. Nothing in `data` can end a script: < is written as its JSON escape."""
    source = {path.name: path.read_text(encoding="utf-8") for path in PROGRAM.iterdir()}
    blobs = [
        f'<script type="text/plain" id="weights{index}">{base64.b64encode(content).decode()}</script>'
        for index, content in enumerate(weights)
    ]
    parts = {
        "data": json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
        "weights": "\n".join(blobs),
        "worker": "\n".join(source[name] for name in ("tokenizer.js", "model.js", "worker.js")),
        "words": source["words.txt"],
        "connect": "connect-src 'self'; " if data["served"] else "",
        "view": source["view.js"] + source["server.js"],
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], source["page.html"])  # one pass: parts stay as are


def find_stages(save_dir: str, names: list[str]) -> dict[str, Path]:
    """Return {stage: .pth} of the stages that are named, or of all that `save_dir` has a checkpoint of."""
    if names:
        return {name: weights_of(save_dir, name) for name in names}
    paths = {name: weights_of(save_dir, name) for name in ROAD}
    paths = {name: path for name, path in paths.items() if path.is_file()}
    if not paths:
        raise ValueError(f"{save_dir}: no stage's checkpoint there; train one with: {ROAD['pretrain']}")
    return paths


def write_page(
    checkpoints: dict[str, Path],
    tokenizer_dir: str | Path,
    target: str | Path,
    weights: str = "int8",
    stage: str | None = None,
    served: bool = False,
    **shape: Any,
) -> None:
    """Write `checkpoints` {name on the page: .pth}, in this order, as one page.

    `served`: the server that sends the page answers (serve.py).
    A checkpoint without .json is of `stage`, else of the stage its name says; `shape` goes to `open_checkpoint`.
    ValueError: `target` does not end in .html, so that a slip of the keyboard replaces no weights, or is there.
    """
    target = Path(target)
    if target.suffix != ".html":
        raise ValueError(f"{target}: a page must end in .html")
    if target.exists():
        raise ValueError(f"{target}: there already; name another, nothing is overwritten")
    if weights not in WEIGHT_DTYPES:
        raise ValueError(f"weights={weights!r} must be one of {', '.join(WEIGHT_DTYPES)}")
    tokenizer = load_tokenizer(tokenizer_dir)
    data, contents = {"tokenizer": describe_tokenizer(tokenizer, tokenizer_dir), "models": [], "served": served}, []
    for name, path in checkpoints.items():
        model, meta = open_checkpoint(Path(path), tokenizer, tokenizer_dir, **shape)
        about, content = describe_model(name, model, meta, meta.get("stage") or stage or name, weights)
        data["models"].append(about)
        contents.append(content)
    content = assemble(data, contents)
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(target, lambda temporary: temporary.write_bytes(content.encode("utf-8", "backslashreplace")))
