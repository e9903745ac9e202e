"""A checkpoint answers in a terminal: every mode, the chat and its memory, the limits of the context."""

import io
import json
import sys
from types import SimpleNamespace

import pytest
from factories import TOKENIZER, greedy

import eval_model
from dataset import SFTDataset
from engine.generate.fast_decoder import Decoder
from engine.generate.sampling import Sampling
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


def test_the_seed_decides_what_is_sampled(ask):
    first, again, other = (ask("--temperature", 1, "--seed", seed, "--prompt", "你好") for seed in (1, 1, 2))
    assert first == again != other


def test_a_system_message_changes_the_prompt(ask):
    assert ask("--temperature", 0, "--prompt", "你好") != ask(
        "--temperature", 0, "--system", "说英语", "--prompt", "你好"
    )
    with pytest.raises(ValueError, match="no system message"):
        ask("--model_mode", 0, "--system", "说英语", "--prompt", "你好")


@pytest.mark.parametrize(
    "argv, words",
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

    monkeypatch.setattr(terminal, "stream_text", interrupted)
    out = ask()
    assert "半 (stopped)\n" in out
    assert out.endswith("bye\n")
    with pytest.raises(KeyboardInterrupt):  # code 130
        ask("--prompt", "你好")
    monkeypatch.setattr("builtins.input", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    assert ask().endswith("bye\n")


@pytest.mark.parametrize("count", [0, 1, 4])
def test_the_chat_remembers_as_many_pairs_as_asked(ask, monkeypatch, count):
    seen, original = [], chat_model.ChatModel.make_prompt

    def spy(self, question, history=()):
        seen.append([asked for asked, _ in history])
        return original(self, question, history)

    monkeypatch.setattr(chat_model.ChatModel, "make_prompt", spy)
    type_in(monkeypatch, b"a\nb\nc\n")
    ask("--history_cnt", count, "--max_seq_len", 512)
    assert seen == [["a", "b", "c"][max(0, n - count) : n] for n in range(3)]


def test_the_oldest_pairs_are_left_out_when_the_context_is_full(model):
    speaker = chat_model.ChatModel(Decoder(model), TOKENIZER, True, None, 32)
    history = [(f"问题{n}" * 5, f"回答{n}" * 5) for n in range(4)]
    ids, left_out = speaker.make_prompt("现在呢？", history)
    kept = [n for n in range(4) if f"问题{n}" in TOKENIZER.decode(ids, skip_special_tokens=False)]
    assert kept and kept == list(range(4 - len(kept), 4)) and left_out == 2 * (4 - len(kept)) > 0
    assert (
        len(ids) + 32
        <= 128
        < len(speaker.encode_messages(speaker.build_messages(history[kept[0] - 1 :], "现在呢？"))) + 32
    )


def test_a_question_longer_than_the_context_is_an_error_with_numbers_and_the_chat_goes_on(ask, monkeypatch):
    with pytest.raises(ValueError, match=r"takes \d+ tokens of a context of 128"):
        ask("--prompt", "龘" * 500)
    type_in(monkeypatch, ("龘" * 500 + "\n你好\n").encode())
    out = ask("--temperature", 0)
    assert "tokens of a context of 128" in out
    assert ask("--temperature", 0, "--prompt", "你好").strip() in out


def test_an_answer_stops_where_the_context_ends(model):
    speaker = chat_model.ChatModel(Decoder(model), TOKENIZER, True, None, 512, Sampling(temperature=0))
    ids = speaker.make_prompt("你好").ids
    text = TOKENIZER.decode(greedy(model, ids, 128 - len(ids)), skip_special_tokens=False)
    requests = [speaker.make_request(ids), speaker.make_request([*ids, 5, 6, 7])]
    for _ in speaker.generate(requests):
        pass
    assert requests[0].written == "".join(terminal.stream_text(speaker, speaker.make_request(ids))) == text
    assert requests[0].finish_reason == "length" and len(ids) + len(requests[0].ids) == 128
    assert len(requests[1].prompt) + len(requests[1].ids) == 128


# ------------------------------------------------------------------------------------------- commands of a chat


def test_commands_change_how_the_next_answers_are_made(ask, monkeypatch, tmp_path):
    lines = [
        "/params temperature 0",
        "你好",
        "/system 说英语",
        "/reset",
        "你好",
        "/params max_new_tokens 3",
        "/reset",
        "你好",
        "/params",
    ]
    type_in(monkeypatch, "\n".join(lines).encode())
    out = ask("--temperature", 1)
    usual = ask("--temperature", 0, "--prompt", "你好")
    english = ask("--temperature", 0, "--system", "说英语", "--prompt", "你好")
    short = ask("--temperature", 0, "--system", "说英语", "--max_new_tokens", 3, "--prompt", "你好")
    assert f"> {usual}> system message: 说英语\n> forgotten\n> {english}> " in out and f"> {short}> " in out
    assert "temperature 0.0  top_p 0.9" in out and "max_new_tokens 3\n" in out


def test_a_talk_is_saved_as_a_row_that_training_reads(ask, monkeypatch, tmp_path):
    file = tmp_path / "talks.jsonl"
    type_in(monkeypatch, f"/system 短\na\nb\n/save {file}\n/reset\nc\n/save {file}\n".encode())
    assert f"2 pairs added to {file}" in ask("--history_cnt", 1)
    first, second = (SFTDataset.read(json.loads(line)) for line in file.read_text("utf-8").splitlines())
    assert [turn["role"] for turn in first] == ["system", "user", "assistant", "user", "assistant"]
    assert [turn["content"] for turn in first[::2]][0] == "短" and second[1]["content"] == "c"


@pytest.mark.parametrize(
    "line, words",
    [
        ("/params temperature hot", "expected float"),
        ("/params heat 1", "choose one of temperature"),
        ("/params top_p 2", "top_p 2.0 must"),
        ("/params max_new_tokens 0", "more than 0"),
        ("/save", "into which file"),
        ("/save x.jsonl", "nothing to save"),
        ("/sistem", "no such command"),
        ("/params top_k 1.5", "expected int"),
    ],
)
def test_a_command_that_cannot_be_obeyed_says_why_and_the_chat_goes_on(ask, monkeypatch, line, words):
    type_in(monkeypatch, f"{line}\n你好\n".encode())
    out = ask("--temperature", 0)
    assert words in out and ask("--temperature", 0, "--prompt", "你好") in out


def test_what_stands_between_quotation_marks_is_no_command(ask, monkeypatch):
    type_in(monkeypatch, '"""/exit"""\n你好\n'.encode())
    assert "no such command" not in (out := ask("--temperature", 0)) and out.endswith("bye\n")
    assert ask("--temperature", 0, "--prompt=/exit") in out


def test_a_talk_that_was_not_saved_goes_on(ask, monkeypatch):
    type_in(monkeypatch, "你好\n/save ~nobody-at-all/x.jsonl\n你好\n".encode())
    assert ask("--temperature", 0).endswith("bye\n")


def test_the_largest_seed_serves_every_turn(ask, monkeypatch):
    type_in(monkeypatch, "你好\n你好\n".encode())
    assert "must be" not in ask("--seed", 2**64 - 1)


def test_a_thought_that_is_stopped_leaves_the_terminal_bright(monkeypatch, capsys):
    def interrupted(*_):
        yield from ("<think>", "\n半")
        raise KeyboardInterrupt

    monkeypatch.setattr(terminal, "stream_text", interrupted)
    monkeypatch.setattr(terminal.sys.stdout, "isatty", lambda: True)
    for stream in (True, False):
        terminal.print_answer(None, SimpleNamespace(written="<think>\n半"), stream)
        out = capsys.readouterr().out
        assert out.endswith(f"半{terminal.NORMAL} (stopped)\n") and out.rindex(terminal.NORMAL) > out.find(terminal.DIM)


@pytest.mark.parametrize("size", [1, 3, 99])
def test_a_thought_is_dimmed_up_to_its_closing_tag(size):
    for text in ("\n<think>想</th\n</think>\n二", "<thinking>二", "二<think>想</think>"):
        shown = "".join(terminal.dim_thought(text[at : at + size] for at in range(0, len(text), size)))
        dimmed = f"{terminal.DIM}\n<think>想</th\n</think>{terminal.NORMAL}\n二"
        assert shown == (dimmed if text.startswith("\n") else text)


def test_lines_between_three_quotation_marks_are_one_question(ask, monkeypatch):
    type_in(monkeypatch, '"""你好\n/exit\n  再见"""\n'.encode())
    assert ask("--temperature", 0, "--prompt", "你好\n/exit\n  再见") in ask("--temperature", 0)


def test_every_line_of_a_file_is_answered_in_order_as_alone(ask, tmp_path, monkeypatch):
    monkeypatch.setattr(chat_model, "MAX_BATCH_SIZE", 3)
    questions = ["你好", "-1 + 2", *(f"问题{n}" * n for n in range(1, 6))]
    plain, rows = tmp_path / "lines.txt", tmp_path / "lines.jsonl"
    plain.write_text("\n\n".join(questions), encoding="utf-8")
    rows.write_text("\n".join(json.dumps({"prompt": one}) for one in questions), encoding="utf-8")
    out = ask("--temperature", 0, "--prompt_file", plain)
    assert out == ask("--temperature", 0, "--prompt_file", rows)
    told = [json.loads(line) for line in out.splitlines()]
    assert [row["prompt"] for row in told] == questions and {row["finish_reason"] for row in told} <= {"length", "stop"}
    for row in told:
        assert ask("--temperature", 0, f"--prompt={row['prompt']}") == row["answer"] + "\n"
    rows.write_text('{"prompt": "a"}\n{"text": "b"}')
    with pytest.raises(ValueError, match=r'lines.jsonl:2: expected {"prompt": text}'):
        ask("--prompt_file", rows)
    for content, words in ((b"[" * 100000, "lines.jsonl:1: not a JSON line"), (b"\xff", "lines.jsonl: not UTF-8")):
        rows.write_bytes(content)
        with pytest.raises(ValueError, match=words):
            ask("--prompt_file", rows)
    rows.write_bytes('\ufeff{"prompt": "你好"}\r\n'.encode())
    assert json.loads(ask("--temperature", 0, "--prompt_file", rows)) == told[0]
    with pytest.raises(OSError):
        ask("--prompt_file", "")


def test_what_was_cut_or_left_out_is_told_beside_the_answer(ask, monkeypatch):
    ask("--temperature", 0, "--max_new_tokens", 3, "--prompt", "你好")
    assert "cut after 3 tokens" in ask.warned
    type_in(monkeypatch, ("问题" * 9 + "\n").encode() * 6)
    ask("--temperature", 0)
    assert "the context of 128 tokens is full: 1 oldest pairs left out" in ask.warned
