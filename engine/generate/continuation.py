"""What a run writes now and then, so that one can read how far it is."""

from typing import Any

import torch

from engine.checkpoint.weights import whole_copy
from engine.generate import decode
from engine.machine.parallel import is_sharded


def sample(run: Any) -> str:
    """A continuation of the run's held-out prompt, by the main process; the others only help to collect shards."""
    model = whole_copy(run.model, kept=run.runtime.main) if is_sharded(run.model) else run.model
    if not run.runtime.main or model is None:
        return ""
    seeded = torch.Generator(run.runtime.device).manual_seed(0)
    options = {"max_new_tokens": 48, "end_id": run.end_id, "temperature": 0.7, "top_p": 0.9, "generator": seeded}
    with run.runtime.autocast():
        return run.tokenizer.decode(decode.complete(model, [run.prompt], **options)[0])
