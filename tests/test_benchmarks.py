"""The benchmarks compare the same rows, the same model, real tokens only and the same held-out text."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from benchmarks import (
    compare,
    decode,
    encode,
    gpu,
    hf_trainer,
    original,
    ours,
    parts,
    prepare,
    quality,
    rows,
    rules,
    sweep,
    tags,
    train,
)
from benchmarks.heldout import HeldOut
from Config import LLMConfig
from dataset import PretrainDataset
from engine.checkpoint.weights import config_dict, full_state_dict, load_model, save_weights
from engine.export import hugging_face
from engine.flags import ROOT
from engine.options import SAMPLE
from model import SpongeBob

SHAPE = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2}
DOCUMENTS, BATCH = 24, 4


@pytest.fixture(scope="module")
def sample(tokenizer, tmp_path_factory):
    return rows.open_rows(SAMPLE / "pretrain.jsonl", tokenizer, tmp_path_factory.mktemp("sample"), 1)


@pytest.fixture
def job(sample, tmp_path):
    """24 documents of one length, of which no two fit into a row: every batch of 4 makes as many real predictions."""
    lengths = np.diff(sample.offsets)
    length = int(np.bincount(lengths).argmax())
    part = rows.write_part(sample, np.flatnonzero(lengths == length)[:DOCUMENTS], tmp_path / "rows")
    (tmp_path / "run").mkdir()
    return {
        "cache": str(part),
        "stage": "pretrain",
        "folder": str(tmp_path / "run"),
        "shape": SHAPE,
        "seed": 1,
        "max_seq_len": length,
        "batch_size": BATCH,
        "device": "cpu",
        "dtype": "float32",
        "val_fraction": 0.0,
        "tokenizer_dir": str(ROOT / "spongebob_tokenizer"),
        "seconds": 0,
        "rows": 0,
        "steps": 0,
        "tokens": 0,
        "epochs": 1,
        "warmup_iters": 1,
        "log_step": 1,
        "eval_step": 0,
        "flags": "",
        "learning_rate": 5e-4,
        "accumulation": 2,
        "loader_processes": 0,
        "grouped": True,
        "a batch": BATCH * (length - 1),
    }


@pytest.mark.parametrize("contender, warm", [(ours, 1), (original, 1), (hf_trainer, 2)])
def test_only_real_predictions_after_the_warm_up_are_counted(contender, warm, job):
    job["max_seq_len"] += 5  # padding for those who pad to it
    metrics = contender.main(job)
    assert metrics["tokens"] == (DOCUMENTS // BATCH - warm) * job["a batch"]
    assert metrics["tokens_per_second"] == pytest.approx(metrics["tokens"] / metrics["seconds"])


def test_held_out_bits_per_byte_are_those_that_the_stage_reports(job, tokenizer):
    history = ours.main(job | {"val_fraction": 0.5, "steps": 2, "max_seq_len": 24, "batch_size": 2})["history"]
    model, _ = load_model(next(rows.Path(job["folder"]).glob("*.pth")))
    llama = LlamaForCausalLM(hugging_face.hf_config(model.config)).eval()
    llama.load_state_dict(hugging_face.to_hf_state_dict(full_state_dict(model), model.config))
    cache, _, heldout = rows.reopen(job | {"val_fraction": 0.5}, tokenizer)
    score = HeldOut(cache, heldout, tokenizer, 24, "cpu")
    assert score(lambda ids: llama(input_ids=ids).logits) == pytest.approx(history[-1][2], rel=1e-5)


@pytest.mark.parametrize("contender, change", [(original, {"accumulation": 1}), (hf_trainer, {"steps": 4})])
def test_racing_peer_leaves_its_held_out_metrics(contender, change, job):
    history = contender.main(job | change | {"seconds": 0.2, "val_fraction": 0.3, "learning_rate": 1e-2})["history"]
    seconds, tokens, bits = zip(*history, strict=True)
    assert list(seconds) == sorted(seconds) and tokens[-1] % job["a batch"] == 0 and 0 < min(bits) < 20


@pytest.fixture
def heavy():
    """Return a model with larger weights than a fresh one."""
    torch.manual_seed(0)
    model = SpongeBob(LLMConfig(**SHAPE, vocab_size=100, max_seq_len=16)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= 10
    return model


def test_the_original_is_the_same_model_as_ours(heavy):
    peer = original.Decoder(heavy.config).eval()
    peer.load_state_dict(heavy.state_dict())
    ids = torch.randint(100, (2, 16))
    torch.testing.assert_close(peer(ids), heavy(ids).logits, rtol=1e-4, atol=1e-4)


def test_llama_weights_come_back_under_our_names(heavy):
    converted = hugging_face.to_hf_state_dict(full_state_dict(heavy), heavy.config)
    back = hf_trainer.from_hf_state_dict(converted, heavy.config)
    assert back.keys() == heavy.state_dict().keys()
    assert all(torch.equal(back[name], weight) for name, weight in heavy.state_dict().items())


@pytest.mark.parametrize("name", ["pretrain.jsonl", "sft_512.jsonl"])
def test_the_original_reads_the_rows_of_the_cache(name, tokenizer, tmp_path):
    cache = rows.open_rows(SAMPLE / name, tokenizer, tmp_path, 1)
    stage = rows.stage_of(SAMPLE / name)
    data = original.Rows(rows.texts(cache, np.arange(20), tokenizer), str(ROOT / "spongebob_tokenizer"), 512, stage)
    for number, (_, labels, mask) in zip(range(20), data, strict=True):
        ids, classes = (x[cache.offsets[number] : cache.offsets[number + 1]] for x in (cache.ids, cache.classes))
        # Ours never merges a header with what follows it; the original's whole texts might.
        assert abs(int((labels != 0).sum()) + 1 - len(ids)) <= 2
        assert tokenizer.decode(labels[mask == 1].tolist(), skip_special_tokens=False) == tokenizer.decode(
            ids[classes > 0].tolist(), skip_special_tokens=False
        )


def test_few_rows_represent_the_file(sample, tokenizer, tmp_path):
    everything = sample.split(0)[0]
    documents = rows.spread_by_length(sample, everything, 100, seed=3)
    lengths = np.diff(sample.offsets)
    assert len(set(documents)) == 100 and lengths[documents].mean() == pytest.approx(lengths.mean(), rel=0.03)
    part = rows.open_cache(rows.write_part(sample, documents, tmp_path / "part"), PretrainDataset, tokenizer)
    assert rows.texts(part, np.arange(100), tokenizer) == rows.texts(sample, documents, tokenizer)


def test_ratios_are_taken_round_by_round_and_a_failure_says_why():
    results = {
        "ours": [{"speed": 10.0}, {"speed": 4.0}, {"speed": 9.0}],
        "peer": [{"speed": 5.0}, {"speed": 1.0}, {"speed": 3.0}],
        "gone": [compare.run("benchmarks.gone", {})] * 3,
    }
    _, _, ours_line, peer, gone = compare.compared(results, {"tokens/s": "speed"}, "speed")
    assert "3 (2 to 4)" in peer and "9 (4 to 10)" in ours_line
    assert "not measured" in gone and "benchmarks.gone" in gone


def test_race_compares_what_was_reached_in_time():
    first = {"history": [[0.0, 0, 8.0], [5.0, 50, 4.0], [9.9, 99, 3.0], [12.0, 120, 2.0]], "memory": 1.0}
    second = {"history": [[5.0, 10, 6.0], [10.1, 20, 4.0]], "memory": 1.0}
    *_, ours_line, peer = train.race_table({"ours": [first], "original": [second]}, budget=10, target=0)
    assert [cell.strip() for cell in ours_line.split("|")[2:7]] == ["3", "9.9", "99", "1", "5"]
    assert [cell.strip() for cell in peer.split("|")[2:8]] == ["4", "10.1", "20", "1", "10.1", "0.75"]


def test_all_encoders_write_the_same_ids(tmp_path):
    path = tmp_path / "rows.jsonl"
    texts = [f"第{number}天 it rained{' ' * (number % 3)}🐙</s>\n" for number in range(50)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    job = {
        "path": str(path),
        "mb": encode.text_bytes(path) / 1e6,
        "workers": 1,
        "folder": str(tmp_path),
        "tokenizer_dir": str(ROOT / "spongebob_tokenizer"),
    }
    assert len({encode.work(job | {"contender": name})["ids"] for name in encode.CONTENDERS}) == 1
    assert job["mb"] * 1e6 == sum(len(text.encode()) for text in texts)


def test_both_decoders_give_the_same_ids(tokenizer, tmp_path):
    torch.manual_seed(0)
    model = SpongeBob(LLMConfig(**SHAPE, vocab_size=tokenizer.get_vocab_size(), max_seq_len=64))
    meta = {"stage": "pretrain", "config": config_dict(model.config)}
    save_weights(tmp_path / "fresh.pth", full_state_dict(model), meta)
    hugging_face.to_hf(model, ROOT / "spongebob_tokenizer", tmp_path / "hf")
    job = {
        "ckpt": str(tmp_path / "fresh.pth"),
        "exported": str(tmp_path / "hf"),
        "device": "cpu",
        "new_tokens": 8,
        "prompts": [[1, 300, 301], [1, 400, 401]],
        "numbers": 1000,
    }
    names = ["ours float32", "transformers float32", "ours int8", "ours bfloat16"]
    metrics = {name: decode.work(job | {"contender": name}) for name in names}
    assert metrics["ours float32"]["ids"] == metrics["transformers float32"]["ids"]
    for name, width in zip(names, (4, 4, 1, 2), strict=True):  # a step of two prompts reads the weights once
        read = metrics[name]["tokens_per_second"] / 2 * 1000 * width / 1e9
        assert metrics[name]["read"] == pytest.approx(read)


def test_the_profile_finds_matmuls_attention_and_the_optimizer(job):
    metrics = parts.main(job | {"steps": 2})
    assert {"matmul", "attention", "optimizer", "cross-entropy"} <= metrics["parts"].keys()
    assert 0 < metrics["optimizers"] < sum(metrics["parts"].values())
    assert metrics["matmuls"] and all(row["plain"] > 0 < row["measured"] for row in metrics["matmuls"])


@pytest.mark.parametrize("extra", [[], ["--seconds", "5"], ["--profile"], ["--grow"]])
def test_results_name_commit_and_machine_and_no_folder(extra, tmp_path, monkeypatch):
    metrics = {"tokens_per_second": 5.0, "memory": 3.0, "step_seconds": 0.1, "history": [[1.0, 2, 3.0]]}
    metrics |= {"parts": {"matmul": 1.0}, "optimizers": 0.1, "matmuls": []}
    monkeypatch.setattr(compare, "run", lambda module, job: dict(metrics))
    data = tmp_path / "some.jsonl"
    data.write_text(json.dumps({"text": "一"}) + "\n" + json.dumps({"text": "二"}) + "\n", encoding="utf-8")
    argv = ["--data_path", str(data), "--cache_dir", str(tmp_path / "cache"), "--results", str(tmp_path / "R.md")]
    train.main([*argv, "--num_workers", "1", "--device", "cpu", *extra])
    written = (tmp_path / "R.md").read_text(encoding="utf-8")
    assert "some.jsonl" in written and "torch" in written and compare.commit() in written
    assert str(tmp_path) not in written and any(figure in written for figure in ("| 5 ", "| 3 ", "100.0%"))
    assert ("--grow" not in extra) or (tmp_path / "growth.png").is_file()


def test_sweep_reads_the_same_tokens_at_any_batch_and_sorts_by_the_mean():
    args = sweep.parse_args(["--ours", "--a 1", "--steps", "80", "--batch_size", "4"])
    jobs = [sweep.job_of(args, Path("cache"), flags, 7) for flags in ("--a 1", "--batch_size=2 --a 1")]
    assert [(job["steps"], job["batch_size"], job["seed"]) for job in jobs] == [(80, 4, 7), (160, 2, 7)]
    runs = {
        "worse": [{"history": [[0, 0, 9.0], [1, 1, 3.0]]}] * 2,
        "broken": [{"failed": "why"}],
        "better": [{"history": [[1, 1, bits]]} for bits in (2.0, 2.5)],
    }
    _, _, best, worse, broken = sweep.table(runs)
    assert "better" in best and "2.250" in best and "0.354" in best and "2.000, 2.500" in best
    assert "3.000" in worse and "0.000" in worse and "not measured: why" in broken


def test_steps_until_well_formed_end_at_the_first_good_score():
    runs = [
        {"history": [[0, 0.0, 0.0], [25, 0.96, 0.1], [50, 0.9, 0.5]]},
        {"history": [[0, 0.0, 0.0], [25, 0.94, 0.1], [50, 0.94, 0.7]]},
    ]
    line = tags.table({"tag weight 10": runs})[2]
    assert "25, never" in line and "92.0%" in line and "60.0% ± 14.1%" in line


def test_rows_without_thoughts_keep_their_questions_and_answers(tmp_path):
    path = tmp_path / "rows.jsonl"
    content = "<think>\nlong\n</think>\n<answer>\n7\n</answer>"
    turns = [{"role": "user", "content": "<think>mine</think>"}, {"role": "assistant", "content": content}]
    path.write_text(json.dumps({"conversations": turns}) + "\n")
    (row,) = map(json.loads, tags.without_thoughts(path, tmp_path / "out.jsonl").read_text().splitlines())
    assert row["conversations"][0] == turns[0]
    assert row["conversations"][1]["content"] == "<think>\n</think>\n<answer>\n7\n</answer>"


@pytest.fixture(scope="module")
def stage_caches(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def road(tmp_path, stage_caches):
    """Return quality's jobs: three stages on the sample, as few tokens as a step reads."""
    flags = (
        "--tokens 100 100 100 --dim 32 --n_layers 1 --answers 4 --max_new_tokens 4 --seeds 1 --batch_size 2 "
        "--max_seq_len 256 --rates 1e-2 1e-5 1e-5 --peer_rates 1e-2 1e-5 1e-5 --cache_dir"
    )
    args = quality.parse([*flags.split(), str(stage_caches), "--ours=--batch_size 1"])
    (tmp_path / "run").mkdir()
    return {name: job | {"folder": str(tmp_path / "run")} for name, job in quality.jobs_of(args, tmp_path)}


@pytest.mark.parametrize("contender", ["ours --batch_size 1", "original", "trainer"])
def test_contenders_train_three_stages_and_are_scored_after_each(contender, road, monkeypatch):
    trial = {"step_tokens": 50.0, "step_seconds": 0.1}  # the plan is two steps, of which there are never less than ten
    monkeypatch.setattr(compare, "run", lambda module, job: trial)
    metrics = quality.main(road[contender])
    assert 0 < metrics["bits_per_byte"] < 20 and 0 < metrics["answer_loss"] < 20 and metrics["chance_level"] > 0
    assert 0 <= metrics["correct"] <= metrics["well_formed"] <= 1
    assert len(metrics["seconds"]) == 3 and min(metrics["tokens"]) >= 100 and metrics["scored"] == [4, 4, 4]
    models = [load_model(Path(road[contender]["folder"]) / f"{stage}.pth")[0] for stage in quality.STAGES]
    first, second, third = (model.tok_embeddings.weight for model in models)
    # Each starts from the last: the low rates leave the embedding where the high one had carried it.
    assert 0 < (second - first).norm() < 0.1 * first.norm() and 0 < (third - second).norm() < 0.1 * first.norm()


def test_scored_rows_are_those_that_training_holds_out(road, tokenizer):
    for stage, job in road["original"]["stages"].items():
        cache, training, heldout = rows.reopen(job | {"stage": stage, "val_fraction": 0.005}, tokenizer)
        held_out = {*cache.hashes[heldout].tolist()}
        lines = Path(job["heldout"]).read_bytes().splitlines()
        assert len(lines) == 4 and set(map(quality.hash_of, lines)) <= held_out
        assert not held_out & {*cache.hashes[training].tolist()}


def test_tag_tokens_of_the_distilled_original_weigh_ten_times_as_much():
    conversation = "<s>user\n1 > 0?</s>\n<s>assistant\n<think>\n一\n</think>\n<answer>\nyes\n</answer></s>\n"
    tokenizer_dir = str(ROOT / "spongebob_tokenizer")
    _, labels, weights = original.Rows([conversation], tokenizer_dir, 64, "distill")[0]
    _, _, plain = original.Rows([conversation], tokenizer_dir, 64, "SFT")[0]
    assert set(weights.tolist()) == {0, 1, 10} and torch.equal(weights > 0, plain > 0)
    heavy_text = original.AutoTokenizer.from_pretrained(tokenizer_dir).decode(labels[weights == 10])
    assert "think" in heavy_text and "answer" in heavy_text and "yes" not in heavy_text


def test_quality_is_told_as_mean_and_deviation_over_seeds():
    first = {"bits_per_byte": 2.0, "well_formed": 0.5, "tokens": [10, 20, 30]}
    second = {"bits_per_byte": 3.0, "well_formed": 0.7, "tokens": [20, 20, 30]}
    both = {"answer_loss": 3.0, "correct": 0.1, "chance_level": 0.2, "scored": [4, 4, 4], "seconds": [1, 2, 3]}
    runs = [first | both, second | both]
    _, _, line, failed, _, note = quality.table({"ours": runs, "peer": [{"failed": "why"}]})
    assert "2.500 ± 0.707" in line and "60.0% ± 14.1%" in line and "15 + 20 + 30" in line and "1 + 2 + 3" in line
    assert "not measured: why" in failed and "20.0%" in note


@pytest.mark.parametrize("part", ["packed = padded", "cached ids = full"])
def test_comparison_of_the_gpu_report_notices_a_difference(part, monkeypatch, one_thread):
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "SHAPE", gpu.SHAPE | {"dim": 64, "n_layers": 1, "vocab_size": 6400})
    pair, tolerance = gpu.EQUAL[part]
    assert gpu.compared(pair, tolerance, dry=False).startswith("equal")
    assert gpu.compared(lambda: (pair()[0], 2 * pair()[1] + 1), tolerance, dry=False).startswith("NOT equal")


def test_faults_of_cleaning_are_put_in_and_found(monkeypatch, capsys, tmp_path):
    for name in ("pretrain.jsonl", "sft_512.jsonl"):
        lines = (SAMPLE / name).read_text("utf-8").splitlines(keepends=True)
        (tmp_path / name).write_text("".join(lines[:60]), "utf-8")
    monkeypatch.setattr(rules, "MAX_FAULTS", 2)
    rules.main(["--data", str(tmp_path), "--changes", str(tmp_path / "changes")])
    table = capsys.readouterr().out
    for name in ("mojibake (GBK, one line)", "nfc", "last_question", "api_keys", "refusals"):
        assert f"| {name} | 2 | 2 |" in table
    assert "mojibake: 0 rows changed, 0 dropped" in table
    assert (tmp_path / "changes").read_text("utf-8").startswith('["too_short", "sft_512.jsonl", ')


def test_rows_of_the_preparing_benchmark_are_half_texts_half_chats(tmp_path):
    for name in ("pretrain.jsonl", "sft_512.jsonl"):
        lines = (SAMPLE / name).read_text("utf-8").splitlines()[:100]
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "made").mkdir()
    prepare.Rows(tmp_path).write(tmp_path / "made", 0.02)
    texts, chats = ((tmp_path / f"made/{kind}.jsonl").read_text("utf-8").splitlines() for kind in ("str", "list"))
    assert all("text" in json.loads(line) for line in texts)
    assert all("conversations" in json.loads(line) for line in chats)
    assert len({*texts, *chats}) == len(texts) + len(chats) > 40
    assert 10_000 <= sum(len(line.encode()) + 1 for line in texts) < 12_000
