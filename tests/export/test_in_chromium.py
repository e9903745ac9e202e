"""The page in a headless Chromium, clicked through at the width of a desk and of a phone (make test-pages).

Screenshots go to the folder that PICTURES names (default: a temporary folder).
"""

import os
from pathlib import Path

import httpx
import pytest
from browser import CHROMIUM, Browser
from live_server import listening
from test_page import TOKENIZER, leave

import serve
from engine.export import page as chat_page

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
