"""The CUDA path on a machine without a GPU: every tensor is fake, every operator, decision and wait is real.

What this finds: code that fails on CUDA, waits for the GPU in a step, breaks the compiled graph, compiles anew, calls
the attention kernel against its contract, or takes more than it did. What it cannot find: wrong numbers, slow kernels.
"""

import json
import os
import subprocess
import sys

import pytest
import torch

from benchmarks import fake_cuda
from engine.flags import ROOT
from model import attention

needs_card = pytest.mark.skipif(fake_cuda.missing() is not None, reason=str(fake_cuda.missing()))
BF16 = ("adamw", "muon, many heads", "z_loss, chunk, accumulation", "dropout, recompute")

# What one eager micro-batch of the default shape (26M, 32 x 512, bf16) takes. These numbers may only fall.
KERNELS = 1258
GIGABYTES = 60.3
GIBIBYTES = 4.35


@pytest.fixture(scope="module")
def seen() -> dict:
    """What the child process saw: the guard has to be loaded before torch."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "tests/machine/fake_run.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("SEEN"))[4:])


@needs_card
@pytest.mark.parametrize("variant", [*BF16, "float32"])
def test_a_step_never_waits_for_the_gpu(seen, variant):
    assert seen["steps"][variant] == {"waits": [], "state": ["cuda"]}


@needs_card
def test_fp16_waits_once_a_step_for_its_scaler(seen):
    assert seen["steps"]["float16"]["waits"] == [["engine/loop.py:train_step", "reads a number"]] * 2


@needs_card
def test_whether_a_step_is_finite_is_asked_once_not_for_every_weight(seen):
    assert seen["negations"] == 2  # of two steps


@needs_card
def test_training_waits_for_the_gpu_only_where_it_logs(seen):
    """Five figures of a row and one look whether all was finite; before the first step two tensors are put there.

    Before the last save the weights are looked at, too.
    """
    at_the_save = [["engine/machine/nan_checks.py:check_weights_finite", "reads a number"]]
    in_rows = [["engine/loop.py:train", "reads a number"], *[["engine/loop.py:log_row", "reads a number"]] * 5]
    assert seen["loop"]["waits"] == [["engine/loop.py:train", "copies and waits"]] * 2 + in_rows * 2 + at_the_save


@needs_card
def test_decoding_waits_once_per_step_for_all_its_requests(seen):
    """For the logits: the next tokens are chosen on the CPU. What is sent is not waited for."""
    waits = [["engine/generate/engine.py:step", "copies and waits"]] * 8
    assert seen["loop"]["generate"] == {"tokens": 8, "waits": waits}


@needs_card
def test_each_card_gets_the_attention_it_has(seen):
    """With a mask, keys and values have as many heads as queries: no fused kernel would share them."""
    assert seen["cards"] == {
        "NVIDIA H100 80GB HBM3 bfloat16": ["documents"],
        "NVIDIA GeForce RTX 4090 bfloat16": ["documents"],
        "NVIDIA GeForce RTX 3090 float16": ["documents"],
        "NVIDIA GeForce RTX 4090 float32": [[4, 4]],
        "Tesla T4 float16": [[4, 4]],
    }


@needs_card
def test_heads_that_the_kernel_refuses_and_builds_without_it_use_a_mask(seen):
    assert seen["heads"] == {
        "32": True,
        "256": True,
        "20": False,
        "12": False,
        "264": False,
        "without flash": False,
    }


@needs_card
def test_packed_attention_keeps_the_contract_of_the_kernel(seen):
    calls = seen["contract"] + seen["loop"]["contract"]
    assert len(calls) == 2 + 8
    for call in calls:
        assert call["dtypes"] == ["torch.bfloat16"] and call["starts"] == "torch.int32" and call["contiguous"]
        assert call["head"] % 8 == 0 and call["head"] <= 256 and call["heads"][0] % call["heads"][1] == 0


@needs_card
def test_keys_and_values_are_not_repeated_for_the_kernel(seen):
    assert [call["heads"] for call in seen["contract"]] == [[4, 2]] * 2


@needs_card
def test_the_kernel_is_told_of_the_documents_there_are_and_of_their_greatest_length(seen):
    """Rows of 256 hold documents of at most 128: a grid for 256, or for documents of no length, is mostly empty."""
    assert {call["longest"] for call in seen["loop"]["contract"]} == {128}
    assert all(shortest >= 1 and longest <= 128 for shortest, longest in seen["loop"]["lengths"])


@needs_card
@pytest.mark.parametrize("variant", ["plain", "recompute"])
def test_compiling_makes_one_graph_each_way_for_every_table_of_documents(seen, variant):
    """plain: for as many documents as each micro-batch of an epoch of the sample has."""
    told = seen["graphs"][variant]
    assert told["graphs"] == ["forward", "backward"] and told["breaks"] == 0
    assert variant != "plain" or len(told["after"]) > 5


@needs_card
def test_all_chunks_of_logits_share_one_more_graph_each_way(seen):
    """Chunks of 100, 100 and 56 positions; the graph is cut once, before them."""
    told = seen["graphs"]["chunk, muon"]
    assert told["graphs"] == ["forward", "backward"] * 2 and set(told["after"]) == {4} and told["breaks"] == 1


@needs_card
def test_with_fsdp_compiled_graphs_do_not_grow_either(seen):
    told = seen["graphs"]["fsdp"]
    assert set(told["after"]) == {len(told["graphs"])} == {7}


@needs_card
def test_a_micro_batch_of_the_default_shape_stays_within_its_budget(seen):
    told = seen["budget"]
    assert told["kernels"] <= KERNELS
    assert told["bytes"] / 1e9 <= GIGABYTES
    assert told["peak"] / 2**30 <= GIBIBYTES


# ------------------------------------------------------------------------------------- without the child process


class Cuda(torch.Tensor):
    """A CPU tensor that says it is on CUDA: it takes the other branch of model.attention."""

    is_cuda = True


def varlen_reference(q, k, v, starts, starts_k, longest, longest_k, *, window_size, enable_gqa=False):
    """What torch's varlen_attn computes, and its conditions."""
    assert starts is starts_k and longest == longest_k and window_size == (-1, 0)
    assert starts.dtype == torch.int32 and starts.is_contiguous() and starts[0] == 0 and starts[-1] == len(q)
    lengths = starts.diff()
    assert (lengths >= 0).all() and lengths.max() <= longest
    assert enable_gqa or q.shape[1] == k.shape[1]
    parts = []
    for part in zip(*(x.split(lengths.tolist()) for x in (q, k, v)), strict=True):
        if len(part[0]):
            heads = (x.transpose(0, 1)[None].as_subclass(torch.Tensor) for x in part)
            one = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
            parts.append(one[0].transpose(0, 1))
    return torch.cat(parts)


def both_ways(kv_heads: int, longest: int = 0, **limits) -> list[list[torch.Tensor]]:
    """Result and gradients of attention on CPU tensors and on those that say they are on CUDA."""
    results = []
    for kind in (torch.Tensor, Cuda):
        torch.manual_seed(1)
        leaves = [torch.randn(shape, requires_grad=True) for shape in [(2, 32, 4, 8), *[(2, 32, kv_heads, 8)] * 2]]
        out = attention(*(leaf.as_subclass(kind) for leaf in leaves), max_seqlen=longest, **limits)
        out.square().sum().backward()
        results.append([out.as_subclass(torch.Tensor), *(leaf.grad.as_subclass(torch.Tensor) for leaf in leaves)])
    return results


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_the_cuda_branch_of_attention_equals_the_cpu_branch(kv_heads, monkeypatch):
    from torch.nn.attention import varlen

    monkeypatch.setattr(varlen, "varlen_attn", varlen_reference)
    documents = torch.tensor([0, 32, 37, 64, 64], dtype=torch.int32)  # one fills a row, one is empty
    for mine, other in zip(*both_ways(kv_heads, longest=32, cu_seqlens=documents), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attention_under_a_mask_is_the_same_on_cuda(kv_heads):
    mask = torch.ones(2, 1, 32, 32, dtype=torch.bool).tril() & (torch.rand(2, 1, 32, 32) < 0.7) | torch.eye(32).bool()
    for mine, other in zip(*both_ways(kv_heads, mask=mask), strict=True):
        torch.testing.assert_close(mine, other)
