"""Export to llama.cpp and Ollama: one .gguf file with tokenizer and chat template, and a Modelfile for Ollama.

llama.cpp's `llama` rotates interleaved pairs, as Meta's weights do, so no row is permuted. The `gguf` package writes
the file, because llama.cpp's own converter refuses every tokenizer that it does not know.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from Config import LLMConfig
from dataset import CHAT_TEMPLATE, DEFAULT_SYSTEM
from engine.checkpoint.weights import full_state_dict
from engine.export.hugging_face import check_float16_range
from engine.export.names import NAMES, TO_GGUF, translate
from engine.files import all_or_none, atomic_write, check_absent
from engine.tokenizer import BOS, EOS, UNK, load_tokenizer
from model import SpongeBob, check_parameters_known, rope_frequencies

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}  # --dtype: gguf's name
FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0"}
Q8_BLOCK_SIZE = 32  # values that share a scale in Q8_0
LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# Ollama itself adds <s> in front of a prompt, so the first turn has none.
OLLAMA_CHAT = """{{ $begun := false }}{{ range .Messages }}{{ if or (ne .Role "system") .Content }}\
{{ if $begun }}<s>{{ end }}{{ $begun = true }}{{ .Role }}
{{ .Content }}</s>
{{ end }}{{ end }}<s>assistant
"""


def pre_tokenizer_name(tokenizer: Tokenizer) -> str:
    """Return llama.cpp's name of how this tokenizer splits text into words.

    ValueError: it has no name for this split.
    """
    content = json.loads(tokenizer.to_str())
    model, pre_tokenizer = content["model"], content["pre_tokenizer"]
    parts = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    kinds = [part["type"] for part in parts]
    plain = not any(part.get("add_prefix_space") for part in parts) and content["normalizer"] is None
    if plain and kinds == ["ByteLevel"] and parts[0]["use_regex"] and not model.get("ignore_merges"):
        return "gpt-2"
    llama_3 = {"type": "Split", "pattern": {"Regex": LLAMA_3_SPLIT}, "behavior": "Isolated", "invert": False}
    is_llama_3 = kinds == ["Split", "ByteLevel"] and parts[0] == llama_3 and not parts[1]["use_regex"]
    if plain and is_llama_3 and model.get("ignore_merges"):
        return "llama-bpe"
    raise ValueError(
        f"--format gguf: llama.cpp has no name for this tokenizer's split ({', '.join(kinds)}), only for GPT-2's, "
        "which train_tokenizer.py makes, and for LLaMA-3's; --format hf carries any"
    )


def convert(name: str, weight: Tensor, gguf_type: Any) -> np.ndarray:
    """Return a float32 weight, (rows, columns) or (length,), as `gguf_type`; llama.cpp wants vectors in float32."""
    import gguf

    if weight.dim() == 1:
        return weight.numpy()
    if gguf_type.name == "Q8_0" and weight.shape[1] % Q8_BLOCK_SIZE:
        raise ValueError(
            f"--dtype q8_0: rows of {name} have {weight.shape[1]} values, not a multiple of {Q8_BLOCK_SIZE}"
        )
    if gguf_type.name == "F16":
        check_float16_range(name, weight)
    return gguf.quants.quantize(weight.numpy(), gguf_type)


def add_shape(writer: Any, config: LLMConfig) -> None:
    """Add what llama.cpp reads of the model's config."""
    shape = {
        "context_length": config.max_seq_len,
        "embedding_length": config.dim,
        "block_count": config.n_layers,
        "feed_forward_length": config.hidden_dim,
        "head_count": config.n_heads,
        "head_count_kv": config.n_kv_heads,
        "layer_norm_rms_eps": config.norm_eps,
        "rope_dimension_count": config.head_dim,
        "rope_freq_base": config.rope_theta,
        "vocab_size": config.vocab_size,
    }
    for name, value in shape.items():
        getattr(writer, f"add_{name}")(value)


def add_tokenizer(writer: Any, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Add tokens, merges, special tokens and the chat template.

    Rows of the model without a token get names that no text contains.
    """
    import gguf

    tokens = [tokenizer.id_to_token(index) or f"[unused {index}]" for index in range(vocab_size)]
    num_known = tokenizer.get_vocab_size()
    types = [gguf.TokenType.NORMAL] * num_known + [gguf.TokenType.UNUSED] * (vocab_size - num_known)
    for index, token in tokenizer.get_added_tokens_decoder().items():
        types[index] = gguf.TokenType.CONTROL if token.special else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer_name(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    special = {"bos": BOS, "eos": EOS, "eot": EOS, "unk": UNK, "pad": UNK}  # a turn ends like a document
    for name, token in special.items():
        getattr(writer, f"add_{name}_token_id")(tokenizer.token_to_id(token))
    writer.add_add_bos_token(True)  # as in training
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    # {% generation %} is for training, and not every program knows it.
    writer.add_chat_template(re.sub(r"{% (?:end)?generation %}", "", CHAT_TEMPLATE))


def rope_divisors(config: LLMConfig) -> Tensor:
    """Return (D/2,) float32, the divisors of the frequencies: llama.cpp's form of Llama 3.1's RoPE scaling."""
    cpu = torch.device("cpu")
    plain = LLMConfig(dim=config.head_dim, n_heads=1, n_kv_heads=1, rope_theta=config.rope_theta)
    return rope_frequencies(plain, cpu) / rope_frequencies(config, cpu)


def modelfile(weights: str, config: LLMConfig, chats: bool) -> str:
    """Return the text that `ollama create NAME -f FILE` reads; `weights` is the .gguf, relative to FILE."""
    template = OLLAMA_CHAT if chats else "{{ .Prompt }}"
    system = f'SYSTEM """{DEFAULT_SYSTEM}"""\n' if chats else ""
    limits = f'PARAMETER stop "{EOS}"\nPARAMETER num_ctx {config.max_seq_len}\n'
    return f'FROM ./{weights}\nTEMPLATE """{template}"""\n{system}{limits}'


def to_gguf(model: SpongeBob, tokenizer_dir: str | Path, target: str | Path, dtype: str, meta: dict) -> None:
    """Write a .gguf and its Modelfile.

    Args:
        model: The model to export.
        tokenizer_dir: Folder of its tokenizer.
        target: The .gguf; the Modelfile gets its stem.
        dtype: One of DTYPES, for matrices.
        meta: Content of the .json; only "stage" is read, as a pretrained model continues texts and does not chat.
    Raises:
        ValueError: The gguf package is missing, a file exists, or llama.cpp would compute something else.
    """
    try:
        import gguf
    except ImportError:
        raise ValueError("--format gguf needs the gguf package: pip install 'gguf>=0.19'") from None
    target, tokenizer = Path(target), load_tokenizer(tokenizer_dir)
    if target.suffix != ".gguf":
        raise ValueError(f"{target}: name a file that ends in .gguf, which other programs expect")
    modelfile_path = target.with_suffix(".Modelfile")
    check_absent(target, modelfile_path)

    config = model.config
    gguf_type = gguf.GGMLQuantizationType[DTYPES[dtype]]
    writer = gguf.GGUFWriter(None, "llama")
    writer.add_name(target.stem)
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[gguf_type.name]])
    add_shape(writer, config)
    add_tokenizer(writer, tokenizer, config.vocab_size)
    if gguf_type.name == "Q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if config.rope_parameters["rope_type"] != "default":
        writer.add_tensor("rope_freqs.weight", rope_divisors(config).numpy())
    weights = full_state_dict(model)
    check_parameters_known(weights, NAMES, "--format gguf")
    for name, weight in weights.items():
        if name != "output.weight":  # tied: llama.cpp takes the embedding where it is absent
            raw_dtype = None if weight.dim() == 1 else gguf_type
            writer.add_tensor(translate(name, TO_GGUF), convert(name, weight, gguf_type), raw_dtype=raw_dtype)

    def write(path: Path) -> None:
        try:
            writer.write_header_to_file(path)
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()

    text = modelfile(target.name, config, meta.get("stage") != "pretrain")
    with all_or_none(target, modelfile_path):
        atomic_write(target, write)
        atomic_write(modelfile_path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
