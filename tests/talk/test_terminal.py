"""A checkpoint answers in a terminal: every mode, prompts, files, and a chat until its input ends."""

import json
from types import SimpleNamespace

import pytest
from factories import TOKENIZER, greedy

import eval_model
from dataset import SFTDataset
from engine.talk import chat_model, terminal

pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_seed_decides_the_sampled_answer(ask):
    first, again, other = (ask("--temperature", 1, "--seed", seed, "--prompt", "你好") for seed in (1, 1, 2))
    assert first == again != other


def test_system_message_changes_the_prompt(ask):
    assert ask("--temperature", 0, "--prompt", "你好") != ask(
        "--temperature", 0, "--system", "说英语", "--prompt", "你好"
    )
    with pytest.raises(ValueError, match="no system message"):
        ask("--model_mode", 0, "--system", "说英语", "--prompt", "你好")


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--long", "--model_mode", "0"], "--long"),
        (["--long", "--ckpt", "a.pth"], "--long"),
        (["--temperature", "-1"], "--temperature -1"),
        (["--temperature", "200"], "--temperature 200.0 must be at most 100"),
        (["--top_p", "1.5"], "--top_p 1.5"),
        (["--top_p", "0"], "--top_p 0"),
        (["--export", "onnx", "there"], "export.py"),
        (["--history_cnt", "-1"], "--history_cnt -1"),
    ],
)
def test_impossible_flags_are_refused_by_name(argv, message):
    with pytest.raises(ValueError, match=message):
        eval_model.main(argv)


def test_named_checkpoint_chats_or_continues_as_its_json_says(ask, results):
    for name, mode in (("pretrain", 0), ("distill", 1)):
        answer = ask("--temperature", 0, "--ckpt", results / f"{name}.pth", "--prompt", "你好")
        assert answer == ask("--temperature", 0, "--model_mode", mode, "--prompt", "你好")


def test_end_of_input_ends_the_chat(ask):
    assert ask(typed="").endswith("bye\n")


def test_chat_survives_empty_lines_and_invalid_bytes(ask):
    out = ask("--temperature", 0, typed="你好\n\n   \n".encode() + b"\xff\xfe\x80 what\n")
    assert out.count("> ") == 5
    assert out.endswith("bye\n")


def test_ctrl_c_stops_an_answer_and_then_the_chat(ask, monkeypatch):
    def interrupted(*_):
        yield "半"
        raise KeyboardInterrupt

    monkeypatch.setattr(terminal, "stream_text", interrupted)
    out = ask(typed="你好\n")
    assert "半 (stopped)\n" in out
    assert out.endswith("bye\n")
    with pytest.raises(KeyboardInterrupt):  # code 130
        ask("--prompt", "你好")
    monkeypatch.setattr("builtins.input", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    assert ask().endswith("bye\n")


def test_too_long_question_is_an_error_with_numbers(ask):
    with pytest.raises(ValueError, match=r"takes \d+ tokens of a context of 128"):
        ask("--prompt", "龘" * 500)
    out = ask("--temperature", 0, typed=("龘" * 500 + "\n你好\n"))
    assert "tokens of a context of 128" in out
    assert ask("--temperature", 0, "--prompt", "你好").strip() in out


def test_quoted_line_is_no_command(ask):
    out = ask("--temperature", 0, typed='"""/exit"""\n你好\n')
    assert "no such command" not in out and out.endswith("bye\n")
    assert ask("--temperature", 0, "--prompt=/exit") in out


def test_quoted_lines_are_one_question(ask):
    answer = ask("--temperature", 0, "--prompt", "你好\n/exit\n  再见")
    assert answer in ask("--temperature", 0, typed='"""你好\n/exit\n  再见"""\n')


def test_stopped_thought_leaves_the_terminal_bright(monkeypatch, capsys):
    def interrupted(*_):
        yield from ("<think>", "\n半")
        raise KeyboardInterrupt

    monkeypatch.setattr(terminal, "stream_text", interrupted)
    monkeypatch.setattr(terminal.sys.stdout, "isatty", lambda: True)
    for stream in (True, False):
        terminal.print_answer(None, SimpleNamespace(written="<think>\n半"), stream)
        out = capsys.readouterr().out
        assert out.endswith(f"半{terminal.NORMAL} (stopped)\n") and out.rindex(terminal.NORMAL) > out.find(terminal.DIM)


@pytest.mark.parametrize(
    "text", ["\n<think>想</th\n</think>\n二", "<think>想", "<thinking>二", "二<think>想</think>", "<th"]
)
def test_thought_is_dimmed_up_to_its_closing_tag(text):
    dimmed = {
        "\n<think>想</th\n</think>\n二": f"{terminal.DIM}\n<think>想</th\n</think>{terminal.NORMAL}\n二",
        "<think>想": f"{terminal.DIM}<think>想{terminal.NORMAL}",
    }.get(text, text)
    assert terminal.dim_thought(text, is_whole=True) == dimmed
    assert all(dimmed.startswith(terminal.dim_thought(text[:end], is_whole=False)) for end in range(len(text) + 1))


def test_lines_of_a_file_are_answered_in_order_as_alone(ask, tmp_path, monkeypatch):
    monkeypatch.setattr(chat_model, "MAX_BATCH_SIZE", 3)
    questions = ["你好", "-1 + 2", *(f"问题{n}" * n for n in range(1, 6))]
    plain, rows = tmp_path / "lines.txt", tmp_path / "lines.jsonl"
    plain.write_text("\n\n".join(questions), encoding="utf-8")
    rows.write_text("\n".join(json.dumps({"prompt": question}) for question in questions), encoding="utf-8")
    out = ask("--temperature", 0, "--prompt_file", plain)
    assert out == ask("--temperature", 0, "--prompt_file", rows)
    answers = [json.loads(line) for line in out.splitlines()]
    assert [row["prompt"] for row in answers] == questions
    assert {row["finish_reason"] for row in answers} <= {"length", "stop"}
    for row in answers:
        assert ask("--temperature", 0, f"--prompt={row['prompt']}") == row["answer"] + "\n"
    rows.write_text('{"prompt": "a"}\n{"text": "b"}')
    with pytest.raises(ValueError, match=r'lines.jsonl:2: expected {"prompt": text}'):
        ask("--prompt_file", rows)
    for content, message in ((b"[" * 100000, "lines.jsonl:1: not a JSON line"), (b"\xff", "lines.jsonl: not UTF-8")):
        rows.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            ask("--prompt_file", rows)
    rows.write_bytes('\ufeff{"prompt": "你好"}\r\n'.encode())
    assert json.loads(ask("--temperature", 0, "--prompt_file", rows)) == answers[0]
    with pytest.raises(OSError):
        ask("--prompt_file", "")


def test_cut_answers_and_dropped_pairs_are_warned_of(ask):
    ask("--temperature", 0, "--max_new_tokens", 3, "--prompt", "你好")
    assert "cut after 3 tokens" in ask.warned
    ask("--temperature", 0, typed=("问题" * 9 + "\n") * 6)
    assert "the context of 128 tokens is full: 1 oldest pairs left out" in ask.warned
