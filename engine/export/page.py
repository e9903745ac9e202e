"""Export trained models as a page that chats: program, tokenizer and weights in one self-contained HTML file.

engine/export/page/ repeats model.py, the tokenizer, dataset.py's template and sampling in plain JavaScript. The
rounded weights (8-bit rows with scales, or float16) are embedded as base64. Tests prove that the page computes what
model.py computes with them.
"""

import base64
import json
import re
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from dataset import DEFAULT_SYSTEM
from engine.checkpoint.weights import full_state_dict, open_checkpoint
from engine.files import atomic_write, check_absent
from engine.generate.fast_decoder import quantize_per_row
from engine.options import ROAD, weights_of
from engine.reasoning import TAGS
from engine.talk.terminal import SUGGESTIONS
from engine.tokenizer import BOS, EOS, UNK, load_tokenizer
from model import SpongeBob, check_parameters_known, rope_frequencies

PROGRAM = Path(__file__).with_name("page")
WEIGHT_DTYPES = ("int8", "float16")
SHAPE_FLAGS = ("max_seq_len", "n_heads", "rope_theta")  # of the command line, passed to open_checkpoint
SHAPE_FIELDS = ("dim", "n_layers", "n_heads", "n_kv_heads", "hidden_dim", "vocab_size", "max_seq_len", "norm_eps")


# ------------------------------------------------------------------------------------------------------- weights


def pack(weights: dict[str, Tensor], weight_dtype: str) -> tuple[bytes, list[list], int]:
    """Serialize a state dict: vectors and scales in fp32 first, then the matrices row by row.

    Returns:
        The bytes; [name, rows, columns] of each matrix and [name, length] of each vector; the number of fp32 values.
    Raises:
        ValueError: A weight is not finite in `weight_dtype`.
    """
    floats, matrices = [], []
    for name, weight in weights.items():
        packed = weight.half() if weight_dtype == "float16" and weight.dim() > 1 else weight
        if not packed.isfinite().all():
            raise ValueError(f"{name}: holds values that {weight_dtype} cannot keep; a page needs finite weights")
        if weight.dim() == 1:
            floats.append(weight)
        elif weight_dtype == "int8":
            qweight, scales = quantize_per_row(weight)
            floats.append(scales.flatten())
            matrices.append(qweight)
        else:
            matrices.append(packed)
    content = b"".join(part.numpy().tobytes() for part in (*floats, *matrices))
    return content, [[name, *weight.shape] for name, weight in weights.items()], sum(map(len, floats))


# ------------------------------------------------------------------------------------------------------ contents


def describe_tokenizer(tokenizer: Tokenizer, source: str | Path) -> dict:
    """Return the data of tokenizer.js; ValueError if this tokenizer needs something that it does not do."""
    content = json.loads(tokenizer.to_str())
    model, pre_tokenizer = content["model"], content["pre_tokenizer"] or {}
    added = {token["content"] for token in content["added_tokens"]}
    requirements = {
        "a BPE model": model["type"] == "BPE" and not model.get("byte_fallback") and not model.get("ignore_merges"),
        "no normalizer": content["normalizer"] is None,
        "GPT-2's split, without a space in front": pre_tokenizer.get("type") == "ByteLevel"
        and pre_tokenizer.get("use_regex", True)
        and not pre_tokenizer.get("add_prefix_space"),
        f"only {UNK} {BOS} {EOS} as added tokens": added == {UNK, BOS, EOS},
        "all 256 bytes": len({symbol for symbol in model["vocab"] if len(symbol) == 1}) >= 256,
    }
    if missing := [name for name, is_met in requirements.items() if not is_met]:
        raise ValueError(f"{source}: a page needs a byte-level tokenizer with {' and '.join(missing)}")
    vocabulary = tokenizer.get_vocab()
    return {
        "tokens": sorted(vocabulary, key=lambda token: vocabulary[token]),
        "merges": [vocabulary[half] for half in chain.from_iterable(model["merges"])],
        "special": {"bos": vocabulary[BOS], "eos": vocabulary[EOS], "unk": vocabulary[UNK]},
        "system": DEFAULT_SYSTEM,
        "tags": TAGS,
    }


def computed_parameters() -> set[str]:
    """Return the names of the weights that model.js reads."""
    source = (PROGRAM / "model.js").read_text(encoding="utf-8")
    in_blocks, outside = re.findall(r'\bw\("(\S+)"\)', source), re.findall(r'this\.w\["(\S+)"\]', source)
    return {*outside, *(f"layers.N.{name}.weight" for name in in_blocks)}


def describe_model(name: str, model: SpongeBob, meta: dict, stage: str, weight_dtype: str) -> tuple[dict, bytes]:
    """Return the data of model.js about one model, and its packed weights.

    Args:
        name: Of the model on the page.
        model: The model.
        meta: Content of its .json.
        stage: "pretrain" continues texts, all others chat.
        weight_dtype: One of WEIGHT_DTYPES.
    Raises:
        ValueError: model.js does not compute one of its parameters, or a weight is not finite in `weight_dtype`.
    """
    config = model.config
    weights = full_state_dict(model)
    del weights["output.weight"]  # tied to the embedding
    check_parameters_known(weights, computed_parameters(), "model.js of the page")
    num_tokens = model.num_known_tokens  # the other rows have no text, and are neither read nor sampled
    weights["tok_embeddings.weight"] = weights["tok_embeddings.weight"][:num_tokens]
    content, tensors, floats = pack(weights, weight_dtype)
    chats = stage != "pretrain"
    data = {
        "name": name,
        "chats": chats,
        "questions": SUGGESTIONS[chats] if meta.get("on_sample") else [],
        "weights": weight_dtype,
        "tensors": tensors,
        "floats": floats,
        "parameters": sum(weight.numel() for weight in weights.values()),
        "shape": {field: getattr(config, field) for field in SHAPE_FIELDS} | {"vocab_size": num_tokens},
        "frequencies": rope_frequencies(config, torch.device("cpu")).tolist(),
    }
    return data, content


def assemble(data: dict, weights: list[bytes]) -> str:
    """Return the page; < is written as its JSON escape, so that nothing in `data` can end a script."""
    source = {path.name: path.read_text(encoding="utf-8") for path in PROGRAM.iterdir()}
    scripts = []
    for index, content in enumerate(weights):
        encoded = base64.b64encode(content).decode()
        scripts.append(f'<script type="text/plain" id="weights{index}">{encoded}</script>')
    parts = {
        "data": json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
        "weights": "\n".join(scripts),
        "worker": "\n".join(source[name] for name in ("tokenizer.js", "model.js", "worker.js")),
        "words": source["words.txt"],
        "connect": "connect-src 'self'; " if data["served"] else "",
        "view": "\n".join(source[name] for name in ("view.js", "server.js", "chat.js")),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], source["page.html"])  # one pass: {{ in a part stays


def locked_page() -> str:
    """Return a served page without its models, for a browser that has not sent the API key: it asks for the key."""
    return assemble({"served": True}, [b""])


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
    weight_dtype: str = "int8",
    stage: str | None = None,
    served: bool = False,
    **shape: Any,
) -> None:
    """Write checkpoints as one page.

    Args:
        checkpoints: {name on the page: .pth}, in the order of the page.
        tokenizer_dir: Folder of their tokenizer.
        target: The .html; its folder is created.
        weight_dtype: One of WEIGHT_DTYPES.
        stage: Of a checkpoint whose .json does not say (default: its name).
        served: Whether the server that sends the page answers (serve.py).
        shape: Passed to open_checkpoint.
    Raises:
        ValueError: `target` exists or does not end in .html, or a checkpoint cannot be a page.
    """
    target = Path(target)
    if target.suffix != ".html":
        raise ValueError(f"{target}: a page must end in .html")
    check_absent(target)
    tokenizer = load_tokenizer(tokenizer_dir)
    data = {"tokenizer": describe_tokenizer(tokenizer, tokenizer_dir), "models": [], "served": served}
    contents = []
    for name, path in checkpoints.items():
        model, meta = open_checkpoint(Path(path), tokenizer, tokenizer_dir, **shape)
        about, content = describe_model(name, model, meta, meta.get("stage") or stage or name, weight_dtype)
        data["models"].append(about)
        contents.append(content)
    page = assemble(data, contents).encode("utf-8", "backslashreplace")
    atomic_write(target, lambda temporary: temporary.write_bytes(page))
