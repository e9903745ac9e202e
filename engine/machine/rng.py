"""Save and restore the random generators of a process."""

import random

import numpy as np
import torch


def random_states() -> dict:
    """Return the state of every generator as plain values and tensors, for set_random_states."""
    _, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 (the global generator is meant)
    states = {
        "python": list(random.getstate()[1]),
        "numpy": [torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],  # pyright: ignore[reportAttributeAccessIssue]
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_states(states: dict) -> None:
    """Restore the states that random_states returned; those of devices that are missing here are skipped."""
    random.setstate((3, tuple(states["python"]), None))
    keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])
