#!/usr/bin/env bash
# The whole road on the GPUs of one machine. A process that dies restarts all of them from the last state.
#   GPUS=8 SHAPE="--preset 1B" bash runs/eight_gpus.sh [flags for every stage, e.g. --parallel fsdp for a large model]
set -euo pipefail
cd "$(dirname "$0")/.."
GPUS=${GPUS:-8}
RUN=(torchrun --standalone --nproc_per_node="$GPUS" --max-restarts=3)
# Without accumulation the eight processes take the rows a step that one GPU would accumulate: the rates fit as they are.
COMMON=(--resume --compile --accumulation_steps 1)

"${RUN[@]}" pretrain.py "${COMMON[@]}" --batch_size 32 ${SHAPE:-} "$@"
"${RUN[@]}" SFT.py "${COMMON[@]}" --batch_size 16 "$@"
"${RUN[@]}" SFT.py --long "${COMMON[@]}" --batch_size 8 "$@"
"${RUN[@]}" distill.py "${COMMON[@]}" --batch_size 8 "$@"
"${RUN[@]}" distill.py --long "${COMMON[@]}" --batch_size 8 "$@"
