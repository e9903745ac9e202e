"""A tokenizer that learned from code: its tokens do not reach from the role's line into what is said."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer

from Config import LLMConfig
from dataset import SFTDataset
from engine.corpus import bpe
from engine.export import hugging_face
from model import SpongeBob

CODE = "def f(x):\n\n    return x\n\n\n\nclass A:\n\n        y = 1\n  \n\t\tz\n\n"


@pytest.fixture(scope="module")
def learned():
    tokenizer = bpe.train_bpe([CODE * 9] * 20, 400, tag_tokens=False)
    tokenizer.encode_special_tokens = True
    return tokenizer


@pytest.fixture(scope="module")
def theirs(learned, tmp_path_factory):
    folder = tmp_path_factory.mktemp("learned")
    bpe.save_tokenizer(learned, folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("words", ["x", "\nx", "\n\n\nx", "    x", " \n  y", "x\n\n", "\tz", CODE])
def test_code_is_encoded_as_the_chat_template_is(learned, theirs, words):
    messages = [{"role": "user", "content": words}, {"role": "assistant", "content": words}]
    expected = theirs.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert SFTDataset(learned).encode([messages])[0].ids.tolist() == expected


def test_an_export_says_when_tokens_reach_across_line_breaks(learned, tmp_path, capsys):
    bpe.save_tokenizer(learned, tmp_path / "own")
    content = json.loads(learned.to_str())
    content["model"]["vocab"]["ĊĊ"] = size = len(content["model"]["vocab"])
    content["model"]["merges"].append(["Ċ", "Ċ"])
    other = Tokenizer.from_str(json.dumps(content))
    other.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>")])
    bpe.save_tokenizer(other, tmp_path / "other")
    model = SpongeBob(LLMConfig(dim=16, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=size + 1))
    for name, said in (("own", False), ("other", True)):
        hugging_face.to_hf(model, tmp_path / name, tmp_path / f"{name}-hf")
        assert ("1 tokens of" in capsys.readouterr().out) == said
