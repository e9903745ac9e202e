"""A small tokenizer, and folders that export.py wrote for transformers."""

import pytest
from factories import SCALING, TOKENIZER_DIR, save
from tiny_model import tiny
from transformers import AutoTokenizer

import export
from engine.corpus import bpe
from engine.export.hugging_face import to_hf
from engine.tokenizer import fingerprint, load_tokenizer


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A folder with a tokenizer of 300 tokens: gguf's reader takes longest for those."""
    folder = tmp_path_factory.mktemp("small")
    bpe.save_tokenizer(bpe.train_bpe(iter(["the sea is blue"] * 9), 300, tag_tokens=False), folder)
    return folder


@pytest.fixture(scope="session")
def home(small, tmp_path_factory):
    """A checkpoint, and what export.py made of it in float32 and bfloat16."""
    home = tmp_path_factory.mktemp("home")
    model = tiny(vocab_size=300, rope_scaling=SCALING, rope_theta=50000.0)
    known = fingerprint(load_tokenizer(small))
    save(model, home / "SFT.pth", tokenizer=known, val_loss=1.23456, step=70, tokens=9000, on_sample=True)
    argv = ["--ckpt", str(home / "SFT.pth"), "--tokenizer_dir", str(small), "--format", "hf"]
    export.main([*argv, str(home / "exported")])
    export.main([*argv, str(home / "half"), "--dtype", "bfloat16"])
    return home


@pytest.fixture(scope="session")
def chats(tmp_path_factory):
    """A folder for transformers with the committed tokenizer, its model, and its tokenizer as transformers loads it."""
    folder, model = tmp_path_factory.mktemp("chats") / "hf", tiny(max_seq_len=120)
    to_hf(model, TOKENIZER_DIR, folder)
    return folder, model, AutoTokenizer.from_pretrained(folder)
