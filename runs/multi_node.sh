#!/usr/bin/env bash
# One stage on several machines. Start the same command on each; --save_dir must be a folder that all of them share.
#   HEAD=10.0.0.1:29500 NODES=1:4 bash runs/multi_node.sh pretrain.py --save_dir /shared/results \
#       --batch_size 8 --accumulation_steps 12
# NODES min:max lets the run begin with fewer machines and go on when one is lost or comes back: torchrun restarts all
# processes and --resume takes the last state. Rows a step stay the same, so batch_size x processes must divide them.
set -euo pipefail
cd "$(dirname "$0")/.."
HEAD=${HEAD:?the host and port of one of the machines, e.g. HEAD=10.0.0.1:29500}
NODES=${NODES:-2}
GPUS=${GPUS:-8}
RUN_ID=${RUN_ID:-selfllm}
script=${1:?the stage, e.g. pretrain.py}
shift

export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # or a machine that comes back cannot join (engine/machine/rendezvous.py)
exec torchrun --nnodes="$NODES" --nproc_per_node="$GPUS" --max-restarts=10 \
    --rdzv-backend=c10d --rdzv-endpoint="$HEAD" --rdzv-id="$RUN_ID" "$script" --resume "$@"
