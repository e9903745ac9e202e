"""The shape of the model: presets, defaults and checks."""

import math

from transformers import PretrainedConfig

# Shapes by name; explicit flags override them. The names count the weights with 6,400 tokens (docs/scaling.md).
PRESETS = {
    "26M": {"dim": 512, "n_layers": 8, "n_heads": 8, "n_kv_heads": 2},
    "110M": {"dim": 768, "n_layers": 17, "n_heads": 12, "n_kv_heads": 4},
    "1B": {"dim": 2048, "n_layers": 16, "n_heads": 32, "n_kv_heads": 8, "hidden_dim": 8192},
}
INTEGER_FIELDS = ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "hidden_dim", "max_seq_len")


class LLMConfig(PretrainedConfig):
    """Shape of a LLaMA-3 style decoder.

    Args:
        dim: width of the residual stream.
        n_layers: number of blocks.
        n_heads: query heads; dim / n_heads is the size of a head and must be even (RoPE rotates pairs).
        n_kv_heads: key-value heads, each shared by n_heads / n_kv_heads query heads (GQA, arXiv:2305.13245).
        vocab_size: tokens in the vocabulary.
        hidden_dim: inner width of SwiGLU; None: 8/3 x dim, rounded up to `multiple_of` (arXiv:2302.13971).
        multiple_of: see hidden_dim.
        norm_eps: added to the mean square in RMSNorm.
        max_seq_len: tokens of context the model is trained for; RoPE itself has no limit.
        rope_theta: base of the rotary wavelengths (arXiv:2104.09864); None: that of rope_parameters, else 1e6.
        rope_scaling: None, or Llama 3.1's scaling of the long wavelengths, a dict of rope_type ("llama3"), factor,
            low_freq_factor, high_freq_factor and original_max_position_embeddings.
        dropout: probability that an element of a block's output is dropped in training.
        rope_parameters: rope_theta and rope_scaling in one dict, as saved in config.json.
        transformers_fields: fields of PretrainedConfig.
    Raises:
        ValueError: An unknown or misspelt name, or numbers that contradict each other.
    """

    model_type = "spongebob"
    # The names of the same numbers in transformers.
    attribute_map = {
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "intermediate_size": "hidden_dim",
        "rms_norm_eps": "norm_eps",
        "max_position_embeddings": "max_seq_len",
    }

    def __init__(
        self,
        dim: int = 512,
        n_layers: int = 8,
        n_heads: int = 8,
        n_kv_heads: int = 2,
        vocab_size: int = 6400,
        hidden_dim: int | None = None,
        multiple_of: int = 64,
        norm_eps: float = 1e-5,
        max_seq_len: int = 512,
        rope_theta: float | None = None,
        rope_scaling: dict | None = None,
        dropout: float = 0.0,
        rope_parameters: dict | None = None,
        **transformers_fields,
    ):
        # PretrainedConfig accepts any keyword silently: `n_layer=6` would train 8 layers.
        known = {
            "model_type",
            "transformers_version",
            "tie_word_embeddings",
            "torch_dtype",
            "bos_token_id",
            "eos_token_id",
        }
        unknown = [key for key in transformers_fields if not hasattr(PretrainedConfig, key) and key not in known]
        if unknown:
            raise ValueError(f"LLMConfig has no {', '.join(sorted(unknown))}")
        if transformers_fields.get("tie_word_embeddings") is False:
            raise ValueError("tie_word_embeddings=False: this model's output matrix is its embedding")
        for name, value in {"dim": dim, "multiple_of": multiple_of, "norm_eps": norm_eps}.items():
            _positive(name, value)
        self.dim = dim
        self.n_layers = n_layers
        self.n_heads = n_heads
        self.n_kv_heads = n_kv_heads
        self.vocab_size = vocab_size
        self.multiple_of = multiple_of
        self.hidden_dim = hidden_dim or -(-8 * dim // 3 // multiple_of) * multiple_of
        self.norm_eps = norm_eps
        self.max_seq_len = max_seq_len
        # transformers 5 keeps and saves all of RoPE's numbers in this field; `rope_scaling` is an alias of it.
        self.rope_parameters = resolve_rope_parameters(rope_theta, rope_scaling, rope_parameters)
        self.rope_theta = self.rope_parameters["rope_theta"]
        self.dropout = dropout
        self._check()
        # Without tie_word_embeddings, transformers would initialize a reloaded output matrix at random.
        super().__init__(**{"tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, **transformers_fields})

    @property
    def head_dim(self) -> int:
        """Return the size of an attention head."""
        return self.dim // self.n_heads

    def _check(self) -> None:
        """Raise ValueError for numbers that are out of range or contradict each other."""
        for name in INTEGER_FIELDS:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value} must be a whole number of at least 1")
        if self.dim % self.n_heads or self.head_dim % 2:
            raise ValueError(f"dim={self.dim} / n_heads={self.n_heads} must be an even whole number")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads={self.n_heads} must be a multiple of n_kv_heads={self.n_kv_heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and less than 1")


def _positive(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ValueError(f"{name}={value!r} must be a positive number")


def scale_rope(parameters: dict, factor: float, trained_for: int) -> dict:
    """Scale RoPE for rows longer than a model was trained for, by Llama 3.1's rule (see model.rope_frequencies).

    A wavelength that fits four times into `trained_for` tokens is kept: the model knows all of it. One that does
    not fit once grows by `factor`.

    Args:
        parameters: The model's rope_parameters. If they are scaled already, their original length is kept.
        factor: Ratio of the new to the old length of context.
        trained_for: Context length in tokens that the model was trained for.
    Returns:
        The new rope_parameters.
    """
    return {
        "rope_type": "llama3",
        "rope_theta": parameters["rope_theta"],
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": parameters.get("original_max_position_embeddings", trained_for),
    }


# The numbers that each rope_type takes, in addition to rope_theta.
ROPE_FIELDS = {
    "default": (),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def resolve_rope_parameters(theta: float | None, scaling: dict | None, parameters: dict | None) -> dict:
    """Merge RoPE's numbers from the three fields that versions of transformers have had for them.

    Args:
        theta: Value of rope_theta.
        scaling: Value of rope_scaling.
        parameters: Value of rope_parameters.
    Returns:
        rope_type, rope_theta (default: 1e6) and the numbers of this type.
    Raises:
        ValueError: Two fields contradict each other, or a number would have no effect, is missing or out of range.
    """
    merged = {} if theta is None else {"rope_theta": theta}
    for field, value in {"rope_scaling": scaling, "rope_parameters": parameters}.items():
        numbers = _with_rope_type(field, value)
        for name in numbers.keys() & merged.keys():
            if numbers[name] != merged[name]:
                raise ValueError(f"{field}: {name} is {numbers[name]!r}, but also given as {merged[name]!r}")
        merged |= numbers
    merged = {"rope_type": "default", "rope_theta": 1e6} | merged
    rope_type = merged["rope_type"]
    if rope_type not in ROPE_FIELDS:
        raise ValueError(f"rope_scaling: rope_type={rope_type!r} is not known, only 'llama3'")
    names = {"rope_theta", *ROPE_FIELDS[rope_type]}
    if missing := names - merged.keys():
        raise ValueError(f"rope_scaling: missing {', '.join(sorted(missing))}")
    if unknown := merged.keys() - names - {"rope_type"}:
        raise ValueError(f"rope_scaling: {', '.join(sorted(unknown))} means nothing to rope_type {rope_type!r}")
    for name in sorted(names):
        _positive(name, merged[name])
    if rope_type == "llama3":
        factor, low, high = (merged[name] for name in ROPE_FIELDS["llama3"][:3])
        if low >= high or factor < 1:
            raise ValueError(
                f"rope_scaling: expected low_freq_factor={low} < high_freq_factor={high} and factor={factor} >= 1"
            )
    return merged


def _with_rope_type(field: str, value: dict | None) -> dict:
    """Return a copy of a field's numbers, in which "type", its older name, is replaced by "rope_type"."""
    if not isinstance(value, dict | None):
        raise ValueError(f"{field}={value!r} must be a dict")
    numbers = dict(value or {})
    if "type" in numbers:
        old = numbers.pop("type")
        if numbers.setdefault("rope_type", old) != old:
            raise ValueError(f"{field}: type is {old!r}, rope_type {numbers['rope_type']!r}")
    if numbers.keys() - {"rope_theta"} and "rope_type" not in numbers:
        raise ValueError(f"{field}: no rope_type next to {', '.join(sorted(numbers))}; give rope_type 'llama3'")
    return numbers
