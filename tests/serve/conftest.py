"""A server with three tiny models, and the openai client."""

import time

import openai
import pytest
import torch
from factories import EOS, TOKENIZER, save
from live_server import listening
from tiny_model import tiny

import serve
from engine.generate import engine


@pytest.fixture(scope="module")
def api(tmp_path_factory, one_thread):
    folder = tmp_path_factory.mktemp("results")
    for seed, name in enumerate(("SFT", "distill", "pretrain")):
        save(tiny(seed), folder / f"{name}.pth", stage=name)
    flags = "--device cpu --weight_dtype float32 --slots 4 --max_queue 40 --max_body_kb 20"
    return serve.make_api(serve.parse_args(["--save_dir", str(folder), *flags.split()]))


@pytest.fixture(scope="module")
def address(api):
    with listening(api) as (address, _):
        yield address


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=20) as client:
        yield client


@pytest.fixture
def slow(monkeypatch):
    """A step takes 20 ms, so an answer that fills the context takes two seconds."""
    real = engine.GenerationEngine.step
    monkeypatch.setattr(engine.GenerationEngine, "step", lambda self: (time.sleep(0.02), real(self))[1])


@pytest.fixture
def let_it_say(monkeypatch):
    """let_it_say(text): the model answers this to one client at a time; returns the ids, and the end's."""

    def let_it_say(text):
        ids, tokens = [*TOKENIZER.encode(text, add_special_tokens=False).ids, EOS], []

        def next_token(*_):
            tokens.append(ids[len(tokens) % len(ids)])
            return torch.tensor(tokens[-1:])

        monkeypatch.setattr(engine, "sample_next_tokens", next_token)
        return ids

    return let_it_say
