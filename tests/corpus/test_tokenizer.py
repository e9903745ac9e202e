"""Tokenizers from elsewhere: used as they are meant, or refused with the reason."""

import json

import numpy as np
import pytest
import torch
from factories import loss_weights, write_rows
from tiny_model import tiny
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import train_tokenizer
from Config import LLMConfig
from dataset import PretrainDataset
from engine.checkpoint.weights import check_tokenizer, open_checkpoint, save_weights
from engine.corpus.tiktoken_backend import TiktokenEncoder
from engine.corpus.token_cache import open_or_build
from engine.flags import ROOT
from engine.generate.engine import complete
from engine.loss import count_tokens
from engine.packing import Batches, pack, split_documents
from engine.tokenizer import fingerprint, load_tokenizer, token_bytes

TEXTS = ["the sea is calm", "海很平静，船回来了。", "boats and fish, fish and boats"] * 9
SPECIAL = ["<unk>", "<s>", "</s>"]


def trained(model, pre_tokenizer, trainer, **parts):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def byte_level(**words):
    words = {"vocab_size": 300, "initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "show_progress": False} | words
    return trained(models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False), trainers.BpeTrainer(**words))


def gpt2():
    """Special tokens after the others: id 0 is an ordinary token."""
    tokenizer = byte_level()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def llama3():
    """A split of its own before the bytes."""
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(r" ", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    words = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    return trained(models.BPE(), split, words, normalizer=normalizers.NFC())


def llama2():
    """sentencepiece's kind: spaces as a letter, rare characters as bytes with names."""
    special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    words = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    return trained(models.BPE(byte_fallback=True, unk_token="<unk>"), pre_tokenizers.Metaspace(), words)


def bert():
    words = trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    return trained(models.WordPiece(unk_token="<unk>"), pre_tokenizers.Whitespace(), words)


def t5():
    words = trainers.UnigramTrainer(vocab_size=100, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    return trained(models.Unigram(), pre_tokenizers.Metaspace(), words)


def saved(tokenizer, folder, **changes):
    content = json.loads(tokenizer.to_str())
    for name, value in changes.items():
        content[name] = value(content[name]) if callable(value) else value
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize("family", [gpt2, llama3])
def test_byte_level_families_count_the_bytes_of_the_text(family, tmp_path):
    tokenizer = load_tokenizer(saved(family(), tmp_path))
    for text in [*TEXTS[:3], "é 🐙"]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert token_bytes(tokenizer)[ids].sum() == len(text.encode())


@pytest.mark.parametrize("family", [llama2, bert, t5])
def test_what_is_not_byte_level_is_refused(family, tmp_path):
    with pytest.raises(ValueError, match="tokenizer.json: not a byte-level tokenizer"):
        load_tokenizer(saved(family(), tmp_path))


def test_truncation_and_padding_in_the_file_cut_and_fill_no_text(tmp_path):
    padding = {
        "strategy": "BatchLongest",
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<unk>",
    }
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    plain = load_tokenizer(saved(llama3(), tmp_path / "plain"))
    other = load_tokenizer(saved(llama3(), tmp_path / "other", padding=padding, truncation=truncation))
    documents = [PretrainDataset(tokenizer).encode(TEXTS) for tokenizer in (plain, other)]
    for expected, actual in zip(*documents, strict=True):
        assert np.array_equal(expected.ids, actual.ids) and len(actual.ids) > 5


@pytest.mark.parametrize("token", ["</s>", "<s>"])
def test_special_tokens_that_a_text_can_spell_are_refused(token, tmp_path):
    added = json.loads(gpt2().to_str())["added_tokens"]
    added = [entry | {"special": entry["content"] != token} for entry in added]
    with pytest.raises(ValueError, match=f'a text can spell {token}.*"special": true'):
        load_tokenizer(saved(gpt2(), tmp_path, added_tokens=added))


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"model": lambda model: model | {"dropout": 0.1}}, "dropout 0.1"),
        ({"model": lambda model: model | {"vocab": model["vocab"] | {"h": 320}}}, "ids up to"),
        ({"added_tokens": lambda added: added[:-1]}, "has no </s>"),
    ],
)
def test_other_files_that_would_be_silently_wrong_are_refused(change, reason, tmp_path):
    with pytest.raises(ValueError, match=f"tokenizer.json: .*{reason}"):
        load_tokenizer(saved(gpt2(), tmp_path, **change))


def test_bytes_without_a_token_are_reported(tmp_path, capsys):
    load_tokenizer(saved(byte_level(initial_alphabet=[], special_tokens=SPECIAL), tmp_path))
    assert "of the 256 bytes; text that holds them loses them" in capsys.readouterr().err


def test_where_id_0_is_an_ordinary_token_it_is_counted(tmp_path):
    tokenizer = load_tokenizer(saved(gpt2(), tmp_path))
    path = write_rows(tmp_path / "rows.jsonl", [{"text": f"!{text}!!"} for text in TEXTS])
    cache = open_or_build([path], PretrainDataset, tokenizer, cache_dir=tmp_path / "cache")
    assert tokenizer.token_to_id("!") == 0 and (cache.ids == 0).sum() >= 3 * len(TEXTS)
    packed = pack(split_documents(cache, np.arange(len(cache)), 32), 32, 0)
    share = {"batch_size": 2, "rows_per_step": 4, "seed": 0}
    for world in (1, 2):
        positions = 0
        for rank in range(world):
            batches = Batches(cache, packed, loss_weights(), **share, rank=rank, world_size=world)
            positions += sum(map(batches.positions, range(batches.steps_per_epoch)))
        assert positions == len(cache.ids) - len(cache)
    batches = Batches(cache, packed, loss_weights(), **share)
    counts = count_tokens(batches.step(0), torch.from_numpy(token_bytes(tokenizer)), batches.positions(0))
    assert counts.positions == counts.loss_tokens > 0  # of plain text every label is trained on


def test_a_tokenizer_that_another_program_saved_again_is_the_same(tmp_path, tokenizer):
    decides_nothing = {"post_processor": None, "decoder": {"type": "ByteFallback"}}
    again = load_tokenizer(saved(tokenizer, tmp_path / "again", **decides_nothing))
    assert fingerprint(again) == fingerprint(tokenizer) != fingerprint(again, of_all=True)
    more = Tokenizer.from_str(tokenizer.to_str())
    more.add_tokens([AddedToken("<think>", special=False)])
    assert fingerprint(more) != fingerprint(tokenizer)
    split = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    assert fingerprint(load_tokenizer(saved(tokenizer, tmp_path / "split", pre_tokenizer=split))) != fingerprint(
        tokenizer
    )


def test_files_that_hold_the_fingerprint_of_before_are_read(tokenizer, tmp_path):
    check_tokenizer(tmp_path / "a.pth", {"tokenizer": fingerprint(tokenizer, of_all=True)}, tokenizer, "t")
    check_tokenizer(tmp_path / "a.pth", {"tokenizer": "05a8f7375a7c"}, tokenizer, "t")  # the committed one's
    with pytest.raises(ValueError, match="trained with tokenizer 000000000000"):
        check_tokenizer(tmp_path / "a.pth", {"tokenizer": "000000000000"}, tokenizer, "t")


def test_ids_beyond_the_tokenizer_are_never_sampled(tokenizer, tmp_path, capsys):
    model = tiny(vocab_size=6400 + 3000)
    save_weights(tmp_path / "m.pth", model.state_dict(), {"config": {**shape(model.config)}, "stage": "pretrain"})
    opened, _ = open_checkpoint(tmp_path / "m.pth", tokenizer, "t")
    assert "9400 tokens, t has 6400: the others are never sampled" in capsys.readouterr().err
    prompts = [[1, 50 + number] for number in range(8)]
    for temperature in (0, 1.0):
        answers = complete(opened.eval(), prompts, max_new_tokens=12, end_id=2, temperature=temperature)
        assert max(max(answer, default=0) for answer in answers) < 6400


def shape(config: LLMConfig) -> dict:
    return {name: getattr(config, name) for name in ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size")}


def test_nan_logits_are_one_line_and_a_tiny_temperature_is_greedy(tokenizer):
    model = tiny()
    greedy = complete(model, [[1, 9]], max_new_tokens=5, end_id=2, temperature=0)
    assert complete(model, [[1, 9]], max_new_tokens=5, end_id=2, temperature=1e-45) == greedy
    model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="logits are not finite"):
        complete(model, [[1, 9]], max_new_tokens=5, end_id=2)


def test_a_text_that_tiktoken_cannot_cut_is_encoded_by_tokenizers(tokenizer):
    class Full:
        def encode(self, text, **_):
            raise ValueError("Regex error while tokenizing: Max stack size exceeded for backtracking")

    fast = TiktokenEncoder.__new__(TiktokenEncoder)
    fast.tokenizer, fast.is_trusted = tokenizer, True
    fast.fast, fast.added = Full(), set()
    text = "a" + " " * 50_000
    assert fast.encode_batch_fast([text])[0].ids == tokenizer.encode(text, add_special_tokens=False).ids


# ------------------------------------------------------------------------------------------------ training one


def learn(folder, rows, *flags):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows), encoding="utf-8")
    train_tokenizer.main(["--data_path", str(path), "--save_dir", str(folder / "t"), *flags])
    return load_tokenizer(folder / "t")


def test_with_tag_tokens_there_are_just_as_many_tokens_as_were_asked_for(tmp_path):
    rows = [f"boat {number}" for number in range(300)]
    assert learn(tmp_path, rows, "--vocab_size", "264", "--tag_tokens").get_vocab_size() == 264
    with pytest.raises(ValueError, match="--vocab_size 263 must be at least 264 with --tag_tokens"):
        learn(tmp_path, rows, "--vocab_size", "263", "--tag_tokens", "--overwrite")


def test_too_few_pairs_are_said_and_bytes_for_no_row_are_refused(tmp_path, capsys):
    assert learn(tmp_path, ["ab"] * 9 + ["cd"]).get_vocab_size() < 270
    assert "tokens instead of 6,400" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--max_bytes 1 leaves no row of"):
        learn(tmp_path, ["abc"] * 9, "--max_bytes", "1", "--overwrite")
    assert (ROOT / "spongebob_tokenizer/tokenizer.json").is_file()
