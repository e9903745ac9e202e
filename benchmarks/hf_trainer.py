"""The peer everybody knows: transformers.Trainer and LlamaForCausalLM of the same shape, as well as they go."""

import importlib.util
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from benchmarks import compare, rows
from benchmarks.heldout import HeldOut
from Config import LLMConfig
from dataset import NO_LOSS
from engine.checkpoint.weights import full_state_dict, load_model
from engine.corpus.token_cache import TokenCache
from engine.export.hugging_face import from_hf_state_dict, hf_config, to_hf_state_dict
from engine.tokenizer import load_tokenizer


class Collator:
    """Pads to the longest row of a batch, and notes how many real predictions each batch makes."""

    def __init__(self):
        self.real: list[int] = []

    def __call__(self, batch: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        self.real.append(sum(len(row["input_ids"]) - 1 for row in batch))
        return {
            "input_ids": pad_sequence([row["input_ids"] for row in batch], batch_first=True),
            "labels": pad_sequence([row["labels"] for row in batch], batch_first=True, padding_value=-100),
            "attention_mask": pad_sequence([torch.ones_like(row["input_ids"]) for row in batch], batch_first=True),
        }


class Clock(TrainerCallback):
    """Seconds from the end of step `warm` on, stopped while `score` is taken, twenty times a run."""

    def __init__(self, collator: Collator, warm: int, seconds: float, score=None):
        self.collator, self.score = collator, score
        self.warm, self.budget = warm, seconds
        self.seconds = self.began = 0.0
        self.history, self.step = [], 0

    def tokens(self) -> int:
        # By number: the loader is a batch ahead of the model.
        return sum(self.collator.real[self.warm : self.step])

    def on_train_begin(self, *_, **__):
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, model=None, **_):
        self.step = state.global_step
        if self.step not in (self.warm, state.max_steps) and not self.budget:
            return
        if args.device.type == "cuda":
            torch.cuda.synchronize()
        if self.step > self.warm:
            self.seconds += time.perf_counter() - self.began
        last = self.step == state.max_steps or (self.budget and self.seconds >= self.budget)
        if self.score and (last or self.seconds >= self.budget * (len(self.history) + 1) / 20):
            model.eval()
            self.history.append([self.seconds, self.tokens(), self.score(lambda ids: model(input_ids=ids).logits)])
            model.train()
        control.should_training_stop = bool(last)
        self.began = time.perf_counter()


def tensors(cache: TokenCache, documents: np.ndarray, max_seq_len: int) -> list[dict[str, Tensor]]:
    """Return the rows, tokenized beforehand and truncated to max_seq_len, as by datasets.map."""
    examples = []
    for begin, end in zip(cache.offsets[documents], cache.offsets[documents + 1], strict=True):
        piece = slice(begin, min(end, begin + max_seq_len))
        ids = torch.from_numpy(cache.ids[piece].astype(np.int64))
        has_loss = torch.from_numpy(cache.classes[piece] != NO_LOSS)
        examples.append({"input_ids": ids, "labels": torch.where(has_loss, ids, -100)})
    return examples


def main(job: dict) -> dict:
    """Train for job["steps"] steps, at most job["seconds"]; two of them are not timed unless all of it counts."""
    if importlib.util.find_spec("accelerate") is None:
        raise ValueError("transformers.Trainer needs accelerate: pip install accelerate")
    tokenizer = load_tokenizer(job["tokenizer_dir"])
    cache, training, heldout = rows.reopen(job, tokenizer)
    data = tensors(cache, training, job["max_seq_len"])
    steps = job["steps"] or len(data) // job["batch_size"]
    # The sampler groups within at most 50 batches and at most a quarter of the rows; four copies let it have all 50.
    data = data * (1 if job["seconds"] or "out" in job else 4)
    config = LLMConfig(vocab_size=tokenizer.get_vocab_size(), max_seq_len=job["max_seq_len"], **job["shape"])
    torch.manual_seed(job["seed"])
    model = LlamaForCausalLM._from_config(hf_config(config), attn_implementation="sdpa")
    if "parent" in job:
        model.load_state_dict(to_hf_state_dict(full_state_dict(load_model(Path(job["parent"]))[0]), config))
    warm = 0 if job["seconds"] or "out" in job else min(2, steps - 1)
    score = None
    if job["seconds"] and "out" not in job:
        score = HeldOut(cache, heldout, tokenizer, job["max_seq_len"], job["device"])
    collator = Collator()
    clock = Clock(collator, warm, job["seconds"], score)
    arguments = TrainingArguments(
        output_dir=job["folder"],
        per_device_train_batch_size=job["batch_size"],
        max_steps=steps,
        train_sampling_strategy="group_by_length" if job["grouped"] else "random",
        seed=job["seed"],
        learning_rate=job["learning_rate"],
        lr_scheduler_type="cosine",
        warmup_steps=job["warmup_iters"],
        optim="adamw_torch_fused",
        adam_beta2=0.95,
        weight_decay=0.1,
        max_grad_norm=1.0,
        bf16=job["dtype"] == "bfloat16",
        fp16=job["dtype"] == "float16",
        use_cpu=job["device"] == "cpu",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    Trainer(model=model, args=arguments, train_dataset=data, data_collator=collator, callbacks=[clock]).train()
    if "out" in job:
        rows.leave(Path(job["out"]), from_hf_state_dict(model.state_dict(), config), config, tokenizer)
    tokens, seconds = clock.tokens(), clock.seconds
    metrics = {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds, "history": clock.history}
    a_step = job["batch_size"] * float(np.mean([len(row["input_ids"]) - 1 for row in data]))  # steps differ
    return metrics | {"step_seconds": seconds / (clock.step - warm), "step_tokens": a_step}


if __name__ == "__main__":
    compare.work(main)
