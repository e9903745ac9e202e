"""Generate the parts of README.md, README_zh.md and docs/experiments.md that hold numbers.

    cog -r README.md README_zh.md docs/experiments.md    # after another run of the demo or of a benchmark

The sources are docs/demo.json and benchmarks/RESULTS.md. The snippets in the pages call these functions;
tests/test_docs.py fails for pages that were not regenerated.
"""
# ruff: noqa: E501  # a line of a table is one line

import json
from pathlib import Path

from benchmarks import estimate
from benchmarks.results import number, table
from Config import PRESETS
from engine.options import ROAD

DEMO = json.loads((Path(__file__).resolve().parents[1] / "demo.json").read_text(encoding="utf-8"))
METRICS = DEMO["metrics"]
QUESTION = "请算一算四七+二八-一零等于多少？"
PERCENT = {"en": " %", "zh": "%"}
DEMO_MEMORY_GIB = 1.3  # two stages at a time (docs/experiments.md, "The demo")
DEMO_DISK_GB = 1.5  # .venv with the CPU build of torch, and demo/ (the same section)

# ---------------------------------------------------------------------------------------- the words around the numbers

# Parts of a worked sum, in the order in which they are replaced.
IN_ENGLISH = {
    "请算一算": "Please compute ",
    "等于多少？": ".",
    "，再": ", then ",
    "再": "Then ",
    "，进": ", carry ",
    "得": "gives ",
    "：": ": ",
    "；": "; ",
    "。": ". ",
}
DIGITS = str.maketrans("零一二三四五六七八九", "0123456789")

REQUIREMENTS = {
    "en": """\
| | demo | full corpus |
|---|---|---|
| software | Python 3.11 or newer; no GPU | the same; in practice a GPU |
| download | 300 MB (several GB with an NVIDIA driver: torch with CUDA) | {gb} GB |
| memory | {demo_memory} GiB | {memory} GiB with `--compile` (measured on a CPU) |
| disk | {demo_disk} GB | {disk} GB (calculated) |
| time | {minutes} minutes on two server cores with bf16 units, longer on others | [below](#full-corpus-hours-and-memory) |""",
    "zh": """\
| | 演示 | 完整语料 |
|---|---|---|
| 软件 | Python 3.11 以上，不需要 GPU | 同左；实际上最好有 GPU |
| 下载 | 300 MB（有 NVIDIA 驱动时装 CUDA 版 torch，几个 GB） | {gb} GB |
| 内存 | {demo_memory} GiB | 加 `--compile` 时 {memory} GiB（CPU 上实测） |
| 磁盘 | {demo_disk} GB | {disk} GB（推算） |
| 时间 | 两个有 bf16 单元的服务器核：{minutes} 分钟；别的机器更久 | [见下文](#完整语料时间与内存) |""",
}
EXAMPLE = {
    "en": """\
This is the unedited output of the demo's distilled model ({weights} parameters). In Arabic numerals and English:

```
{translation}
```

On unseen two-step problems, training on reasoning traces gives {taught} correct; training on the same answers without them, {without} (three seeds, earlier version of the sample).""",
    "zh": """\
这是演示中蒸馏后的模型（{weights}参数）的原始输出。换成阿拉伯数字，更容易看清：

```
{translation}
```

没见过的两步题，训练数据带思考过程的模型答对 {taught}；题目和答案相同、去掉思考过程，只有 {without}（三个种子，早先一版的语料）。""",
}
STAGES = {
    "en": """\
| script | input | output | objective | before → after |
|---|---|---|---|---|
| `pretrain.py` | pretrain.jsonl | pretrain.pth | next-token prediction on texts that state all facts | {pretrain} bits per byte |
| `SFT.py` | sft_512.jsonl, pretrain.pth | SFT.pth | answer questions ({facts} facts never asked about in training) | {SFT} |
| `SFT.py --long` | sft_1024.jsonl, SFT.pth | SFT_long.pth | answer in long conversations | {SFT_long} nats per token |
| `distill.py` | r1_1024.jsonl, SFT.pth | distill.pth | reason before answering ({problems} unseen two-step problems) | {distill} |
| `distill.py --long` | r1_1024.jsonl, SFT_long.pth | distill_long.pth | the same, from the long-context model | {distill_long} |""",
    "zh": """\
| 脚本 | 输入 | 产出 | 学什么 | 训练前 → 训练后 |
|---|---|---|---|---|
| `pretrain.py` | pretrain.jsonl | pretrain.pth | 预测下一个 token；所有事实都写在这些文本里 | 每字节 {pretrain} 比特 |
| `SFT.py` | sft_512.jsonl、pretrain.pth | SFT.pth | 回答问题（{facts} 个训练对话从没问过的事实） | {SFT} |
| `SFT.py --long` | sft_1024.jsonl、SFT.pth | SFT_long.pth | 在长对话里回答 | 每 token {SFT_long} nat |
| `distill.py` | r1_1024.jsonl、SFT.pth | distill.pth | 先思考再回答（{problems} 道没见过的两步题） | {distill} |
| `distill.py --long` | r1_1024.jsonl、SFT_long.pth | distill_long.pth | 同上，从长文本模型出发 | {distill_long} |""",
}
CORPUS = {
    "en": """\
The corpus is {gb} GB of JSONL (two of the four file sizes are published, two are assumed). With caches and training states it takes {disk} GB of disk (calculated).
GPU hours are calculated for the default model ({weights} parameters) at an assumed {share} of peak FLOP/s; **nothing has run on a GPU yet**.
`python -m benchmarks.estimate` shows the formula and takes other sizes of files and models; `bash runs/one_gpu.sh` downloads the files and runs all stages.

| machine | hours, all five stages | source |
|---|---|---|
{machines}

Training processes {low} (plain CPU cores) to {high} times (AMX, `--compile`) as many real tokens per second as the original SelfLLM-Engine scripts ([Acknowledgements](#acknowledgements)): [RESULTS.md](benchmarks/RESULTS.md).""",
    "zh": """\
语料是 {gb} GB 的 JSONL（四个文件里两个公布了大小，另两个是假定），连同缓存和训练状态占磁盘 {disk} GB（推算）。
GPU 小时数是针对默认模型（{weights}参数）、按峰值算力的 {share} 推算的：**还没有在任何 GPU 上跑过**。`python -m benchmarks.estimate` 给出算法，也可以换别的数据量和模型尺寸；
`bash runs/one_gpu.sh` 下载语料并跑完所有阶段。

| 机器 | 五个阶段共需小时 | 依据 |
|---|---|---|
{machines}

每秒训练的有效 token 数是原 SelfLLM-Engine 脚本（见[致谢](#致谢)）的 {low} 倍（普通 CPU 核）到 {high} 倍（AMX，`--compile`）：[RESULTS.md](benchmarks/RESULTS.md)。""",
}
MEASURED = {"en": "calculated from measured speed", "zh": "按实测速度推算"}
ASSUMED = {"en": "calculated", "zh": "推算"}
GPUS = ("RTX 3090", "RTX 4090", "H100")

# ------------------------------------------------------------------------------------------------------ the numbers


def translation(question: str, answer: str, language: str) -> str:
    """Rewrite a sum in Arabic numerals; for English also its few Chinese words."""
    output = f"> {question}\n{answer}"
    if language == "en":
        for chinese, english in IN_ENGLISH.items():
            output = output.replace(chinese, english)
    return "算一算".join(part.translate(DIGITS) for part in output.split("算一算")).replace(" \n", "\n")


def example(language: str) -> str:
    """Show a sum solved by the distilled model, and the value of reasoning traces over three seeds."""
    answer = DEMO["answers"]["distill"][QUESTION]
    correct = {name: cells["correct at the end"] for name, cells in table("tag weights", "2026-11-24 23:35").items()}
    prose = EXAMPLE[language].format(
        weights=millions(estimate.parameters_of(estimate.demo_shape()), language),
        translation=translation(QUESTION, answer, language),
        taught=f"{number(correct['tag weight 10']):.0f}{PERCENT[language]}",
        without=f"{number(correct['without thoughts, tag weight 1']):.0f}{PERCENT[language]}",
    )
    return f"```\n> {QUESTION}\n{answer}\n```\n\n{prose}\n"


def millions(num_parameters: int, language: str) -> str:
    """Format a number of parameters: "1.6 M", "160 万"."""
    rounded = round(num_parameters / 1e6, 1)
    return f"{rounded} M" if language == "en" else f"{100 * rounded:.0f} 万"


def percent(value: float, language: str = "en") -> str:
    return f"{100 * value:.1f}{PERCENT[language]}"


def change(stage: str, metric: str, language: str) -> str:
    """Format a metric before and after a stage."""
    before, after = (METRICS[stage][metric][when] for when in ("before", "after"))
    if metric in ("validation", "sft_1024_heldout answer_loss"):
        return f"{before:.2f} → {after:.2f}"
    return f"{100 * before:.3g} → {100 * after:.3g}{PERCENT[language]}"


def stages(language: str) -> str:
    """Tabulate the demo's stages, each with a metric before and after it."""
    lines = STAGES[language].format(
        pretrain=change("pretrain", "validation", language),
        SFT=change("SFT", "facts exact_match", language),
        SFT_long=change("SFT_long", "sft_1024_heldout answer_loss", language),
        distill=change("distill", "r1_1024_heldout correct", language),
        distill_long=change("distill_long", "r1_1024_heldout correct", language),
        facts=METRICS["SFT"]["facts exact_match"]["n"],
        problems=METRICS["distill"]["r1_1024_heldout correct"]["n"],
    )
    return lines + "\n"


def retained() -> str:
    """Tabulate what each stage of the demo retains of the stages before it, and its minutes."""
    texts = METRICS["SFT"]["pretrain_heldout bits_per_byte"]
    kept = {"SFT": f"texts: {texts['before']:.2f} → {texts['after']:.2f} bits per byte"}
    for name in ("SFT_long", "distill", "distill_long"):
        kept[name] = f"facts: {change(name, 'facts exact_match', 'en')}"
    lines = [
        f"| `{command}` | {kept.get(name, '')} | {DEMO['stage_minutes'][name]:.1f} |" for name, command in ROAD.items()
    ]
    head = f"| stage | retained | minutes (all, with scores: {DEMO['minutes']:.0f}) |\n|---|---|---|\n"
    return head + "\n".join(lines).replace("`python ", "`") + "\n"


def requirements(language: str) -> str:
    """Tabulate the software, memory, disk and time that the demo and the full corpus need."""
    work, shape = estimate.corpus(PRESETS["26M"], estimate.GB), PRESETS["26M"]
    lines = REQUIREMENTS[language].format(
        gb=f"{estimate.downloaded(estimate.GB):.0f}",
        disk=f"{estimate.disk(work, estimate.GB, estimate.parameters_of(shape)):.0f}",
        memory=f"{estimate.micro_batch():.1f}",
        minutes=f"{DEMO['minutes']:.0f}",
        demo_memory=DEMO_MEMORY_GIB,
        demo_disk=DEMO_DISK_GB,
    )
    return lines + "\n"


def corpus(language: str) -> str:
    """Describe the full corpus (benchmarks/estimate.py), and the speed against the original method."""
    shape = PRESETS["26M"]
    work = estimate.corpus(shape, estimate.GB)
    hours = [(name, estimate.on_cpu(work, name), MEASURED[language]) for name in estimate.CPUS]
    if language == "zh":
        hours = [(name.replace(", two cores, ", "，两核，"), *rest) for name, *rest in hours]
    hours += [(name, estimate.on_gpu(work, name), ASSUMED[language]) for name in GPUS]
    speeds = {}
    for name, when, flags in (("low", "2026-11-24 13:51", ""), ("high", "2026-11-25 00:49", " --compile")):
        cells = table("training speed", when)["original"]
        speeds[name] = f"{number(cells[f'ours{flags} / this, of tokens per second']):.1f}"
    lines = CORPUS[language].format(
        gb=f"{estimate.downloaded(estimate.GB):.0f}",
        disk=f"{estimate.disk(work, estimate.GB, estimate.parameters_of(shape)):.0f}",
        weights=millions(estimate.parameters_of(shape), language),
        share=f"{100 * estimate.SHARE:.0f}{PERCENT[language]}",
        machines="\n".join(f"| {name} | {estimate.rounded(value)} | {source} |" for name, value, source in hours),
        **speeds,
    )
    return lines + "\n"
