"""A tiny run, computed once more from its definition: documents one by one, torch's own AdamW, the formula of the rate.

What two equal mistakes on both sides of a comparison would hide shows here, as a rate that is always a step ahead.
"""

import math

import pytest
import torch
from factories import SHAPE, TOKENIZER, rows, weights, write_rows

import pretrain
from Config import LLMConfig
from dataset import PretrainDataset
from model import SpongeBob

TEXTS = [f"第{n}天，海边的小镇下了雨，" + "船都回来了。" * (n % 4) for n in range(6)]
STEPS, WARMUP = 5, 1
PEAK = 1e-2
DECAY, CLIP = 0.1, 0.5
FLAGS = f"""--max_steps {STEPS} --warmup_iters {WARMUP} --learning_rate {PEAK} --weight_decay {DECAY} --grad_clip {CLIP}
    --batch_size 8 --accumulation_steps 1 --max_seq_len 64 --val_fraction 0 --log_step 1 --save_step 0 --num_workers 1
    --seed 7 --device cpu --dtype float32""".split()


def lr(step: int) -> float:
    """Step 0, 1, ...: up to the peak in step WARMUP, then down a cosine to a tenth of it in the last."""
    if step < WARMUP:
        return PEAK * (step + 1) / (WARMUP + 1)
    return PEAK * (0.55 + 0.45 * math.cos(math.pi * (step - WARMUP) / (STEPS - 1 - WARMUP)))


def test_loss_norm_rate_tokens_and_weights_are_those_of_the_definition(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])
    pretrain.main([*SHAPE, *FLAGS, "--data_path", "texts.jsonl"])
    log = [row for row in rows(tmp_path / "results/pretrain.metrics.jsonl") if "loss" in row]

    encoded = PretrainDataset(TOKENIZER).encode(TEXTS)
    documents = [torch.from_numpy(document.ids.astype("int64"))[None] for document in encoded]
    tokens = sum(ids.shape[1] - 1 for ids in documents)  # all of them in every step
    torch.manual_seed(7)
    model = SpongeBob(LLMConfig(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, max_seq_len=64))
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embeddings" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() == 1 or "embeddings" in name]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=False, foreach=False)
    for step, row in enumerate(log):
        adamw.zero_grad()
        loss = torch.zeros((), dtype=torch.float64)
        for ids in documents:
            logits = model(ids[:, :-1]).logits[0].double()
            loss = loss + torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
        (loss / tokens).backward()
        norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters()))
        assert row["loss"] == pytest.approx(loss.item() / tokens, rel=1e-5)
        assert row["grad_norm"] == pytest.approx(norm, rel=1e-4) and norm > CLIP
        assert row["learning_rate"] == pytest.approx(lr(step)) and row["tokens"] == tokens * (step + 1)
        for parameter in model.parameters():
            parameter.grad.mul_(CLIP / norm)
        for group in adamw.param_groups:
            group["lr"] = lr(step)
        adamw.step()
    assert len(log) == STEPS
    published = weights("results/pretrain.pth")
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(published[name], parameter.detach(), rtol=0, atol=1e-4, msg=name)
