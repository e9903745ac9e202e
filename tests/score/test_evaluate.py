"""Metrics compare checkpoints row by row, are stored by file, and equal those of lm-evaluation-harness."""

import json
import math
import os
import socket

import numpy as np
import pytest
from factories import ROOT, TOKENIZER_DIR, save, write_rows
from scoring import chat, evaluate_file, question
from tiny_model import tiny

import eval_model
from engine.checkpoint.trained_rows import TrainedRows
from engine.checkpoint.weights import weights_hash
from engine.export import hugging_face
from engine.score import evaluate, table
from engine.score.records import read_files, read_hashes

ROWS = [{"text": "海风" * n} for n in (3, 90, 9)] + [chat(f"你好{n}", "好" * n) for n in range(1, 8)]
pytestmark = pytest.mark.usefixtures("one_thread")


def run_score(folder, *argv):
    """Run eval_model.py --score on the CPU in float32."""
    fixed = "--device cpu --dtype float32 --max_new_tokens 8".split()
    eval_model.main(["--save_dir", str(folder), *fixed, *map(str, argv)])


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


# -------------------------------------------------------------------------------------------------- compare


def test_compare_finds_no_change_to_itself_and_the_difference_to_another(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", ROWS)
    result, records = evaluate_file(tiny(), path)
    other, baseline = evaluate_file(tiny(seed=1), path)
    same, changes = evaluate.compare(records, records), evaluate.compare(records, baseline)
    assert same["bits_per_byte"]["difference"] == 0 and same["bits_per_byte"]["p"] == 1
    for name in ("bits_per_byte", "answer_loss", "f1"):
        before, after = other["metrics"][name]["value"], result["metrics"][name]["value"]
        assert changes[name]["difference"] == pytest.approx(after - before)
        assert changes[name]["before"] == pytest.approx(before)
    assert changes["answer_loss"]["n"] == 7


def test_compare_uses_only_answers_that_both_contexts_hold(tmp_path):
    rows = [chat("甲", "一", "乙" * 80, "二"), chat("丙", "三"), chat("丁", "龘" * 60)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    _, records = evaluate_file(tiny(), path)
    _, baseline = evaluate_file(tiny(max_seq_len=64), path)
    change = evaluate.compare(records, baseline)["answer_loss"]
    assert change["n"] == 2 and change["difference"] == pytest.approx(0, abs=1e-6)
    assert change["after"] == pytest.approx(np.mean([records[i]["sums"]["answer_loss"][0] / 2 for i in (0, 2)]))


# ------------------------------------------------------------------------------------------ the scoring mode


def test_run_prints_and_merges_metrics_by_file(tmp_path, capsys):
    save(tiny(), tmp_path / "SFT.pth")
    save(tiny(seed=1), tmp_path / "pretrain.pth", stage="pretrain")
    rows, other = write_rows(tmp_path / "rows.jsonl", ROWS), write_rows(tmp_path / "other.jsonl", ROWS[:2])
    run_score(tmp_path, "--score", rows, "--baseline", tmp_path / "pretrain.pth")
    out = capsys.readouterr().out
    scores = read_json(tmp_path / "SFT.scores.json")
    metric = scores["rows.jsonl"]["metrics"]["bits_per_byte"]
    assert f"{metric['value']:.4f}" in out and f"[{metric['low']:.4f}, {metric['high']:.4f}]" in out
    assert "| checkpoint | rows: bits per byte |" in out and "| SFT | " in out and "before    after" in out
    baseline = scores["rows.jsonl"]["baseline"]
    assert baseline["metrics"]["exact_match"]["n"] == 7 and (tmp_path / baseline["records"]).is_file()

    run_score(tmp_path, "--score", other, "--max_eval_rows", 1)
    merged = read_json(tmp_path / "SFT.scores.json")
    assert merged["rows.jsonl"] == scores["rows.jsonl"] and merged["other.jsonl"]["rows"] == 1


def test_score_says_how_many_rows_were_trained_on(tmp_path, capsys):
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "海风" * number, "id": number} for number in range(1, 5)])
    save(tiny(), tmp_path / "SFT.pth")
    run_score(tmp_path, "--score", path)
    line = "rows that the model was trained on        "
    assert f"{line}not compared (no .rows.npy that belongs to the checkpoint)" in capsys.readouterr().out
    rows = TrainedRows(read_hashes(path, read_files([path], 3)[path]), is_complete=True)
    rows.save(tmp_path / "SFT.rows.npy")
    save(tiny(), tmp_path / "SFT.pth", trained_rows=rows.entry())
    run_score(tmp_path, "--score", path)
    assert f"{line}3 of 4\n" in capsys.readouterr().out
    overlap = read_json(tmp_path / "SFT.scores.json")["rows.jsonl"]["trained_rows"]
    assert overlap == {"trained_on": 3, "of": 4, "is_complete": True}


def test_scores_of_a_namesake_leave_those_of_the_folders_own_checkpoint(tmp_path):
    folder, elsewhere = tmp_path / "results", tmp_path / "other"
    save(tiny(), folder / "SFT.pth")
    save(tiny(seed=1), elsewhere / "SFT.pth")
    rows = write_rows(tmp_path / "t.jsonl", [{"text": "海风" * n} for n in (3, 5)])
    run_score(folder, "--score", rows)
    own = read_json(folder / "SFT.scores.json")
    assert own["t.jsonl"]["weights"] == weights_hash(tiny().state_dict())
    run_score(folder, "--score", rows, "--ckpt", elsewhere / "SFT.pth")
    assert read_json(folder / "SFT.scores.json") == own
    digest = weights_hash(tiny(seed=1).state_dict())
    assert read_json(folder / f"SFT-{digest}.scores.json")["t.jsonl"]["weights"] == digest


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--baseline", "a.pth"], "--baseline is not read by a chat, only by --score"),
        (["--num_fewshot", "-1", "--score", "x"], "--num_fewshot -1"),
        (["--max_eval_rows", "-1"], "--max_eval_rows -1"),
        (["--score", "x", "--baseline", "gone.pth"], "--baseline gone.pth: no such checkpoint"),
    ],
)
def test_impossible_score_flags_are_refused_by_name(argv, message):
    with pytest.raises(ValueError, match=message):
        eval_model.main(argv)


@pytest.mark.parametrize("row", [question(0, "海", "山"), {"text": "海风"}, chat("你好", "好")], ids=str)
def test_weights_with_nan_give_one_line_and_no_metric(tmp_path, row):
    model = tiny()
    model.layers[0].attention.wq.weight.data[0, 0] = math.nan
    save(model, tmp_path / "SFT.pth")
    with pytest.raises(ValueError, match=r"SFT\.pth: .*wq.*NaN"):
        run_score(tmp_path, "--score", write_rows(tmp_path / "rows.jsonl", [row]))
    assert not (tmp_path / "SFT.scores.json").exists()


def test_two_files_of_one_name_are_refused(tmp_path):
    paths = [tmp_path / name / "rows.jsonl" for name in "ab"]
    for path in paths:
        path.parent.mkdir()
        write_rows(path, [chat("甲", "乙")])
    with pytest.raises(ValueError, match="two files have one name"):
        read_files(paths, 0)


def test_a_file_that_is_named_twice_is_scored_once_and_that_is_said(tmp_path, capsys):
    path = write_rows(tmp_path / "rows.jsonl", [chat("甲", "乙")])
    (tmp_path / "sub").mkdir()
    assert len(read_files([str(path), path, tmp_path / "sub/../rows.jsonl"], 0)) == 1
    assert "2 of 3 files are named before and scored once" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "not JSON"),
        ("[]", "list, expected an object"),
        ('{"a.jsonl": {"rows": 3, "metr', "not JSON"),
        ('{"a.jsonl": []}', r"what it says of 'a\.jsonl' is not as --score writes it"),
        ('{"a.jsonl": {"rows": 3, "figures": {}}}', r"what it says of 'a\.jsonl' is not"),
    ],
)
def test_wrong_scores_file_is_named_before_the_work(tmp_path, monkeypatch, content, message):
    save(tiny(), tmp_path / "SFT.pth")
    (tmp_path / "SFT.scores.json").write_text(content)
    monkeypatch.setattr(table, "format_scores", lambda _: pytest.fail("the rows were scored"))
    message = rf"SFT\.scores\.json: .*{message}.*; delete it and score again"
    with pytest.raises(ValueError, match=message):
        run_score(tmp_path, "--score", write_rows(tmp_path / "t.jsonl", ROWS))
    with pytest.raises(ValueError, match=message):
        eval_model.main(["--save_dir", str(tmp_path), "--report"])


def test_all_files_are_read_before_a_row_is_scored_and_once(tmp_path, capsys):
    for name, seed in (("SFT", 0), ("pretrain", 1)):
        save(tiny(seed=seed), tmp_path / f"{name}.pth")
    good = write_rows(tmp_path / "good.jsonl", [{"text": "海风"}] * 3 + [{"text": 7}])
    bad = write_rows(tmp_path / "bad.jsonl", [{"text": 7}])
    with pytest.raises(ValueError, match="bad.jsonl"):
        run_score(tmp_path, "--score", good, bad)
    assert not (tmp_path / "SFT.scores").exists()
    capsys.readouterr()
    run_score(tmp_path, "--score", good, "--baseline", tmp_path / "pretrain.pth")
    assert capsys.readouterr().err.count("skipped 1 bad rows of 4") == 1


def test_scores_and_report_of_a_folder_whose_name_is_not_utf8(tmp_path):
    folder = tmp_path / os.fsdecode(b"out\xff")
    folder.mkdir()
    save(tiny(), folder / "SFT.pth", flags={"save_dir": str(folder)})
    path = folder / os.fsdecode(b"ro\xfews.jsonl")
    path.write_text(json.dumps(chat("甲", "一", task="half \ud83d")) + "\n")  # as an escape
    run_score(folder, "--score", path)
    (records,) = (folder / "SFT.scores").iterdir()
    assert read_json(records)["groups"]["task"] == "half \ud83d"
    eval_model.main(["--save_dir", str(folder), "--report"])
    assert "out\\udcff" in (folder / "report.html").read_text("utf-8")
    assert os.fsencode(path.name) in map(os.fsencode, read_json(folder / "SFT.scores.json"))


# ------------------------------------------------------------------------------------ lm-evaluation-harness


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    """Import lm-evaluation-harness with a data folder of its own."""
    with pytest.MonkeyPatch.context() as patch:  # read when it is imported
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        import lm_eval

        return lm_eval


@pytest.mark.parametrize("exported, chats", [(False, False), (True, True)], ids=["live", "exported_chat"])
def test_lm_evaluation_harness_gets_our_metrics_without_network(harness, tmp_path, monkeypatch, exported, chats):
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
    metrics = evaluate_file(model, choices_file, chats=chats, num_fewshot=(0, 2))[0]["metrics"]
    metrics |= evaluate_file(model, texts_file)[0]["metrics"]

    options = {"pretrained": model, "tokenizer": AutoTokenizer.from_pretrained(TOKENIZER_DIR)}
    if exported:
        hugging_face.to_hf(model, TOKENIZER_DIR, tmp_path / "hf")
        options = {"pretrained": str(tmp_path / "hf"), "add_bos_token": False}
    ending, expected = "_chat" * chats, {}
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(socket.socket, "connect", no_network)
        tasks = TaskManager(include_path=str(ROOT / "data/harness"), include_defaults=False)
        lm = HFLM(**options, device="cpu", batch_size=4)
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
            by_letter, by_text = results[f"spongebob_letter{ending}"], results[f"spongebob_words{ending}"]
            expected[f"acc_letter_{shots}shot"] = by_letter["acc,none"]
            expected[f"acc_{shots}shot"] = by_text["acc,none"]
            if not chats:  # of chats it counts the line break before the answer as part of its length
                expected[f"acc_norm_{shots}shot"] = by_text["acc_norm,none"]
            if shots == 0:
                expected["bits_per_byte"] = results["spongebob_text"]["bits_per_byte,none"]
    assert expected == pytest.approx({name: metrics[name]["value"] for name in expected}, abs=1e-3)
