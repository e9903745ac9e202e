"""Continue a held-out prompt at every validation, so that a reader sees how far a run is."""

import numpy as np
import torch
from tokenizers import Tokenizer

from dataset import NO_LOSS
from engine.checkpoint.weights import full_state_dict
from engine.corpus.token_cache import TokenCache
from engine.generate import engine
from engine.machine.parallel import is_sharded
from engine.machine.runtime import Runtime
from engine.tokenizer import EOS
from model import SpongeBob

NUM_NEW_TOKENS = 48


def choose_prompt(documents: TokenCache, held_out: np.ndarray, max_seq_len: int) -> list[int]:
    """Return the beginning of the first held-out document whose labels begin within the context.

    Args:
        documents: All documents.
        held_out: Indices of the held-out ones, (N,) int64.
        max_seq_len: Context in tokens; the prompt leaves room for at least one more.
    Returns:
        Token ids up to the first label, at least 16 where the document has them; [] if no document fits.
    """
    max_tokens = max_seq_len - 1
    for document in held_out:
        start, end = documents.offsets[document], documents.offsets[document + 1]
        first_label = int(np.argmax(documents.classes[start:end] != NO_LOSS))  # every document has one
        if first_label <= max_tokens:
            length = min(max(16, first_label), end - start - 1, max_tokens)
            return documents.ids[start : start + length].tolist()
    return []


def sample(model: SpongeBob, rt: Runtime, tokenizer: Tokenizer, prompt: list[int]) -> str:
    """Continue a held-out prompt in the main process; the others only help to collect shards.

    Args:
        model: The decoder, whole or sharded.
        rt: Device, dtype and ranks.
        tokenizer: Decodes the continuation.
        prompt: Ids; none: "".
    """
    if not prompt:
        return ""
    whole = whole_copy(model, keep=rt.is_main_process) if is_sharded(model) else model
    if not rt.is_main_process or whole is None:
        return ""
    with rt.autocast():
        end_id = tokenizer.token_to_id(EOS)
        answers = engine.complete(whole, [prompt], max_new_tokens=NUM_NEW_TOKENS, end_id=end_id, seed=0)
    return tokenizer.decode(answers[0])


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
