"""What a run writes now and then, so that one can read how far it is."""

from typing import Any

from engine.checkpoint.weights import whole_copy
from engine.generate import decode
from engine.machine.parallel import is_sharded


def sample(run: Any) -> str:
    """A continuation of the run's held-out prompt, by the main process; the others only help to collect shards."""
    model = whole_copy(run.model, kept=run.runtime.main) if is_sharded(run.model) else run.model
    if not run.runtime.main or model is None:
        return ""
    with run.runtime.autocast():
        answers = decode.complete(model, [run.prompt], max_new_tokens=48, end_id=run.end_id, seed=0)
    return run.tokenizer.decode(answers[0])
