"""The parts of README.md and README_zh.md that hold figures, made from docs/demo.json and benchmarks/RESULTS.md.

    cog -r README.md README_zh.md       # after another run of the demo or of a benchmark (pip install cogapp)

The snippets in the pages call `shown`, `stages` and `corpus`; tests/test_docs.py notices pages that were not renewed.
"""
# ruff: noqa: E501  # a line of a table is one line

import json
from pathlib import Path

from benchmarks import estimate
from benchmarks.results import number, table
from Config import PRESETS
from engine.options import ROAD

DEMO = json.loads((Path(__file__).resolve().parents[1] / "demo.json").read_text(encoding="utf-8"))
ASKED = "请算一算四七+二八-一零等于多少？"
PERCENT = {"en": " %", "zh": "%"}

# ------------------------------------------------------------------------------------------- the words around figures

SHOWN = {
    "en": """\
That is the demo's last model ({weights} weights), word for word: `47 + 28 - 10 = 65`. It knows Shell Bay, the made-up harbour town of the sample.
Of two-step problems it has not seen, a model taught to think solves {taught}; taught the same answers without the thoughts, {without} (three seeds, an earlier sample).""",
    "zh": """\
以上是演示中最后一个模型（{weights}参数）的原话，算的是 `47 + 28 - 10 = 65`。它只知道自带语料里虚构的海港小镇“贝壳湾”。
没见过的两步题，教它思考的模型答对 {taught}；同样的题、同样的步数，去掉思考过程只教答案：{without}（三个种子，早先的语料）。""",
}
STAGES = {
    "en": """\
| script | reads | leaves | learns | before → after | keeps | minutes (all: {minutes}) |
|---|---|---|---|---|---|---|
| `pretrain.py` | pretrain.jsonl | pretrain.pth | to continue texts: here it is told all facts of the town | {pretrain} bits per byte | | {t1} |
| `SFT.py` | sft_512.jsonl, pretrain.pth | SFT.pth | to answer (tested on {facts} facts that no training conversation asks about) | {SFT} | texts: {texts} bits per byte | {t2} |
| `SFT.py --long` | sft_1024.jsonl, SFT.pth | SFT_long.pth | to answer in long conversations | loss {SFT_long} | facts: {SFT_long_kept} | {t3} |
| `distill.py` | r1_1024.jsonl, SFT.pth | distill.pth | to think before it answers (tested on {problems} new two-step problems) | {distill} | facts: {distill_kept} | {t4} |
| `distill.py --long` | r1_1024.jsonl, SFT_long.pth | distill_long.pth | the same, from the long model | {distill_long} | facts: {distill_long_kept} | {t5} |""",
    "zh": """\
| 脚本 | 读入 | 产出 | 学会什么 | 之前 → 之后 | 还记得 | 分钟（共 {minutes}） |
|---|---|---|---|---|---|---|
| `pretrain.py` | pretrain.jsonl | pretrain.pth | 续写文本：小镇的事实都在这里讲到 | 每字节 {pretrain} 比特 | | {t1} |
| `SFT.py` | sft_512.jsonl、pretrain.pth | SFT.pth | 回答问题（考 {facts} 个训练对话里从没问过的事实） | {SFT} | 文本：每字节 {texts} 比特 | {t2} |
| `SFT.py --long` | sft_1024.jsonl、SFT.pth | SFT_long.pth | 在长对话里回答 | 损失 {SFT_long} | 事实：{SFT_long_kept} | {t3} |
| `distill.py` | r1_1024.jsonl、SFT.pth | distill.pth | 先思考再回答（考 {problems} 道没见过的两步题） | {distill} | 事实：{distill_kept} | {t4} |
| `distill.py --long` | r1_1024.jsonl、SFT_long.pth | distill_long.pth | 同上，从长文本模型出发 | {distill_long} | 事实：{distill_long_kept} | {t5} |""",
}
CORPUS = {
    "en": """\
{gb} GB of JSONL (the original names two of the four sizes, the others are assumed); {disk} GB of disk with caches and states (calculated);
{memory} GiB of memory with `--compile` (measured on a CPU). Hours of a GPU are calculated, at an assumed {share} of its peak: **no GPU has run it yet**.
`python -m benchmarks.estimate` says how, and for other sizes and shapes. `bash runs/one_gpu.sh` downloads the files and goes the whole road.

| machine | hours, all five stages | how it is known |
|---|---|---|
{machines}

Training reads {low} (plain CPU cores) to {high} times (AMX, `--compile`) as many real tokens per second as the original: [RESULTS.md](benchmarks/RESULTS.md).""",
    "zh": """\
JSONL 共 {gb} GB（四个文件里原项目写明了两个的大小，另两个是假定），连同缓存和训练状态占磁盘 {disk} GB（推算），
加 `--compile` 占内存 {memory} GiB（CPU 上实测）。GPU 的小时数是推算，假定达到峰值算力的 {share}：**还没有在任何 GPU 上跑过**。
算法，以及换成别的数据量和模型尺寸：`python -m benchmarks.estimate`。下载语料并走完全程：`bash runs/one_gpu.sh`。

| 机器 | 五个阶段共需小时 | 依据 |
|---|---|---|
{machines}

每秒训练的有效 token 数是原项目的 {low} 倍（普通 CPU 核）到 {high} 倍（AMX，`--compile`）：[RESULTS.md](benchmarks/RESULTS.md)。""",
}
MEASURED = {"en": "speed measured, hours calculated", "zh": "速度实测，小时推算"}
ASSUMED = {"en": "calculated", "zh": "推算"}
GPUS = ("RTX 3090", "RTX 4090", "H100")

# ---------------------------------------------------------------------------------------------------------- figures


def shown(language: str) -> str:
    """What the distilled model of the demo says, and what thoughts are worth by an experiment of three seeds."""
    right = {name: cells["correct at the end"] for name, cells in table("tag weights", "2026-11-24 23:35").items()}
    millions = estimate.parameters_of(estimate.demo_shape()) / 1e6
    words = SHOWN[language].format(
        weights={"en": f"{millions:.1f} M", "zh": f"{round(millions, 1) * 100:.0f} 万"}[language],
        taught=f"{number(right['tag weight 10']):.0f}{PERCENT[language]}",
        without=f"{number(right['without thoughts, tag weight 1']):.0f}{PERCENT[language]}",
    )
    return f"```\n> {ASKED}\n{DEMO['answers']['distill'][ASKED]}\n```\n\n{words}\n"


def stages(language: str) -> str:
    """The table of the demo's stages: before and after, what was kept, minutes."""

    def change(stage: str, figure: str) -> str:
        pair = [DEMO["figures"][stage][figure][when] for when in ("before", "after")]
        if figure in ("validation", "sft_1024_heldout answer_loss"):
            return " → ".join(f"{value:.2f}" for value in pair)
        return " → ".join(f"{100 * value:.3g}" for value in pair) + PERCENT[language]

    figures = DEMO["figures"]
    found = {
        f"{name}_kept": f"{100 * figures[name]['facts exact']['after']:.1f}{PERCENT[language]}"
        for name in ("SFT_long", "distill", "distill_long")
    }
    minutes = {f"t{number}": f"{DEMO['stage_minutes'][name]:.1f}" for number, name in enumerate(ROAD, start=1)}
    return (
        STAGES[language].format(
            pretrain=change("pretrain", "validation"),
            SFT=change("SFT", "facts exact"),
            SFT_long=change("SFT_long", "sft_1024_heldout answer_loss"),
            distill=change("distill", "r1_1024_heldout correct"),
            distill_long=change("distill_long", "r1_1024_heldout correct"),
            texts=f"{figures['SFT']['pretrain_heldout bits_per_byte']['after']:.2f}",
            facts=figures["SFT"]["facts exact"]["n"],
            problems=figures["distill"]["r1_1024_heldout correct"]["n"],
            minutes=f"{DEMO['minutes']:.0f}",
            **found,
            **minutes,
        )
        + "\n"
    )


def corpus(language: str) -> str:
    """The full corpus by numbers (benchmarks/estimate.py), and how fast training is beside the original method."""
    shape, share = PRESETS["26M"], f"{100 * estimate.SHARE:.0f}{PERCENT[language]}"
    work = estimate.corpus(shape, estimate.GB)
    hours = [(name, estimate.on_cpu(work, name), MEASURED[language]) for name in estimate.CPUS]
    if language == "zh":
        hours = [(name.replace(", two cores, ", "，两核，"), *rest) for name, *rest in hours]
    hours += [(name, estimate.on_gpu(work, name), ASSUMED[language]) for name in GPUS]
    speeds = {}
    for name, when, flags in (("low", "2026-11-24 13:51", ""), ("high", "2026-11-25 00:49", " --compile")):
        cells = table("training speed", when)["original"]
        speeds[name] = f"{number(cells[f'ours{flags} / this, of tokens per second']):.1f}"
    return (
        CORPUS[language].format(
            gb=f"{estimate.downloaded(estimate.GB):.0f}",
            disk=f"{estimate.disk(work, estimate.GB, estimate.parameters_of(shape)):.0f}",
            memory=f"{estimate.micro_batch():.1f}",
            share=share,
            machines="\n".join(f"| {name} | {estimate.rounded(value)} | {known} |" for name, value, known in hours),
            **speeds,
        )
        + "\n"
    )
