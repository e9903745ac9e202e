"""Sixteen clients ask a real server for half a minute, some of them leaving, and it is asked to stop in the middle."""

import contextlib
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
from factories import ROOT, save
from live_server import BAD_CLIENTS, connect, greedy_answer, user
from tiny_model import tiny

SECONDS, CLIENTS = 30, 16
SIGNALS = {"SIGTERM": ([signal.SIGTERM], 0), "SIGINT": ([signal.SIGINT], 130), "two": ([signal.SIGINT] * 2, 130)}


@pytest.fixture
def server(tmp_path):
    """(process, address) of serve.py on a tiny checkpoint."""
    save(tiny(), tmp_path / "SFT.pth")
    flags = f"--save_dir {tmp_path} --device cpu --weight_dtype float32 --slots 8 --port 0 --grace 2"
    command = [sys.executable, ROOT / "serve.py", *flags.split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        address = None
        while address is None:
            address = re.search(r"http://[\d.:]+", process.stdout.readline())
        yield process, address[0]
        process.kill()


def resident_kib(process) -> int:
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1])


@pytest.mark.faults
def test_clients_that_come_and_go_get_their_answers_in_flat_memory(server):
    process, address = server
    expected = {f"问题 {n}": greedy_answer(f"问题 {n}", 5 + n % 30) for n in range(60)}
    end, memory = time.monotonic() + SECONDS, []
    counts = {"whole": 0, "streamed": 0, "left": 0}

    def ask(client_number):
        rng = random.Random(client_number)
        with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=30) as client:
            while time.monotonic() < end:
                number, how = rng.randrange(60), rng.choice(list(counts))
                options = {
                    "model": "SFT",
                    "messages": user(f"问题 {number}"),
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
                whole = expected[f"问题 {number}"]
                assert whole.startswith(text) if how == "left" else text == whole
                counts[how] += 1
                if client_number == 0:
                    memory.append(resident_kib(process))

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(ask, range(CLIENTS)))  # raises what a client met
    print(f"{counts} in {SECONDS} s; KiB {memory[len(memory) // 3]} after a third, {memory[-1]} at the end")
    assert min(counts.values()) > 10
    assert memory[-1] < 1.05 * memory[len(memory) // 3]


@pytest.mark.faults
@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGTERM for others")
def test_sigterm_finishes_running_answers_and_ends_with_0(server):
    process, address = server
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=30)
    options = {"model": "SFT", "temperature": 0, "max_tokens": 60}

    def ask(number):
        return client.chat.completions.create(messages=user(f"问题 {number}"), **options).choices[0].message.content

    assert ask(0) == greedy_answer("问题 0", 60)
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = [pool.submit(ask, number) for number in range(CLIENTS)]
        time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        done = [answer.exception() or answer.result() for answer in answers]
    assert process.wait(30) == 0
    # Clients that were not connected yet are refused; the others get the whole answer.
    for number, answer in enumerate(done):
        assert isinstance(answer, openai.APIConnectionError) or answer == greedy_answer(f"问题 {number}", 60)
    assert any(isinstance(answer, str) for answer in done)


@pytest.mark.faults
@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGTERM for others")
@pytest.mark.parametrize("name", SIGNALS)
def test_signal_ends_the_server_whatever_bad_clients_do(server, name):
    process, address = server
    signals, code = SIGNALS[name]
    with contextlib.ExitStack() as stack:
        for pieces in BAD_CLIENTS.values():
            stack.enter_context(connect(address, pieces))
        for number in signals:
            process.send_signal(number)
            time.sleep(0.2)
        start = time.monotonic()
        _, errors = process.communicate(timeout=20)
    assert process.returncode == code and "Traceback" not in errors
    assert time.monotonic() - start < 8  # 2 of them are the grace; the rest is the interpreter's end on a busy machine
