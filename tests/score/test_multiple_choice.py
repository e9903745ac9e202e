"""What is scored is what is said: the choice's own tokens, never the question as its example, numbers that are some."""

import json
import math

import numpy as np
import pytest
import torch
from tiny_model import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import eval_model
from engine.checkpoint.weights import config_dict, full_state_dict, save_weights
from engine.files import write_json
from engine.flags import ROOT
from engine.generate.sampling import Sampling, sample_next_tokens
from engine.score import evaluate, multiple_choice, table
from engine.score.loglikelihood import token_nats
from engine.score.multiple_choice import Question
from engine.score.records import Settings, weights_hash
from engine.tokenizer import fingerprint, load_tokenizer

TOKENIZER = load_tokenizer(ROOT / "spongebob_tokenizer")
pytestmark = pytest.mark.usefixtures("one_thread")


def save(model, path, stage="SFT", **meta):
    meta |= {"stage": stage, "config": config_dict(model.config), "tokenizer": fingerprint(TOKENIZER)}
    save_weights(path, full_state_dict(model), meta)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def score(model, path, **options):
    options = {"rows": 0, "max_new_tokens": 4} | options
    results, found = evaluate.score(model, TOKENIZER, [path], path.parent / "scores", Settings(**options), 4)
    return results[path.name], found[path.name]


# ------------------------------------------------------------------------------------------------- choices


def tokenizer_that_joins(*texts):
    """Its tokens reach from the prompt into the choice."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special, letters = ["<unk>", "<s>", "</s>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=letters, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@pytest.mark.parametrize("encode", [multiple_choice.text_ids, multiple_choice.chat_ids])
@pytest.mark.parametrize("form", ["letter", "text"])
@pytest.mark.parametrize(
    "tokenizer",
    [
        TOKENIZER,
        tokenizer_that_joins("：C", "：C", "案：C"),
        tokenizer_that_joins("：海风", "：海风"),
        tokenizer_that_joins("\n答案：B", "\n答案：B"),
    ],
    ids=["ours", "letter", "word", "line"],
)
def test_the_scored_tokens_spell_the_scored_choice(tokenizer, form, encode):
    item = Question(1, "吹过码头的是？", ("海风", "船", "C", "海"), 0, None)
    spans = encode(tokenizer, form, item, [Question(2, "谁？", ("甲", "乙"), 1, None)])
    said = [tokenizer.decode(ids[first:], skip_special_tokens=False) for ids, first in spans]
    assert said == multiple_choice.answers(form, item)
    assert len({tuple(ids[:first]) for ids, first in spans}) == 1  # all after the same prompt


def test_examples_never_equal_the_question_by_content(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(
        multiple_choice, "chat_ids", lambda tokenizer, form, item, shots: shown.append((item, shots)) or []
    )
    same = {"question": "问？", "choices": ["红", "蓝"], "answer": 0}
    turned = {"question": " 问？ ", "choices": ["蓝", "红"], "answer": 1}
    rows = [same, same, turned, *({"question": f"{n}？", "choices": ["红", "蓝"], "answer": 0} for n in range(3))]
    score(tiny(), write_rows(tmp_path / "c.jsonl", rows), shots=(2,))
    assert len(shown) == 2 * len(rows)
    for item, shots in shown:
        contents = [one.content for one in shots]
        assert len(set(contents)) == 2 and item.content not in contents


def test_equals_share_the_mark_whatever_their_order(tmp_path):
    rows = [{"question": "谁？", "choices": ["海", "海", "山"], "answer": answer} for answer in range(3)]
    result, records = score(tiny(), write_rows(tmp_path / "c.jsonl", rows), shots=(0,))
    marks = [record["sums"]["text_0shot"][0] for record in records]
    assert marks in ([0.5, 0.5, 0.0], [0.0, 0.0, 1.0])
    assert sum(marks) == 1 and result["figures"]["text_0shot"]["value"] == pytest.approx(1 / 3)
    assert [multiple_choice.mark(np.array([2.0, 2.0 + 1e-6, 3.0]), answer) for answer in range(3)] == [0.5, 0.5, 0.0]


def test_choices_are_decided_in_float32_under_autocast(tmp_path, monkeypatch):
    seen = []

    def spy(model, sequences, batch):
        seen.append(torch.is_autocast_enabled("cpu"))
        return token_nats(model, sequences, batch)

    monkeypatch.setattr(multiple_choice, "token_nats", spy)
    rows = write_rows(tmp_path / "c.jsonl", [{"question": "谁？", "choices": ["海", "山"], "answer": 0}])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        score(tiny(), rows, shots=(0,))
    assert seen == [False, False]


def test_figures_that_cover_part_of_the_rows_or_vanish_say_so(tmp_path):
    rows = [{"question": f"{n}？", "choices": ["红", "蓝"], "answer": 0} for n in range(3)]
    rows.append({"question": "长" * 200, "choices": ["红", "蓝"], "answer": 0})
    result, _ = score(tiny(), write_rows(tmp_path / "c.jsonl", rows), shots=(0, 5))
    figure = result["figures"]["letter_0shot"]
    assert (figure["n"], figure["left_out"]) == (3, 1) and result["missing"]["text_norm_5shot"] == 4
    told = table.table({"c.jsonl": result})
    assert "3 of 4" in told and "choice by letter, 5 examples" in told and "no figure, 4 rows left out" in told


# ------------------------------------------------------------------------------- numbers that are none; names


@pytest.mark.parametrize(
    "rows",
    [
        [{"question": "谁？", "choices": ["海", "山"], "answer": 0}],
        [{"text": "海风"}],
        [{"conversations": [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "好"}]}],
    ],
    ids=["choices", "text", "chat"],
)
def test_weights_that_are_no_numbers_give_one_line_and_no_figure(tmp_path, rows):
    model = tiny()
    model.layers[0].attention.wq.weight.data[0, 0] = math.nan
    save(model, tmp_path / "SFT.pth")
    file = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ValueError, match=r"SFT\.pth: .*wq.*NaN"):
        eval_model.main(["--save_dir", str(tmp_path), "--device", "cpu", "--score", str(file)])
    assert not (tmp_path / "SFT.scores.json").exists()


def test_a_loss_that_overflows_is_an_error():
    model = tiny()
    model.norm.weight.data.fill_(3e38)
    with pytest.raises(FloatingPointError, match="no finite number.* --dtype float32"):
        token_nats(model, [[1, 2, 3]], 1)


def test_json_holds_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"a": [math.nan, 1.5, -math.inf], "b": {"c": math.inf}})
    read = json.loads((tmp_path / "a.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert read == {"a": [None, 1.5, None], "b": {"c": None}}


def test_two_files_that_begin_alike_keep_both_columns():
    figures = {"f1": {"value": 0.5, "low": 0.1, "high": 0.9, "chance": None, "n": 3}}
    told = table.markdown("SFT", {name: {"figures": figures} for name in ("a.v1.jsonl", "a.v2.jsonl", "b.jsonl")})
    assert all(f"| {name}: token F1 |" in told for name in ("a.v1.jsonl", "b")) and "a.v2.jsonl: token F1" in told


def test_control_characters_of_a_task_do_not_reach_the_terminal():
    group = {"u\u001b[31m red": {"f1": {"value": 0.5, "low": 0.1, "high": 0.9, "chance": None, "n": 3}}}
    told = table.table({"a.jsonl": {"rows": 1, "seconds": 1.0, "figures": {}, "by_task": group}})
    assert "\u001b" not in told and r"u\x1b[31m red" in told


def test_a_position_is_named_by_the_least_number_of_tokens_seen(tmp_path):
    result, (record,) = score(
        tiny(max_seq_len=256), write_rows(tmp_path / "t.jsonl", [{"text": "海风吹过码头，" * 60}])
    )
    assert list(result["by_position"]["bits_per_byte"]) == ["1", "65", "129", "193"]
    assert record["curve"].keys() == {"bits_per_byte"}


# ------------------------------------------------------------------------------------------------ sampling


def test_top_k_1_is_greedy_and_top_k_keeps_exactly_k_also_of_equals():
    torch.manual_seed(0)
    logits = torch.randn(64, 50).bfloat16()
    logits[:, 7] = logits[:, 30] = 4.0  # equal and the largest

    def pick(logits, **options):
        return sample_next_tokens(logits, [Sampling(**options)] * len(logits), torch.rand(len(logits), 1))

    assert torch.equal(pick(logits, top_k=1), pick(logits, temperature=0))
    assert torch.equal(pick(logits, top_p=1e-9), pick(logits, temperature=0))
    assert len(set(pick(torch.zeros(400, 9), top_k=3, top_p=1).tolist())) == 3


# -------------------------------------------------------------------------------------------- whose figures


def test_scores_say_of_which_weights_they_are_and_leave_those_of_the_folders_own_checkpoint(tmp_path):
    here, there = tmp_path / "results", tmp_path / "other"
    save(tiny(), here / "SFT.pth")
    save(tiny(seed=1), there / "SFT.pth")
    rows = str(write_rows(tmp_path / "t.jsonl", [{"text": "海风" * n} for n in (3, 5)]))
    fixed = ["--save_dir", str(here), "--device", "cpu", "--dtype", "float32", "--score", rows]
    eval_model.main(fixed)
    own = (here / "SFT.scores.json").read_text(encoding="utf-8")
    assert json.loads(own)["t.jsonl"]["weights"] == weights_hash(tiny().state_dict())
    eval_model.main([*fixed, "--ckpt", str(there / "SFT.pth")])
    assert (here / "SFT.scores.json").read_text(encoding="utf-8") == own
    digest = weights_hash(tiny(seed=1).state_dict())
    assert json.loads((here / f"SFT-{digest}.scores.json").read_text(encoding="utf-8"))["t.jsonl"]["weights"] == digest
