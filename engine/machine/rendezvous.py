"""Rendezvous of a run's processes after torchrun has restarted them.

torchrun uses one store for all attempts (torch 2.13, c10d rendezvous). After a restart a fast process finds there the
address that a dead one left, cannot connect, and the restart fails. So each attempt gets a prefix of its own.
The attempt's number does not suffice: an agent that was replaced counts from zero.

An agent that returns cannot join that shared store at all, since it never receives the address again. Runs on several
machines therefore set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1; each attempt then has a new store.
"""

import os
import time
from uuid import uuid4

from torch.distributed import PrefixStore, Store, TCPStore

TIMEOUT_SECONDS = 600


def fresh_store(rank: int, world_size: int) -> Store | None:
    """Return a store without keys of earlier attempts; None for processes that torchrun did not start."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return TCPStore(*address, world_size, is_master=rank == 0)
    store = TCPStore(*address, is_master=False)
    return PrefixStore(_invite(store, world_size) if rank == 0 else _join(store, rank), store)


def _join(store: Store, rank: int) -> str:
    """Ask rank 0 for the prefix, under a name that is used once: no old answer can be taken for this one."""
    name = uuid4().hex
    store.set(f"hello/{rank}", name)
    prefix = store.get(f"welcome/{name}").decode()  # waits for the answer
    store.add(f"{prefix}/here", 1)
    return prefix


def _invite(store: Store, world_size: int) -> str:
    """Tell the prefix to every process that asks, also of earlier attempts, until all of this attempt have it."""
    prefix = uuid4().hex
    answered = set()
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while store.add(f"{prefix}/here", 0) < world_size - 1:
        if time.monotonic() > deadline:
            raise ValueError(f"not all of the {world_size} processes joined within {TIMEOUT_SECONDS} seconds")
        for rank in range(1, world_size):
            if store.check([f"hello/{rank}"]) and (name := store.get(f"hello/{rank}").decode()) not in answered:
                store.set(f"welcome/{name}", prefix)
                answered.add(name)
        time.sleep(0.02)
    return prefix
