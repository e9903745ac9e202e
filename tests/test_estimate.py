"""The estimate of the full corpus: its formula fits times that were measured, its numbers those it was taken from."""

import re

import pytest

from benchmarks import estimate, results
from Config import PRESETS
from engine.flags import ROOT
from engine.machine.gpu_specs import GPU_TFLOPS

SHAPE = PRESETS["26M"]
WORK = estimate.corpus(SHAPE, estimate.GB)


def test_the_formula_gives_the_demos_own_times():
    """Each stage takes its share of the whole; stages of less than a minute are mostly start-up.

    It fails, too, when other programs took turns with the demo: its times are then no measure, run it again.
    """
    times = estimate.demo_times()
    assert sum(actual for _, actual in times.values()) == pytest.approx(sum(expected for expected, _ in times.values()))
    for stage, (expected, actual) in times.items():
        assert actual < 1 or expected == pytest.approx(actual, rel=0.35), stage


def test_hours_are_tokens_times_flops_over_flops_per_second():
    """By hand: 1.6 GB of text at 3.23 bytes, 25.8 M weights, attention over 512 tokens, 15 % of 989 TFLOP/s."""
    tokens = 1.6e9 / 3.23
    flops = tokens * (6 * 25_829_888 + 12 * 8 * 512 * 512 / 2)
    alone = {"pretrain": WORK["pretrain"]}
    assert alone["pretrain"].tokens == pytest.approx(tokens) and alone["pretrain"].flops == pytest.approx(flops)
    assert estimate.on_gpu(alone, "H100") == pytest.approx(flops / (0.15 * 989e12) / 3600)
    assert estimate.on_cpu(alone, "AMD EPYC, two cores, float32") == pytest.approx(tokens / 716 / 3600)


def test_the_assumed_share_is_no_better_than_what_was_measured():
    """The share is of the speed of matmuls alone on cores with AMX, which docs/experiments.md names."""
    products = re.search(r"plain products: 272 -> ([\d,]+) GFLOP/s", (ROOT / "docs/experiments.md").read_text("utf-8"))
    tables = [results.table(when) for when in estimate.CPUS["Intel Xeon, two cores, AMX"]]
    speeds = [results.number(table["ours"]["real tokens/s"]) for table in tables]  # texts, conversations
    flops_per_token = WORK["pretrain"].flops / WORK["pretrain"].tokens
    shares = [speed * flops_per_token / (results.number(products[1]) * 1e9) for speed in speeds]
    assert 0.13 < shares[0] < 0.14 and 0.18 < shares[1] < 0.19 and min(shares) < estimate.SHARE < max(shares)


def test_bytes_per_token_are_those_of_the_committed_tokenizer():
    card = (ROOT / "spongebob_tokenizer/README.md").read_text("utf-8")
    assert re.search(r"\| all \([\d,]+ bytes\) \| [\d.]+ \| ([\d.]+) \|", card)[1] == f"{estimate.BYTES_PER_TOKEN}"


def test_every_row_says_whether_it_was_measured_or_calculated(capsys):
    estimate.main([])
    output = capsys.readouterr().out
    for name in estimate.CPUS:
        assert re.search(rf"\| {re.escape(name)} \| [\d,.]+ \| calculated from its measured speed \|", output)
    for name in estimate.CARDS:
        assert name in GPU_TFLOPS
        assert re.search(rf"\| {name} \| [\d.]+ \| calculated, .* no GPU has run it yet \|", output)
    estimate.main("--dim 768 --n_layers 17 --n_heads 12 --n_kv_heads 4 --gb 1 0 0 0".split())
    assert "measured speed" not in capsys.readouterr().out  # speeds are known of the default shape alone


def test_a_section_that_is_not_there_or_not_the_only_one_is_an_error():
    for parts in (("training speed",), ("training speed", "1999-01-01")):
        with pytest.raises(ValueError, match="headings hold training speed"):
            results.table(*parts)
