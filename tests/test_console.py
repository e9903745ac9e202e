"""Console output is best effort: it never changes how a program ends."""

import os
import subprocess
import sys

from engine.console import escape_controls


def test_pipe_that_closes_at_exit_keeps_the_exit_code():
    program = "import sys; from engine import console; console.guard_streams(); print('buffered'); sys.exit(75)"
    reader, writer = os.pipe()
    os.close(reader)
    assert subprocess.run([sys.executable, "-c", program], stdout=writer, stderr=writer).returncode == 75


def test_stream_that_cannot_encode_a_character_writes_its_escape():
    program = "from engine import console; console.guard_streams(); console.print0('结果 \\udcff')"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment)
    assert (done.returncode, done.stdout.strip()) == (0, rb"\u7ed3\u679c \udcff")


def test_result_that_cannot_be_written_does_not_change_the_exit_code():
    program = """
import sys
from engine import console
console.guard_streams(output_is_result=True)
try:
    print("no line break", end="", flush=True)
except console.OutputError:
    sys.exit(75)
"""
    with open("/dev/full", "w") as full:
        assert subprocess.run([sys.executable, "-c", program], stdout=full, stderr=full).returncode == 75


def test_closed_stdin_is_an_empty_one():
    program = "import sys; from engine import console; console.guard_streams(); print(repr(sys.stdin.read()))"
    command = f"{sys.executable} -c '{program}' <&-"
    assert subprocess.run(command, shell=True, capture_output=True, text=True).stdout == "''\n"


def test_control_characters_and_lone_surrogates_are_escaped():
    assert escape_controls("\x1b[2J\a\r\x7f\x9b\udc80 \t\n　👨‍👩‍👧 é") == (
        "\\u001b[2J\\u0007\\u000d\\u007f\\u009b\\udc80 \t\n　👨‍👩‍👧 é"
    )
