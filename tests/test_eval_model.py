"""Every door of eval_model.py opens, and says why when it does not."""

import json

import pytest
from making import chat, greedy, save_checkpoint, tiny, write_rows

import eval_model
from dataset import SFTDataset


@pytest.mark.parametrize("mode", [["0"], ["1"], ["2"], ["1", "--long"], ["2", "--long"]])
def test_every_mode_answers_a_prompt(ask, model, mode, tokenizer):
    out = ask("--model_mode", *mode, "--temperature", 0, "--prompt", "从前有一座山")
    if mode == ["0"]:
        ids = [1, *tokenizer.encode("从前有一座山", add_special_tokens=False).ids]
    else:
        ids = SFTDataset(tokenizer).prompt([{"role": "user", "content": "从前有一座山"}])
    assert out == tokenizer.decode(greedy(model, ids), skip_special_tokens=False) + "\n"
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


@pytest.mark.parametrize("argv, words", [
    (["--long", "--model_mode", "0"], "--long"), (["--long", "--ckpt", "a.pth"], "--long"),
    (["--temperature", "-1"], "--temperature -1"), (["--top_p", "1.5"], "--top_p 1.5"), (["--top_p", "0"], "--top_p 0"),
    (["--export", "hf", "there"], "python export.py --format hf FOLDER"), (["--history_cnt", "-1"], "--history_cnt -1"),
])  # fmt: skip
def test_impossible_flags_are_refused_by_name(argv, words):
    with pytest.raises(ValueError, match=words):
        eval_model.main(argv)


def test_a_named_checkpoint_chats_or_continues_as_its_json_says(ask, results):
    at = lambda name: ask("--temperature", 0, "--ckpt", results / f"{name}.pth", "--prompt", "你好")
    assert at("pretrain") == ask("--temperature", 0, "--model_mode", 0, "--prompt", "你好")
    assert at("distill") == ask("--temperature", 0, "--model_mode", 1, "--prompt", "你好")


# ------------------------------------------------------------------------------------------------------ scores

MIXED = [{"text": "海风" * n} for n in (3, 90, 9)] + [chat(f"你好\u2028{n}", "好" * n) for n in range(1, 8)]


def test_the_front_door_prints_and_keeps_figures_by_file(tmp_path, capsys, one_thread):
    save_checkpoint(tiny(), tmp_path / "SFT.pth")
    save_checkpoint(tiny(seed=1), tmp_path / "pretrain.pth", stage="pretrain")
    fixed = ["--save_dir", str(tmp_path), "--device", "cpu", "--dtype", "float32", "--max_new_tokens", "8"]
    rows, other = write_rows(tmp_path / "rows.jsonl", MIXED), write_rows(tmp_path / "other.jsonl", MIXED[:2])
    eval_model.main([*fixed, "--score", str(rows), "--baseline", str(tmp_path / "pretrain.pth")])
    out = capsys.readouterr().out
    kept = json.loads((tmp_path / "SFT.scores.json").read_text(encoding="utf-8"))
    found = kept["rows.jsonl"]["figures"]["bits_per_byte"]
    assert f"{found['value']:.4f}" in out and f"[{found['low']:.4f}, {found['high']:.4f}]" in out
    assert "| checkpoint | rows: bits per byte |" in out and "| SFT | " in out and "before    after" in out
    against = kept["rows.jsonl"]["baseline"]
    assert against["figures"]["exact"]["n"] == 7 and (tmp_path / against["records"]).is_file()

    eval_model.main([*fixed, "--score", str(other), "--score_rows", "1"])
    merged = json.loads((tmp_path / "SFT.scores.json").read_text(encoding="utf-8"))
    assert merged["rows.jsonl"] == kept["rows.jsonl"] and merged["other.jsonl"]["rows"] == 1


@pytest.mark.parametrize("argv, words", [
    (["--baseline", "SFT.pth"], "--baseline is not read by a chat, only by --score"),
    (["--shots", "-1", "--score", "x"], "--shots -1"),
    (["--score_rows", "-1"], "--score_rows -1"),
    (["--score", "x", "--baseline", "gone.pth"], "--baseline gone.pth: no such checkpoint"),
])  # fmt: skip
def test_impossible_score_flags_are_refused_by_name(argv, words, results, monkeypatch):
    monkeypatch.chdir(results)
    with pytest.raises(ValueError, match=words):
        eval_model.main(argv)
