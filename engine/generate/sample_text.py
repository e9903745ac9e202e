"""What a run writes now and then, so that one can read how far it is."""

from typing import Any

import numpy as np
import torch

from dataset import NO_LOSS
from engine.checkpoint.weights import full_state_dict
from engine.corpus.token_cache import TokenCache
from engine.generate import engine
from engine.machine.parallel import is_sharded
from model import SpongeBob


def choose_prompt(documents: TokenCache, held_out: np.ndarray, max_tokens: int) -> list[int]:
    """Return the beginning of the first held-out document that has a label within `max_tokens` tokens.

    Args:
        documents: All documents.
        held_out: Indices of the held-out ones, (N,) int64.
        max_tokens: Limit of the prompt in tokens.
    Returns:
        Token ids up to the first label, at least 16 where the document has them; [] if no document fits.
    """
    for document in held_out:
        start, end = documents.offsets[document], documents.offsets[document + 1]
        first_label = int(np.argmax(documents.classes[start:end] != NO_LOSS))  # every document has one
        if first_label <= max_tokens:
            length = min(max(16, first_label), end - start - 1, max_tokens)
            return documents.ids[start : start + length].tolist()
    return []


def sample(run: Any) -> str:
    """A continuation of the run's held-out prompt, by the main process; the others only help to collect shards."""
    model = whole_copy(run.model, keep=run.runtime.is_main_process) if is_sharded(run.model) else run.model
    if not run.runtime.is_main_process or model is None:
        return ""
    with run.runtime.autocast():
        answers = engine.complete(model, [run.prompt], max_new_tokens=48, end_id=run.end_id, seed=0)
    return run.tokenizer.decode(answers[0])


def whole_copy(model: SpongeBob, keep: bool) -> SpongeBob | None:
    """A sharded model in one piece on its device; None for ranks that do not keep it. Every rank has to call this."""
    weights, device = full_state_dict(model, keep), next(model.parameters()).device
    if not keep:
        return None
    with torch.device("meta"):
        copy = SpongeBob(model.config)
    copy.num_known_tokens = model.num_known_tokens
    copy.load_state_dict(weights, assign=True)
    return copy.to(device).eval()  # pyright: ignore[reportArgumentType] (transformers wraps it)
