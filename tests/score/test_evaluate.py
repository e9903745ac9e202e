"""Figures are those of a hand count, come with an honest interval, survive a stop, and agree with others' programs."""

import json
import math
import re
import socket

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import tiny

import eval_model
from dataset import LOSS, PretrainDataset, SFTDataset
from engine import flags
from engine.checkpoint.weights import config_dict, full_state_dict, save_weights
from engine.export import hugging_face
from engine.generate.engine import complete
from engine.score import evaluate, multiple_choice, statistics
from engine.score.loglikelihood import language, windows
from engine.score.records import Settings, read_items
from engine.tokenizer import fingerprint, load_tokenizer

TOKENIZER = load_tokenizer(flags.ROOT / "spongebob_tokenizer")
GOOD = "<think>\n想\n</think>\n<answer>\n汪晴晴\n</answer>"


pytestmark = pytest.mark.usefixtures("one_thread")


def save(model, path, stage="SFT"):
    meta = {"stage": stage, "config": config_dict(model.config), "tokenizer": fingerprint(TOKENIZER)}
    save_weights(path, full_state_dict(model), meta)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def chat(*words, **more):
    roles = ("user", "assistant") * 9
    return {"conversations": [{"role": r, "content": w} for r, w in zip(roles, words, strict=False)]} | more


def question(number, *choices, **more):
    return {"question": f"问题{number}？", "choices": list(choices), "answer": number % len(choices)} | more


def measure(model, path, *, batch=4, records=None, **options):
    """(summary, records) of one file, scored as evaluate.score does."""
    options = {"rows": 0, "max_new_tokens": 8} | options
    folder = records or path.parent / "scores"
    results, found = evaluate.score(model, TOKENIZER, [path], folder, Settings(**options), batch)
    return results[path.name], found[path.name]


def script(monkeypatch, said):
    """The model says what `said` has for a question; returns the prompts it was asked, as texts."""
    seen = []

    def answers(model, prompts, **_):
        texts = [TOKENIZER.decode(ids, skip_special_tokens=False) for ids in prompts]
        seen.extend(texts)
        asked = [text.split("user\n")[-1].split("</s>")[0] for text in texts]
        return [TOKENIZER.encode(said[one], add_special_tokens=False).ids for one in asked]

    monkeypatch.setattr("engine.score.answers.complete", answers)
    return seen


# ---------------------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize("batch", [1, 3])
def test_a_model_that_knows_nothing_pays_log2_of_the_vocabulary_a_token(tmp_path, batch):
    model = tiny()
    model.tok_embeddings.weight.data.zero_()
    texts = ["你好，世界", "long " * 200, "😀"]
    path = write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    result, records = measure(model, path, batch=batch)
    tokens = sum(len(TOKENIZER.encode(text, add_special_tokens=False).ids) for text in texts)
    size = sum(len(text.encode()) for text in texts)
    assert sum(record["sums"]["bits_per_byte"][1] for record in records) == size
    found = result["figures"]["bits_per_byte"]
    assert found["value"] == pytest.approx(math.log2(6400) * tokens / size, rel=1e-5) == found["chance"]
    assert found["low"] <= found["value"] <= found["high"] and found["n"] == 3
    assert set(result["by_language"]) == {"zh", "en", "other"}


def test_bits_per_byte_do_not_depend_on_the_batch(tmp_path):
    path = write_rows(tmp_path / "texts.jsonl", [{"text": "猫" * n} for n in (1, 30, 7, 300)])
    values = [
        measure(tiny(), path, batch=batch, records=tmp_path / str(batch))[0]["figures"]["bits_per_byte"]["value"]
        for batch in (1, 4)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 400), st.integers(1, 64))
def test_windows_predict_every_token_once_and_see_all_that_fits(length, context):
    seen = []
    for ids, first in windows(list(range(length)), context):
        assert len(ids) <= context + 1 and ids == list(range(ids[0], ids[-1] + 1))
        assert length <= context or ids[0] == 0 or len(ids) == context + 1
        seen += ids[first:]
    assert seen == list(range(1, length))


def test_the_curve_by_position_adds_up_and_shows_where_a_model_is_worse(tmp_path):
    model = tiny(max_seq_len=256)
    path = write_rows(tmp_path / "texts.jsonl", [{"text": "海风吹过码头，" * 60}])
    result, (record,) = measure(model, path)
    parts = np.array(list(record["curve"]["bits_per_byte"].values())).sum(0)
    assert parts == pytest.approx(record["sums"]["bits_per_byte"])
    assert list(result["by_position"]["bits_per_byte"]) == ["1", "65", "129", "193"]

    ids = PretrainDataset(TOKENIZER).encode(["海风吹过码头，" * 60])[0].ids[:-1].astype("int64")
    with torch.no_grad():
        nats = F.cross_entropy(
            model(torch.from_numpy(ids)[None, :256]).logits[0], torch.from_numpy(ids)[1:257], reduction="none"
        )
    first = nats[:64].sum().item() / math.log(2)
    assert record["curve"]["bits_per_byte"]["1"][0] == pytest.approx(first, rel=1e-4)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("海风吹过 boat。", "zh"),
        ("A boat 船", "en"),
        ("Žluťoučký kůň", "en"),
        ("12 + 3", "other"),
        ("これはテスト", "other"),
    ],
)
def test_a_text_is_chinese_or_english_by_most_of_its_letters(text, expected):
    assert language(text) == expected


# ------------------------------------------------------------------------------------------- conversations


def test_every_turn_is_answered_after_the_rows_own_history_and_counted_by_hand(tmp_path, monkeypatch):
    rows = [
        chat("甲", "一"),
        chat("乙", "二", task="last"),
        chat("问", "答", "丙", "三", task="last"),
        chat("龘" * 300, "五"),
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    seen = script(monkeypatch, {"甲": "一", "乙": "错", "问": "答", "丙": " 三"})
    result, records = measure(tiny(), path, max_new_tokens=100)
    exact = result["figures"]["exact"]
    assert (exact["value"], exact["n"]) == (0.75, 4) and result["rows"] == 4
    # Three rows of 1, 1 and 2 turns.
    assert (exact["low"], exact["high"]) == pytest.approx(statistics.wilson_interval(0.75, 16 / 6))
    assert exact["chance"] == 0.25  # always saying the most frequent answer
    assert {turn: found["exact"]["value"] for turn, found in result["by_turn"].items()} == {"1": 2 / 3, "2": 1.0}
    assert result["figures"]["too_long"]["value"] == 0.2
    assert [record["groups"].get("task") for record in records] == [None, "last", None, "last", None]
    assert any("答</s>" in prompt for prompt in seen if "丙" in prompt)


def test_the_loss_on_answers_is_the_cross_entropy_of_the_learned_tokens(tmp_path):
    model, rows = tiny(), [chat("你好", "您好，林小满。"), chat("一", "二", "三", "四五六")]
    result, records = measure(model, write_rows(tmp_path / "rows.jsonl", rows))
    nats = tokens = 0
    for document in SFTDataset(TOKENIZER).encode([row["conversations"] for row in rows]):
        ids, learned = torch.from_numpy(document.ids.astype("int64")), torch.from_numpy(document.classes[1:] == LOSS)
        with torch.no_grad():
            costs = F.cross_entropy(model(ids[None, :-1]).logits[0], ids[1:], reduction="none")
        nats, tokens = nats + costs[learned].sum().item(), tokens + int(learned.sum())
    found = result["figures"]["answer_loss"]
    assert found["value"] == pytest.approx(nats / tokens, rel=1e-5)
    assert found["chance"] == pytest.approx(math.log(6400))
    assert sum(record["sums"]["answer_loss"][1] for record in records) == tokens


def test_answers_are_grouped_by_where_they_begin(tmp_path, monkeypatch):
    script(monkeypatch, {"甲": "一", "乙": "二"})
    path = write_rows(tmp_path / "rows.jsonl", [chat("甲", "龘" * 400, "乙", "二")])
    result, _ = measure(tiny(max_seq_len=2048), path)
    assert {start: found["exact"]["value"] for start, found in result["by_start"].items()} == {"0": 0.0, "512": 1.0}


def test_thoughts_are_scored_by_form_answer_length_and_limit(tmp_path, monkeypatch):
    long = "<think>\n" + "想" * 80
    rows = [chat("甲", GOOD), chat("乙", GOOD), chat("丙", GOOD.replace("汪晴晴", "(B)")), chat("丁", GOOD)]
    script(monkeypatch, {"甲": GOOD, "乙": "汪晴晴", "丙": GOOD.replace("汪晴晴", "B"), "丁": long})
    result, records = measure(tiny(), write_rows(tmp_path / "r1.jsonl", rows), max_new_tokens=40)
    values = {name: found["value"] for name, found in result["figures"].items()}
    assert (values["well_formed"], values["correct"], values["cut_off"]) == (0.5, 0.75, 0.25)
    assert result["figures"]["correct"]["chance"] == 0.75
    lengths = [record["sums"]["thinking_tokens"][0] for record in records]
    assert lengths[0] == len(TOKENIZER.encode("\n想\n").ids) == lengths[2] and lengths[1] == 0 and lengths[3] > 30
    assert "exact" not in values


# ------------------------------------------------------------------------------------------ multiple choice


def by_hand(model, item, shots, form):
    """The summed log-probability of each choice, one forward pass each, for a model that continues texts."""
    lines = lambda one: [f"{letter}. {text}" for letter, text in zip("ABCD", one["choices"], strict=False)]
    ask = lambda one: "\n".join([one["question"], *(lines(one) if form == "letter" else [])])
    print0 = lambda one: list("ABCD")[: len(one["choices"])] if form == "letter" else one["choices"]
    prompt = "".join(f"{ask(one)}\n答案：{print0(one)[one['answer']]}\n\n" for one in shots) + f"{ask(item)}\n答案："
    encode = lambda text: [1, *TOKENIZER.encode(text, add_special_tokens=False).ids]
    totals = []
    for choice in print0(item):
        ids, start = torch.tensor([encode(prompt + choice)]), len(encode(prompt))
        with torch.no_grad():
            logs = model(ids).logits[0].log_softmax(-1)
        totals.append(sum(logs[at - 1, ids[0, at]].item() for at in range(start, ids.shape[1])))
    return np.array(totals)


def test_the_right_choice_is_the_likeliest_by_letter_by_text_and_by_text_a_character(tmp_path):
    model = tiny(max_seq_len=512)
    rows = [question(n, "红", "蓝色的船", "绿色", *["灰"] * (n % 2), subject=f"s{n % 2}") for n in range(12)]
    result, _ = measure(model, write_rows(tmp_path / "choices.jsonl", rows), chats=False, shots=(0, 2))
    for count in (0, 2):
        right = {"letter": 0, "text": 0, "text_norm": 0}
        for row in rows:
            shots = [one for one in rows if one is not row][:count]
            words = by_hand(model, row, shots, "text")
            right["letter"] += by_hand(model, row, shots, "letter").argmax() == row["answer"]
            right["text"] += words.argmax() == row["answer"]
            right["text_norm"] += (words / [len(choice) for choice in row["choices"]]).argmax() == row["answer"]
        for name, hits in right.items():
            found = result["figures"][f"{name}_{count}shot"]
            assert found["value"] == pytest.approx(hits / 12) and found["n"] == 12
            assert found["chance"] == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert set(result["by_task"]) == {"s0", "s1"}


@pytest.mark.parametrize("chats", [False, True])
def test_the_examples_are_the_first_other_rows_and_never_the_question_itself(tmp_path, monkeypatch, chats):
    asked = []

    def spy(model, sequences, batch):
        asked.extend(TOKENIZER.decode(ids, skip_special_tokens=False) for ids in sequences)
        return [np.ones(len(ids) - 1) for ids in sequences]

    monkeypatch.setattr(multiple_choice, "token_nats", spy)
    rows = [question(n, "红", "蓝") for n in range(5)]
    measure(tiny(), write_rows(tmp_path / "choices.jsonl", rows), chats=chats, shots=(2,))
    found = {tuple(re.findall("问题([0-9])", text)) for text in asked}
    assert found == {("1", "2", "0"), ("0", "2", "1"), ("0", "1", "2"), ("0", "1", "3"), ("0", "1", "4")}


def test_a_chat_model_is_asked_with_roles_and_a_question_that_does_not_fit_has_no_figure(tmp_path):
    rows = [question(n, "红", "蓝") for n in range(3)] + [question(3, "红" * 200, "蓝")]
    result, records = measure(tiny(), write_rows(tmp_path / "choices.jsonl", rows), shots=(0, 2, 5))
    assert result["figures"]["letter_0shot"]["n"] == 3  # 5 examples are more than there are, 2 long ones may not fit
    assert not any(name.endswith("5shot") for name in result["figures"])
    assert records[3]["sums"] == {}


@pytest.mark.parametrize(
    "row, words",
    [
        ({"question": "", "choices": ["a", "b"], "answer": 0}, "question"),
        (question(0, "a"), "list of 2 to 10"),
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, '\'answer|"answer" is 2'),
        ({"question": "q", "choices": ["a", "b"], "answer": "C"}, "\"answer\" is 'C'"),
        ({"question": "q", "choices": ["a", ""], "answer": 0}, "empty"),
        ({"question": "q", "choices": ["a", "b"]}, "None"),
    ],
)
def test_a_bad_question_is_named_with_file_and_line(tmp_path, row, words):
    path = write_rows(tmp_path / "choices.jsonl", [row])
    with pytest.raises(ValueError, match=f"(?s)choices.jsonl:1: .*({words})"):
        read_items(path, 0)


def test_an_answer_may_be_a_letter(tmp_path):
    path = write_rows(tmp_path / "choices.jsonl", [{"question": "q", "choices": ["a", "b"], "answer": "B"}])
    assert read_items(path, 0)[0].answer == 1


# ----------------------------------------------------------------------------------------- stop and compare

MIXED = [{"text": "海风" * n} for n in (3, 90, 9)] + [chat(f"你好\u2028{n}", "好" * n) for n in range(1, 8)]


def test_a_stopped_run_goes_on_where_it_was_and_ends_with_the_same_figures(tmp_path, monkeypatch):
    model, path = tiny(), write_rows(tmp_path / "rows.jsonl", MIXED)
    whole, whole_records = measure(model, path, batch=2, records=tmp_path / "whole")
    calls = []

    def stops(model, prompts, **options):
        calls.append(len(prompts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return complete(model, prompts, **options)

    monkeypatch.setattr("engine.score.answers.complete", stops)
    with pytest.raises(KeyboardInterrupt):
        measure(model, path, batch=2, records=tmp_path / "part")
    (left,) = (tmp_path / "part").iterdir()
    with open(left, "a", encoding="utf-8") as file:
        file.write('{"row": 4, "tu')  # a line the stop tore off
    again, records = measure(model, path, batch=2, records=tmp_path / "part")
    assert sum(calls) == 2 + 2 + 2 + 2 + 1  # the third batch was asked twice, none of the first two
    assert again | {"seconds": 0, "records": 0} == whole | {"seconds": 0, "records": 0}
    assert records == whole_records
    assert measure(model, path, batch=2, records=tmp_path / "part")[0]["figures"] == whole["figures"]
    assert len(calls) == 5  # nothing was left to ask


def test_other_weights_rows_or_settings_have_records_of_their_own(tmp_path):
    path, folder = write_rows(tmp_path / "rows.jsonl", MIXED), tmp_path / "scores"
    measure(tiny(), path, records=folder)
    measure(tiny(seed=1), path, records=folder)
    measure(tiny(), path, records=folder, max_new_tokens=4)
    write_rows(path, MIXED[1:])
    measure(tiny(), path, records=folder)
    assert len(list(folder.iterdir())) == 4


def test_a_checkpoint_compared_with_itself_differs_by_nothing_and_with_another_by_their_figures(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", MIXED)
    ours, records = measure(tiny(), path)
    theirs, others = measure(tiny(seed=1), path)
    same, change = evaluate.compare(records, records), evaluate.compare(records, others)
    assert same["bits_per_byte"]["difference"] == 0 and same["bits_per_byte"]["p"] == 1
    for name in ("bits_per_byte", "answer_loss", "f1"):
        before, after = theirs["figures"][name]["value"], ours["figures"][name]["value"]
        assert change[name]["difference"] == pytest.approx(after - before) and change[name]["before"] == before
    assert change["answer_loss"]["n"] == 7


def test_a_baseline_with_a_shorter_context_is_compared_on_the_answers_that_both_can_give(tmp_path):
    cut = chat("丁", "龘" * 60)
    path = write_rows(tmp_path / "rows.jsonl", [chat("甲", "一", "乙" * 80, "二"), chat("丙", "三"), cut])
    _, records = measure(tiny(), path)
    _, shorter = measure(tiny(max_seq_len=64), path)
    change = evaluate.compare(records, shorter)["answer_loss"]
    assert change["n"] == 2 and change["difference"] == pytest.approx(0, abs=1e-6)
    assert change["after"] == pytest.approx(np.mean([records[at]["sums"]["answer_loss"][0] / 2 for at in (0, 2)]))


# ------------------------------------------------------------------------------------------- the front door


def test_the_front_door_prints_and_keeps_figures_by_file(tmp_path, capsys):
    save(tiny(), tmp_path / "SFT.pth")
    save(tiny(seed=1), tmp_path / "pretrain.pth", stage="pretrain")
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

    eval_model.main([*fixed, "--score", str(other), "--max_eval_rows", "1"])
    merged = json.loads((tmp_path / "SFT.scores.json").read_text(encoding="utf-8"))
    assert merged["rows.jsonl"] == kept["rows.jsonl"] and merged["other.jsonl"]["rows"] == 1


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--baseline", "a.pth"], "--baseline is not read by a chat, only by --score"),
        (["--num_fewshot", "-1", "--score", "x"], "--num_fewshot -1"),
        (["--max_eval_rows", "-1"], "--max_eval_rows -1"),
        (["--score", "x", "--baseline", "gone.pth"], "--baseline gone.pth: no such checkpoint"),
    ],
)
def test_impossible_score_flags_are_refused_by_name(argv, words):
    with pytest.raises(ValueError, match=words):
        eval_model.main(argv)


# ------------------------------------------------------------------------------------ lm-evaluation-harness


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    """lm-evaluation-harness, with a folder of its own for what it keeps."""
    with pytest.MonkeyPatch.context() as patch:  # read when it is imported
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        import lm_eval

        return lm_eval


@pytest.mark.parametrize("exported, chats", [(False, False), (True, True)], ids=["live", "exported_chat"])
def test_the_harness_finds_our_figures_without_network(harness, tmp_path, monkeypatch, exported, chats):
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoTokenizer

    def no_network(*_):
        raise AssertionError("the network was asked")

    model, folder = tiny(max_seq_len=512), tmp_path / "data/sample"
    folder.mkdir(parents=True)
    texts = [{"text": "海风吹过码头。" * n + "a boat"} for n in (1, 40, 3, 150)]
    texts_file = write_rows(folder / "pretrain_heldout.jsonl", texts)
    rows = [question(n, "红", f"蓝色的船{n}", "green", *["灰"] * (n % 2)) for n in range(9)]
    choices_file = write_rows(folder / "choices_heldout.jsonl", rows)
    ours = measure(model, choices_file, chats=chats, shots=(0, 2))[0]["figures"]
    ours |= measure(model, texts_file)[0]["figures"]

    tokenizer = flags.ROOT / "spongebob_tokenizer"
    if exported:
        hugging_face.to_hf(model, tokenizer, tmp_path / "hf")
    theirs = {"pretrained": model, "tokenizer": AutoTokenizer.from_pretrained(tokenizer)}
    if exported:
        theirs = {"pretrained": str(tmp_path / "hf"), "add_bos_token": False}
    ending, found = "_chat" * chats, {}
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(socket.socket, "connect", no_network)
        tasks = TaskManager(include_path=str(flags.ROOT / "data/harness"), include_defaults=False)
        lm = HFLM(**theirs, device="cpu", batch_size=4)
        for shots in (0, 2):
            names = [f"spongebob_letter{ending}", f"spongebob_words{ending}", *["spongebob_text"] * (shots == 0)]
            results = harness.simple_evaluate(
                model=lm,
                tasks=names,
                task_manager=tasks,
                num_fewshot=shots,
                bootstrap_iters=0,
                apply_chat_template=chats,
                fewshot_as_multiturn=chats,
            )["results"]
            found[f"letter_{shots}shot"] = results[f"spongebob_letter{ending}"]["acc,none"]
            found[f"text_{shots}shot"] = results[f"spongebob_words{ending}"]["acc,none"]
            found[f"text_norm_{shots}shot"] = results[f"spongebob_words{ending}"]["acc_norm,none"]
            found |= {name: results["spongebob_text"]["bits_per_byte,none"] for name in ["bits_per_byte"][shots:]}
    if chats:  # it counts the line break before the answer to the answer, so lengths are shared out differently
        found = {name: value for name, value in found.items() if "norm" not in name}
    assert found == pytest.approx({name: ours[name]["value"] for name in found}, abs=1e-3)


def test_two_files_of_one_name_are_refused(tmp_path):
    paths = [tmp_path / name / "rows.jsonl" for name in "ab"]
    for path in paths:
        path.parent.mkdir()
        path.write_text(json.dumps(chat("甲", "乙")) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="two files have one name"):
        evaluate.score(tiny(), TOKENIZER, paths, tmp_path, Settings(rows=0, max_new_tokens=4), 4)
