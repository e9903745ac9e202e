"""Recipe 3, chain-of-thought distillation: the chat model learns to think, from a stronger model's written thoughts.

    python distill.py --use_wandb    # results/SFT.pth      -> results/distill.pth
    python distill.py --long         # results/SFT_long.pth -> results/distill_long.pth

The same as SFT.py except for one thing. Each of <think> </think> <answer> </answer> is spelt with four or five tokens,
so the form is hard to learn. Each of those tokens therefore costs --tag_weight times as much as another of the answer.
"""

from dataclasses import dataclass

from dataset import LOSS, NO_LOSS, TAG, SFTDataset
from engine import cli, options
from engine.flags import Flags, flag
from engine.machine import runtime
from engine.options import Start
from engine.packing import cut_conversations
from engine.stage import train as stage
from engine.tokenizer import load_tokenizer

# This stage's numbers: each is the default of the flag with the same name. LONG takes their place with --long,
# ON_SAMPLE where the bundled sample is trained on.
NUMBERS = {
    "data_file": "r1_1024.jsonl",
    "parent": "SFT",
    "name": "distill",
    "max_seq_len": 1024,
    "batch_size": 16,
    "accumulation_steps": 4,  # 16 x 4 x 1,024 = 65,536 positions per step
    "learning_rate": 1e-4,
}
LONG = {"parent": "SFT_long", "name": "distill_long"}
ON_SAMPLE = {"batch_size": 4, "accumulation_steps": 1, "learning_rate": 3e-4, "max_steps": 40}


@dataclass(frozen=True)
class Thoughts(Flags):
    """chain of thought"""

    tag_weight: float = flag(10.0, "what each token of a tag costs, where another token of the answer costs 1", least=0)


def main(argv: list[str] | None = None) -> int:
    chosen = options.choose(__doc__, argv, NUMBERS, long=LONG, on_sample=ON_SAMPLE, groups=[Start, Thoughts])
    rt = runtime.start(chosen.machine, chosen.training.seed)  # device, dtype, seed, processes
    tokenizer = load_tokenizer(chosen.data.tokenizer_dir)

    # 1. Where it starts from: the model of the stage before.
    model, parent = stage.load_parent(chosen, tokenizer)

    # 2. What a line of the file means (dataset.py), and how conversations fill rows of max_seq_len tokens
    #    (engine/packing.py). One that is too long loses its last turns; none sees its neighbours.
    documents = stage.open_documents(SFTDataset, tokenizer, chosen.data, rt)
    rows = stage.pack(documents, cut_conversations, chosen, rt, model)

    # 3. What a label costs, by its class: the tags' weight is all that distillation adds to SFT.
    cost = {NO_LOSS: 0.0, LOSS: 1.0, TAG: chosen.thoughts.tag_weight}

    # 4. Train (engine/loop.py); leaves results/distill.pth, .json, .state/, .metrics.jsonl, .png.
    return stage.train(model, rows, cost, chosen, rt, tokenizer, stage="distill", parent=parent)


if __name__ == "__main__":
    cli.run(main)
