#!/usr/bin/env bash
# The whole road on one GPU, with the full corpus. Stopped at any point, the same command goes on where it was.
#   bash runs/one_gpu.sh [flags for every stage, e.g. --batch_size 64]
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
COMMON=(--resume --download --compile "$@")

$PYTHON pretrain.py "${COMMON[@]}"
$PYTHON SFT.py "${COMMON[@]}"
$PYTHON SFT.py --long "${COMMON[@]}"
$PYTHON distill.py "${COMMON[@]}"
$PYTHON distill.py --long "${COMMON[@]}"
