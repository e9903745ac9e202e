"""Sixteen clients ask a real server for half a minute, some of them leaving, and it is asked to stop in the middle."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from factories import EOS, ROOT, TOKENIZER, save
from tiny_model import tiny

from dataset import SFTDataset
from engine.generate.engine import complete

SECONDS, CLIENTS = 30, 16


@pytest.fixture
def server(tmp_path):
    """(process, address) of serve.py on a tiny checkpoint."""
    save(tiny(), tmp_path / "SFT.pth")
    words = f"--save_dir {tmp_path} --device cpu --weight_dtype float32 --slots 8 --port 0"
    command = [sys.executable, ROOT / "serve.py", *words.split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        address = None
        while address is None:
            address = re.search(r"http://[\d.:]+", process.stdout.readline())
        yield process, address[0]
        process.kill()


def said(question, count):
    prompt = SFTDataset(TOKENIZER).prompt([{"role": "user", "content": question}])
    (ids,) = complete(tiny(), [prompt], max_new_tokens=count, end_id=EOS, temperature=0)
    return TOKENIZER.decode(ids, skip_special_tokens=False)


def memory(process) -> int:
    """KiB of a process."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1])


@pytest.mark.faults
def test_no_answer_is_lost_or_anothers_while_clients_come_and_go_and_memory_stays_flat(server):
    process, address = server
    expected = {f"问题 {n}": said(f"问题 {n}", 5 + n % 30) for n in range(60)}
    until, kept, counts = time.monotonic() + SECONDS, [], {"whole": 0, "streamed": 0, "left": 0}

    def ask(client_number):
        rng = random.Random(client_number)
        with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=30) as client:
            while time.monotonic() < until:
                number, how = rng.randrange(60), rng.choice(list(counts))
                options = {
                    "model": "SFT",
                    "messages": [{"role": "user", "content": f"问题 {number}"}],
                    "temperature": 0,
                    "max_tokens": 5 + number % 30,
                    "stream": how != "whole",
                }
                answer, text = client.chat.completions.create(**options), ""
                if how == "whole":
                    text = answer.choices[0].message.content
                else:
                    for chunk in answer:
                        text += chunk.choices[0].delta.content or ""
                        if how == "left" and text:
                            answer.close()
                            break
                wanted = expected[f"问题 {number}"]
                assert wanted.startswith(text) if how == "left" else text == wanted
                counts[how] += 1
                if client_number == 0:
                    kept.append(memory(process))

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(ask, range(CLIENTS)))  # raises what a client met
    print(f"{counts} in {SECONDS} s; KiB {kept[len(kept) // 3]} after a third, {kept[-1]} at the end")
    assert min(counts.values()) > 10
    assert kept[-1] < 1.05 * kept[len(kept) // 3]


@pytest.mark.faults
@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGTERM for others")
def test_a_server_that_gets_sigterm_answers_what_it_was_asked_and_ends_with_0(server):
    process, address = server
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=30)
    options = {"model": "SFT", "temperature": 0, "max_tokens": 60}
    ask = lambda n: client.chat.completions.create(messages=[{"role": "user", "content": f"问题 {n}"}], **options)
    assert ask(0).choices[0].message.content == said("问题 0", 60)
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = [pool.submit(ask, number) for number in range(CLIENTS)]
        time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        done = [answer.exception() or answer.result().choices[0].message.content for answer in answers]
    assert process.wait(30) == 0
    # Who was not yet connected is refused; who was gets the whole answer.
    assert all(isinstance(one, openai.APIConnectionError) or one == said(f"问题 {n}", 60) for n, one in enumerate(done))
    assert sum(isinstance(one, str) for one in done) > 0
