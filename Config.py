"""The shape of the model, and its checks."""

import math

from transformers import PretrainedConfig

# Shapes by name; what is typed beside a preset wins. The names count the weights with 6,400 tokens (docs/scaling.md).
PRESETS = {
    "26M": {"dim": 512, "n_layers": 8, "n_heads": 8, "n_kv_heads": 2},
    "110M": {"dim": 768, "n_layers": 17, "n_heads": 12, "n_kv_heads": 4},
    "1B": {"dim": 2048, "n_layers": 16, "n_heads": 32, "n_kv_heads": 8, "hidden_dim": 8192},
}


class LLMConfig(PretrainedConfig):
    """Shape of a LLaMA-3 style decoder. Misspelt names and contradictions are refused with their numbers.

    Args:
        dim: width of the residual stream.
        n_layers: number of blocks.
        n_heads: query heads; dim / n_heads is the size of a head and must be even (RoPE turns pairs).
        n_kv_heads: key-value heads, each shared by n_heads / n_kv_heads query heads (GQA, arXiv:2305.13245).
        vocab_size: tokens in the vocabulary.
        hidden_dim: inner width of SwiGLU; None: 8/3 x dim, rounded up to `multiple_of` (arXiv:2302.13971).
        multiple_of: see hidden_dim.
        norm_eps: added to the mean square in RMSNorm.
        max_seq_len: tokens of context the model is trained for; RoPE itself has no limit.
        rope_theta: base of the rotary wavelengths (arXiv:2104.09864); None: that of rope_parameters, else 1e6.
        rope_scaling: None, or Llama 3.1's stretching of the long wavelengths:
            rope_type "llama3", factor, low_freq_factor, high_freq_factor, original_max_position_embeddings.
        dropout: probability that an element of a block's output is dropped in training.
        rope_parameters: what a saved config.json holds instead of rope_scaling.
    """

    model_type = "spongebob"
    # What transformers and the tools around it call the same numbers.
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
        # PretrainedConfig takes any keyword without a word: `n_layer=6` would train 8 layers.
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
        # The one field in which transformers 5 keeps and saves all of RoPE's numbers; `rope_scaling` there is an alias.
        self.rope_parameters = resolve_rope_parameters(rope_theta, rope_scaling, rope_parameters)
        self.rope_theta = self.rope_parameters["rope_theta"]
        self.dropout = dropout
        self._check()
        # Without tie_word_embeddings a reloaded output matrix is random.
        super().__init__(**{"tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, **transformers_fields})

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    def _check(self) -> None:
        for name in (
            "dim",
            "n_layers",
            "n_heads",
            "n_kv_heads",
            "vocab_size",
            "multiple_of",
            "hidden_dim",
            "max_seq_len",
        ):
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
    """The rope_parameters of a model for rows longer than the `trained_for` tokens of before (Llama 3.1's rule).

    A wavelength that fits four times into those tokens stays, the model knows all of it; one that does not fit once
    grows by `factor`; see model.rope_frequencies. A model that was stretched before keeps its first length.
    """
    return {
        "rope_type": "llama3",
        "rope_theta": parameters["rope_theta"],
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": parameters.get("original_max_position_embeddings", trained_for),
    }


def resolve_rope_parameters(theta: float | None, scaling: dict | None, parameters: dict | None) -> dict:
    """RoPE's numbers from the fields in which they are given, of which transformers has had three.

    ValueError where two of them differ, and for whatever would silently not scale.
    """
    found = {"rope_theta": theta} if theta is not None else {}
    for field, given in {"rope_scaling": scaling, "rope_parameters": parameters}.items():
        if not isinstance(given, dict | None):
            raise ValueError(f"{field}={given!r} must be a dict")
        given = dict(given or {})
        if "type" in given:  # what transformers called rope_type before
            old = given.pop("type")
            if given.setdefault("rope_type", old) != old:
                raise ValueError(f"{field}: type is {old!r}, rope_type {given['rope_type']!r}")
        if given.keys() - {"rope_theta"} and "rope_type" not in given:
            raise ValueError(f"{field}: no rope_type beside {', '.join(sorted(given))}; give rope_type 'llama3'")
        if differ := [name for name, value in given.items() if found.get(name, value) != value]:
            raise ValueError(f"{field}: {differ[0]} is {given[differ[0]]!r}, but also given as {found[differ[0]]!r}")
        found |= given
    found = {"rope_type": "default", "rope_theta": 1e6} | found
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    kind, wanted = found["rope_type"], {"llama3": names, "default": ()}
    if kind not in wanted:
        raise ValueError(f"rope_scaling: rope_type={kind!r} is not known, only 'llama3'")
    if missing := set(wanted[kind]) - found.keys():
        raise ValueError(f"rope_scaling: missing {', '.join(sorted(missing))}")
    if unknown := found.keys() - {"rope_type", "rope_theta", *wanted[kind]}:
        raise ValueError(f"rope_scaling: {', '.join(sorted(unknown))} means nothing to rope_type {kind!r}")
    for name in ("rope_theta", *wanted[kind]):
        _positive(name, found[name])
    if kind == "llama3":
        factor, low, high = (found[name] for name in names[:3])
        if not 0 < low < high or factor < 1:
            raise ValueError(
                f"rope_scaling: wanted 0 < low_freq_factor={low} < high_freq_factor={high}, factor={factor} >= 1"
            )
    return found
