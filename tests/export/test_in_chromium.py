"""The page in a headless Chromium, clicked through at the width of a desk and of a phone (make test-pages).

Screenshots go to the folder that PICTURES names (default: a temporary folder).
"""

import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from browser import CHROMIUM, Browser
from live_server import listening
from test_page import TOKENIZER, leave

import serve
from engine.export import page as chat_page
from engine.tokenizer import load_tokenizer

pytestmark = [
    pytest.mark.pages,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: install it, or name it in the variable CHROMIUM"),
]
READY = "!document.querySelector('#send').disabled"
LOOKED = f"{READY} && document.querySelectorAll('#tokens button').length > 0"
HOSTILE = "<img src=x onerror=document.title='!'> 你好"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Two stages of a small untrained model whose answers end only when they are stopped or reach the limit."""
    folder = tmp_path_factory.mktemp("page")
    shape = {"dim": 256, "n_layers": 4, "hidden_dim": 768, "max_seq_len": 2048}
    stages = {name: leave(folder, name, seed, ends=False, **shape) for seed, name in enumerate(("pretrain", "SFT"))}
    chat_page.write_page(stages, TOKENIZER, folder / "page.html")
    return folder / "page.html"


@pytest.fixture(params=[(1280, 900, False), (390, 844, True)], ids=["1280 light", "390 dark"])
def browser(request, page, tmp_path):
    width, height, dark = request.param
    with Browser(page, width, height, tmp_path / "profile", dark) as browser:
        browser.wait(READY)
        yield browser
        pictures = Path(os.environ.get("PICTURES", tmp_path))
        browser.picture(pictures / f"{request.node.originalname}_{width}.png")
        assert browser.run("document.documentElement.scrollWidth <= innerWidth"), "wider than the screen"
        assert browser.complaints() == []


def text(browser: Browser, selector: str) -> str:
    return browser.run(f"document.querySelector('{selector}').textContent")


def shorten(browser: Browser, tokens: int = 16) -> None:
    browser.run(f"document.getElementById('most').value = {tokens}")


def test_question_and_answer_stay_text(browser):
    shorten(browser)
    browser.type("#question", HOSTILE)
    browser.click("#send")
    browser.wait(LOOKED)
    assert browser.run("document.querySelector('.user').innerText.trim()") == HOSTILE
    assert browser.run("document.querySelectorAll('#turns img').length") == 0
    assert browser.run("document.title") == "SelfLLM-Engine"
    assert len(text(browser, ".assistant")) > 10
    before = text(browser, ".assistant > div")
    browser.click("#retry")
    browser.wait(f"{LOOKED} && document.querySelector('.assistant > p').textContent !== ''")
    assert browser.run("document.querySelectorAll('.turn').length") == 2 and text(browser, ".assistant > div") != before
    browser.click("#clear")
    assert browser.run("document.querySelectorAll('.turn').length") == 0


def test_an_answer_can_be_stopped_while_the_page_responds(browser):
    browser.run("document.getElementById('most').value = 1024; document.getElementById('top_k').value = 50")
    browser.run("window.ticks = 0; setInterval(() => ticks++, 10)")
    browser.type("#question", "讲一个很长的故事")
    browser.click("#send")
    browser.wait("document.querySelector('.assistant > div').textContent.length > 20")
    assert browser.run("document.querySelector('#send').disabled")
    before = browser.run("ticks")
    browser.wait(f"ticks > {before} + 5", seconds=2)
    browser.click("#stop")
    browser.wait(f"{READY} && document.querySelector('.assistant > p').textContent !== ''", seconds=3)
    assert "Stopped." in text(browser, ".assistant > p")


def test_the_stage_of_a_clicked_button_answers(browser):
    shorten(browser)
    assert "SFT" in text(browser, "#facts")
    browser.click("#stages button:nth-child(1)")
    browser.wait(f"{READY} && document.querySelector('#facts').textContent.includes('pretrain')")
    assert browser.run("document.querySelector('#stage').value") == "0"
    browser.type("#question", "从前")
    browser.click("#send")
    browser.wait(LOOKED)
    assert text(browser, ".assistant > p").startswith("pretrain: ")
    assert text(browser, "#tokens button:nth-child(1)") == "<s>"


def test_tokens_heads_and_switches_change_what_is_shown(browser):
    browser.type("#own", "你好，世界 hi")
    browser.click("#read")
    browser.wait("document.querySelectorAll('#tokens button').length > 3")
    browser.click("#tokens button:nth-child(3)")
    browser.wait("document.querySelector('#token').textContent.startsWith('Position 2,')")
    assert browser.run("document.querySelectorAll('#lens tr').length") == 6  # a heading, the embedding, four layers
    whole = browser.run("document.querySelector('#found').textContent")
    browser.click("#heads button:nth-child(6)")
    browser.wait("!document.querySelector('#map').hidden")
    assert browser.run("document.querySelector('#map').width === document.querySelectorAll('#tokens button').length")
    browser.click("#headOff")
    browser.wait(f"document.querySelector('#found').textContent !== {whole!r}")
    assert "off" in browser.run("document.querySelector('#heads button:nth-child(6)').className")
    browser.click("#headOff")
    browser.wait(f"document.querySelector('#found').textContent === {whole!r}")
    for switch in ("#ahead", "#positions"):
        browser.click(switch)
        browser.wait(f"document.querySelector('#found').textContent !== {whole!r}")
        browser.click(switch)
        browser.wait(f"document.querySelector('#found').textContent === {whole!r}")


def test_a_served_page_shows_the_answers_of_the_server(page, tmp_path):
    folder = page.parent
    api = serve.make_api(serve.parse_args(["--save_dir", str(folder), "--device", "cpu", "--weight_dtype", "float32"]))
    with listening(api) as (address, _), Browser(f"{address}/", 1280, 900, tmp_path / "profile") as browser:
        browser.wait(READY)
        browser.run("document.getElementById('temperature').value = 0")
        shorten(browser)
        for question in ("你好", "再说一次"):
            browser.type("#question", question)
            browser.click("#send")
            browser.wait(f"{LOOKED} && turns.at(-1).note.textContent !== ''")
        told = browser.run("turns.map(({ role, content }) => ({ role, content }))")
        assert [turn["content"] for turn in told[::2]] == ["你好", "再说一次"]
        for length in (1, 3):  # both are what the server says when anybody asks
            asked = {"messages": told[:length], "temperature": 0, "max_tokens": 16}
            reply = httpx.post(f"{address}/v1/chat/completions", json=asked, timeout=60).json()
            assert told[length]["content"] == reply["choices"][0]["message"]["content"] != ""
        assert "16 tokens" in browser.run("turns.at(-1).note.textContent")
        browser.run("document.getElementById('most').value = 1024; document.getElementById('top_k').value = 50")
        browser.type("#question", "讲一个很长的故事")
        browser.click("#send")
        browser.wait("turns.at(-1).content.length > 20")
        browser.click("#stop")
        browser.wait(f"{READY} && turns.at(-1).note.textContent !== ''", seconds=5)
        assert "Stopped." in browser.run("turns.at(-1).note.textContent")
        assert browser.complaints() == []


def test_the_page_is_available_in_chinese(browser):
    browser.click("#language")
    assert browser.run("document.documentElement.lang") == "zh"
    assert text(browser, "#send") == "发送" and "上下文" in text(browser, "#facts")


# ---------------------------------------------------------------------------------- both kinds, one browser each


class Script(BaseHTTPRequestHandler):
    """A served page behind the prefix /llm, whose answers come as `server.ending` says; requests are kept."""

    def do_GET(self):
        self.reply(200 if self.path in ("/llm", "/llm/") else 404, "text/html", self.server.page)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body))
        if not self.path.startswith("/llm/v1/"):
            return self.reply(404, "text/html", b"<!doctype html>")
        ending = self.server.ending
        if ending == "no answer":
            return None
        if ending in ERRORS:
            return self.reply(ending, "application/json", json.dumps({"error": {"message": ERRORS[ending]}}).encode())
        if ending.startswith("html"):
            return self.reply(int(ending[5:]), "text/html", b"<!doctype html><h1>Bad Gateway</h1>")
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        if ending == "network":
            self.send_header("Content-Length", "100000")
        self.end_headers()
        self.send({"reasoning_content": "想"}), self.send({"reasoning_content": "想看"}), self.send({"content": "半"})
        if ending == "error":
            self.write({"error": {"message": "took too long"}})
        elif ending == "network":
            time.sleep(0.5)  # what came before is shown by now
        elif ending in ("end", "proxy"):
            self.send({"content": "句。"})
            self.send({}, finish_reason="stop")
            self.write({"choices": [], "usage": {"completion_tokens": 9}})
        return None

    def send(self, delta, finish_reason=None):
        self.write({"choices": [{"delta": delta, "finish_reason": finish_reason}]})

    def write(self, chunk):
        event = b"data: " + json.dumps(chunk).encode() + b"\n\n"
        if self.server.ending == "proxy":
            event = b": alive\nevent: message\n" + event.replace(b": ", b":", 1).replace(b"\n", b"\r\n")
        self.wfile.write(event)

    def reply(self, status, kind, content):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


ERRORS = {400: "messages: no such thing", 429: "64 requests are waiting", 503: "the server stops"}
ENDINGS = {  # of a served answer, with the words that tell it, and whether something was said before
    400: ("no such thing", False),
    429: ("64 requests", False),
    503: ("the server stops", False),
    "html 502": ("status 502 Bad Gateway", False),
    "html 200": ("status 200 OK", False),
    "no answer": ("cannot be reached", False),
    "network": ("the connection ended", True),
    "cut": ("the connection ended", True),
    "error": ("took too long", True),
}


@pytest.fixture(scope="module")
def server(page):
    with ThreadingHTTPServer(("127.0.0.1", 0), Script) as server:
        target = page.with_name("served.html")
        chat_page.write_page({"SFT": page.with_name("SFT.pth")}, TOKENIZER, target, served=True)
        server.page = target.read_bytes()
        server.asked, server.ending = [], "end"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def offline_tab(page, tmp_path_factory):
    with Browser(page, 1280, 900, tmp_path_factory.mktemp("offline")) as tab:
        yield tab


@pytest.fixture(scope="module")
def served_tab(server, tmp_path_factory):
    with Browser(f"http://127.0.0.1:{server.server_port}/llm", 390, 844, tmp_path_factory.mktemp("served")) as tab:
        yield tab


@pytest.fixture
def offline(offline_tab, server):
    server.asked[:] = []
    return fresh(offline_tab)


@pytest.fixture
def served(served_tab, server):
    server.ending, server.asked[:] = "end", []
    return fresh(served_tab)


@pytest.fixture(params=["offline", "served"])
def either(request):
    return request.getfixturevalue(request.param)


def fresh(tab: Browser) -> Browser:
    """Return the tab without a talk."""
    tab.wait(READY)
    tab.click("#clear")
    tab.run("document.querySelector('#question').value = ''; 0")
    shorten(tab)
    return tab


def send(tab: Browser, question: str) -> None:
    """Send what is typed into the empty field, and wait for the end, whatever it is."""
    tab.type("#question", question)
    tab.click("#send")
    tab.wait(READY)


def roles(tab: Browser) -> list[str]:
    return tab.run("turns.map(({ role }) => role)")


FAIL_ONCE = """worker.postMessage = (question) => {
  if (question.ask !== "answer") return Worker.prototype.postMessage.call(worker, question);
  waiting.get(question.id)({ text: "半", positions: 1, bytes: 1, flops: [1, 1] });
  waiting.get(question.id)({ error: "broken" });
  delete worker.postMessage;
}; 0"""


def check_usable_after(tab: Browser, words: str, is_said: bool, again) -> None:
    """Ask with an ending that fails, then repeat it and send another question with `again` in between."""
    assert words in text(tab, "#status") and "Error" not in text(tab, "#status")
    disabled = tab.run("['send', 'stop', 'retry', 'clear'].filter((id) => document.getElementById(id).disabled)")
    assert disabled == ["stop"]
    assert tab.run("document.querySelector('#question').value") == "什么？"
    assert roles(tab) == ["user", "assistant"][: 1 + is_said]
    assert ("半" in text(tab, "#turns") and words in text(tab, ".assistant > p")) or not is_said
    again()
    tab.click("#retry")
    tab.wait(f"{READY} && turns.at(-1).note.textContent.startsWith('SFT:')")
    assert roles(tab) == ["user", "assistant"] and text(tab, "#status") == ""
    assert tab.run("document.querySelector('#question').value") == ""


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_served_page_is_usable_after_every_error(served, server, ending):
    words, is_said = ENDINGS[ending]
    server.ending = ending
    send(served, "什么？")
    check_usable_after(served, words, is_said, lambda: setattr(server, "ending", "end"))
    assert "半句。" in text(served, ".assistant > div")


def test_a_served_page_reads_events_as_proxies_write_them(served, server):
    server.ending = "proxy"
    send(served, "什么？")
    assert text(served, ".assistant > div") == "半句。" and "想想看" in text(served, ".assistant details")


def test_an_offline_page_is_usable_after_an_error(offline):
    offline.run(FAIL_ONCE)
    send(offline, "什么？")
    check_usable_after(offline, "broken", True, lambda: None)


def test_a_question_that_failed_is_replaced_by_the_next(either, server):
    server.ending = 503
    either.run("document.querySelector('#question').value = '海，'.repeat(3000); 0")
    either.click("#send")
    either.wait(READY)
    assert "shorten it" in text(either, "#status") and roles(either) == ["user"]
    server.ending = "end"
    either.run("document.querySelector('#question').value = '短'; 0")
    either.click("#send")
    either.wait(f"{READY} && turns.length === 2")
    assert text(either, ".user > div") == "短"


def test_what_was_said_before_an_error_stays_in_the_talk(served, server):
    server.ending = "cut"
    send(served, "一")
    send(served, "？")  # the field has the question already
    assert roles(served) == ["user", "assistant"] * 2
    served.click("#send")  # unchanged: asked again, not twice
    served.wait(READY)
    assert roles(served) == ["user", "assistant"] * 2 and text(served, ".user:nth-child(3) > div") == "一？"


def test_a_served_page_says_who_answers_and_who_reads(offline, served):
    private = "nothing you type leaves this page"
    shown = {tab: tab.run("document.body.innerText") for tab in (offline, served)}
    assert private in shown[offline] and "inside this page" in shown[offline] and "server" not in shown[offline]
    assert private not in shown[served] and "This server answers and reads what you type." in shown[served]
    assert "on this server" in text(served, "h1") and "cache" not in served.run("say('told', {})")


def test_a_served_page_shows_no_switch_that_the_server_lacks(offline, served):
    shown = "['ahead', 'positions', 'headOff', 'layerOff'].filter((id) => document.getElementById(id).offsetParent)"
    for tab in (offline, served):
        tab.run("picked = [0, 0]; drawSwitches(); 0")
    assert offline.run(shown) == ["ahead", "positions", "headOff", "layerOff"] and served.run(shown) == []


def test_the_page_asks_only_its_own_server_and_beneath_its_prefix(offline, served, server):
    for tab in (offline, served):
        send(tab, "你好")
    assert [path for path, _ in server.asked] == ["/llm/v1/chat/completions"]
    events = [event for event in offline.events + served.events if event["method"] == "Network.requestWillBeSent"]
    sent = [event["params"]["request"]["url"] for event in events]
    outside = [url for url in sent if not url.startswith((f"http://127.0.0.1:{server.server_port}/llm", "blob:"))]
    assert len(outside) == 1 and outside[0].startswith("file:")  # the page that is opened from disk


def test_reasoning_is_folded_and_kept_for_the_next_turn(either, server):
    if "llm" in either.run("location.pathname"):
        send(either, "你好")
        send(either, "再来")
        assert server.asked[1][1]["messages"][1]["content"] == "<think>\n想想看\n</think>\n<answer>\n半句。\n</answer>"
    else:
        either.run("fill(addTurn('assistant', '<think>\\n想想看\\n</think>\\n<answer>\\n半句。\\n</answer>')); 0")
    assert either.run("document.querySelector('.assistant details').open") is False
    assert text(either, ".assistant summary") == "Thoughts, 3 characters"
    assert text(either, ".assistant > div") == "半句。"
    assert "answer>" not in either.run("document.querySelector('.assistant').innerText")


def watched(tab: Browser) -> None:
    """Keep the requests for answers, of whichever kind, in the tab's `answers`."""
    tab.run("""window.answers = []; worker.postMessage = (question) => {
      if (question.ask === "answer") answers.push(question);
      Worker.prototype.postMessage.call(worker, question);
    }; 0""")


def test_every_slider_reaches_the_answer(either, server):
    watched(either)
    wanted = {"temperature": 1.5, "top_p": 0.5, "top_k": 7, "most": 48}
    for name, value in wanted.items():
        either.run(f"document.getElementById('{name}').value = {value}; 0")
    send(either, "你好")
    for name, value in {"temperature": 0.7, "top_p": 0.9, "top_k": 0, "most": 16}.items():
        either.run(f"document.getElementById('{name}').value = {value}; 0")
    if server.asked:
        (_, body), most = server.asked[0], "max_tokens"
    else:
        (asked,), most = either.run("answers"), "most"
        body = asked["sampling"] | {"most": asked["most"]}
    assert [body[name] for name in ("temperature", "top_p", "top_k", most)] == [*wanted.values()]


def test_switches_of_an_offline_page_reach_the_answer(offline):
    watched(offline)
    offline.click("#positions")
    send(offline, "你好")
    offline.click("#positions")
    send(offline, "你好")
    assert offline.run("answers.map(({ off }) => off.positions)") == [True, False]


def test_a_served_page_continues_the_text_of_a_pretrained_model(page, tmp_path):
    flags = ["--save_dir", str(page.parent), "--device", "cpu", "--weight_dtype", "float32", "--model_mode", "0"]
    api = serve.make_api(serve.parse_args(flags))
    with listening(api) as (address, _), Browser(f"{address}/", 390, 844, tmp_path / "profile") as browser:
        shorten(browser)
        browser.wait(READY)
        browser.run("document.getElementById('temperature').value = 0; 0")
        send(browser, "从前")
        asked = {"prompt": "从前", "temperature": 0, "max_tokens": 16}
        said = httpx.post(f"{address}/v1/completions", json=asked, timeout=60).json()["choices"][0]["text"]
        assert browser.run("turns.at(-1).content") == said != ""
        assert text(browser, ".assistant > p").startswith("pretrain: 16 tokens")
        assert browser.run("$('question').ariaLabel") == "A text to continue"


def test_the_last_four_pairs_are_sent_with_a_question(either, server):
    either.run(
        """for (const n of [1, 2, 3, 4, 5, 6]) { addTurn("user", `问${n}`); addTurn("assistant", `答${n}`); } 0"""
    )
    send(either, "问7")
    either.wait("source.prompt && source.ids.length && seen?.tokens.length >= source.prompt")
    prompt = either.run("source.ids.slice(0, source.prompt)")
    rendered = load_tokenizer(TOKENIZER).decode(prompt, skip_special_tokens=False)
    assert rendered.count("<s>user\n") == 5 and "问3" in rendered and "答2" not in rendered
    if server.asked:
        contents = [message["content"] for message in server.asked[0][1]["messages"]]
        assert contents == ["问3", "答3", "问4", "答4", "问5", "答5", "问6", "答6", "问7"]


def test_tokens_attention_and_costs_of_an_answer_are_shown(either):
    send(either, "你好")
    either.wait("seen?.prompt && document.querySelectorAll('#tokens button').length > seen.prompt")
    either.click("#tokens button:nth-child(4)")
    either.wait("document.querySelector('#token').textContent.startsWith('Position 3,')")
    assert "loss" in text(either, "#token") and "bytes" in text(either, "#token")
    either.wait("document.querySelectorAll('#lens tr').length === 6")
    either.run("picked = null; drawSwitches(); inspect()")
    either.click("#heads button:nth-child(2)")
    either.wait("!document.querySelector('#map').hidden")
    assert "FLOPs; without a cache" in text(either, "#account") and "Cache: " in text(either, "#account")


def key(tab: Browser, **event) -> bool:
    """Press Enter in the field as an input method or keyboard reports it; returns whether it sent the question."""
    before = len(roles(tab))
    init = json.dumps({"key": "Enter", "bubbles": True, "cancelable": True} | event)
    tab.run(f"$('question').value = 'ni hao'; $('question').dispatchEvent(new KeyboardEvent('keydown', {init})); 0")
    return len(roles(tab)) > before


def test_enter_sends_but_not_when_it_confirms_or_breaks_a_line(offline):
    assert not key(offline, isComposing=False, keyCode=229)  # Safari, after compositionend
    assert not key(offline, isComposing=True, keyCode=229)  # Chromium, Firefox
    assert not key(offline, shiftKey=True, keyCode=13)
    assert key(offline, keyCode=13)
    offline.wait(READY)


def test_enter_breaks_the_line_on_a_phone(served):
    served.call("Emulation.setTouchEmulationEnabled", enabled=True)
    assert served.run("matchMedia('(pointer: coarse)').matches") and not key(served, keyCode=13)
    served.call("Emulation.setTouchEmulationEnabled", enabled=False)


def test_every_control_has_a_name_of_its_own(either):
    send(either, "你好")
    either.wait("document.querySelectorAll('#tokens button').length > 3")
    either.run(
        "picked = [0, 1]; drawSwitches(); inspect(); document.querySelector('#sliders').parentNode.open = true; 0"
    )
    either.wait("!document.querySelector('#map').hidden")
    controls = {"button", "textbox", "slider", "checkbox", "combobox", "log", "image", "Canvas", "DisclosureTriangle"}
    nodes = [node for node in either.call("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
    nodes = [node for node in nodes if node["role"]["value"] in controls]
    assert len(nodes) > 20 and {"textbox", "slider", "image", "log"} <= {node["role"]["value"] for node in nodes}
    assert [node["role"] for node in nodes if not node["name"]["value"].strip()] == []
    by_placeholder = "[...document.querySelectorAll('textarea')].filter((node) => !node.ariaLabel)"
    assert either.run(f"{by_placeholder}.map((node) => node.id)") == []


def test_an_answer_is_heard_once_and_as_a_whole(either):
    either.run("""window.heard = [];
      new MutationObserver(() => $("heard").textContent && heard.push($("heard").textContent))
        .observe($("heard"), { childList: true, subtree: true, characterData: true }); 0""")
    send(either, "你好")
    either.wait("heard.length > 0")
    assert either.run("heard") == either.run("[turns.at(-1).words.textContent]") != [""]
    live = "[...document.querySelectorAll('[aria-live]')].filter((node) => node.contains(turns.at(-1).box))"
    assert either.run(f"{live}.map((node) => node.ariaLive)") == ["off"]


def test_leaving_a_talk_asks_first(either):
    send(either, "你好")
    either.call("Page.reload")
    for _ in range(100):
        if any(event.get("method") == "Page.javascriptDialogOpening" for event in either.events):
            break
        time.sleep(0.02)
        either.call("Page.getNavigationHistory")
    either.call("Page.handleJavaScriptDialog", accept=False)  # stay
    assert len(roles(either)) == 2


def test_a_served_page_asks_for_the_key_and_keeps_it(page, tmp_path):
    flags = [
        "--save_dir",
        str(page.parent),
        "--device",
        "cpu",
        "--weight_dtype",
        "float32",
        "--api_key",
        "Schlüssel 密",
    ]
    asks = "document.querySelector('#keyDialog').open"
    with listening(serve.make_api(serve.parse_args(flags))) as (address, _):
        locked = httpx.get(address)
        assert locked.status_code == 401 and "SFT" not in locked.text and len(locked.text) < 1e5
        with Browser(f"{address}/", 390, 844, tmp_path / "profile") as browser:
            browser.wait(asks)
            assert not browser.run("!$('wrong').hidden") and browser.run("$('key').labels[0].textContent")
            browser.type("#key", "falsch")
            browser.click("#keyDialog button")
            browser.wait(f"{asks} && !$('wrong').hidden")
            browser.type("#key", "Schlüssel 密")
            browser.click("#keyDialog button")
            browser.wait(READY)
            shorten(browser)
            send(browser, "你好")
            assert "16 tokens" in browser.run("turns.at(-1).note.textContent")
            browser.click("#clear")
            browser.run("window.isOld = true")
            browser.call("Page.reload")
            browser.wait(f"!window.isOld && document.readyState === 'complete' && {READY}")
            assert not browser.run(asks)
            browser.run("sessionStorage.clear(); 0")  # as if the server had another key now
            browser.type("#question", "你好")
            browser.click("#send")
            browser.wait(asks)
            browser.call(
                "Input.dispatchKeyEvent", type="keyDown", key="Escape", code="Escape", windowsVirtualKeyCode=27
            )
            browser.wait(f"{READY} && !({asks})")
            assert "API key" in text(browser, "#status")
