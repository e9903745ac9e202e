"""Import a folder as a .pth and its .json: Hugging Face's LlamaForCausalLM, or Meta's with params.json.

Anything that this model does not compute is refused in one line: it would load, and generate other text.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from Config import LLMConfig
from engine.checkpoint.clean_state_dict import check_buffers, plain_weights
from engine.checkpoint.weights import config_dict, full_state_dict, load_weights, read_tensors, save_weights
from engine.console import warn
from engine.export.hugging_face import from_hf_state_dict
from engine.files import all_or_none, check_absent, first_line, read_json
from engine.tokenizer import fingerprint, load_tokenizer
from model import SpongeBob

# Options of a LlamaConfig with the only value that this model supports, which is also their default.
SUPPORTED = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu", "quantization_config": None}
HF_SIZES = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "vocab_size": "vocab_size",
}
META_SIZES = ("dim", "n_layers", "n_heads")


def import_folder(folder: Path, target: Path, max_seq_len: int | None) -> None:
    """Write the .pth and .json of another program's model.

    Args:
        folder: With config.json and safetensors (Hugging Face), or params.json and consolidated.00.pth (Meta).
        target: The .pth.
        max_seq_len: Context length in tokens (default: the one in the folder).
    Raises:
        ValueError: A file exists, or the folder holds no model that is computed as here.
    """
    readers = {"config.json": _hugging_face, "params.json": _meta}
    read = next((read for name, read in readers.items() if (folder / name).is_file()), None)
    if read is None:
        hint = "neither config.json (Hugging Face) nor params.json (Meta) is there"
        if (folder / "adapter_config.json").is_file():
            hint = "a LoRA adapter, no model; peft's merge_and_unload().save_pretrained() makes one"
        raise ValueError(f"--import_hf {folder}: {hint}")
    if target.suffix != ".pth":
        raise ValueError(f"{target}: name a file that ends in .pth")
    files = target, target.with_suffix(".json")
    check_absent(*files)
    weights, config = read(folder, max_seq_len)
    model = SpongeBob(config)
    load_weights(model, weights, folder)
    meta: dict[str, Any] = {"parent": None, "imported": folder.name, "config": config_dict(config)}
    if (folder / "tokenizer.json").is_file():
        meta["tokenizer"] = fingerprint(load_tokenizer(folder))
        warn(f"{folder}: its tokenizer is {meta['tokenizer']}; if yours differs, pass --tokenizer_dir {folder}")
    with all_or_none(*files):
        save_weights(target, full_state_dict(model), meta)


def _config(file: Path, shape: dict) -> LLMConfig:
    try:
        return LLMConfig(**shape)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: not the shape of a model here ({first_line(error)})") from None


def _json(file: Path, sizes: tuple[str, ...]) -> dict:
    content = read_json(file)
    if missing := [name for name in sizes if not content.get(name)]:
        raise ValueError(f"{file}: says no {', '.join(missing)}")
    return content


# -------------------------------------------------------------------------------------------------- Hugging Face


def _hugging_face(folder: Path, max_seq_len: int | None) -> tuple[dict[str, Tensor], LLMConfig]:
    file = folder / "config.json"
    content = _json(file, ("model_type",))
    if content["model_type"] != "llama":
        raise ValueError(f"{file}: model_type {content['model_type']!r}; only 'llama' is computed as here")
    content = _json(file, tuple(HF_SIZES))
    for name, value in SUPPORTED.items():
        if content.get(name, value) != value:
            raise ValueError(f"{file}: {name} is {str(content[name])[:60]}; this model has only {value}")
    shape = {field: content[name] for name, field in HF_SIZES.items()}
    parameters = content.get("rope_parameters")
    theta = content.get("rope_theta", None if "rope_theta" in (parameters or {}) else 1e4)
    shape |= {
        "n_kv_heads": content.get("num_key_value_heads") or shape["n_heads"],
        "norm_eps": content.get("rms_norm_eps", 1e-6),
        "max_seq_len": max_seq_len or content.get("max_position_embeddings", 2048),
        "rope_theta": theta,
        "rope_scaling": content.get("rope_scaling"),
        "rope_parameters": parameters,
    }
    config = _config(file, shape)
    if content.get("head_dim") not in (None, config.head_dim):
        raise ValueError(
            f"{file}: heads of {content['head_dim']} numbers; here they are {config.dim} / {config.n_heads} wide"
        )
    weights = {name.removeprefix("model."): tensor for name, tensor in _safetensors(folder).items()}
    if not content.get("tie_word_embeddings", False) and not any(name.endswith("lm_head.weight") for name in weights):
        raise ValueError(f"{file}: tie_word_embeddings is false and lm_head.weight is missing")
    weights, _ = plain_weights(weights, folder)
    try:
        return from_hf_state_dict(weights, config), config
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def _safetensors(folder: Path) -> dict[str, Tensor]:
    """Read all tensors of a folder, from one file or from several with an index."""
    index = folder / "model.safetensors.index.json"
    paths = [folder / "model.safetensors"]
    if index.is_file():
        weight_map = _json(index, ("weight_map",))["weight_map"]
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError(f"{index}: weight_map names no files")
        paths = [folder / Path(name).name for name in sorted(set(weight_map.values()))]
    weights = {}
    for path in paths:
        if not path.is_file():
            old = " (pytorch_model.bin is not read: save_pretrained() of today's transformers writes it)"
            raise ValueError(f"{path}: not there{old if (folder / 'pytorch_model.bin').is_file() else ''}")
        try:
            weights |= load_file(path)
        except Exception as error:  # SafetensorError is no ValueError
            raise ValueError(f"{path}: not a readable safetensors file ({first_line(error)})") from None
    return weights


# --------------------------------------------------------------------------------------------------------- Meta


def _meta(folder: Path, max_seq_len: int | None) -> tuple[dict[str, Tensor], LLMConfig]:
    """Read params.json and consolidated.00.pth; the sizes that params.json lacks are read off the tensors."""
    file, path = folder / "params.json", folder / "consolidated.00.pth"
    content = _json(file, META_SIZES)
    if (folder / "consolidated.01.pth").is_file():
        raise ValueError(f"{folder}: weights in several files; only a single consolidated.00.pth is read")
    if content.get("use_scaled_rope"):
        raise ValueError(f"{file}: use_scaled_rope, without its factor; the Hugging Face form of this model says it")
    weights, buffers = plain_weights(read_tensors(path), path)
    sizes = {"vocab_size": "tok_embeddings.weight", "hidden_dim": "layers.0.feed_forward.w1.weight"}
    if missing := [name for name in sizes.values() if name not in weights]:
        raise ValueError(f"{path}: no {' and '.join(missing)} in it")
    if flat := [name for name in sizes.values() if weights[name].dim() != 2]:
        raise ValueError(f"{path}: {flat[0]} is no matrix")
    length = max_seq_len or content.get("max_seq_len")
    if not length:
        raise ValueError(f"{file}: says no max_seq_len; give --max_seq_len, the context that it was trained with")
    shape = {name: content[name] for name in META_SIZES} | {size: len(weights[name]) for size, name in sizes.items()}
    defaults = {"n_kv_heads": shape["n_heads"], "norm_eps": 1e-5, "rope_theta": 1e4}  # of Meta's program
    stated = {name: content[name] for name in defaults if content.get(name)}
    config = _config(file, shape | defaults | stated | {"max_seq_len": length})
    check_buffers(buffers, config, path)
    return weights, config
