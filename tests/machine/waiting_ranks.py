"""One of two processes in a group that gives up after two seconds; the main one takes longer to make something."""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from engine.machine.runtime import Runtime, finish

dist.init_process_group("gloo", timeout=timedelta(seconds=2))
rt = Runtime(torch.device("cpu"), torch.float32, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


def make() -> str:
    if rt.is_main_process:
        time.sleep(3)
        Path("made").write_text("by the main process")
    return Path("made").read_text()


rt.main_process_first(lambda: None)  # both have arrived
sys.stdout.write(
    f"{rt.rank} has what was made {rt.main_process_first(make)}\n"
)  # one write: two processes share the pipe
finish()
