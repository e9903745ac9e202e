#!/usr/bin/env bash
# The whole road on the bundled sample with a small model, on two CPU cores: every stage, its scores, three answers, a report.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
OUT=demo
SAMPLE=data/sample
# Muon and about a thousand tokens a step: docs/experiments.md says what else was tried.
COMMON=(--save_dir "$OUT" --accumulation_steps 1 --optimizer muon --schedule linear --warmup_iters 20 --eval_step 0 \
    --save_step 0 --overwrite)

$PYTHON pretrain.py "${COMMON[@]}" --data_path $SAMPLE/pretrain.jsonl --dim 128 --n_layers 4 --n_heads 4 --batch_size 2 \
    --max_steps 950 --learning_rate 1e-2
$PYTHON SFT.py "${COMMON[@]}" --data_path $SAMPLE/sft_512.jsonl --batch_size 2 --max_steps 450 --learning_rate 2e-3
$PYTHON SFT.py --long "${COMMON[@]}" --data_path $SAMPLE/sft_1024.jsonl --batch_size 1 --max_steps 80 --learning_rate 1e-3
$PYTHON distill.py "${COMMON[@]}" --data_path $SAMPLE/r1_1024.jsonl --batch_size 1 --max_steps 1400 --learning_rate 4e-3
$PYTHON distill.py --long "${COMMON[@]}" --data_path $SAMPLE/r1_1024.jsonl --batch_size 1 --max_steps 150 --learning_rate 3e-3

# Each stage on rows that were held out, compared with the checkpoint it started from.
SCORE=("$PYTHON" eval_model.py --save_dir "$OUT" --score_rows 0 --max_new_tokens 160)
"${SCORE[@]}" --model_mode 0 --score $SAMPLE/pretrain_heldout.jsonl
grep '"task":"fact"' $SAMPLE/sft_512_heldout.jsonl > "$OUT/facts.jsonl"  # told in pretraining, never asked about in training
"${SCORE[@]}" --model_mode 1 --score "$OUT/facts.jsonl" $SAMPLE/sft_512_heldout.jsonl --baseline "$OUT/pretrain.pth"
"${SCORE[@]}" --score_rows 24 --model_mode 1 --long --max_seq_len 1024 --score $SAMPLE/sft_1024_heldout.jsonl --baseline "$OUT/SFT.pth"
"${SCORE[@]}" --model_mode 2 --max_seq_len 1024 --score $SAMPLE/r1_1024_heldout.jsonl --baseline "$OUT/SFT.pth"
"${SCORE[@]}" --model_mode 2 --long --score $SAMPLE/r1_1024_heldout.jsonl --baseline "$OUT/SFT_long.pth"

ASK=("$PYTHON" eval_model.py --save_dir "$OUT" --temperature 0 --max_new_tokens 120)
"${ASK[@]}" --model_mode 0 --prompt "贝壳湾"
"${ASK[@]}" --model_mode 1 --prompt "请问，林小满的家在哪里？"
"${ASK[@]}" --model_mode 2 --prompt "请算一算四七+二八-一零等于多少？"
$PYTHON eval_model.py --save_dir "$OUT" --report
