"""Clean rows and drop near repeats on many machines: the rules of prepare_data.py as a step of datatrove.

    python -m runs.datatrove_pipeline rows/ cleaned/ --tasks 8 --workers 2
    python -m runs.datatrove_pipeline rows/ cleaned/ --tasks 500 --workers 64 --executor slurm --partition cpu
    python prepare_data.py cleaned/kept --no-near_repeat        # exact repeats; then cut by length

A task reads whole .jsonl files of rows/. What a rule drops is in cleaned/dropped, all counts are in cleaned/logs.
"""

import argparse
import re

from datatrove import executor
from datatrove.pipeline.dedup import minhash
from datatrove.pipeline.filters import LambdaFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.word_tokenizers import WordTokenizer

from engine.corpus.cleaned_rows import RULE_OF, content_of_row
from engine.corpus.repeats import row_text
from engine.corpus.rules import RULES, clean, masked
from engine.flags import ROOT
from engine.schemas import BadRow

EXECUTORS = {name: getattr(executor, f"{name.title()}PipelineExecutor") for name in ("local", "ray", "slurm")}
MINHASH = minhash.MinhashConfig(hash_config=minhash.HashConfig(hash_fc="sha1"))
MINHASH.norm_config.norm_numbers = False  # 2 + 2 is not 3 + 3


class Units(WordTokenizer):  # Chinese characters and words; datatrove's own need spaCy and jieba
    word_tokenize = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+").findall
    sent_tokenize = span_tokenize = None


def read_row(self, row, path, number):
    return {"text": str(row), "id": f"{path}/{number}", "metadata": row}


def apply_rules(doc):  # whose metadata is its row; its text becomes what MinHash compares
    try:
        content, rule, _ = clean(content_of_row(doc.metadata), {rule.name for rule in RULES if rule.on})
    except BadRow as error:
        content, rule = None, RULE_OF[type(error)]
    doc.text = masked(doc.text) if content is None else row_text(content)
    doc.metadata = {} if content is None else {"text" if isinstance(content, str) else "conversations": content}
    return content is not None, rule


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs=2, help="of rows, and to write")
    parser.add_argument("--executor", choices=EXECUTORS, default="local")
    for name, default in {"tasks": 2, "workers": 2, "time": "8:00:00", "partition": "cpu"}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"default: {default}")
    args = parser.parse_args(argv)
    rows, out = args.folders
    options = {
        "slurm": {"time": args.time, "partition": args.partition, "env_command": f"export PYTHONPATH={ROOT}"},
        "ray": {"ray_remote_kwargs": {"runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT)}}}},
    }.get(args.executor, {})

    def after(step, name, tasks, *pipeline):
        common = {"tasks": tasks, "workers": args.workers, "depends": step, "logging_dir": f"{out}/logs/{name}"}
        return EXECUTORS[args.executor](list(pipeline), **common, **options)

    # Cleaned twice: MinHash tells a repeat by its number among the clean rows of its task.
    clean_rows = [JsonlReader(rows, adapter=read_row), LambdaFilter(apply_rules, JsonlWriter(f"{out}/dropped"))]
    writer = JsonlWriter(f"{out}/kept", adapter=lambda self, doc: doc.metadata)
    signatures, pairs, repeats = (f"{out}/{name}" for name in ("signatures", "pairs", "repeats"))
    step = after(None, "sign", args.tasks, *clean_rows, minhash.MinhashDedupSignature(signatures, MINHASH, Units()))
    step = after(step, "pair", MINHASH.num_buckets, minhash.MinhashDedupBuckets(signatures, pairs, config=MINHASH))
    step = after(step, "cluster", 1, minhash.MinhashDedupCluster(pairs, repeats, MINHASH))
    after(step, "write", args.tasks, *clean_rows, minhash.MinhashDedupFilter(repeats), writer).run()


if __name__ == "__main__":
    main()
