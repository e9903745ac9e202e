"""Processes of a restarted run meet without keys of an earlier attempt."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import TCPStore

from engine.machine import rendezvous


@pytest.fixture
def agent(monkeypatch):
    """The store that torchrun shares among all attempts."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    return store


def meet(world_size: int) -> list:
    with ThreadPoolExecutor() as threads:
        return list(threads.map(rendezvous.fresh_store, range(world_size), [world_size] * world_size))


def test_processes_of_an_attempt_share_a_store_of_their_own(agent):
    agent.set("hello/1", "a process that is dead")
    first = meet(3)
    first[0].set("address", "of the first attempt")
    assert first[2].get("address") == b"of the first attempt"
    second = meet(3)
    assert not second[1].check(["address"])


def test_process_that_does_not_join_is_an_error(agent, monkeypatch):
    monkeypatch.setattr(rendezvous, "TIMEOUT_SECONDS", 0)
    with pytest.raises(ValueError, match="not all of the 2 processes joined within 0 seconds"):
        rendezvous.fresh_store(0, 2)


def test_processes_without_torchrun_have_no_store(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert rendezvous.fresh_store(0, 2) is None
