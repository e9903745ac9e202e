"""One process of test_parallel's run: two steps, printed as loss and gradient norm.

torchrun --nproc_per_node=2 two_ranks.py FOLDER ddp|fsdp NUMBER_OF_WAY
"""

import sys
from pathlib import Path

from making import WAYS, a_run

from engine import loop
from engine.machine import runtime
from engine.options import Device

folder, kind, number = sys.argv[1:]
rt = runtime.start(Device(device="cpu", dtype="float32"), seed=0)
run = a_run(Path(folder), batch_size=3, rows_per_step=12, rt=rt, kind=kind, **WAYS[int(number)])
figures = []
for step in range(2):
    batches, counts = loop.load_step(run, step)
    counts = counts.over_ranks(rt)
    sums, norm, _ = loop.train_step(run, batches, counts.cost)
    figures += [rt.all_reduce(sums)[0].item() / counts.cost, norm.item()]
if rt.main:
    print("figures", *figures)
runtime.finish()
