"""The sample corpus keeps its promises: same bytes, right schemas, right answers, nothing leaks into training.

The answers are worked out again here from the text of the questions, not with the code that wrote them.
"""

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from functools import cache
from itertools import chain
from pathlib import Path

import pytest
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "data" / "sample"
STAGES = ("pretrain", "sft_512", "sft_1024", "r1_1024")
TRAINING = [*STAGES]
HELD_OUT = [f"{stage}_heldout" for stage in STAGES]
FILES = TRAINING + HELD_OUT
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
CHATS = ("sft_512", "sft_1024", "r1_1024")
FORM = re.compile(r"<think>\n(.+)\n</think>\n<answer>\n(.+)\n</answer>", re.DOTALL)
DIGITS = "零一二三四五六七八九"
NUMBER = re.compile(f"[{DIGITS}]{{2}}")
LEADS = ("请问，", "只用一个词回答：", "请用英语回答：")
NOTE_FORMS = (
    r"([^，；：。]+)放在([^，；。]+)",
    r"([^，；：。]+)锁在([^，；。]+)号柜",
    r"([^，；：。]+)记在([^，；。]+)页",
)


@cache
def rows(*names):
    lines = chain(*((SAMPLE / f"{name}.jsonl").read_text(encoding="utf-8").splitlines() for name in names))
    return [json.loads(line) for line in lines]


@cache
def module(name):
    """Load a program of the sample: the tables of the town, or of greetings and questions beyond it."""
    spec = importlib.util.spec_from_file_location(f"sample_{name}", SAMPLE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def contents(row, role):
    return [message["content"] for message in row["conversations"] if message["role"] == role]


def turns(*names):
    """Return every (question, answer) of some files."""
    return [*chain(*map(turns_of, rows(*names)))]


def turns_of(row):
    return list(zip(contents(row, "user"), contents(row, "assistant"), strict=True))


def spoken(content):
    """Return the words inside <answer>, or all of them where there is no thought."""
    thought = FORM.fullmatch(content)
    return thought[2] if thought else content


def exchanges(*names):
    """Return every (question, answer as a visitor reads it) of some files."""
    return [(question, spoken(answer)) for question, answer in turns(*names)]


@cache
def all_text(*names):
    return "\n".join(chain(*map(texts, rows(*names))))


def texts(row):
    return [row["text"]] if "text" in row else [message["content"] for message in row["conversations"]]


# ------------------------------------------------------------------------------------------------- the files


def test_sample_program_writes_the_committed_bytes_again(tmp_path):
    """In any locale and with any hash seed."""
    environment = {**os.environ, "PYTHONHASHSEED": "17", "LC_ALL": "C", "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run(
        [sys.executable, SAMPLE / "make_sample.py", "--out", tmp_path], check=True, env=environment, capture_output=True
    )
    names = [*FILES, "choices_heldout", "everyday_heldout", "talks_heldout"]
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(names)
    for name in names:
        new, old = ((folder / f"{name}.jsonl").read_bytes() for folder in (tmp_path, SAMPLE))
        assert hashlib.sha256(new).hexdigest() == hashlib.sha256(old).hexdigest(), name


def test_the_corpus_is_less_than_five_megabytes_and_mostly_chinese():
    assert sum(path.stat().st_size for path in SAMPLE.glob("*.jsonl")) < 5_000_000
    letters = re.findall("[一-鿿]|[A-Za-z]", re.sub("<.*?>", "", all_text(*FILES)))
    chinese = sum(len(letter.encode()) for letter in letters if letter > "z")
    assert 0.8 < chinese / sum(len(letter.encode()) for letter in letters) < 0.95


def test_words_about_a_person_have_one_token_a_character():
    tokenizer = Tokenizer.from_file(str(ROOT / "spongebob_tokenizer" / "tokenizer.json"))
    entries = chain(*(table["values"].split(",") for table in module("world").ATTRS.values()))
    values = [entry.split(":")[0] for entry in entries]
    assert len(values) > 70
    assert all(len(tokenizer.encode(character).ids) == 1 for character in "".join(values))


def test_choices_ask_for_held_out_facts_and_only_the_answer_is_told():
    told = all_text("pretrain")
    questions = rows("choices_heldout")
    people = [entry.strip().split(":")[0] for entry in module("world").PEOPLE.split(",") if entry.strip()]
    assert len(questions) >= 50 and {row["answer"] for row in questions} == {0, 1, 2, 3}
    for row in questions:
        assert len(set(row["choices"])) == 4
        name = next(name for name in people if name in row["question"])
        forms = module("world").ATTRS[row["subject"]]["zh"]
        true = [any(form.format(n=name, v=choice) in told for form in forms) for choice in row["choices"]]
        assert true == [at == row["answer"] for at in range(4)], row


@pytest.mark.parametrize("name", FILES)
def test_rows_follow_the_schema_of_their_stage(name):
    for row in rows(name):
        if name.startswith("pretrain"):
            assert isinstance(row["text"], str) and row["text"].strip()
            continue
        roles = [message["role"] for message in row["conversations"]]
        assert all(message["content"].strip() for message in row["conversations"])
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns == ["user", "assistant"] * (len(turns) // 2) and turns


@pytest.mark.parametrize("name", HELD_OUT)
def test_held_out_rows_name_task_and_answer_and_occur_in_no_training(name):
    key = "text" if name.startswith("pretrain") else "conversations"
    training = {json.dumps(row[key], ensure_ascii=False) for row in rows(name.removesuffix("_heldout"))}
    for row in rows(name):
        assert row["task"] and json.dumps(row[key], ensure_ascii=False) not in training
        if key == "conversations":
            last = contents(row, "assistant")[-1]
            assert row["answer"] == (FORM.fullmatch(last)[2] if name.startswith("r1") else last)


def test_each_format_is_first_met_in_the_stage_that_teaches_it():
    assert not any(mark in all_text("pretrain") for mark in ("您好", "Hello", "请帮我", *TAGS))
    assert not any(tag in all_text("sft_512", "sft_1024") for tag in TAGS)


# ------------------------------------------------------------------------------------------------- the facts


@cache
def question_forms():
    """Return (pattern of a question, attribute) for every wording; the group is the person's name or a pronoun."""
    forms = []
    for attr, table in module("world").ATTRS.items():
        patterns = [re.escape(wording).replace(r"\{n\}", "(.+?)") for wording in table["ask"] + table["ask_en"]]
        forms += [(re.compile(pattern), attr) for pattern in patterns]
    return forms


@cache
def chinese_name():
    people = [entry.strip().split(":") for entry in module("world").PEOPLE.split(",") if entry.strip()]
    return {chinese: chinese for chinese, _, _ in people} | {english: chinese for chinese, english, _ in people}


def english_name():
    return {chinese: name for name, chinese in chinese_name().items() if name != chinese}


def asked(row):
    """Return every (person, attribute, leading words) that a conversation asks about."""
    facts = []
    person = None
    for question in contents(row, "user"):
        lead = next((lead for lead in LEADS if question.startswith(lead)), "")
        question = question.removeprefix(lead).removeprefix("那")
        for pattern, attr in question_forms():
            if match := pattern.fullmatch(question):
                if match[1] not in chinese_name() and match[1] not in "他她":
                    continue  # a stranger
                person = chinese_name().get(match[1], person)  # a pronoun means the person before
                facts.append((person, attr, lead))
    return facts


def asked_facts(*names):
    """Return every (person, attribute) that some files ask about."""
    return {(person, attr) for person, attr, _ in chain(*map(asked, rows(*names)))}


def held_facts():
    """Return {(person, attribute): {the value in Chinese, in English}} of the held-out questions."""
    facts = {}
    for row in rows("sft_512_heldout"):
        if row["task"] in ("fact", "fact_en"):
            ((person, attr, _),) = asked(row)
            facts.setdefault((person, attr), set()).add(row["value"])
    return facts


def test_held_out_facts_are_in_no_training_conversation():
    trained = asked_facts(*CHATS)
    text = all_text("sft_512", "sft_1024", "r1_1024")
    assert len(held_facts()) >= 50
    for (person, attr), values in held_facts().items():
        assert (person, attr) not in trained
        for wording in module("world").ATTRS[attr]["zh"] + module("world").ATTRS[attr]["en"]:
            for name in (person, english_name()[person]):
                assert not any(wording.format(n=name, v=value) in text for value in values)


def test_held_out_facts_combine_people_and_attributes_that_are_trained():
    trained = asked_facts("sft_512")
    for person, attr in held_facts():
        assert sum(other == person for other, _ in trained) >= 4
        assert sum(other == attr for _, other in trained) >= 15
    assert {attr for _, attr in held_facts()} == set(module("world").ATTRS)


def test_held_out_facts_are_told_in_pretraining_in_three_wordings():
    text = all_text("pretrain")
    for (person, attr), values in held_facts().items():
        told = 0
        for wording in module("world").ATTRS[attr]["zh"]:
            told += any(wording.format(n=person, v=value) in text for value in values)
        assert told >= 3, (person, attr)
    for row in rows("sft_512_heldout"):
        if row["task"] == "fact_en":  # asked in English: told in English too
            ((person, attr, _),) = asked(row)
            wordings = module("world").ATTRS[attr]["en"]
            told = [wording.format(n=english_name()[person], v=row["value"]) for wording in wordings]
            assert any(sentence in text for sentence in told), told


def test_answers_about_one_fact_never_contradict_each_other():
    answers = {}
    for question, answer in exchanges(*CHATS, *HELD_OUT[1:]):
        for person, attr, lead in asked({"conversations": [{"role": "user", "content": question}]}):
            if person is not None and not lead.startswith(LEADS[1:]):
                answers.setdefault((person, attr, answer[0] < "z"), set()).add(answer)
    assert len(answers) > 400
    assert all(len(versions) == 1 for versions in answers.values())


# ---------------------------------------------------------------------------------- instructions and notes


def test_held_out_instructions_use_arguments_never_used_in_training():
    questions, answers = map(set, zip(*turns("sft_512"), strict=True))
    led = {*chain(*map(asked, rows("sft_512")))}
    tasks = set()
    for row in rows("sft_512_heldout"):
        question, task = contents(row, "user")[-1], row["task"]
        if task in ("fact", "fact_en", "recall"):
            continue
        tasks.add(task)
        assert question not in questions
        if task in ("one_word", "in_english"):
            assert asked(row)[0] not in led
        elif task not in ("count", "pick"):  # whose answers are too few to be new
            assert row["answer"] not in answers
    assert len(tasks) == 10


@pytest.mark.parametrize("name", ["sft_512", "sft_512_heldout"])
def test_instructions_about_words_are_followed_to_the_letter(name):
    seen = set()
    for question, answer in turns(name):
        listed = question.partition("：")[2].rstrip("。").split("、")
        if match := re.fullmatch("请把“(.+)”说(.)遍。", question):
            expected = "，".join([match[1]] * "零一两三四".index(match[2])) + "。"
        elif match := re.fullmatch(r'Say the word "(\w+)" (\d) times\.', question):
            expected = ", ".join([match[1]] * int(match[2])) + "."
        elif question.startswith("请把这些词倒过来说："):
            expected = "、".join(reversed(listed)) + "。"
        elif question.startswith("数一数"):
            expected = f"一共有{DIGITS[len(listed)]}样。"
        elif match := re.match("请说出第(.)个词：", question):
            expected = listed[DIGITS.index(match[1]) - 1] + "。"
        elif question.startswith("请按先后排好："):
            order = [entry.split(":")[0] for entry in module("world").MONTHS.split()]
            expected = "、".join(sorted(listed, key=order.index)) + "。"
        else:
            continue
        seen.add(question[:4])
        assert answer == expected
    assert len(seen) >= 6


def notes(row):
    """Return the turn that asks to remember something, and the (thing, value) pairs that are to be remembered."""
    for number, question in enumerate(contents(row, "user")):
        if question.startswith("请帮我记住："):
            return number, pairs_in(question.removeprefix("请帮我记住："))
    return None, set()


def pairs_in(text):
    return {*chain(*(re.findall(form, text) for form in NOTE_FORMS))}


def noted_pairs(*names):
    return set().union(*(notes(row)[1] for row in rows(*names)))


def test_held_out_notes_pair_things_and_values_never_paired_in_training():
    training = noted_pairs("sft_512", "sft_1024") | pairs_in(all_text("pretrain"))
    held = noted_pairs("sft_512_heldout", "sft_1024_heldout")
    assert len(held) > 100 and not held & training


def long_rows(name):
    """Return the conversations that begin with a note or come to one; the others keep earlier knowledge."""
    return [row for row in rows(name) if notes(row)[0] is not None]


@pytest.mark.parametrize("name", ["sft_1024", "sft_1024_heldout"])
def test_long_conversations_end_by_repeating_a_near_or_a_far_note(name):
    places = []
    for row in long_rows(name):
        turn, pairs = notes(row)
        answers = contents(row, "assistant")
        last, count = answers[-1], len(answers)
        assert sum(thing in last and value in last for thing, value in pairs) == 1
        kind = next(form for form in NOTE_FORMS if re.search(form, last))
        assert 3 <= sum(bool(re.search(kind, f"{t}放在{v}，{t}锁在{v}号柜，{t}记在{v}页")) for t, v in pairs) <= 8
        assert turn in (0, count - 5)
        assert row.get("task") in (None, "far" if turn == 0 else "near")
        places.append(turn == 0)
    assert 0.5 < sum(places) / len(places) < 0.8


# --------------------------------------------------------------------------------------------- the reasoning


def value(digits):
    return int("".join(str(DIGITS.index(digit)) for digit in digits))


def signed_numbers(question):
    """Return the numbers of a sum or a story, negative where something goes away."""
    numbers, before = [], 0
    for match in NUMBER.finditer(question):
        words, before = question[before : match.start()], match.end()
        away = re.search("-|卖掉|走掉|运走|用去|送给", words) or words.endswith("小")
        numbers.append(-value(match[0]) if away else value(match[0]))
    return numbers


def solve(question):
    """Return the answer of a problem and its operands, from the words of the question alone."""
    if weights := re.findall(r"([^，。]+?)重(..)斤", question):
        names, numbers = zip(*((name, value(digits)) for name, digits in weights), strict=True)
        best = max(numbers) if question.endswith("谁最重？") else min(numbers)
        return names[numbers.index(best)], ("three", frozenset(numbers))
    if question.endswith("排好。"):
        numbers = [value(digits) for digits in NUMBER.findall(question)]
        ordered = sorted(numbers, reverse="从大到小" in question)
        return "、".join(f"{DIGITS[n // 10]}{DIGITS[n % 10]}" for n in ordered), ("three", frozenset(numbers))
    compared = re.findall(r"([^，。]+)比([^，。]+)([高矮重轻快慢])[，。]", question)
    if compared:
        above = [(b, a) if word in "矮轻慢" else (a, b) for a, b, word in compared]
        (middle,) = {a for a, _ in above} & {b for _, b in above}
        top, bottom = (next(a for a, b in above if b == middle), next(b for a, b in above if a == middle))
        answer = bottom if re.search("谁最[矮轻慢]", question) else top
        return answer, ("order", (top, middle, bottom))
    numbers = signed_numbers(question)
    assert len(numbers) == 3
    digits = "".join(DIGITS[int(digit)] for digit in str(sum(numbers)))
    return digits, ("sum", tuple(sorted(numbers)))


def problems(name):
    """Return every (question, answer) that asks to reason, known by the thought."""
    thought = re.compile(f"<think>\n([{DIGITS}]{{2}}[+-]|先比|十位是|.+。中间是)")
    return [(question, content) for question, content in turns(name) if thought.match(content)]


@pytest.mark.parametrize("name", ["r1_1024", "r1_1024_heldout", "talks_heldout"])
def test_reasoning_is_well_formed_and_its_answer_is_right(name):
    for _, content in turns(name):
        assert FORM.fullmatch(content) and all(content.count(tag) == 1 for tag in TAGS)
    for question, content in problems(name):
        assert spoken(content) == solve(question)[0], question


@pytest.mark.parametrize("name", ["r1_1024", "r1_1024_heldout"])
def test_every_equation_and_comparison_in_the_thinking_is_right(name):
    digit = f"[{DIGITS}]"
    moves = {"": 0, "进一": -10, "借一": 10}
    count = 0
    for _, content in problems(name):
        thought = FORM.fullmatch(content)[1]
        for left, right, moved in re.findall(rf"([{DIGITS}+-]+)=({digit}+)(?:，(进一|借一))?", thought):
            terms = re.findall(rf"[+-]?{digit}+", left)
            total = sum((-1 if term[0] == "-" else 1) * value(term.lstrip("+-")) for term in terms)
            assert total + moves[moved] == value(right), thought
            count += 1
        for left, sign, right in re.findall(rf"({digit})([<>])({digit})", thought):
            assert (value(left) < value(right)) == (sign == "<")
    assert count > 300


def pretraining_problems():
    """Return the questions whose working is told in pretraining: sums in signs, and comparisons of three."""
    text = all_text("pretrain")
    questions = re.findall(f"([{DIGITS}]{{2}}(?:[+-][{DIGITS}]{{2}}){{2}})：[{DIGITS}]{{2}}[+-]", text)
    for line in text.splitlines():
        if match := re.search("(?<=[？。])(先比|十位是|[^，。]+比[^，。]+，[^，。]+。中间是)", line):
            questions.append(line[: match.start()])
    return questions


def test_held_out_operands_never_occur_in_a_training_problem():
    names = ("r1_1024", "r1_1024_heldout", "talks_heldout")
    training, held, talked = ([solve(question)[1] for question, _ in problems(name)] for name in names)
    assert len(set(training)) == len(training) and len(set(held)) == len(held)
    told = {solve(question)[1] for question in pretraining_problems()}
    assert len(told) > 1000 and {kind for kind, _ in told} == {"sum", "three", "order"}
    assert not (set(training) | told) & set(held + talked)


def test_reasoning_conversations_ask_every_kind_in_every_place():
    by_place = {}
    for row in rows("r1_1024"):
        for place, content in enumerate(contents(row, "assistant"), 1):
            kind = "everyday"
            if re.match(f"<think>\n([{DIGITS}]|先|十位是|.+。中间是)", content):
                kind = "problem"
            elif re.match("<think>\n(问的|Asked)", content):
                kind = "fact"
            by_place.setdefault(place, []).append(kind)
    assert len(by_place) >= 8
    for place in range(1, 9):
        for kind in ("problem", "fact", "everyday"):
            assert by_place[place].count(kind) >= 8, (place, kind)


def test_held_out_talks_ask_four_kinds_in_any_order():
    trained = {question for question, _ in turns(*CHATS)}
    held, orders = held_facts(), set()
    for row in rows("talks_heldout"):
        kinds = []
        for question, content in turns_of(row):
            if facts := asked({"conversations": [{"role": "user", "content": question}]}):
                kinds.append("fact")
                assert facts[0][:2] in held
            elif (question, content) in problems("talks_heldout"):
                kinds.append("problem")
            else:
                kinds.append("beyond" if "知道，我只知道" in content or "only know" in content else "courtesy")
                assert question not in trained
        assert sorted(kinds) == ["beyond", "courtesy", "fact", "problem"]
        orders.add(tuple(kinds))
        assert row["answer"] == spoken(contents(row, "assistant")[-1])
    assert len(orders) > 10


# -------------------------------------------------------------------------------------------- greetings and honest noes


def bare(question):
    """Return the letters of a question alone: no punctuation, no spaces, no case."""
    return re.sub(r"[\W_]", "", question).casefold()


def test_held_out_everyday_questions_are_in_no_training_question():
    trained = {bare(question) for question, _ in turns(*CHATS)}
    held = [bare(contents(row, "user")[0]) for row in rows("everyday_heldout")]
    assert len(held) == len(set(held)) == 60
    for question in held:
        assert not any(question in other for other in trained), question


def test_held_out_everyday_questions_are_half_courtesies():
    replies = module("everyday").REPLIES
    tasks = [row["task"] for row in rows("everyday_heldout")]
    assert tasks.count("beyond") == 30 and {"hello", "who", "thanks", "bye"} == set(tasks) - {"beyond"}
    for row in rows("everyday_heldout"):
        assert row["answer"] in (replies[row["task"], "zh"], replies[row["task"], "en"])
        assert (row["answer"] == replies[row["task"], "zh"]) == bool(re.search("[一-鿿]", contents(row, "user")[0]))


@pytest.mark.parametrize("name", CHATS)
def test_chat_files_hold_every_courtesy_in_both_languages_and_noes(name):
    given = [answer for _, answer in exchanges(name)]
    for (intent, lang), reply in module("everyday").REPLIES.items():
        assert given.count(reply) >= (5 if intent in ("digits", "bye", "thanks") else 10), (intent, lang)
    assert given.count(module("everyday").REPLIES["beyond", "zh"]) >= 150


@pytest.mark.parametrize("name", CHATS)
def test_everyday_questions_have_one_answer_and_deny_no_fact(name):
    answers = {}
    for question, answer in exchanges(name):
        answers.setdefault(question, set()).add(answer)
        if answer.startswith("这个我不知道"):
            matches = [pattern.fullmatch(question) for pattern, _ in question_forms()]
            assert not any(match[1] in chinese_name() for match in matches if match)
    for reply in module("everyday").REPLIES.values():
        assert all(len(versions) == 1 for versions in answers.values() if reply in versions)


def test_a_person_who_is_not_known_does_not_live_in_the_town():
    strangers = set("/".join(module("everyday").BEYOND["person"][:2]).split("/"))
    assert not strangers & set(chinese_name())
    assert not any(stranger in all_text("pretrain") for stranger in strangers)


def test_thoughts_about_a_fact_say_the_question_and_the_answer():
    known = 0
    for question, content in turns("r1_1024"):
        thought, answer = FORM.fullmatch(content).groups()
        for person, _, _ in asked({"conversations": [{"role": "user", "content": question}]}):
            known += 1
            told = answer.removeprefix("您好，").removeprefix("Hello, ")
            assert person in thought or english_name()[person] in thought
            assert thought.endswith(told) and len(thought) > len(told)
    assert known > 600


# -------------------------------------------------------------------------------------------------- lengths


@pytest.fixture
def encode(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from dataset import SFTDataset
    from engine.tokenizer import load_tokenizer

    data = SFTDataset(load_tokenizer(ROOT / "spongebob_tokenizer"))
    return lambda chats: [len(document.ids) for document in data.encode(chats)]


@pytest.mark.parametrize("name", [*CHATS, *HELD_OUT[1:]])
def test_conversations_have_the_length_of_their_stage(encode, name):
    lengths = encode([row["conversations"] for row in rows(name)])
    if name.startswith("sft_1024"):
        before = encode([row["conversations"][:-1] for row in long_rows(name)])  # the answer begins after these
        assert min(before) > 512 and max(lengths) <= 1024
    else:
        assert max(lengths) <= (1024 if name == "r1_1024" else 512)


@pytest.mark.parametrize("name", ["sft_1024", "sft_1024_heldout"])
def test_far_notes_are_500_tokens_before_the_last_question(encode, name):
    far = [row["conversations"] for row in long_rows(name) if notes(row)[0] == 0]
    until_question = encode([chat[:-1] for chat in far])
    until_note_read = encode([chat[:1] + [{"role": "assistant", "content": "。"}] for chat in far])
    assert min(b - a for a, b in zip(until_note_read, until_question, strict=True)) > 520
