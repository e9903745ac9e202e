#!/usr/bin/env bash
# The whole road on the bundled sample with a small model, on two CPU cores: every stage, a table, three answers.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
OUT=demo
SAMPLE=data/sample
COMMON=(--save_dir "$OUT" --accumulation_steps 1 --warmup_iters 10 --schedule linear --eval_step 0 --save_step 0 --overwrite)

$PYTHON pretrain.py "${COMMON[@]}" --data_path $SAMPLE/pretrain.jsonl --dim 128 --n_layers 4 --n_heads 4 --batch_size 8 \
    --max_steps 200 --learning_rate 3e-3
$PYTHON SFT.py "${COMMON[@]}" --data_path $SAMPLE/sft_512.jsonl --batch_size 8 --max_steps 150 --learning_rate 2e-3
$PYTHON SFT.py --long "${COMMON[@]}" --data_path $SAMPLE/sft_1024.jsonl --batch_size 4 --max_steps 40 --learning_rate 1e-3
$PYTHON distill.py "${COMMON[@]}" --data_path $SAMPLE/r1_1024.jsonl --batch_size 4 --max_steps 150 --learning_rate 2e-3
$PYTHON distill.py --long "${COMMON[@]}" --data_path $SAMPLE/r1_1024.jsonl --batch_size 4 --max_steps 50 --learning_rate 1e-3

$PYTHON - "$OUT" <<'TABLE'
import json, sys

print(f"\n{'stage':14} {'held-out loss before':>22} {'after':>8} {'bits a byte before':>20} {'after':>8}")
for name in ("pretrain", "SFT", "SFT_long", "distill", "distill_long"):
    with open(f"{sys.argv[1]}/{name}.json", encoding="utf-8") as file:
        meta = json.load(file)
    before = meta["before"]
    print(f"{name:14} {before['val_loss']:22.3f} {meta['val_loss']:8.3f} {before['val_bits_per_byte']:20.3f} {meta['val_bits_per_byte']:8.3f}")
TABLE

ASK=("$PYTHON" eval_model.py --save_dir "$OUT" --temperature 0 --max_new_tokens 80)
"${ASK[@]}" --model_mode 0 --prompt "贝壳湾"
"${ASK[@]}" --model_mode 1 --prompt "请问，林小满的家在哪里？"
"${ASK[@]}" --model_mode 2 --prompt "叶知秋重二九斤，邓彩霞重二二斤。谁最重？"
