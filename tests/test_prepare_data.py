"""prepare_data.py makes rows of what a user has: the stages read them, and nothing is lost in silence."""

import gzip
import importlib
import json
import random
import shutil

import numpy as np
import pytest
from factories import write_rows

import prepare_data
from dataset import SFTDataset
from engine import files as files_module
from engine.corpus import prepared, source
from engine.corpus.token_cache import open_or_build
from engine.packing import truncate_conversations

TEXT = "春天来了，河边的柳树长出了新叶，孩子们在草地上放风筝。"


def chat(*texts):
    roles = ("user", "assistant") * len(texts)
    return {"conversations": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]}


def number_words(seed, count):
    generator = random.Random(seed)
    return "".join(chr(0x4E00 + generator.randrange(3000)) for _ in range(count))


@pytest.fixture
def prepare(tmp_path, tokenizer, monkeypatch, capsys):
    """prepare(*flags) -> prepared.json, of the files in the folder `mine`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare_data, "load_tokenizer", lambda _: tokenizer)
    (tmp_path / "mine").mkdir()

    def prepare(*flags, paths=("mine",)):
        prepare_data.main([*paths, "--num_workers", "1", *flags])
        prepare.printed = capsys.readouterr().out
        out = flags[flags.index("--out") + 1] if "--out" in flags else "prepared"
        return json.loads((tmp_path / out / "prepared.json").read_text("utf-8"))

    return prepare


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def rows_of(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def dropped_of(folder):
    with gzip.open(folder / "dropped.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_a_text_and_a_conversation_may_say_the_same(prepare, tmp_path):
    pair = chat(TEXT[:14], TEXT[14:])
    write_rows(tmp_path / "mine/rows.jsonl", [{"text": f"{TEXT[:14]}\n{TEXT[14:]}"}, pair, {"text": TEXT + "。"}])
    outputs = prepare()["outputs"]
    assert {name: output["rows"] for name, output in outputs.items()} == {"pretrain.jsonl": 1, "sft_512.jsonl": 1}


def test_texts_and_conversations_go_to_their_stages(prepare, tmp_path):
    (tmp_path / "mine/笔记.md").write_text(f"# 春天\n\n{TEXT}", encoding="utf-8")
    thought = "<think>\n一加一\n</think>\n<answer>\n二\n</answer>"
    rows = [
        chat("你好", "你好！"),
        chat("长", number_words(1, 300)),
        chat("1+1?", thought),
        {"text": number_words(2, 50)},
    ]
    write_rows(tmp_path / "mine/rows.jsonl", rows)
    outputs = prepare()["outputs"]
    folder = tmp_path / "prepared"
    assert {name: output["rows"] for name, output in outputs.items()} == {
        "pretrain.jsonl": 2,
        "sft_512.jsonl": 1,
        "sft_1024.jsonl": 1,
        "r1_1024.jsonl": 1,
    }
    assert rows_of(folder / "sft_512.jsonl") == rows[:1] and rows_of(folder / "r1_1024.jsonl") == [rows[2]]
    assert {row["text"] for row in rows_of(folder / "pretrain.jsonl")} == {f"# 春天\n\n{TEXT}", rows[3]["text"]}
    assert {path.name for path in folder.iterdir()} == {*outputs, *prepared.RECORDS}


def test_lengths_are_those_that_the_stages_count(prepare, tmp_path, tokenizer):
    write_rows(
        tmp_path / "mine/rows.jsonl",
        [chat("问", number_words(n, 30 * n), "再问", number_words(-n, 9)) for n in range(1, 40)],
    )
    summary = prepare()
    whole, counted = 0, {}
    for name, row_len in (("sft_512.jsonl", 512), ("sft_1024.jsonl", 1024)):
        cache = open_or_build([tmp_path / "prepared" / name], SFTDataset, tokenizer, cache_dir=tmp_path / "cache")
        segments = truncate_conversations(cache, np.arange(len(cache)), row_len)
        assert segments.truncated == (0, 0, 0)
        whole += len(cache)
        counted[name] = int(segments.lengths.max())
    assert counted["sft_512.jsonl"] <= 512 < counted["sft_1024.jsonl"] <= 1025
    too_long = [rule["dropped"] for rule in summary["rules"] if rule["name"] == "too_long"]
    assert summary["cut"] and too_long[0] and whole + too_long[0] == 39


def test_every_row_is_kept_or_named_with_its_rule(prepare, tmp_path):
    rows = [
        *({"text": number_words(n, 40)} for n in range(20)),
        {"text": " "},
        {"words": "?"},
        {"text": number_words(3, 40)},
    ]
    write_rows(tmp_path / "mine/rows.jsonl", rows)
    (tmp_path / "mine/photo.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99))
    summary = prepare()
    left_out = [(row["file"], row["line"], row["rule"]) for row in dropped_of(tmp_path / "prepared")]
    assert sorted(left_out) == [
        ("rows.jsonl", 21, "empty_row"),
        ("rows.jsonl", 22, "broken_row"),
        ("rows.jsonl", 23, "exact_repeat"),
    ]
    assert [name for name, _ in summary["left"]] == ["photo.png"]
    assert "1 files are left out:\n  an image" in prepare.printed
    (file,) = summary["files"]
    assert file["rows"] == 23 and file["kept"] == 20 and file["rows"] == file["kept"] + sum(file["dropped"].values())


@pytest.mark.usefixtures("quick")
def test_next_commands_are_printed_and_run(prepare, tmp_path):
    thought = "<think>\n{}\n</think>\n<answer>\n二\n</answer>"
    rows = []
    for n in range(8):
        words = number_words(n, 24)
        rows += [{"text": words}, chat(words, words[::-1]), chat(words, thought.format(words)), chat(words, words * 12)]
    write_rows(tmp_path / "mine/rows.jsonl", rows)
    prepare()
    commands = [line.split()[1:] for line in prepare.printed.splitlines() if line.startswith("python ")]
    assert [command[0] for command in commands] == ["pretrain.py", "SFT.py", "SFT.py", "distill.py"]
    tiny = "--max_steps 1 --batch_size 1 --accumulation_steps 1 --device cpu --dtype float32 --num_workers 1"
    for script, *flags in commands:
        shape = "--dim 16 --n_layers 1 --n_heads 1 --n_kv_heads 1" if script == "pretrain.py" else ""
        main = importlib.import_module(script.removesuffix(".py")).main
        main([*flags, *tiny.split(), *shape.split(), "--val_fraction", "0"])
    assert {path.name for path in (tmp_path / "results").glob("*.pth")} == {
        "pretrain.pth",
        "SFT.pth",
        "SFT_long.pth",
        "distill.pth",
    }


def test_equal_bytes_for_any_order_place_and_number_of_processes(prepare, tmp_path):
    for name in "abc":
        rows = [{"text": number_words(ord(name) + n // 2, 60)} for n in range(40)]
        write_rows(tmp_path / f"mine/{name}.jsonl", [*rows, chat(name, number_words(1, 20)), {"text": ""}])
    prepare()
    shutil.copytree(tmp_path / "mine", tmp_path / "elsewhere/mine")
    prepare("--out", "two", "--num_workers", "2", paths=["elsewhere/mine"])
    prepare("--out", "three", paths=[f"mine/{name}.jsonl" for name in "cab"])
    assert contents(tmp_path / "prepared") == contents(tmp_path / "two") == contents(tmp_path / "three")


class Killed(BaseException):
    pass


def test_killed_at_any_moment_leaves_the_old_output_or_the_new_one(prepare, tmp_path, monkeypatch):
    write_rows(tmp_path / "mine/rows.jsonl", [{"text": "old " * 9}, chat("old", "old")])
    prepare()
    old = contents(tmp_path / "prepared")
    write_rows(tmp_path / "mine/rows.jsonl", [{"text": "new " * 9}, chat("new", "new")])
    prepare("--out", "wanted")
    new = contents(tmp_path / "wanted")
    monkeypatch.setattr(files_module.shutil, "rmtree", lambda *_, **__: None)  # the dead clean nothing up
    outcomes = []
    for moment in range(1, 40):
        with monkeypatch.context() as patch:
            calls = iter(range(1, 10_000))

            def die_at(real, calls=calls, moment=moment):
                def call(*args, **kwargs):
                    if next(calls) == moment:
                        raise Killed
                    return real(*args, **kwargs)

                return call

            for owner, name in (
                (files_module.os, "fsync"),
                (files_module.os, "rename"),
                (files_module.os, "replace"),
                (files_module, "_exchange"),
                (prepare_data, "clean_files"),
                (prepare_data, "drop_repeats"),
                (prepare_data, "write_rows"),
                (prepare_data, "write_report"),
                (prepare_data, "remove_others"),
            ):
                patch.setattr(owner, name, die_at(getattr(owner, name)))
            try:
                prepare("--overwrite")
            except Killed:
                outcomes.append(contents(tmp_path / "prepared"))
                continue
        break
    assert len(outcomes) >= 12 and all(outcome in (old, new) for outcome in outcomes)
    assert old in outcomes and contents(tmp_path / "prepared") == new


def test_own_output_is_not_read_again(prepare, tmp_path):
    write_rows(tmp_path / "mine/rows.jsonl", [{"text": TEXT}])
    prepare_data.main(["mine", "--out", "mine/looked_at", "--dry_run", "--num_workers", "1"])
    first = prepare("--out", "mine/prepared")
    assert [file["name"] for file in first["files"]] == ["rows.jsonl"]
    (tmp_path / "mine/prepared.tmp-0123").mkdir()
    write_rows(tmp_path / "mine/prepared.tmp-0123/rows.jsonl", [{"text": "of a run that was killed"}])
    (tmp_path / "mine/prepared.tmp-0123/dropped.jsonl.gz").touch()
    assert prepare("--out", "mine/prepared", "--overwrite") == first


def test_dry_run_leaves_the_report_alone(prepare, tmp_path):
    write_rows(tmp_path / "mine/rows.jsonl", [{"text": TEXT}])
    prepare_data.main(["mine", "--dry_run", "--num_workers", "1"])
    assert [path.name for path in (tmp_path / "prepared").iterdir()] == ["report.html"]
    with pytest.raises(ValueError, match="--out prepared exists already: choose another --out$"):
        prepare("--dry_run", "--overwrite")


def test_held_out_rows_never_get_in(prepare, tmp_path):
    held_out = [
        chat("灯塔多高？", "三十米。"),
        {"question": "Where does the ferry of Monday go?", "answer": "Gull Rock"},
    ]
    write_rows(tmp_path / "questions.jsonl", held_out)
    texts = [{"text": number_words(1, 60)}, {"text": "Where does the ferry of Monday go?\nGull Rock"}]
    write_rows(tmp_path / "mine/rows.jsonl", [held_out[0], chat("灯塔多高？", "不知道。"), *texts])
    summary = prepare("--against", "questions.jsonl")
    assert rows_of(tmp_path / "prepared/pretrain.jsonl") == texts[:1]
    assert rows_of(tmp_path / "prepared/sft_512.jsonl") == [chat("灯塔多高？", "不知道。")]
    assert summary["repeats"]["held_out"]["exact"] == 2


def test_held_out_question_without_its_answer_keeps_copies_out(prepare, tmp_path):
    question = "Which boat brings the mail to the lighthouse on the first Monday of a month?"
    write_rows(tmp_path / "questions.jsonl", [{"messages": [{"role": "user", "content": question}]}])
    write_rows(tmp_path / "mine/rows.jsonl", [{"text": question}, {"text": TEXT}])
    assert prepare("--against", "questions.jsonl")["repeats"]["held_out"] == {"exact": 1, "near": 0, "contained": 0}


def test_held_out_row_that_cannot_be_read_is_an_error(prepare, tmp_path):
    write_rows(tmp_path / "mine/rows.jsonl", [{"text": TEXT}])
    (tmp_path / "questions.jsonl").write_text('{"text": "one"}\n{"text": "tw\n')
    with pytest.raises(ValueError, match="--against questions.jsonl:2: not JSON"):
        prepare("--against", "questions.jsonl")


def test_secrets_stand_neither_in_rows_nor_in_what_is_shown(prepare, tmp_path):
    key, card = "sk-proj-" + "aB3dE5fG7h" * 4, "11010519491231002X"
    rows = [{"text": f"key {key} and {card} of {TEXT}"}, {"text": f"key {key} and {card} of {TEXT}"}, {key: card}]
    write_rows(tmp_path / "mine/rows.jsonl", rows)
    prepare()
    (tmp_path / "prepared/dropped.txt").write_bytes(
        gzip.decompress((tmp_path / "prepared/dropped.jsonl.gz").read_bytes())
    )
    for path in (tmp_path / "prepared").iterdir():
        assert key.encode() not in path.read_bytes() and card.encode() not in path.read_bytes(), path.name


def test_boilerplate_is_counted_for_each_folder_of_documents(prepare, tmp_path):
    line = "Subscribe to our newsletter, and never miss a story."
    for folder in ("site", "notes"):
        (tmp_path / "mine" / folder).mkdir()
        for n in range(30):
            words = f"{number_words(n, 40)}\n"
            more = f"{line}\n" if folder == "site" or n == 0 else ""
            (tmp_path / "mine" / folder / f"{n}.txt").write_text(words + more, encoding="utf-8")
    prepare("--boilerplate", "--no-near_repeat", "--no-exact_repeat")
    assert sum(line in row["text"] for row in rows_of(tmp_path / "prepared/pretrain.jsonl")) == 1


def test_a_stage_with_another_tokenizer_says_so(prepare, tmp_path, small, tokenizer):
    write_rows(tmp_path / "mine/rows.jsonl", [chat("你好", "你好！"), {"text": TEXT}])
    prepare()
    folder = tmp_path / "prepared"
    assert "another tokenizer" in source.find_other_tokenizer(folder / "sft_512.jsonl", small)
    assert not source.find_other_tokenizer(folder / "sft_512.jsonl", tokenizer)
    assert not source.find_other_tokenizer(folder / "pretrain.jsonl", small)  # is not cut by tokens
    assert not source.find_other_tokenizer(tmp_path / "mine/rows.jsonl", small)


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "no files or folders: python prepare_data.py notes/"),
        (["nowhere"], "nowhere: no such file"),
        (["mine", "--out", "mine"], "--out mine exists already: choose another --out, or --overwrite"),
    ],
)
def test_impossible_commands_are_refused_with_the_way_on(prepare, argv, message):
    with pytest.raises(ValueError, match=message):
        prepare_data.main(argv)
