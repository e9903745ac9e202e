"""Console output is best effort: it never changes how a program ends."""

import os
import subprocess
import sys


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
