"""Rows of published data sets: trained on as they are meant, or left out with a message."""

import json
from functools import partial

import numpy as np
import pytest
from factories import write_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import tiny

from dataset import DEFAULT_SYSTEM, NO_LOSS, PretrainDataset, SFTDataset
from engine.corpus import jsonl
from engine.corpus.token_cache import open_or_build
from engine.flags import ROOT
from engine.generate.fast_decoder import Decoder
from engine.schemas import SCHEMAS, Schema
from engine.talk.chat_model import ChatModel

NAN = float("nan")
ASKED, GREETED = {"role": "user", "content": "2+1?"}, {"role": "assistant", "content": "3"}
THOUGHT = "<think>\nOne up.\n</think>\n<answer>\n3\n</answer>"


@pytest.fixture(scope="module")
def tokenizer(small):
    return small


@pytest.fixture
def build(build):
    return partial(build, dataset_class=SFTDataset)


def trained_text(cache, tokenizer):
    """Return the text that is trained on, of every document."""
    texts = []
    for begin, end in zip(cache.offsets[:-1], cache.offsets[1:], strict=True):
        ids = cache.ids[begin:end][cache.classes[begin:end] != NO_LOSS]
        texts.append(tokenizer.decode(ids.tolist(), skip_special_tokens=False))
    return texts


def whole(cache, tokenizer, number=0):
    begin, end = cache.offsets[number], cache.offsets[number + 1]
    return tokenizer.decode(cache.ids[begin:end].tolist(), skip_special_tokens=False)


# -------------------------------------------------------------------------------------------------- schemas


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASKED, GREETED]},
        {"conversations": [{"from": "human", "value": "2+1?"}, {"from": "gpt", "value": "3"}]},
        {"conversations": [{"from": "Human", "content": "2+1?"}, {"from": "bot", "content": "3"}]},
        {"conversations": [{"role": None, "speaker": "user", "text": "2+1?"}, {"speaker": "model", "text": "3"}]},
        {"conversations": [{"content": "2+1?"}, {"content": "3"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "2+1?"}]}, GREETED]},
        {"instruction": "2+1?", "input": "", "output": "3"},
        {"instruction": "", "input": "2+1?", "output": "3", "history": None},
        {"id": 7, "task": "sums", "source": "a book", "conversations": [ASKED, GREETED], "answer": "3"},
        {"messages": json.dumps([ASKED, GREETED])},
        {"messages": [json.dumps(ASKED), GREETED]},
        {"prompt": "2+1?", "completion": "3"},
        {"prompt": "2+1?", "response": "3", "completion": None},
        {"prompt": [ASKED], "completion": [GREETED], "messages": None},
        {"prompt": json.dumps([ASKED]), "completion": [{"from": "gpt", "value": "3"}]},
        # What pandas writes for a value that is missing is no value.
        {"instruction": "2+1?", "input": NAN, "output": "3", "history": NAN, "system": NAN},
        {"messages": [ASKED, {"role": NAN, "from": "gpt", "content": "3", "reasoning": NAN, "weight": NAN}]},
        {"conversations": NAN, "messages": [ASKED, GREETED]},
        {"instruction": "2+1?", "output": "3", "history": "[]"},
    ],
)
def test_one_conversation_under_other_names_gives_the_same_ids(build, tokenizer, row):
    same = build([{"conversations": [ASKED, GREETED]}])
    assert np.array_equal(build([row], strict=True).ids, same.ids)


def test_another_schema_is_another_entry_of_one_table(build, monkeypatch):
    row = {"query": "2+1?", "reply": "3"}
    assert not SFTDataset.holds(row)
    schema = Schema("pairs", ("query", "reply"), lambda row, key: [{"content": row[key]}, {"content": row["reply"]}])
    monkeypatch.setitem(SCHEMAS, "query", schema)
    same = build([{"conversations": [ASKED, GREETED]}])
    assert SFTDataset.holds(row) and np.array_equal(build([row], strict=True).ids, same.ids)
    assert build([row]).meta["sources"][0]["counts"]["notes"]["schema pairs"] == [1, 1]


def test_a_null_field_gives_way_to_another_schema_that_the_row_has(build):
    rows = [
        {"conversations": None, "messages": [ASKED, GREETED]},
        {"messages": None, "instruction": "2+1?", "output": "3"},
    ]
    ids = build(rows, strict=True).ids
    assert np.array_equal(ids[: len(ids) // 2], ids[len(ids) // 2 :])


def test_alpaca_is_system_history_then_instruction_and_input(build, tokenizer):
    row = {"instruction": "Add.", "input": "2+1", "output": "3", "history": [["1+1?", "2"]], "system": "Be brief."}
    turns = ("system\nBe brief.", "user\n1+1?", "assistant\n2", "user\nAdd.\n2+1", "assistant\n3")
    assert whole(build([row], strict=True), tokenizer) == "".join(f"<s>{turn}</s>\n" for turn in turns)


def test_of_a_prompt_and_a_completion_only_the_completion_is_learned(build, tokenizer):
    row = {"prompt": [ASKED, {"role": "assistant", "content": "4"}, ASKED], "completion": [GREETED]}
    cache = build([row, row | {"system": "Be brief."}], strict=True)
    assert "<s>assistant\n4</s>" in whole(cache, tokenizer) and trained_text(cache, tokenizer) == ["3</s>"] * 2
    assert whole(build([{"prompt": "[2]", "response": "3"}]), tokenizer).endswith("[2]</s>\n<s>assistant\n3</s>\n")
    assert whole(cache, tokenizer, 1).startswith("<s>system\nBe brief.</s>")
    assert cache.meta["sources"][0]["counts"]["notes"] == {"schema prompt/completion": [2, 1], "tags none": [2, 1]}


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"text": NAN}, '"text" is null or NaN'),
        ({"messages": [ASKED, {"role": "assistant", "content": NAN}]}, "content of turn 1 is null or NaN"),
        ({"instruction": "2+1?", "output": NAN}, '"output" is null or NaN'),
        ({"instruction": NAN, "input": 3, "output": "3"}, '"input" is int'),
        ({"prompt": NAN, "completion": "3"}, '"prompt" is null or NaN'),
        ({"prompt": "2+1?", "response": NAN}, '"response" is null or NaN'),
        ({"prompt": [{"content": "2+1?"}], "response": "3"}, '"prompt" is list, expected a string'),
        ({"messages": NAN}, '"messages" is null or NaN, expected a list'),
        ({"messages": json.dumps([ASKED, {"role": "assistant", "content": NAN}])}, "content of turn 1 is null or NaN"),
        ({"messages": "[broken"}, '"messages" is str, expected a list'),
        ({"instruction": "2+1?", "output": "3", "history": '{"a": 1}'}, '"history" is dict'),
    ],
)
def test_a_value_that_is_missing_where_words_are_needed_is_named(build, row, reason):
    with pytest.raises(ValueError, match=f"jsonl:1: {reason}"):
        build([row], dataset_class=PretrainDataset if "text" in row else SFTDataset)


@pytest.mark.parametrize("row", [{"text": "3", "prompt": "2+1?"}, {"prompt": "2+1?", "choices": ["3", "4"]}])
def test_a_prompt_without_a_completion_is_no_chat(row):
    assert not SFTDataset.holds(row)


def test_a_system_field_becomes_the_first_turn(build, tokenizer):
    text = whole(build([{"system": "Be brief.", "conversations": [ASKED, GREETED]}], strict=True), tokenizer)
    assert text.startswith("<s>system\nBe brief.</s>\n<s>user\n") and DEFAULT_SYSTEM not in text


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"role": "system", "content": ""}, ASKED, GREETED]},
        {"conversations": [ASKED, GREETED], "system": ""},
        {"instruction": "2+1?", "output": "3", "system": ""},
    ],
)
def test_an_empty_system_message_means_none(build, tokenizer, row):
    assert whole(build([row], strict=True), tokenizer) == "<s>user\n2+1?</s>\n<s>assistant\n3</s>\n"


@pytest.mark.parametrize("key", ["from", "speaker", "role"])
def test_the_row_names_the_speaker_also_where_the_assistant_begins(build, tokenizer, key):
    turns = [{key: "gpt", "content": "Welcome."}, {key: "human", "content": "2+1?"}, {key: "gpt", "content": "3"}]
    assert trained_text(build([{"conversations": turns}]), tokenizer) == ["Welcome.</s>3</s>"]


@pytest.mark.parametrize(
    "turns, reason",
    [
        ([ASKED, {"content": "3"}], "turn 1 does not say who speaks"),
        ([{"who": "bot", "content": "Hi"}, {"who": "me", "content": "2+1?"}], "turn 0 does not say who speaks.*who"),
        ([{"name": "bot", "content": "Hi"}, {"name": "me", "content": "2+1?"}], "turn 0 does not say who speaks"),
        ([ASKED, {"from": "function_call", "value": "add"}, GREETED], "turn 1 has role 'function_call'"),
        ([{"role": "user", "from": "gpt", "content": "Hi"}, GREETED], "turn 0 has role and from, and they differ"),
        ([ASKED, {"role": "assistant", "content": "3", "value": "4"}], "turn 1 has content and value, and they differ"),
    ],
)
def test_an_unclear_speaker_or_text_is_a_bad_row(build, turns, reason):
    with pytest.raises(ValueError, match=f"jsonl:1: {reason}"):
        build([{"conversations": turns}] * 2)  # a file of one object may be meant as another thing


def test_a_tool_turn_is_read_and_not_trained_on(build, tokenizer):
    turns = [
        {"from": "human", "value": "2+1?"},
        {"from": "observation", "value": "three"},
        {"from": "gpt", "value": "3"},
    ]
    cache = build([{"conversations": turns}], strict=True)
    assert "<s>tool\nthree</s>" in whole(cache, tokenizer) and trained_text(cache, tokenizer) == ["3</s>"]


def test_an_unknown_schema_names_its_fields_and_shows_a_valid_line(build):
    with pytest.raises(ValueError, match='(?s)no field "conversations".*"query", "reply".*a valid line: {"conv'):
        build([{"query": "2+1?", "reply": "3"}])
    with pytest.raises(ValueError, match='(?s)no field "text"; it has "conversations".*a valid line: {"text"'):
        build([{"conversations": [ASKED, GREETED]}], dataset_class=PretrainDataset)


# ----------------------------------------------------------------------------- fields that change what is trained on


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_a_separate_thought_is_joined_with_the_answer(build, tokenizer, name):
    turn = GREETED | {name: "One up.\n"}
    assert trained_text(build([{"messages": [ASKED, turn]}], strict=True), tokenizer) == [f"{THOUGHT}</s>"]
    row = {"instruction": "2+1?", "output": "3", name: "One up."}
    assert trained_text(build([row], strict=True), tokenizer) == [f"{THOUGHT}</s>"]


@pytest.mark.parametrize("mark", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False}, {"loss": 0}])
def test_a_turn_of_weight_0_is_read_and_not_trained_on(build, tokenizer, mark):
    wrong = {"role": "assistant", "content": "WRONG"} | mark
    cache = build([{"conversations": [ASKED, wrong, ASKED, GREETED | {"weight": 1}]}], strict=True)
    assert "WRONG</s>" in whole(cache, tokenizer) and trained_text(cache, tokenizer) == ["3</s>"]
    with pytest.raises(ValueError, match="no assistant turn that is trained on"):
        build([{"conversations": [ASKED, wrong]}])


@pytest.mark.parametrize(
    "row, name",
    [
        ({"conversations": [ASKED, GREETED | {"tool_calls": [{"name": "add"}]}]}, "tool_calls"),
        ({"conversations": [ASKED, GREETED], "tools": "[]..."}, "tools"),
        ({"conversations": [ASKED, GREETED], "history": [["a", "b"]]}, "history"),
        ({"conversations": [ASKED, GREETED, ASKED], "chosen": GREETED}, "chosen"),
        ({"conversations": [ASKED, GREETED | {"weight": 0.5}]}, "weight"),
        ({"conversations": [ASKED | {"train": True}, GREETED]}, "train"),
        ({"conversations": [{"role": "system", "content": "a"}, ASKED, GREETED], "system": "b"}, "system"),
        ({"instruction": "a", "output": "b", "rejected": "c"}, "rejected"),
    ],
)
def test_a_field_that_is_not_understood_is_counted_or_bad_when_strict(build, capsys, row, name):
    rows = [row] * 3 + [{"conversations": [ASKED, GREETED]}]
    for _ in range(2):  # built, and opened again
        build(rows)
        assert capsys.readouterr().err.count(f"field {name} of 3 rows is not used") == 1
    with pytest.raises(ValueError, match=f"jsonl:1: field {name} is not used .*--strict_data"):
        build(rows, strict=True)


def test_answers_that_hold_some_of_the_tags_are_counted(build, capsys):
    answers = [
        THOUGHT,
        "One up.\n</think>\n<answer>\n3\n</answer>",
        "3",
        THOUGHT.replace("One", "<answer>4</answer> One"),
    ]
    cache = build([{"conversations": [ASKED, {"role": "assistant", "content": answer}]} for answer in answers])
    assert "1 rows hold some of <think> </think> <answer> </answer>" in capsys.readouterr().err
    assert cache.meta["sources"][0]["counts"]["notes"]["tags none"] == [1, 3]


# ------------------------------------------------------------------------------ answers that are called bad, or empty

WRONG = {"role": "assistant", "content": "WRONG"}


@pytest.mark.parametrize(
    "verdict",
    [{"label": False}, {"correct": "Incorrect"}, {"quality": "bad"}, {"kto_tag": " rejected"}, {"reward": -0.1}]
    + [{"is_verified": False}, {"thumbs_up": False}, {"thumbs": "down"}, {"humanRating": "poor"}, {"rejected": True}]
    + [{"label": "False"}, {"reward_score": "-1.5"}, {"labels": ["wrong", False]}, {"rewards": {"a": -1, "b": -2}}]
    + [{"correct": "No"}, {"accepted": "否"}],
)
def test_an_answer_that_its_row_or_turn_calls_bad_is_not_learned(build, tokenizer, verdict, capsys):
    (name,) = verdict
    good, alpaca = {"conversations": [ASKED, GREETED]}, {"instruction": "2+1?", "output": "WRONG"}
    pair = {"prompt": [ASKED], "completion": [WRONG]}
    bad = [{"messages": [ASKED, WRONG]} | verdict, alpaca | verdict, pair | verdict]
    turn = {"messages": [ASKED, WRONG | verdict, ASKED, GREETED]}
    rows = [good, good, *bad, turn, good]
    cache = build(rows)
    assert trained_text(cache, tokenizer) == ["3</s>"] * 4 and "WRONG</s>" in whole(cache, tokenizer, 2)
    messages = capsys.readouterr().err
    assert f"4 rows, the first in line 3: field {name} calls an answer bad, so it is not learned" in messages
    assert "left out 3 rows of 7: 3 hold no answer that is to be learned" in messages
    with pytest.raises(ValueError, match=f"0.jsonl:3: field {name} calls an answer bad.*--strict_data"):
        build(rows, strict=True)
    assert SFTDataset.read(rows[5])[1]["train"] is False


@pytest.mark.parametrize("name", ["label", "correct"])
def test_a_0_is_a_verdict_only_in_a_file_of_0_and_1(build, tokenizer, name, capsys, monkeypatch):
    def rows(*values):
        return [{"messages": [ASKED, {"role": "assistant", "content": str(value)}], name: value} for value in values]

    assert trained_text(build(rows(1, 0, 1.0, 0.0, 1)), tokenizer) == ["1</s>", "1.0</s>", "1</s>"]
    assert "number" not in capsys.readouterr().err
    ranks = rows(1, 0, 2)
    assert trained_text(build(ranks, rows(1, 1, 0)), tokenizer) == ["1</s>", "0</s>", "2</s>", "1</s>", "1</s>"]
    assert f"0.jsonl: field {name} of 3 rows holds a number or several values" in capsys.readouterr().err
    # Another value of the field may be in a turn, or in another block of the file.
    long = [*rows(0), {"messages": [ASKED, GREETED | {name: 7}]}, *rows(*[1] * 9)]
    assert len(build(long, num_workers=2)) == 11
    stars = [{"messages": [ASKED, GREETED], "rating": 1, "score": 0.0, "rank": 0, "class": 0}]
    assert len(build(stars, strict=True)) == 1
    monkeypatch.setattr(jsonl, "ZERO_FIELD_RE", None)
    assert len(build([{"text": "a text with a class", name: 0}], dataset_class=PretrainDataset)) == 1  # read once
    monkeypatch.undo()
    quoted = [{"messages": [ASKED, {"role": "assistant", "content": f'{{"{name}": 5}}'}], name: 1}, *rows(1, 0)]
    assert len(build(quoted)) == 2


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_row_without_its_0_or_1_leaves_the_verdicts_of_the_others(build, tokenizer, missing):
    labels = {"right": 1, "wrong": 0, "unknown": missing}
    turns = [{"role": "assistant", "content": answer, "label": label} for answer, label in labels.items()]
    cache = build([{"messages": [ASKED, turn]} for turn in turns])
    assert trained_text(cache, tokenizer) == ["right</s>", "unknown</s>"]


@pytest.mark.parametrize(
    "field, message",
    [
        ({"votes": 0}, "votes of 1 rows holds a number"),
        ({"label": "-1"}, "label of 1 rows holds a number"),
        ({"score": -0.5}, "score of 1 rows holds a number"),
        ({"labels": [True, False]}, "labels of 1 rows holds a number or several values"),
        ({"scores": {"style": 0, "facts": 3}}, "scores of 1 rows holds a number"),
        ({"verdict": "off the point"}, "verdict of 1 rows holds a number or several values, or other words"),
        ({"chosen": "WRONG"}, "chosen of 1 rows is not used"),
        ({"rejected": "wrong"}, "rejected of 1 rows is not used"),
        ({"follow_up": False}, "follow_up of 1 rows is not used"),
        ({"label": "no", "tag": "No"}, ""),
        ({"rejected": False, "is_correct": True, "label": "physics", "tags": ["bad"], "class": None}, ""),
    ],
)
def test_a_field_that_calls_no_answer_bad_is_named_and_learned(build, tokenizer, field, message, capsys):
    cache = build([{"messages": [ASKED, GREETED], **field}])
    assert trained_text(cache, tokenizer) == ["3</s>"]
    messages = capsys.readouterr().err
    assert message in messages and bool(message) == bool(messages)


def test_a_file_that_loses_most_rows_is_refused_until_confirmed(build, tokenizer):
    bad, good = {"messages": [ASKED, WRONG], "label": False}, {"messages": [ASKED, GREETED]}
    empty = {"messages": [ASKED | {"content": ""}, GREETED]}
    assert len(build([bad, good], [good] * 9, allow_dropped=False)) == 10
    for rows in ([bad, empty, good], [empty, {"messages": []}, {"messages": []}, good]):
        with pytest.raises(ValueError, match=r"(?s)1.jsonl: \d of \d rows would be left out: .*--allow_dropped"):
            build([good] * 9, rows, allow_dropped=False)
        assert trained_text(build(rows, allow_dropped=True), tokenizer) == ["3</s>"]
        with pytest.raises(ValueError, match="--allow_dropped"):  # also where the cache is there
            build(rows, allow_dropped=False)


@pytest.mark.parametrize("position", range(6))
@pytest.mark.parametrize("words", ["", " \n", [{"type": "text", "text": ""}]])
def test_an_empty_turn_costs_its_pair_and_not_the_conversation(build, tokenizer, position, words, capsys):
    turns = [{"role": ("user", "assistant")[at % 2], "content": f"{at}"} for at in range(6)]
    turns[position] = turns[position] | {"content": words, "reasoning_content": "a thought"}
    rows = [{"conversations": turns}]
    left = [f"{at}</s>" for at in (1, 3, 5) if at // 2 != position // 2]
    assert trained_text(build(rows), tokenizer) == ["".join(left)]
    assert "1 rows, the first in line 1: a turn has no words" in capsys.readouterr().err
    with pytest.raises(ValueError, match="0.jsonl:1: a turn has no words.*--strict_data"):
        build(rows, strict=True)


def test_an_empty_alpaca_answer_leaves_the_history(build, tokenizer):
    row = {"instruction": "and 3+1?", "input": "", "output": "", "history": [["2+1?", "3"]]}
    assert trained_text(build([row]), tokenizer) == ["3</s>"]


# ------------------------------------------------------------------- an independent reader, and rows of all kinds


def expected(row):
    """Return the text that is trained on, or None for a bad or empty row: written apart from the program."""
    if "instruction" in row:
        if not isinstance(row.get("output"), str):
            return None
        turns = [("user", row["instruction"] + row["input"], {}), ("assistant", row["output"], row)]
    else:
        items = row["conversations"] if "conversations" in row else row.get("messages")
        if not items:
            return None
        names = {"human": "user", "gpt": "assistant"}
        turns = []
        for item in items:
            who = item["role"] if "role" in item else item.get("from")
            words = item["content"] if "content" in item else item.get("value")
            turns.append((names.get(who, who), words, item))
        if all(who is None for who, _, _ in turns):
            turns = [(("user", "assistant")[at % 2], words, item) for at, (_, words, item) in enumerate(turns)]
    if any(who not in ("system", "user", "assistant") or not isinstance(words, str) for who, words, _ in turns):
        return None
    turns = [turn for at, turn in enumerate(turns) if turn[0] != "system" or turn[1].strip() or at == 0]
    pairs, before = {}, None  # number of a question with its answers -> turns
    for who, words, item in turns:
        pair = len(pairs) - (0 if who == "user" and before != "user" or not pairs else 1)
        pairs.setdefault(pair, []).append((who, words, item))
        before = who
    text = ""
    for pair in pairs.values():
        if all(words.strip() or who == "system" for who, words, _ in pair):
            for who, words, item in pair:
                if who == "assistant" and item.get("weight") != 0 and not is_bad(item) and not is_bad(row):
                    thought = item.get("reasoning_content")
                    form = f"<think>\n{thought}\n</think>\n<answer>\n{words}\n</answer>"
                    text += (form if thought else words) + "</s>"
    return text or None


def is_bad(fields):
    verdict = fields.get("label", fields.get("reward", True))
    return verdict is False or verdict == "Rejected" or (verdict is not True and "reward" in fields and verdict < 0)


WORD = st.sampled_from(["3", "海", "two words", "", " "]) | st.none()
GOOD_WORD = st.sampled_from(["3", "海", "two words"])
VERDICTS = [{}, {}, {}, {"label": True}, {"label": False}, {"label": "Rejected"}, {"reward": -0.5}, {"reward": 0}]


@st.composite
def rows_of_all_kinds(draw):
    words = draw(st.sampled_from([GOOD_WORD, GOOD_WORD, WORD]))
    kind = draw(st.sampled_from(["conversations", "messages", "sharegpt", "alpaca", "unnamed"]))
    extra = st.dictionaries(st.sampled_from(["weight", "reasoning_content", "tool_calls"]), st.just("A thought"))
    verdict = st.sampled_from(VERDICTS)
    if kind == "alpaca":
        row = {"instruction": draw(GOOD_WORD), "input": draw(st.sampled_from(["", "1"])), "output": draw(words)}
        thought = {name: value for name, value in draw(extra).items() if name == "reasoning_content"}
        return row | thought | draw(verdict)
    who, what = ("from", "value") if kind == "sharegpt" else ("role", "content")
    turns = []
    for number in range(draw(st.integers(0, 4))):
        speakers = ("human", "gpt") if kind == "sharegpt" else ("user", "assistant")
        speaker = (
            speakers[number % 2] if draw(st.integers(0, 5)) else draw(st.sampled_from(["system", "narrator", None]))
        )
        turn = {who: speaker} if kind != "unnamed" else {}
        turn[what] = draw(words)
        if kind != "unnamed" and speakers[1] == speaker:
            turn |= {name: 0 if name == "weight" else value for name, value in draw(extra).items()} | draw(verdict)
        turns.append(turn)
    return {"messages" if kind == "messages" else "conversations": turns} | draw(verdict)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(rows=st.lists(rows_of_all_kinds(), max_size=12))
def test_rows_of_all_schemas_agree_with_an_independent_reader(rows, tokenizer, tmp_path_factory):
    rows += [{"conversations": [ASKED, GREETED]}] * (len(rows) + 1)  # never mostly bad
    folder = tmp_path_factory.mktemp("kinds")
    texts = [text for text in map(expected, rows) if text]
    if len(rows) - len(texts) > 10:
        return
    cache = open_or_build([write_rows(folder / "rows.jsonl", rows)], SFTDataset, tokenizer, cache_dir=folder / "cache")
    assert trained_text(cache, tokenizer) == texts
    counts = cache.meta["sources"][0]["counts"]
    assert counts["rows"] == len(rows) == len(cache) + sum(counts[name] for name in ("bad", "empty", "dropped"))


# ------------------------------------------------------------------------------------------- no system message


def test_an_empty_system_message_means_none_in_chat_and_template(tokenizer):
    from transformers import AutoTokenizer

    talk = ChatModel(Decoder(tiny()), tokenizer, True, "", 8)
    plain = "<s>user\n2+1?</s>\n<s>assistant\n"
    assert tokenizer.decode(talk.make_prompt("2+1?").ids, skip_special_tokens=False) == plain
    asked = tokenizer.decode(talk._replace(system=None).make_prompt("2+1?").ids, skip_special_tokens=False)
    assert asked == f"<s>system\n{DEFAULT_SYSTEM}</s>\n{plain}"
    reference = AutoTokenizer.from_pretrained(ROOT / "spongebob_tokenizer")
    messages = [{"role": "system", "content": ""}, ASKED]
    assert reference.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == plain
