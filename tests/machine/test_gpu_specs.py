"""What is known of a card, what is said where there is none, and what several processes tell each other in a step."""

import types

import pytest
import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

from Config import LLMConfig
from dataset import LOSS, NO_LOSS, TAG
from engine import cli, loop, optim, options, packing
from engine.loss import Counts, TokenLoss
from engine.machine import flops, gpu_specs, parallel, rng, runtime
from engine.machine.stopping import StopRequest
from engine.stage import prepare
from model import SpongeBob, supports_varlen_attention

CPU = torch.device("cpu")
TINY = LLMConfig(dim=32, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=100, max_seq_len=16)


# ------------------------------------------------------------------------------------------------- data sheets


PEAKS = {
    "NVIDIA H100 80GB HBM3": 989,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA H100 NVL": 835,
    "NVIDIA A800-SXM4-80GB": 312,
    "NVIDIA A100-SXM4-40GB": 312,
    "NVIDIA A100 80GB PCIe": 312,
    "NVIDIA H20": 148,
    "NVIDIA L20": 119.5,
    "NVIDIA L40": 181,
    "NVIDIA L40S": 362,
    "NVIDIA L4": 121,
    "Tesla T4": 65,
    "Tesla V100-SXM2-32GB": 125,
    "Tesla V100-PCIE-16GB": 112,
    "NVIDIA GeForce RTX 4090": 165,
    "NVIDIA GeForce RTX 4090 D": 147,
    "NVIDIA GeForce RTX 3090 Ti": 80,
}


@pytest.mark.parametrize("name", PEAKS)
def test_a_gpu_is_known_by_its_whole_name(name):
    assert gpu_specs.gpu_tflops(name) == PEAKS[name]


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3080 Laptop GPU",
        "NVIDIA GeForce RTX 4070",
        "NVIDIA A100-SXM4-80GB MIG 1g.10gb",
        "NVIDIA A10G",
        "Quadro RTX 6000",
        "Some H1000",
        "",
    ],
)
def test_a_gpu_that_is_not_in_the_table_has_no_peak(name, monkeypatch):
    assert gpu_specs.gpu_tflops(name) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)
    assert flops.peak_flops(torch.device("cuda"), torch.bfloat16) is None


# ----------------------------------------------------------------------------------------- no card, or an old one


def no_card(monkeypatch, said: str, *, built: str | None = "13.0", visible: str | None = None) -> None:
    def init() -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


OLD_DRIVER = "The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver"
NO_DRIVER = "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU"


@pytest.mark.parametrize(
    "said, more, told",
    [
        ("", {"built": None}, "built without CUDA"),
        (NO_DRIVER, {}, "docker run --gpus all"),
        (NO_DRIVER, {"visible": "0"}, "docker run --gpus all"),
        ("No CUDA GPUs are available", {"visible": "3"}, "CUDA_VISIBLE_DEVICES='3' names none"),
        (OLD_DRIVER, {}, "supports CUDA 12.2, this torch needs 13.0"),
    ],
)
def test_a_named_cuda_device_that_is_not_there_says_why_in_one_line(said, more, told, monkeypatch, capsys):
    no_card(monkeypatch, said, **more)
    with pytest.raises(SystemExit) as exit:
        cli.run(lambda: runtime.resolve_device("cuda"))
    line = capsys.readouterr().err
    assert exit.value.code == 2 and line.startswith("error: --device cuda: ") and told in line and line.count("\n") == 1


def test_auto_does_not_fall_back_to_the_cpu_when_only_the_driver_is_too_old(monkeypatch):
    no_card(monkeypatch, OLD_DRIVER)
    with pytest.raises(ValueError, match="driver is too old.*--device cpu runs without"):
        runtime.resolve_device("auto")


@pytest.mark.parametrize("more", [{"built": None}, {}, {"visible": ""}])
def test_auto_is_the_cpu_where_no_card_is(more, monkeypatch):
    no_card(monkeypatch, NO_DRIVER, **more)
    assert runtime.resolve_device("auto").type in ("cpu", "mps")


@pytest.mark.parametrize(
    "capability, served",
    [
        ((6, 1), False),
        ((7, 0), False),
        ((7, 5), True),
        ((8, 6), True),
        ((8, 9), True),
        ((9, 0), True),
        ((10, 0), True),
        ((12, 0), True),
    ],
)
def test_a_card_too_old_for_this_torch_is_refused_before_its_first_kernel_fails(capability, served, monkeypatch):
    archs = ["sm_75", "sm_80", "sm_86", "sm_90a", "sm_100", "compute_120"]
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: archs)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA GeForce GTX 1080")
    if served:
        gpu_specs.check_compute_capability(torch.device("cuda", 0))
    else:
        with pytest.raises(ValueError, match=r"GTX 1080 \(compute capability .*built for 7.5 and newer.*--device cpu"):
            gpu_specs.check_compute_capability(torch.device("cuda", 0))


@pytest.mark.parametrize(
    "said, advice",
    [
        ("backend='inductor' raised:\nRuntimeError: Failed to find C compiler. Please specify via CC", "install gcc"),
        (
            "backend='inductor' raised:\nTritonMissing: Cannot find a working triton installation. Either",
            "triton-windows",
        ),
        ("Found GTX 1080 which is too old to be supported by the triton GPU compiler, which", "--no-compile"),
    ],
)
def test_what_triton_lacks_is_said_in_one_line_with_what_to_do(said, advice, capsys):
    def compile() -> None:
        raise RuntimeError(said)

    with pytest.raises(SystemExit) as exit:
        cli.run(compile)
    line = capsys.readouterr().err
    assert exit.value.code == 2 and line.count("\n") == 1 and advice in line and "raised:" not in line


@pytest.mark.parametrize(
    "dtype, head, capability, flash, takes",
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
def test_the_kernel_for_documents_is_used_only_where_it_works(dtype, head, capability, flash, takes, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: flash)
    assert supports_varlen_attention(torch.device("cuda"), dtype, head) == takes
    assert supports_varlen_attention(CPU, dtype, head) and not supports_varlen_attention(
        torch.device("mps"), dtype, head
    )


def test_rows_longer_than_the_model_are_refused():
    chosen = types.SimpleNamespace(data=options.Data(max_seq_len=17), training=options.Training())
    with pytest.raises(ValueError, match="--max_seq_len 17 is more than the 16 of the model"):
        prepare.pack(None, None, chosen, runtime.Runtime(CPU, torch.float32), SpongeBob(TINY))


# ---------------------------------------------------------------------------------------------------------- mps


def test_the_random_state_of_mps_is_saved_and_put_back(monkeypatch):
    restore = []
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: torch.tensor([7], dtype=torch.uint8))
    monkeypatch.setattr(torch.mps, "set_rng_state", restore.append)
    rng.set_random_states(rng.random_states())
    assert restore == [torch.tensor([7], dtype=torch.uint8)]


def test_dropout_with_recomputation_is_refused_on_mps():
    loss = TokenLoss(SpongeBob(LLMConfig(dim=32, n_layers=1, n_heads=2, n_kv_heads=1, dropout=0.1)))
    assert parallel.wrap(loss, torch.device("mps"), torch.float32, 1) is loss
    loss.model.recompute = True
    assert parallel.wrap(loss, CPU, torch.float32, 1) is loss
    with pytest.raises(ValueError, match="dropout 0.1 with --activation_checkpointing gives wrong gradients on mps"):
        parallel.wrap(loss, torch.device("mps"), torch.float32, 1)


# ----------------------------------------------------------------------------------------------- several processes


class Two(runtime.Runtime):
    """One of two processes that do the same, without the other one; what it sent is noted."""

    def sum(self, values):
        self.sent.append(len(values))
        return [2 * value for value in values]

    def all_reduce(self, tensor):
        return tensor.mul_(2)


def a_run(rt: runtime.Runtime, steps: int, max_minutes: float = 0) -> loop.Run:
    model = SpongeBob(TINY)
    documents = types.SimpleNamespace(
        ids=torch.randint(3, 100, (400,)).numpy(),
        classes=torch.ones(400, dtype=torch.uint8).numpy(),
        offsets=torch.arange(0, 401, 10).numpy(),
        meta={"end_id": 2},
    )
    rows = packing.pack(packing.split_documents(documents, torch.arange(40).numpy(), 16), 16, 0)
    batches = packing.Batches(
        documents, rows, {NO_LOSS: 0.0, LOSS: 1.0, TAG: 1.0}, batch_size=1, rows_per_step=2, seed=0, world_size=2
    )
    run = loop.Run(
        runtime=rt,
        model=model,
        loss=TokenLoss(model),
        lr=lambda step: 1e-3,
        batches=batches,
        optimizers=optim.build(model, options.Training()),
        tokenizer=None,
        steps=steps,
        training=options.Training(max_minutes=max_minutes),
        output=options.Output(name="x", log_step=100, eval_step=0, save_step=0),
    )
    vars(run)["token_bytes"] = torch.ones(100)
    return run


@pytest.mark.parametrize(
    "signal, max_minutes, reason, last_step",
    [("SIGTERM", 0, "SIGTERM", 3), (None, 1e-9, "--max_minutes", 1), ("SIGTERM", 1e-9, "SIGTERM", 1)],
)
def test_processes_meet_once_a_step_and_stop_together(signal, max_minutes, reason, last_step):
    """A signal in a step of one of them stops all after the next; a signal is named before the time."""
    rt, saved = Two(CPU, torch.float32, 0, 2), []
    object.__setattr__(rt, "sent", [])
    with StopRequest() as request:
        request.signal = signal if max_minutes else None

        def show(step: int, *_) -> None:
            request.signal = signal if step == 2 else None

        tracker = types.SimpleNamespace(log=lambda row: None, show=show)
        save = lambda run, progress: saved.append(progress.step)
        run = a_run(rt, 6, max_minutes)
        assert loop.train(run, loop.Progress(), tracker, save, request) == reason and saved == [last_step]
    assert rt.sent == [7] * last_step + [1]  # five counts and two votes a step; at the save, is all finite


def test_counts_and_what_travels_with_them_are_not_mixed_up():
    rt = types.SimpleNamespace(sum=lambda values: [2 * value for value in values])
    assert Counts(1.5, 2, 3, 4, 5).over_ranks(rt, 6.0, 7.0) == (Counts(3.0, 4, 6, 8, 10), [12.0, 14.0])


def test_ddp_has_no_buffers_to_send():
    assert not list(TokenLoss(SpongeBob(TINY)).buffers())


def test_bf16_gradients_are_rounded_on_their_way_by_torchs_own_hook(monkeypatch):
    """Noted, not run: with gloo its Python part and backward may wait for each other for ever."""
    hooks = []

    class Copies:
        def __init__(self, module, **_):
            pass

        def register_comm_hook(self, state, hook):
            hooks.append((state, hook))

    monkeypatch.setattr(parallel, "DistributedDataParallel", Copies)
    for bf16 in (False, True):
        parallel.wrap(torch.nn.Linear(4, 4), torch.device("cuda", 0), torch.float32, 2, bf16_gradients=bf16)
    assert hooks == [(None, bf16_compress_hook)]


def test_bf16_gradients_are_refused_between_cpus():
    with pytest.raises(ValueError, match="--bf16_gradients: torch sums bf16 only between GPUs"):
        parallel.wrap(torch.nn.Linear(4, 4), CPU, torch.float32, 2, bf16_gradients=True)


@pytest.mark.parametrize(
    "world_size, more, told",
    [
        ("1", [], "--bf16_gradients would change nothing: it is for several torchrun processes"),
        ("2", ["--parallel", "fsdp"], "--bf16_gradients would change nothing: it is for DDP"),
    ],
)
def test_bf16_gradients_are_refused_where_nothing_reads_them(world_size, more, told, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", world_size)
    numbers = {"data_file": "x.jsonl", "name": "x"}
    words = ["--bf16_gradients", "--data_path", str(options.SAMPLE / "pretrain.jsonl"), *more]
    with pytest.raises(ValueError, match=told):
        options.parse_args(None, words, numbers, on_sample={}, groups=[])


def test_the_table_has_the_documents_there_are_and_none_longer_than_max_seq_len():
    """The empty end of a row, too: the kernel would compute a longer document wrongly, without an error."""
    documents = types.SimpleNamespace(
        ids=torch.arange(40).numpy(),
        classes=torch.ones(40, dtype=torch.uint8).numpy(),
        offsets=torch.tensor([0, 11, 22]).numpy(),
        meta={"end_id": 2},
    )
    rows = packing.pack(packing.split_documents(documents, torch.arange(2).numpy(), 16), 64, 0, 16)
    costs = {NO_LOSS: 0.0, LOSS: 1.0, TAG: 1.0}
    (batch,) = packing.Batches(documents, rows, costs, batch_size=8, rows_per_step=8, seed=0).step(0)
    assert batch.cu_seqlens.tolist() == [0, 10, 20, 36, 52, 64, 80, 96, 112, 128] and batch.inputs.shape == (2, 64)
    assert batch.cu_seqlens.dtype == torch.int32
