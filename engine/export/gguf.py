"""Weights for llama.cpp and Ollama: one .gguf file with tokenizer and chat template, and Ollama's Modelfile beside it.

llama.cpp's `llama` turns the pairs of a head that lie side by side, as Meta's weights do: no row changes its place.
The file is written by the `gguf` package; llama.cpp's own converter refuses every tokenizer that it has not met.
"""

import json
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
from engine.files import atomic_write
from engine.tokenizer import BOS, EOS, UNK, load_tokenizer
from model import SpongeBob, check_parameters_known, rope_frequencies

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}  # ours: gguf's
FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0"}
Q8_BLOCK_SIZE = 32  # numbers that share a scale in Q8_0
LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# Ollama puts <s> in front of a prompt itself, so that the first turn comes without one.
OLLAMA_CHAT = """{{ $begun := false }}{{ range .Messages }}{{ if or (ne .Role "system") .Content }}\
{{ if $begun }}<s>{{ end }}{{ $begun = true }}{{ .Role }}
{{ .Content }}</s>
{{ end }}{{ end }}<s>assistant
"""


def pre_tokenizer_name(tokenizer: Tokenizer) -> str:
    """What llama.cpp calls this tokenizer's way to cut a text into words. ValueError: it knows none like it."""
    content = json.loads(tokenizer.to_str())
    model, cut = content["model"], content["pre_tokenizer"]
    parts = cut.get("pretokenizers", [cut])
    kinds = [part["type"] for part in parts]
    plain = not any(part.get("add_prefix_space") for part in parts) and content["normalizer"] is None
    if plain and kinds == ["ByteLevel"] and parts[0]["use_regex"] and not model.get("ignore_merges"):
        return "gpt-2"
    if plain and kinds == ["Split", "ByteLevel"] and not parts[1]["use_regex"] and model.get("ignore_merges"):
        split = parts[0]
        if (split["pattern"].get("Regex"), split["behavior"], split["invert"]) == (LLAMA_3_SPLIT, "Isolated", False):
            return "llama-bpe"
    raise ValueError(
        f"--format gguf: llama.cpp has no name for this tokenizer's split ({', '.join(kinds)}), only for GPT-2's, "
        "which train_tokenizer.py makes, and for LLaMA-3's; --format hf carries any"
    )


def tensor_of(name: str, weight: Tensor, kind: Any) -> np.ndarray:
    """A weight in the dtype `kind` of gguf; norms, which are vectors, stay in float32 as llama.cpp wants them."""
    import gguf

    if weight.dim() == 1:
        return weight.numpy()
    if kind.name == "Q8_0" and weight.shape[1] % Q8_BLOCK_SIZE:
        raise ValueError(
            f"--dtype q8_0: rows of {name} have {weight.shape[1]} numbers, no multiple of {Q8_BLOCK_SIZE} (one scale)"
        )
    if kind.name == "F16":
        check_float16_range(name, weight)
    return gguf.quants.quantize(weight.numpy(), kind)


def add_shape(writer: Any, config: LLMConfig) -> None:
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.hidden_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)


def add_tokenizer(writer: Any, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Tokens and merges, which of them end an answer, and the chat template.

    A model with more rows than the tokenizer has tokens gets names for them that no text spells.
    """
    import gguf

    content, added = json.loads(tokenizer.to_str()), tokenizer.get_added_tokens_decoder()
    tokens, kinds = [], []
    for index in range(vocab_size):
        token = tokenizer.id_to_token(index)
        kind = gguf.TokenType.NORMAL if token is not None else gguf.TokenType.UNUSED
        if index in added:
            kind = gguf.TokenType.CONTROL if added[index].special else gguf.TokenType.USER_DEFINED
        tokens.append(f"[unused {index}]" if token is None else token)
        kinds.append(kind)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer_name(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = content["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    ids = {name: tokenizer.token_to_id(name) for name in (UNK, BOS, EOS)}
    writer.add_bos_token_id(ids[BOS])
    writer.add_eos_token_id(ids[EOS])
    writer.add_eot_token_id(ids[EOS])  # a turn ends with what a text ends with
    writer.add_unk_token_id(ids[UNK])
    writer.add_pad_token_id(ids[UNK])
    writer.add_add_bos_token(True)  # as every text began in training
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(without_loss_marks(CHAT_TEMPLATE))


def without_loss_marks(template: str) -> str:
    """A chat template without {% generation %}, which is for training and which not every program knows."""
    return template.replace("{% generation %}", "").replace("{% endgeneration %}", "")


def rope_divisors(config: LLMConfig) -> Tensor:
    """(D/2,) float32: by what a scaled model divides each frequency. llama.cpp keeps Llama 3.1's scaling as these."""
    cpu = torch.device("cpu")
    plain = LLMConfig(dim=config.head_dim, n_heads=1, n_kv_heads=1, rope_theta=config.rope_theta)
    return rope_frequencies(plain, cpu) / rope_frequencies(config, cpu)


def modelfile(weights: str, config: LLMConfig, chats: bool) -> str:
    """What `ollama create NAME -f FILE` reads; relative to it, `weights` is the .gguf."""
    template = OLLAMA_CHAT if chats else "{{ .Prompt }}"
    system = f'SYSTEM """{DEFAULT_SYSTEM}"""\n' if chats else ""
    limits = f'PARAMETER stop "{EOS}"\nPARAMETER num_ctx {config.max_seq_len}\n'
    return f'FROM ./{weights}\nTEMPLATE """{template}"""\n{system}{limits}'


def to_gguf(model: SpongeBob, tokenizer_dir: str | Path, target: str | Path, dtype: str, meta: dict) -> None:
    """Write `target` (.gguf) and, beside it, <its stem>.Modelfile. ValueError: one is there, or cannot say the same.

    Only the stage is read of `meta`, the .json: a pretrained model continues texts and does not chat.
    """
    try:
        import gguf
    except ImportError:
        raise ValueError("--format gguf needs the gguf package: pip install 'gguf>=0.19'") from None
    target, config, tokenizer = Path(target), model.config, load_tokenizer(tokenizer_dir)
    if target.suffix != ".gguf":
        raise ValueError(f"{target}: name a file that ends in .gguf, which is how programs know one")
    beside = target.with_suffix(".Modelfile")
    for path in (target, beside):
        if path.exists():
            raise ValueError(f"{path}: there already; name another, nothing is overwritten")

    kind = gguf.GGMLQuantizationType[DTYPES[dtype]]
    writer = gguf.GGUFWriter(None, "llama")
    writer.add_name(target.stem)
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[kind.name]])
    add_shape(writer, config)
    add_tokenizer(writer, tokenizer, config.vocab_size)
    if kind.name == "Q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if config.rope_parameters["rope_type"] != "default":
        writer.add_tensor("rope_freqs.weight", rope_divisors(config).numpy())
    weights = full_state_dict(model)
    check_parameters_known(weights, NAMES, "--format gguf")
    for name, weight in weights.items():
        if name != "output.weight":  # it is the embedding; a file without one says so
            data = tensor_of(name, weight, kind)
            writer.add_tensor(translate(name, TO_GGUF), data, raw_dtype=None if weight.dim() == 1 else kind)

    def write(path: Path) -> None:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(target, write)
    text = modelfile(target.name, config, meta.get("stage") != "pretrain")
    atomic_write(beside, lambda temporary: temporary.write_text(text, encoding="utf-8"))
