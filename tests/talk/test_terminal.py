"""A checkpoint answers in a terminal: every mode, prompts, files, and a chat until its input ends."""

import fcntl
import io
import json
import os
import pty
import select
import signal
import sys
import termios
import time
from multiprocessing.reduction import DupFd
from types import SimpleNamespace

import pytest
from factories import TOKENIZER, greedy
from forked import new_process

import eval_model
from dataset import SFTDataset
from engine.console import OutputError, ResultStream
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


class EchoModel:
    """A chat model without weights that remembers its questions and answers "!"."""

    chats, context = True, 128

    def __init__(self, answer="!"):
        self.answer = answer
        self.questions = []
        self.steps = 0

    def make_prompt(self, question, history=()):
        self.questions.append(question)
        return chat_model.Prompt([1])

    def make_request(self, ids, turn=0):
        return SimpleNamespace(prompt=ids, ids=[2], written="", finish_reason=None)

    def generate(self, requests):
        for request in requests:
            self.steps += 1
            request.written, request.finish_reason = self.answer, "stop"
            yield


def type_in(monkeypatch, typed: bytes):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), "utf-8", "surrogateescape"))


@pytest.mark.parametrize(
    "typed, questions",
    [
        ("  从前  \n\n   \n", ["  从前  "]),
        ('"""/exit"""\n', ["/exit"]),
        ('"""\n  a\n\nx = """\n/exit\n"""\nb\n', ['  a\n\nx = """\n/exit', "b"]),
        ('"""first\n    """\nlast \n"""\n', ['first\n    """\nlast ']),
        ('"""\nthe input ends\nhere', ["the input ends\nhere"]),
        ('a\n"""', ["a"]),
        ("tab\tand\x00 nul\n", ["tab\tand\x00 nul"]),
    ],
)
def test_questions_of_a_chat_are_asked_as_typed(monkeypatch, typed, questions):
    type_in(monkeypatch, typed.encode())
    asked = EchoModel()
    terminal.chat(asked, 4, True)
    assert asked.questions == questions


def test_open_block_at_the_end_of_the_input_is_said(monkeypatch, capsys):
    type_in(monkeypatch, b'"""\na')
    terminal.chat(EchoModel(), 4, True)
    assert "the input ended before" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, questions",
    [
        ("从前  \r\n  从前\n   \n\nend", ["从前  ", "  从前", "   ", "end"]),
        ("\ufeffa\rb\r\n", ["a\rb"]),
        ("\x00\n", ["\x00"]),
    ],
)
def test_lines_of_a_prompt_file_lose_only_their_break(monkeypatch, capsys, tmp_path, content, questions):
    (tmp_path / "lines").write_bytes(content.encode())
    type_in(monkeypatch, content.encode())
    for path in (tmp_path / "lines", terminal.Path("-")):
        asked = EchoModel()
        terminal.answer_file(asked, path)
        assert asked.questions == questions
        assert [json.loads(line)["prompt"] for line in capsys.readouterr().out.splitlines()] == questions


def test_file_without_a_prompt_is_refused_by_name(monkeypatch, tmp_path):
    (tmp_path / "empty").write_text("\n\r\n")
    type_in(monkeypatch, b"")
    for path, name in ((tmp_path / "empty", "empty"), (terminal.Path("-"), "stdin")):
        with pytest.raises(ValueError, match=f"{name}: no prompt in it"):
            terminal.answer_file(EchoModel(), path)


def test_text_that_is_not_utf8_is_read_as_such_or_refused():
    assert chat_model.as_text("你好".encode().decode("ascii", "surrogateescape")) == "你好"
    for text in ("\udcff", "\ud800"):
        with pytest.raises(ValueError, match="the text is not UTF-8"):
            terminal.answer_once(EchoModel(), [text], True)


def test_answers_for_a_reader_that_is_gone_are_not_computed(monkeypatch, tmp_path):
    (tmp_path / "lines").write_text("a\n" * 64)
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", ResultStream(stream))
        with pytest.raises(OutputError):
            asked = EchoModel()
            terminal.answer_file(asked, tmp_path / "lines")
        monkeypatch.undo()
    assert asked.steps == 1


@pytest.mark.parametrize("is_terminal", [True, False])
def test_control_characters_reach_a_pipe_and_no_terminal(monkeypatch, capsys, tmp_path, is_terminal):
    answer = "<think>\x1b]0;title\x07</think>\x9b2J\r🏝"
    escaped = "\\u001b]0;title\\u0007</think>\\u009b2J\\u000d🏝"
    (tmp_path / "lines").write_text("a")
    monkeypatch.setattr(terminal.sys.stdout, "isatty", lambda: is_terminal)
    for stream in (True, False):
        terminal.answer_once(EchoModel(answer), ["a"], stream)
        out = capsys.readouterr().out.replace(terminal.DIM, "").replace(terminal.NORMAL, "")
        assert out == (f"<think>{escaped}\n" if is_terminal else f"{answer}\n")
    terminal.answer_once(EchoModel(answer), ["a", "b"], True)
    assert ("\x1b" in capsys.readouterr().out) != is_terminal
    terminal.answer_file(EchoModel(answer), tmp_path / "lines")
    out = capsys.readouterr().out
    assert json.loads(out)["answer"] == answer and ("\x9b" in out) != is_terminal


def chat_on_a_terminal(end, asked):
    """Chat on a terminal, as the process that it sends Ctrl-C to; leave the questions in `asked`."""
    os.setsid()
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the process had that it is forked from
    terminal_end = end.detach()
    fcntl.ioctl(terminal_end, termios.TIOCSCTTY, 0)  # opening it by name does so on Linux alone
    os.tcsetpgrp(terminal_end, os.getpid())
    for descriptor in range(3):
        os.dup2(terminal_end, descriptor)
    model = EchoModel()
    with open(0, closefd=False) as sys.stdin, open(1, "w", closefd=False) as sys.stdout:
        input("ready? ")
        terminal.chat(model, 4, True)
    asked.write_text(json.dumps(model.questions))


def shown_after(terminal_end, awaited, screen, seconds=60):
    """Return what a terminal shows behind a text that is awaited, or None where it does not come."""
    while awaited not in screen:
        if not select.select([terminal_end], [], [], seconds)[0]:
            return None
        try:
            screen += os.read(terminal_end, 4096)
        except OSError:  # its other end is closed
            return None
    return screen.partition(awaited)[2]


def test_ctrl_c_clears_a_line_or_a_block_and_ends_at_the_second(tmp_path):
    """Typed into a terminal, for readline knows what a line held when Ctrl-C came."""
    asked = tmp_path / "asked"
    terminal_end, process_end = pty.openpty()
    process = new_process(chat_on_a_terminal, DupFd(process_end), asked)
    process.start()
    try:
        screen = shown_after(terminal_end, b"ready? ", b"", 120)
        if screen is None:  # Python's own input() on a terminal, not ours
            pytest.skip("another process cannot have a terminal here")
        os.write(terminal_end, b"yes\r")
        for awaited, keys in [
            ("> ", "half"),
            ("half", "\x03"),
            ("> ", "half again"),
            ("again", "\x03"),
            ("> ", '"""\r'),
            ("... ", "line\r"),
            ("... ", "\x03"),
            ("> ", "hello\r"),
            ("!\r\n", ""),
            ("> ", "\x03"),
            ("> ", "more"),
            ("more", "\x03"),
            ("> ", "\x03"),
            ("bye", ""),
        ]:
            screen = shown_after(terminal_end, awaited.encode(), screen)
            assert screen is not None, (awaited, process.exitcode)
            if keys == "\x03":  # Python looks for a signal before it waits for a key, and one in between is not heard
                time.sleep(0.2)
            os.write(terminal_end, keys.encode())
        process.join(20)
    finally:
        process.kill()
        os.close(terminal_end)
        os.close(process_end)
    assert process.exitcode == 0
    assert json.loads(asked.read_text()) == ["hello"]


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
