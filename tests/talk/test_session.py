"""A chat's memory and its commands."""

import json

import pytest

from dataset import SFTDataset
from engine.talk.chat_model import ChatModel

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("count", [0, 1, 4])
def test_history_cnt_pairs_are_in_the_next_prompt(ask, monkeypatch, count):
    histories, original = [], ChatModel.make_prompt

    def spy(self, question, history=()):
        histories.append([question for question, _ in history])
        return original(self, question, history)

    monkeypatch.setattr(ChatModel, "make_prompt", spy)
    ask("--history_cnt", count, "--max_seq_len", 512, typed="a\nb\nc\n")
    assert histories == [["a", "b", "c"][max(0, n - count) : n] for n in range(3)]


def test_commands_change_the_next_answers(ask, tmp_path):
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
    out = ask("--temperature", 1, typed="\n".join(lines))
    usual = ask("--temperature", 0, "--prompt", "你好")
    english = ask("--temperature", 0, "--system", "说英语", "--prompt", "你好")
    short = ask("--temperature", 0, "--system", "说英语", "--max_new_tokens", 3, "--prompt", "你好")
    assert f"> {usual}> system message: 说英语\n> forgotten\n> {english}> " in out and f"> {short}> " in out
    assert "temperature 0.0  top_p 0.9" in out and "max_new_tokens 3\n" in out


def test_saved_chat_is_a_row_that_training_reads(ask, tmp_path):
    file = tmp_path / "talks.jsonl"
    assert f"2 pairs added to {file}" in ask(
        "--history_cnt", 1, typed=f"/system 短\na\nb\n/save {file}\n/reset\nc\n/save {file}\n"
    )
    first, second = (SFTDataset.read(json.loads(line)) for line in file.read_text("utf-8").splitlines())
    assert [turn["role"] for turn in first] == ["system", "user", "assistant", "user", "assistant"]
    assert [turn["content"] for turn in first[::2]][0] == "短" and second[1]["content"] == "c"


@pytest.mark.parametrize(
    "line, message",
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
def test_impossible_command_says_why_and_the_chat_continues(ask, line, message):
    out = ask("--temperature", 0, typed=f"{line}\n你好\n")
    assert message in out and ask("--temperature", 0, "--prompt", "你好") in out


def test_failed_save_does_not_end_the_chat(ask):
    assert ask("--temperature", 0, typed="你好\n/save ~no-such-user/x.jsonl\n你好\n").endswith("bye\n")


def test_largest_seed_serves_every_turn(ask):
    assert "must be" not in ask("--seed", 2**64 - 1, typed="你好\n你好\n")
