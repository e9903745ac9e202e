"""The CUDA path on a machine without a GPU: every tensor is fake, every operator, decision and wait is real.

Found are: code that fails on CUDA, waits for the GPU in a step, breaks the compiled graph, compiles again, calls the
attention kernel against its contract, or takes more than it did. Not found are wrong numbers and slow kernels.
"""

import json
import os
import subprocess
import sys
import types

import pytest
import torch
from factories import loss_weights

from benchmarks import fake_cuda
from engine import packing
from engine.flags import ROOT
from model import attention, supports_varlen_attention

needs_fake_gpu = pytest.mark.skipif(fake_cuda.missing() is not None, reason=str(fake_cuda.missing()))
BF16 = ("adamw", "muon, many heads", "z_loss, chunk, accumulation", "dropout, recompute")

# What one eager micro-batch of the default shape (26M, 32 x 512, bf16) takes. These numbers may only fall.
KERNELS = 1258
GIGABYTES = 60.3
GIBIBYTES = 4.35


@pytest.fixture(scope="module")
def seen() -> dict:
    """Return the results of the child process; there the guard is loaded before torch."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "tests/machine/fake_run.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("SEEN"))[4:])


@needs_fake_gpu
@pytest.mark.parametrize("variant", [*BF16, "float32"])
def test_a_step_never_waits_for_the_gpu(seen, variant):
    assert seen["steps"][variant] == {"waits": [], "state": ["cuda"]}


@needs_fake_gpu
def test_fp16_waits_once_a_step_for_its_scaler(seen):
    assert seen["steps"]["float16"]["waits"] == [["engine/loop.py:train_step", "reads a number"]] * 2


@needs_fake_gpu
def test_step_checks_once_whether_it_is_finite(seen):
    assert seen["negations"] == 2  # of two steps


@needs_fake_gpu
def test_training_waits_for_the_gpu_only_when_it_logs(seen):
    """Five numbers of a row and one check that all was finite; before the first step two tensors are copied.

    Before the last save the weights are checked, too.
    """
    at_save = [["engine/machine/nan_checks.py:check_weights_finite", "reads a number"]]
    per_row = [["engine/loop.py:train", "reads a number"], *[["engine/loop.py:log_row", "reads a number"]] * 5]
    assert seen["loop"]["waits"] == [["engine/loop.py:train", "copies and waits"]] * 2 + per_row * 2 + at_save


@needs_fake_gpu
def test_decoding_waits_once_per_step_for_all_its_requests(seen):
    """Tokens are sampled on the CPU, so it waits for the logits; copies to the GPU are not waited for."""
    waits = [["engine/generate/engine.py:step", "copies and waits"]] * 8
    assert seen["loop"]["generate"] == {"tokens": 8, "waits": waits}


@needs_fake_gpu
def test_dry_run_of_the_gpu_report_decodes(seen):
    assert seen["dry run"].startswith("ran")


@needs_fake_gpu
def test_each_gpu_gets_the_attention_it_has(seen):
    """With a mask, keys and values have as many heads as queries: no fused kernel would share them."""
    assert seen["cards"] == {
        "NVIDIA H100 80GB HBM3 bfloat16": ["documents"],
        "NVIDIA GeForce RTX 4090 bfloat16": ["documents"],
        "NVIDIA GeForce RTX 3090 float16": ["documents"],
        "NVIDIA GeForce RTX 4090 float32": [[4, 4]],
        "Tesla T4 float16": [[4, 4]],
    }


@needs_fake_gpu
def test_heads_and_builds_without_the_kernel_use_a_mask(seen):
    assert seen["heads"] == {
        "32": True,
        "256": True,
        "20": False,
        "12": False,
        "264": False,
        "without flash": False,
    }


@needs_fake_gpu
def test_packed_attention_keeps_the_contract_of_the_kernel(seen):
    calls = seen["contract"] + seen["loop"]["contract"]
    assert len(calls) == 2 + 8
    for call in calls:
        assert call["dtypes"] == ["torch.bfloat16"] and call["starts"] == "torch.int32" and call["contiguous"]
        assert call["head"] % 8 == 0 and call["head"] <= 256 and call["heads"][0] % call["heads"][1] == 0


@needs_fake_gpu
def test_keys_and_values_are_not_repeated_for_the_kernel(seen):
    assert [call["heads"] for call in seen["contract"]] == [[4, 2]] * 2


@needs_fake_gpu
def test_kernel_receives_the_documents_and_their_greatest_length(seen):
    """Rows of 256 hold documents of at most 128: a grid for 256, or for documents of no length, is mostly empty."""
    assert {call["longest"] for call in seen["loop"]["contract"]} == {128}
    assert all(shortest >= 1 and longest <= 128 for shortest, longest in seen["loop"]["lengths"])


@needs_fake_gpu
@pytest.mark.parametrize("variant", ["plain", "recompute"])
def test_compiling_makes_one_graph_each_way_for_every_cu_seqlens(seen, variant):
    """plain: for as many documents as each micro-batch of an epoch of the sample has."""
    result = seen["graphs"][variant]
    assert result["graphs"] == ["forward", "backward"] and result["breaks"] == 0
    assert variant != "plain" or len(result["after"]) > 5


@needs_fake_gpu
def test_all_chunks_of_logits_share_one_more_graph_each_way(seen):
    """Chunks of 100, 100 and 56 positions; the graph is cut once, before them."""
    result = seen["graphs"]["chunk, muon"]
    assert result["graphs"] == ["forward", "backward"] * 2 and set(result["after"]) == {4} and result["breaks"] == 1


@needs_fake_gpu
def test_compiled_graphs_do_not_grow_with_fsdp(seen):
    result = seen["graphs"]["fsdp"]
    assert set(result["after"]) == {len(result["graphs"])} == {7}


@needs_fake_gpu
def test_micro_batch_of_the_default_shape_stays_within_its_budget(seen):
    result = seen["budget"]
    assert result["kernels"] <= KERNELS
    assert result["bytes"] / 1e9 <= GIGABYTES
    assert result["peak"] / 2**30 <= GIBIBYTES


# ------------------------------------------------------------------------------------- without the child process


class Cuda(torch.Tensor):
    """A CPU tensor that claims to be on CUDA, so it takes the other branch of model.attention."""

    is_cuda = True


def varlen_reference(q, k, v, starts, starts_k, longest, longest_k, *, window_size, enable_gqa=False):
    """Compute what torch's varlen_attn does, and check its conditions."""
    assert starts is starts_k and longest == longest_k and window_size == (-1, 0)
    assert starts.dtype == torch.int32 and starts.is_contiguous() and starts[0] == 0 and starts[-1] == len(q)
    lengths = starts.diff()
    assert (lengths >= 0).all() and lengths.max() <= longest
    assert enable_gqa or q.shape[1] == k.shape[1]
    parts = []
    for part in zip(*(x.split(lengths.tolist()) for x in (q, k, v)), strict=True):
        if len(part[0]):
            heads = (x.transpose(0, 1)[None].as_subclass(torch.Tensor) for x in part)
            out = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
            parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)


def both_ways(kv_heads: int, longest: int = 0, **limits) -> list[list[torch.Tensor]]:
    """Return result and gradients of attention on CPU tensors, and on those that claim to be on CUDA."""
    results = []
    for tensor_class in (torch.Tensor, Cuda):
        torch.manual_seed(1)
        leaves = [torch.randn(shape, requires_grad=True) for shape in [(2, 32, 4, 8), *[(2, 32, kv_heads, 8)] * 2]]
        out = attention(*(leaf.as_subclass(tensor_class) for leaf in leaves), max_seqlen=longest, **limits)
        out.square().sum().backward()
        results.append([out.as_subclass(torch.Tensor), *(leaf.grad.as_subclass(torch.Tensor) for leaf in leaves)])
    return results


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_the_cuda_branch_of_attention_equals_the_cpu_branch(kv_heads, monkeypatch):
    from torch.nn.attention import varlen

    monkeypatch.setattr(varlen, "varlen_attn", varlen_reference)
    documents = torch.tensor([0, 32, 37, 64, 64], dtype=torch.int32)  # one fills a row, one is empty
    for on_cpu, on_cuda in zip(*both_ways(kv_heads, longest=32, cu_seqlens=documents), strict=True):
        torch.testing.assert_close(on_cpu, on_cuda)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attention_under_a_mask_is_the_same_on_cuda(kv_heads):
    mask = torch.ones(2, 1, 32, 32, dtype=torch.bool).tril() & (torch.rand(2, 1, 32, 32) < 0.7) | torch.eye(32).bool()
    for on_cpu, on_cuda in zip(*both_ways(kv_heads, mask=mask), strict=True):
        torch.testing.assert_close(on_cpu, on_cuda)


@pytest.mark.parametrize(
    "dtype, head_dim, capability, has_flash, is_supported",
    [
        (torch.bfloat16, 64, (8, 0), True, True),
        (torch.float16, 256, (9, 0), True, True),
        (torch.float32, 64, (9, 0), True, False),
        (torch.float16, 64, (7, 5), True, False),
        (torch.bfloat16, 20, (9, 0), True, False),
        (torch.bfloat16, 264, (9, 0), True, False),
        (torch.bfloat16, 64, (9, 0), False, False),
    ],
)
def test_kernel_for_documents_is_used_only_where_it_works(
    dtype, head_dim, capability, has_flash, is_supported, fake_gpu, monkeypatch
):
    fake_gpu(capability=capability)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: has_flash)
    assert supports_varlen_attention(torch.device("cuda"), dtype, head_dim) == is_supported
    assert supports_varlen_attention(torch.device("cpu"), dtype, head_dim)
    assert not supports_varlen_attention(torch.device("mps"), dtype, head_dim)


def test_no_document_in_cu_seqlens_is_longer_than_max_seq_len():
    """Nor is the empty end of a row: the kernel would compute a longer document wrongly, without an error."""
    documents = types.SimpleNamespace(
        ids=torch.arange(40).numpy(),
        classes=torch.ones(40, dtype=torch.uint8).numpy(),
        offsets=torch.tensor([0, 11, 22]).numpy(),
        meta={"end_id": 2},
    )
    rows = packing.pack(packing.split_documents(documents, torch.arange(2).numpy(), 16), 64, 0, 16)
    (batch,) = packing.Batches(documents, rows, loss_weights(), batch_size=8, rows_per_step=8, seed=0).step(0)
    assert batch.cu_seqlens.tolist() == [0, 10, 20, 36, 52, 64, 80, 96, 112, 128] and batch.inputs.shape == (2, 64)
    assert batch.cu_seqlens.dtype == torch.int32
