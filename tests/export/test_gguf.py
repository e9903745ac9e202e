"""A .gguf holds the same model: read by the gguf package here, and by llama.cpp in `make test-runtimes`."""

import importlib.util
import json
import urllib.request
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from factories import ROOT, SCALING, TOKENIZER, TOKENIZER_DIR, greedy, save
from tiny_model import tiny
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer

import export
from Config import LLMConfig
from dataset import DEFAULT_SYSTEM, SFTDataset
from engine.checkpoint.weights import full_state_dict
from engine.export.gguf import LLAMA_3_SPLIT, pre_tokenizer_name, to_gguf
from engine.tokenizer import fingerprint, load_tokenizer
from model import rope_frequencies

pytestmark = pytest.mark.usefixtures("one_thread")
CHAT = [
    {"role": "user", "content": "天空为什么是蓝色的？"},
    {"role": "assistant", "content": "因为光。"},
    {"role": "user", "content": "Why? 🐙"},
]


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    """Return {name: values} from gguf's reader, matrices in float32."""
    arrays = {}
    for tensor in gguf.GGUFReader(path).tensors:
        is_matrix = tensor.data.ndim > 1
        arrays[tensor.name] = gguf.quants.dequantize(tensor.data, tensor.tensor_type) if is_matrix else tensor.data
    return arrays


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "q8_0"])
def test_every_weight_has_llama_cpps_name_and_the_requested_rounding(small, tmp_path, dtype):
    model = tiny(vocab_size=300)
    to_gguf(model, small, tmp_path / "m.gguf", dtype, {})
    found, weights = tensors_of(tmp_path / "m.gguf"), full_state_dict(model)
    del weights["output.weight"]  # tied
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)  # the package knows Meta's names too
    names = {name: f"{known.get_name(name.removesuffix('.weight'))}.weight" for name in weights}
    assert found.keys() == set(names.values())
    for name, weight in weights.items():
        there = torch.from_numpy(found[names[name]].copy())
        if dtype == "q8_0" and weight.dim() == 2:
            step = (
                weight.unflatten(1, (-1, 32)).abs().amax(-1, keepdim=True) / 127
            )  # from level to level; the scale is a float16
            assert ((there - weight).unflatten(1, (-1, 32)).abs() <= step * 0.57).all(), name
        else:
            kind = getattr(torch, dtype) if weight.dim() == 2 else torch.float32
            assert torch.equal(there, weight.to(kind).float()), name


def test_gguf_holds_shape_tokenizer_template_and_end_tokens(tmp_path):
    model = tiny(max_seq_len=96, rope_theta=50000.0, vocab_size=6405)  # more rows than the tokenizer has tokens
    save(model, tmp_path / "SFT.pth")
    export.main(["--format", "gguf", str(tmp_path / "m.gguf"), "--save_dir", str(tmp_path)])
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    found = {name.removeprefix("tokenizer.ggml."): field.contents() for name, field in fields.items()}
    config, vocab = model.config, TOKENIZER.get_vocab()
    shape = {
        "context_length": 96,
        "embedding_length": 64,
        "block_count": 2,
        "feed_forward_length": config.hidden_dim,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "rope.freq_base": 50000.0,
        "rope.dimension_count": 16,
        "attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "vocab_size": 6405,
    }
    assert {name: found[f"llama.{name}"] for name in shape} == shape
    assert found["general.architecture"] == "llama" and (found["model"], found["pre"]) == ("gpt2", "gpt-2")
    assert found["tokens"] == [*sorted(vocab, key=vocab.__getitem__), *(f"[unused {n}]" for n in range(6400, 6405))]
    assert found["token_type"] == [
        *[gguf.TokenType.CONTROL] * 3,
        *[gguf.TokenType.NORMAL] * 6397,
        *[gguf.TokenType.UNUSED] * 5,
    ]
    merges = json.loads(TOKENIZER.to_str())["model"]["merges"]
    assert found["merges"] == [" ".join(merge) for merge in merges]
    ids = ["bos_token_id", "eos_token_id", "eot_token_id", "unknown_token_id", "padding_token_id"]
    assert [found[name] for name in ids] == [1, 2, 2, 0, 0]
    assert (found["add_bos_token"], found["add_eos_token"], found["add_space_prefix"]) == (True, False, False)
    template, ours = found["tokenizer.chat_template"], AutoTokenizer.from_pretrained(TOKENIZER_DIR)
    assert "generation %}" not in template
    rendered = ours.apply_chat_template(CHAT, chat_template=template, tokenize=False, add_generation_prompt=True)
    assert rendered == TOKENIZER.decode(SFTDataset(TOKENIZER).prompt(CHAT), skip_special_tokens=False)


@pytest.mark.parametrize("stage", ["pretrain", "SFT"])
def test_gguf_comes_with_a_modelfile(stage, tmp_path):
    save(tiny(), tmp_path / "w.pth", stage=stage)
    export.main(["--format", "gguf", str(tmp_path / "m.gguf"), "--ckpt", str(tmp_path / "w.pth")])
    text = (tmp_path / "m.Modelfile").read_text("utf-8")
    assert text.startswith("FROM ./m.gguf\n") and 'stop "</s>"' in text and "num_ctx 128" in text
    assert (f'SYSTEM """{DEFAULT_SYSTEM}"""' in text) == ("range .Messages" in text) == (stage == "SFT")
    assert ('TEMPLATE """{{ .Prompt }}"""' in text) == (stage == "pretrain")


def test_rope_divisors_give_the_scaled_frequencies(small, tmp_path):
    scaled, plain = (LLMConfig(dim=64, n_layers=1, n_heads=4, rope_scaling=scaling) for scaling in (SCALING, None))
    to_gguf(tiny(rope_scaling=SCALING, vocab_size=300), small, tmp_path / "s.gguf", "float32", {})
    divisors = torch.from_numpy(tensors_of(tmp_path / "s.gguf")["rope_freqs.weight"].copy())
    wanted, before = (rope_frequencies(config, torch.device("cpu")) for config in (scaled, plain))
    torch.testing.assert_close(before / divisors, wanted)
    assert divisors.max() == 8 and divisors.min() < 2


def split_by(*cuts, **model) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(cuts))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def test_a_split_that_llama_cpp_does_not_know_is_refused():
    parts = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    llama = pre_tokenizers.Split(Regex(LLAMA_3_SPLIT), "isolated")
    assert pre_tokenizer_name(split_by(llama, parts, ignore_merges=True)) == "llama-bpe"
    assert pre_tokenizer_name(TOKENIZER) == "gpt-2"
    digits = pre_tokenizers.Digits(individual_digits=True)
    ours = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for other in (
        split_by(llama, parts),
        split_by(digits, ours),
        split_by(pre_tokenizers.ByteLevel()),
        split_by(ours, ignore_merges=True),
    ):
        with pytest.raises(ValueError, match="no name for this tokenizer's split"):
            pre_tokenizer_name(other)


@pytest.mark.parametrize(
    "change, words, reason",
    [
        ({"dim": 40, "n_heads": 2}, "x.gguf --dtype q8_0", "have 40 values, not a multiple of 32"),
        ({}, "x.gguf --dtype float16", "holds 70000, more than float16 can"),
        ({}, "x.bin", "ends in .gguf"),
        ({}, "there.gguf", "nothing is overwritten"),
    ],
)
def test_a_refused_export_writes_nothing(change, words, reason, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny(vocab_size=300, **change)
    model.layers[0].attention.wq.weight.data[0, 0] = 70000
    save(model, tmp_path / "results/SFT.pth", tokenizer=fingerprint(load_tokenizer(small)))
    (tmp_path / "there.Modelfile").write_text("mine")
    with pytest.raises(ValueError, match=reason):
        export.main(["--format", "gguf", *words.split(), "--tokenizer_dir", str(small)])
    if "float16" in words:
        with pytest.raises(ValueError, match=reason):
            export.main(["--format", "hf", "theirs", "--dtype", "float16", "--tokenizer_dir", str(small)])
        assert not Path("theirs").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"results", "there.Modelfile"}


# ------------------------------------------------------------------------------------------------- by llama.cpp


runtimes = [
    pytest.mark.runtimes,
    pytest.mark.skipif(
        importlib.util.find_spec("xllamacpp") is None, reason="no llama.cpp here: pip install xllamacpp"
    ),
]


@pytest.fixture
def llama(tmp_path, request):
    """llama(model, dtype) -> ask(path, **fields): llama.cpp's server with an exported model."""
    import xllamacpp

    def start(model, dtype="float32"):
        to_gguf(model, TOKENIZER_DIR, tmp_path / "m.gguf", dtype, {})
        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx = str(tmp_path / "m.gguf"), model.config.max_seq_len
        params.n_parallel = params.cpuparams.n_threads = 1
        params.n_gpu_layers, params.verbosity = 0, -1
        params.warmup = False
        server = xllamacpp.Server(params)
        request.addfinalizer(lambda: server)  # it lives as long as the test

        def ask(path, **fields):
            data = json.dumps(fields).encode()
            asked = urllib.request.Request(server.listening_address + path, data, {"Content-Type": "application/json"})
            return json.loads(urllib.request.urlopen(asked).read())

        return ask

    return start


def documents(count):
    for path in sorted((ROOT / "data/sample").glob("*.jsonl")):
        for line in path.read_text("utf-8").split("\n")[: count // 8]:
            row = json.loads(line or "{}")
            yield from [turn["content"] for turn in row.get("conversations", [])] or [row.get("text") or line]


class TestByLlamaCpp:
    pytestmark = runtimes

    def test_llama_cpp_encodes_300_documents_to_the_same_ids(self, llama):
        ask, texts = llama(tiny()), [text for text in documents(400) if text]
        texts += [
            "  def f(x):\n\n\treturn 1_000.5\r\n",
            "don't I'LL",
            "e\u0301\u200b\u3000\u2028x",
            "<s>user</s>",
            "١٢３ ⅷ",
        ]
        assert len(texts) >= 300
        plain = {"add_special": False, "parse_special": False}
        for text in texts:
            expected = TOKENIZER.encode(text, add_special_tokens=False).ids
            assert ask("/tokenize", content=text, **plain)["tokens"] == expected, text

    @pytest.mark.parametrize("scaling", [None, SCALING], ids=["plain", "scaled"])
    @pytest.mark.parametrize("kv_heads", [4, 2])
    def test_llama_cpp_generates_the_same_64_greedy_tokens(self, llama, scaling, kv_heads):
        model = tiny(n_kv_heads=kv_heads, rope_scaling=scaling, rope_theta=50000.0, max_seq_len=256)
        ask, ids = llama(model), SFTDataset(TOKENIZER).prompt(CHAT)
        told = ask("/completion", prompt=ids, n_predict=64, temperature=0, return_tokens=True)
        wanted = greedy(model, ids, 64)
        assert len(wanted) == 64 and told["tokens"] == wanted

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "q8_0"])
    def test_llama_cpp_reads_smaller_dtypes_with_the_same_first_token(self, llama, dtype):
        model = tiny(max_seq_len=256)
        ids = SFTDataset(TOKENIZER).prompt(CHAT)
        told = llama(model, dtype)("/completion", prompt=ids, n_predict=1, temperature=0, return_tokens=True)
        assert told["tokens"] == greedy(model, ids, 1)

    @pytest.mark.parametrize("system", [None, "Be brief.", ""], ids=["default", "own", "none"])
    def test_llama_cpp_renders_the_prompt_of_training(self, llama, system):
        ask = llama(tiny(max_seq_len=256))
        messages = [*([] if system is None else [{"role": "system", "content": system}]), *CHAT]
        prompt = ask("/apply-template", messages=messages)["prompt"]  # <s> is put in front when it is encoded
        told = ask("/tokenize", content=prompt, add_special=True, parse_special=True)
        assert told["tokens"] == SFTDataset(TOKENIZER).prompt(messages)
