"""Answers are the same however they are made; every door of eval_model.py opens, and says why when it does not."""

import io
import json
import os
import pickle
import sys

import pytest
import torch
from tiny import tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

import eval_model
import export
from dataset import SFTDataset, fingerprint, load_tokenizer
from engine import flags
from engine.checkpoint import hugging_face
from engine.checkpoint.weights import cpu_weights, save_weights, shape_json
from engine.generate.decode import complete, generate, stream_text
from engine.generate.kv_cache import KVCache
from engine.generate.sampling import choose
from engine.serve import conversation

TOKENIZER_DIR = flags.ROOT / "spongebob_tokenizer"
TOKENIZER = load_tokenizer(TOKENIZER_DIR)
EOS = TOKENIZER.token_to_id("</s>")
SCALING = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    return tiny()


def save(model, path, stage="SFT", **meta):
    meta = {"stage": stage, "config": shape_json(model.config), "tokenizer": fingerprint(TOKENIZER)} | meta
    save_weights(path, cpu_weights(model), meta)


@pytest.fixture(scope="module")
def results(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    for name in ("pretrain", "SFT", "SFT_long", "distill", "distill_long"):
        save(model, folder / f"{name}.pth", stage=name.removesuffix("_long"))
    return folder


@pytest.fixture
def ask(results, capsys):
    """Run eval_model.py on the tiny checkpoints and return what it printed; `ask.warned` is what it warned of."""

    def run(*argv):
        fixed = ["--save_dir", str(results), "--device", "cpu", "--dtype", "float32", "--max_new_tokens", "12"]
        eval_model.main([*fixed, *map(str, argv)])
        out, run.warned = capsys.readouterr()
        return out

    return run


def prompts(count=4):
    return [[1, *range(10 + n, 15 + 4 * n)] for n in range(count)]


def greedy(model, ids, count=12):
    return complete(model, [ids], max_new_tokens=count, end_id=EOS, temperature=0)[0]


# ------------------------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize("chunks", [[20], [1] * 20, [7, 1, 5, 7]])
def test_cached_decoding_equals_the_full_forward_also_in_chunks(model, chunks):
    ids = torch.randint(6400, (3, 20), generator=torch.Generator().manual_seed(0))
    cache, parts, start = KVCache(model.config, 3, 32, torch.device("cpu"), torch.float32), [], 0
    with torch.no_grad():
        for size in chunks:
            cache.length = start + size
            positions = torch.arange(start, start + size).expand(3, size)
            parts.append(model.hidden_states(ids[:, start : start + size], positions=positions, cache=cache))
            start += size
        assert (torch.cat(parts, 1) - model.hidden_states(ids)).abs().max() < 1e-4


def test_a_longer_cache_than_needed_changes_nothing(model):
    ids, positions = torch.arange(10, 20)[None], torch.arange(10)[None]
    cache = KVCache(model.config, 1, 32, torch.device("cpu"), torch.float32)
    cache.length = 32
    with torch.no_grad():
        found = model.hidden_states(ids, positions=positions, cache=cache)
        assert (found - model.hidden_states(ids)).abs().max() < 1e-4


def test_a_greedy_answer_is_the_argmax_of_the_full_forward(model):
    ids = prompts()[2]
    with torch.no_grad():
        for token in greedy(model, ids):
            assert token == model(torch.tensor([ids])).logits[0, -1].argmax()
            ids = [*ids, token]


def test_prompts_of_different_lengths_are_answered_together_as_alone(model):
    together = complete(model, prompts(), max_new_tokens=12, end_id=EOS, temperature=0)
    assert together == [greedy(model, ids) for ids in prompts()]
    assert len(set(map(tuple, together))) == 4


def test_a_finished_row_stays_silent_while_others_go_on(model):
    alone = [greedy(model, ids) for ids in prompts()]
    end_id = alone[0][3]
    together = complete(model, prompts(), max_new_tokens=12, end_id=end_id, temperature=0)
    assert together == [answer[: answer.index(end_id)] if end_id in answer else answer for answer in alone]
    assert len(together[0]) == alone[0].index(end_id)


def test_top_k_of_one_is_greedy(model):
    sampled = complete(model, prompts(), max_new_tokens=12, end_id=EOS, temperature=1.5, top_k=1)
    assert sampled == complete(model, prompts(), max_new_tokens=12, end_id=EOS, temperature=0)


def test_max_new_tokens_counts_only_new_tokens(model):
    for count in (1, 5):
        steps = list(generate(model, [list(range(10, 60))], max_new_tokens=count, end_id=-1, temperature=0))
        assert len(steps) == count


def drawn(logits, **options):
    generator = torch.Generator().manual_seed(0)
    return set(choose(logits.expand(2000, -1), generator=generator, **options).tolist())


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert drawn(logits, top_p=0.4) == {0}
    assert drawn(logits, top_p=0.6) == {0, 1}
    assert drawn(logits, top_p=0.9) == {0, 1, 2}
    assert drawn(logits) == {0, 1, 2, 3}


def test_temperature_zero_is_greedy_and_low_temperature_sharpens():
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    assert drawn(logits, temperature=0) == {1} == drawn(logits, temperature=0.05)
    assert drawn(logits, temperature=2.0) == {0, 1, 2}


def test_repetition_penalty_lowers_either_sign_and_leaves_unsaid_tokens_alone():
    said = torch.tensor([[True, False, False]])
    options = {"temperature": 0, "repetition_penalty": 2.0}
    assert choose(torch.tensor([[2.0, 1.5, -9.0]]), said=said, **options) == 1
    assert choose(torch.tensor([[-1.0, -1.5, -9.0]]), said=said, **options) == 1
    assert choose(torch.tensor([[2.0, 1.5, -9.0]]), said=~said, **options) == 0
    assert choose(torch.tensor([[2.0, 1.5, -9.0]]), said=torch.zeros_like(said), **options) == 0


@pytest.mark.parametrize(
    "text", ["你好，世界！龘靐齉", "笑脸😀👨‍👩‍👧‍👦和🇨🇳", "a b\n  c", "<think>\n嗯\n</think>", "é ñ ü"]
)
def test_streaming_equals_the_whole_text_without_broken_characters(text):
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    pieces = list(stream_text(TOKENIZER, iter(ids)))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_streaming_any_tokens_equals_decoding_them_at_once():
    """A young model's bytes need not be text at all."""
    generator = torch.Generator().manual_seed(0)
    for high in (260, 6400):
        for _ in range(50):
            ids = torch.randint(3, high, (30,), generator=generator).tolist()
            streamed = "".join(stream_text(TOKENIZER, iter(ids)))
            assert streamed == TOKENIZER.decode(ids, skip_special_tokens=False)


# --------------------------------------------------------------------------------------------- eval_model.py


@pytest.mark.parametrize("mode", [["0"], ["1"], ["2"], ["1", "--long"], ["2", "--long"]])
def test_every_mode_answers_a_prompt(ask, model, mode):
    out = ask("--model_mode", *mode, "--temperature", 0, "--prompt", "从前有一座山")
    if mode == ["0"]:
        ids = [1, *TOKENIZER.encode("从前有一座山", add_special_tokens=False).ids]
    else:
        ids = SFTDataset(TOKENIZER).prompt([{"role": "user", "content": "从前有一座山"}])
    assert out == TOKENIZER.decode(greedy(model, ids), skip_special_tokens=False) + "\n"
    assert out == ask("--model_mode", *mode, "--temperature", 0, "--no-stream", "--prompt", "从前有一座山")


def test_several_prompts_are_answered_in_order(ask):
    questions = ["你好", "天空为什么是蓝色的？请说得详细一点", "1 + 1"]
    out = ask("--temperature", 0, "--prompt", *questions)
    alone = [ask("--temperature", 0, "--prompt", question) for question in questions]
    assert out == "".join(f"> {question}\n{answer}" for question, answer in zip(questions, alone, strict=True))


def test_the_seed_decides_what_is_sampled(ask):
    first, again, other = (ask("--temperature", 1, "--seed", seed, "--prompt", "你好") for seed in (1, 1, 2))
    assert first == again != other


def test_a_system_message_changes_the_prompt(ask):
    assert ask("--temperature", 0, "--prompt", "你好") != ask(
        "--temperature", 0, "--system", "说英语", "--prompt", "你好"
    )
    with pytest.raises(ValueError, match="no system message"):
        ask("--model_mode", 0, "--system", "说英语", "--prompt", "你好")


@pytest.mark.parametrize("mode, long, command", [
    (0, [], "python pretrain.py"), (1, [], "python SFT.py"), (1, ["--long"], "python SFT.py --long"),
    (2, [], "python distill.py"), (2, ["--long"], "python distill.py --long"),
])  # fmt: skip
def test_a_missing_checkpoint_names_the_command_that_makes_it(tmp_path, mode, long, command):
    with pytest.raises(ValueError, match=f"no such checkpoint. Make it with: {command} \\("):
        eval_model.main(["--save_dir", str(tmp_path), "--model_mode", str(mode), *long])


@pytest.mark.parametrize("argv, words", [
    (["--long", "--model_mode", "0"], "--long"), (["--long", "--ckpt", "a.pth"], "--long"),
    (["--temperature", "-1"], "--temperature -1"), (["--top_p", "1.5"], "--top_p 1.5"), (["--top_p", "0"], "--top_p 0"),
    (["--export", "onnx", "there"], "export.py"), (["--history_cnt", "-1"], "--history_cnt -1"),
])  # fmt: skip
def test_impossible_flags_are_refused_by_name(argv, words):
    with pytest.raises(ValueError, match=words):
        eval_model.main(argv)


def test_a_named_checkpoint_chats_or_continues_as_its_json_says(ask, results):
    at = lambda name: ask("--temperature", 0, "--ckpt", results / f"{name}.pth", "--prompt", "你好")
    assert at("pretrain") == ask("--temperature", 0, "--model_mode", 0, "--prompt", "你好")
    assert at("distill") == ask("--temperature", 0, "--model_mode", 1, "--prompt", "你好")


def type_in(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def test_the_end_of_the_input_ends_the_chat_politely(ask, monkeypatch):
    type_in(monkeypatch, b"")
    assert ask().endswith("bye\n")


def test_a_chat_survives_empty_lines_and_bytes_that_are_not_text(ask, monkeypatch):
    type_in(monkeypatch, "你好\n\n   \n".encode() + b"\xff\xfe\x80 what\n")
    out = ask("--temperature", 0)
    assert out.count("> ") == 5
    assert out.endswith("bye\n")


def test_ctrl_c_stops_an_answer_and_then_the_chat(ask, monkeypatch):
    type_in(monkeypatch, "你好\n".encode())

    def interrupted(*_):
        yield "半"
        raise KeyboardInterrupt

    monkeypatch.setattr(conversation, "stream_text", interrupted)
    out = ask()
    assert "半 (stopped)\n" in out
    assert out.endswith("bye\n")
    monkeypatch.setattr("builtins.input", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    assert ask().endswith("bye\n")


@pytest.mark.parametrize("count", [0, 1, 4])
def test_the_chat_remembers_as_many_pairs_as_asked(ask, monkeypatch, count):
    seen, original = [], conversation.Conversation.prompt

    def spy(self, question, history=()):
        seen.append([asked for asked, _ in history])
        return original(self, question, history)

    monkeypatch.setattr(conversation.Conversation, "prompt", spy)
    type_in(monkeypatch, b"a\nb\nc\n")
    ask("--history_cnt", count, "--max_seq_len", 512)
    assert seen == [["a", "b", "c"][max(0, n - count) : n] for n in range(3)]


def test_the_oldest_pairs_are_left_out_when_the_context_is_full(model):
    speaker = conversation.Conversation(model, TOKENIZER, True, None, 32, {})
    history = [(f"问题{n}" * 5, f"回答{n}" * 5) for n in range(4)]
    ids = speaker.prompt("现在呢？", history)
    kept = [n for n in range(4) if f"问题{n}" in TOKENIZER.decode(ids, skip_special_tokens=False)]
    assert kept and kept == list(range(4 - len(kept), 4)) and len(kept) < 4
    assert len(ids) + 32 <= 128 < len(speaker.encode("现在呢？", history[kept[0] - 1 :])) + 32


def test_a_question_longer_than_the_context_is_an_error_with_numbers_and_the_chat_goes_on(ask, monkeypatch):
    with pytest.raises(ValueError, match=r"takes \d+ tokens of a context of 128"):
        ask("--prompt", "龘" * 500)
    type_in(monkeypatch, ("龘" * 500 + "\n你好\n").encode())
    out = ask("--temperature", 0)
    assert "tokens of a context of 128" in out
    assert ask("--temperature", 0, "--prompt", "你好").strip() in out


def test_an_answer_stops_where_the_context_ends(model):
    speaker = conversation.Conversation(model, TOKENIZER, True, None, 512, {"end_id": -1, "temperature": 0})
    ids = speaker.prompt("你好")
    text = TOKENIZER.decode(greedy(model, ids, 128 - len(ids)), skip_special_tokens=False)
    assert speaker.answers([ids, [*ids, 5, 6, 7]])[0] == "".join(speaker.stream(ids)) == text


# ------------------------------------------------------------------------------------------ foreign weights


@pytest.mark.parametrize("tied", [True, False], ids=["with_output", "without_output"])
def test_published_weights_with_8_key_value_heads_load_without_flags(ask, tmp_path, tied):
    model = tiny(n_heads=8, n_kv_heads=8, max_seq_len=512)
    weights = cpu_weights(model)
    if not tied:
        del weights["output.weight"]
    torch.save(weights, tmp_path / "SFT.pth")
    out = ask("--save_dir", tmp_path, "--temperature", 0, "--prompt", "你好")
    assert "8 heads and RoPE theta 1e+06 are assumed" in out
    assert "does not say which tokenizer" in ask.warned
    ids = SFTDataset(TOKENIZER).prompt([{"role": "user", "content": "你好"}])
    assert out.endswith(TOKENIZER.decode(greedy(model, ids), skip_special_tokens=False) + "\n")


def test_pickled_code_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    (tmp_path / "bomb.pth").write_bytes(pickle.dumps({"tok_embeddings.weight": Bomb()}, protocol=2))
    torch.save({"tok_embeddings.weight": Bomb()}, tmp_path / "zipped.pth")
    for name in ("bomb", "zipped"):
        with pytest.raises(ValueError, match="not a readable checkpoint"):
            eval_model.main(["--ckpt", str(tmp_path / f"{name}.pth"), "--prompt", "x"])
    assert not (tmp_path / "exploded").exists()


def test_another_tokenizers_weights_are_refused(model, tmp_path):
    save(model, tmp_path / "SFT.pth", tokenizer="0123456789ab")
    with pytest.raises(ValueError, match="--tokenizer_dir"):
        eval_model.main(["--save_dir", str(tmp_path), "--prompt", "x"])


@pytest.mark.parametrize("scaling", [None, SCALING], ids=["plain", "scaled"])
def test_the_exported_folder_loads_in_transformers_and_says_the_same(ask, tmp_path, scaling):
    model, folder = tiny(rope_scaling=scaling, rope_theta=50000.0), tmp_path / "hf"
    save(model, tmp_path / "SFT.pth")
    export.main(["--format", "hf", str(folder), "--save_dir", str(tmp_path)])

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 50000.0
    assert config["tie_word_embeddings"] and (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    assert config.get("rope_scaling", {}).get("factor") == (scaling or {}).get("factor")
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = torch.randint(6400, (2, 37), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (theirs(ids).logits - model(ids).logits).abs().max() < 1e-4

    messages = [{"role": "user", "content": "天空为什么是蓝色的？"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    assert prompt[0].tolist() == SFTDataset(TOKENIZER).prompt(messages)
    answer = theirs.generate(prompt, max_new_tokens=12, do_sample=False)[0, prompt.shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == TOKENIZER.decode(greedy(model, prompt[0].tolist()))
    with pytest.raises(ValueError, match="nothing is overwritten"):
        hugging_face.to_hf(model, TOKENIZER_DIR, folder)
