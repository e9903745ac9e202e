"""One process of test_parallel's runs: two steps of each, printed as loss and gradient norm.

torchrun --nproc_per_node=2 two_ranks.py FOLDER
"""

import sys
from dataclasses import replace
from pathlib import Path

from factories import CPU, OPTIONS, a_run

from engine import loop, optim
from engine.machine import parallel, runtime
from engine.options import Training

folder, rt = Path(sys.argv[1]), runtime.start(CPU, 0)
for mode in ("ddp", "fsdp"):
    for number, options in enumerate(OPTIONS):
        run = a_run(folder, batch_size=3, rows_per_step=12, rank=rt.rank, world_size=rt.world_size, **options)
        loss = parallel.wrap(run.loss, rt.device, rt.dtype, rt.world_size, parallel=mode)
        training = Training(optimizer=options.get("optimizer", "adamw"), learning_rate=1e-2, weight_decay=0.1)
        run = replace(run, runtime=rt, loss=loss, optimizers=optim.build(run.model, training))
        values = []
        for step in range(2):
            batches, counts = loop.load_step(run, step)
            counts, _ = counts.over_ranks(rt)
            sums, norm, *_ = loop.train_step(run, batches, counts.weight_sum)
            values += [rt.all_reduce(sums)[0].item() / counts.weight_sum, norm.item()]
        if rt.is_main_process:
            print("result", mode, number, *values)
runtime.finish()
