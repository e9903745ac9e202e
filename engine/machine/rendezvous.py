"""Meeting of a run's processes after torchrun has started them again.

torchrun lets all its attempts meet in one store (torch 2.13, c10d rendezvous). After a restart a fast process finds
there the address that a dead one left, cannot connect, and the restart fails. So each meeting gets a corner of the
store with a name of its own. The number of the attempt would not do: an agent that was replaced counts from zero.

An agent that comes back cannot join that shared store at all: nobody tells it the address again. Runs on several
machines therefore set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1; each attempt then has a new store.
"""

import os
import time
from uuid import uuid4

from torch.distributed import PrefixStore, Store, TCPStore

TIMEOUT_SECONDS = 600  # seconds


def fresh_store(rank: int, world_size: int) -> Store | None:
    """A store in which nothing is left of earlier attempts; None for processes that torchrun did not start."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return TCPStore(*address, world_size, is_master=rank == 0)
    store = TCPStore(*address, is_master=False)
    return PrefixStore(_invite(store, world_size) if rank == 0 else _join(store, rank), store)


def _join(store: Store, rank: int) -> str:
    """Ask under a name nobody had before: an old answer cannot be taken for this one."""
    me = uuid4().hex
    store.set(f"hello/{rank}", me)
    meeting = store.get(f"welcome/{me}").decode()  # waits for it
    store.add(f"{meeting}/here", 1)
    return meeting


def _invite(store: Store, world_size: int) -> str:
    """Answer whoever asks, also those of earlier attempts, until all of this one are here."""
    meeting, answered, until = uuid4().hex, set(), time.monotonic() + TIMEOUT_SECONDS
    while store.add(f"{meeting}/here", 0) < world_size - 1:
        if time.monotonic() > until:
            raise ValueError(f"not all of the {world_size} processes came within {TIMEOUT_SECONDS} seconds")
        for key in (f"hello/{other}" for other in range(1, world_size)):
            if store.check([key]) and (name := store.get(key).decode()) not in answered:
                store.set(f"welcome/{name}", meeting)
                answered.add(name)
        time.sleep(0.02)
    return meeting
