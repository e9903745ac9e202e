"""The method of the original scripts, rewritten and short: what training this model cost before the engine.

Rows are tokenized in __getitem__ and padded to max_seq_len, attention multiplies out every score and adds a full mask,
everything is fp32, eight micro-batches make a step, AdamW 5e-4 with a cosine. Rotary positions are complex numbers. In
distillation whatever is a piece of a tag weighs ten times as much, wherever it is. Weights have Meta's names.

Shapes: B rows, T positions of a row, H query heads, K key-value heads, D size of a head
"""

import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import AutoTokenizer

from benchmarks import compare, rows
from benchmarks.heldout import HeldOut
from Config import LLMConfig
from engine.checkpoint.weights import load_model
from engine.reasoning import TAGS
from engine.tokenizer import BOS, EOS, load_tokenizer
from model import FeedForward

TAG_WEIGHT = 10


class Rows(Dataset):
    """(inputs, labels, weights), each (T,); of a conversation only the assistant's words have weight."""

    def __init__(self, texts: list[str], tokenizer_dir: str, max_seq_len: int, stage: str):
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
        self.texts, self.stage = texts, stage
        self.length = max_seq_len + 1
        self.tags = {*itertools.chain(*self.tokenizer(list(TAGS), add_special_tokens=False).input_ids)}
        self.begin = self.tokenizer(f"{BOS}assistant\n", add_special_tokens=False).input_ids
        self.end = self.tokenizer.convert_tokens_to_ids(EOS)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        ids = self.tokenizer(self.texts[index], add_special_tokens=False).input_ids[: self.length]
        weights = [1] * len(ids) if self.stage == "pretrain" else self.answers(ids)
        if self.stage == "distill":
            weights = [w * TAG_WEIGHT if token in self.tags else w for token, w in zip(ids, weights, strict=True)]
        padding = [0] * (self.length - len(ids))
        ids, weights = torch.tensor(ids + padding), torch.tensor(weights + padding)
        return ids[:-1], ids[1:], weights[1:]

    def answers(self, ids: list[int]) -> list[int]:
        """Return a mask, 1 from after each `<s>assistant` line to its end."""
        mask, at = [0] * len(ids), 0
        while at < len(ids):
            if ids[at : at + len(self.begin)] != self.begin:
                at += 1
                continue
            at += len(self.begin)
            end = next((place for place in range(at, len(ids)) if ids[place] == self.end), len(ids) - 1)
            mask[at : end + 1] = [1] * (end + 1 - at)
            at = end + 1
        return mask


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x.float() * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)).type_as(x)


class Attention(nn.Module):
    def __init__(self, config: LLMConfig):
        super().__init__()
        self.heads, self.kv_heads = config.n_heads, config.n_kv_heads
        self.head_dim = config.head_dim
        self.wq = nn.Linear(config.dim, config.dim, bias=False)
        self.wk = nn.Linear(config.dim, self.kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(config.dim, self.kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, turns: Tensor, mask: Tensor) -> Tensor:
        rows, length, dim = x.shape
        q = turned(self.wq(x).view(rows, length, self.heads, self.head_dim), turns)
        k = turned(self.wk(x).view(rows, length, self.kv_heads, self.head_dim), turns)
        v = self.wv(x).view(rows, length, self.kv_heads, self.head_dim)
        k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=2) for t in (k, v))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # (B, H, T, D)
        scores = q @ k.transpose(2, 3) / math.sqrt(self.head_dim) + mask  # (B, H, T, T)
        out = F.softmax(scores.float(), dim=-1).type_as(q) @ v
        return self.wo(out.transpose(1, 2).reshape(rows, length, dim))


def turned(x: Tensor, turns: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns[None, :, None]).flatten(3).type_as(x)


class Block(nn.Module):
    def __init__(self, config: LLMConfig):
        super().__init__()
        self.attention, self.feed_forward = Attention(config), FeedForward(config)
        self.attention_norm, self.ffn_norm = (RMSNorm(config.dim, config.norm_eps) for _ in range(2))

    def forward(self, x: Tensor, turns: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), turns, mask)
        return x + self.feed_forward(self.ffn_norm(x))


class Decoder(nn.Module):
    def __init__(self, config: LLMConfig):
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
        self.output.weight = self.tok_embeddings.weight
        length, wavelengths = config.max_seq_len, torch.arange(0, config.head_dim, 2) / config.head_dim
        angles = torch.outer(torch.arange(length).float(), config.rope_theta**-wavelengths)
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles), persistent=False)
        self.register_buffer("mask", torch.full((length, length), -torch.inf).triu(1), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) -> logits (B, T, V)."""
        length, x = ids.shape[1], self.tok_embeddings(ids)
        for block in self.layers:
            x = block(x, self.turns[:length], self.mask[:length, :length])
        return self.output(self.norm(x))


def main(job: dict) -> dict:
    """Train for job["seconds"] or job["tokens"], or (both 0) through its rows once, the first micro-batch not timed."""
    torch.manual_seed(job["seed"])
    tokenizer = load_tokenizer(job["tokenizer_dir"])
    cache, training, heldout = rows.reopen(job, tokenizer)
    if job["rows"]:
        training = rows.spread_by_length(cache, training, job["rows"], job["seed"])
    texts = rows.texts(cache, training, tokenizer)
    data = Rows(texts, job["tokenizer_dir"], job["max_seq_len"], job["stage"])
    loader = DataLoader(data, job["batch_size"], shuffle=True, num_workers=job["loader_processes"])
    config = LLMConfig(vocab_size=tokenizer.get_vocab_size(), max_seq_len=job["max_seq_len"], **job["shape"])
    model = Decoder(config).to(job["device"])
    if "parent" in job:
        model.load_state_dict(load_model(Path(job["parent"]))[0].state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=job["learning_rate"])
    score = None
    if job["seconds"] and "out" not in job:
        score = HeldOut(cache, heldout, tokenizer, job["max_seq_len"], job["device"])
    forever = itertools.chain.from_iterable(itertools.repeat(loader))
    metrics = train(model, optimizer, forever if job["seconds"] or job["tokens"] else loader, job, score)
    if "out" in job:
        rows.leave(Path(job["out"]), model.state_dict(), config, tokenizer)
    return metrics


def train(model: Decoder, optimizer, batches: Iterator, job: dict, score: HeldOut | None) -> dict:
    """The training loop; the clock is stopped while `score` is taken, twenty times a run."""
    seconds, tokens = 0.0, 0
    history = []
    budget = job["seconds"] or job["tokens"]
    warm = 0 if budget else 1
    for number, (inputs, labels, weights) in enumerate(batches):
        began = time.perf_counter()
        progress = (seconds if job["seconds"] else tokens) / budget if budget else 0.0
        for group in optimizer.param_groups:
            group["lr"] = job["learning_rate"] * (0.1 + 0.5 * (1 + math.cos(math.pi * progress)))
        real = int((labels != 0).sum())
        inputs, labels, weights = (tensor.to(job["device"]) for tensor in (inputs, labels, weights))
        losses = F.cross_entropy(model(inputs).flatten(0, 1), labels.flatten(), reduction="none")
        loss = (losses * weights.flatten()).sum() / weights.sum()
        (loss / job["accumulation"]).backward()
        if (number + 1 - warm) % job["accumulation"] == 0:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if job["device"] == "cuda":
            torch.cuda.synchronize()
        if number < warm:
            continue
        seconds, tokens = seconds + time.perf_counter() - began, tokens + real
        if score and seconds >= budget * (len(history) + 1) / 20:
            history.append([seconds, tokens, score(model)])
        if budget and (seconds if job["seconds"] else tokens) >= budget:
            break
    return {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds, "history": history}


if __name__ == "__main__":
    compare.work(main)
