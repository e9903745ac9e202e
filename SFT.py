"""Recipe 2, supervised fine-tuning: the pretrained model learns to answer. Only the assistant's words cost loss.

    python SFT.py              # results/pretrain.pth -> results/SFT.pth,      rows of 512 tokens
    python SFT.py --long       # results/SFT.pth      -> results/SFT_long.pth, rows of 1,024 tokens

distill.py starts from what this leaves.
"""

from dataset import LOSS, NO_LOSS, TAG, SFTDataset
from engine import cli, options
from engine.machine import runtime
from engine.options import Start
from engine.packing import cut_conversations
from engine.stage import train as stage
from engine.tokenizer import load_tokenizer

# This stage's numbers: each is the default of the flag with the same name. LONG takes their place with --long,
# ON_SAMPLE where the bundled sample is trained on.
NUMBERS = {
    "data_file": "sft_512.jsonl",
    "parent": "pretrain",
    "name": "SFT",
    "max_seq_len": 512,
    "batch_size": 32,
    "accumulation_steps": 4,  # 32 x 4 x 512 = 65,536 positions per step
    "learning_rate": 1e-4,
}
LONG = {"data_file": "sft_1024.jsonl", "parent": "SFT", "name": "SFT_long", "max_seq_len": 1024, "batch_size": 16}
ON_SAMPLE = {"batch_size": 4, "accumulation_steps": 1, "learning_rate": 3e-4, "max_steps": 40}


def main(argv: list[str] | None = None) -> int:
    chosen = options.choose(__doc__, argv, NUMBERS, long=LONG, on_sample=ON_SAMPLE, groups=[Start])
    rt = runtime.start(chosen.machine, chosen.training.seed)  # device, dtype, seed, processes
    tokenizer = load_tokenizer(chosen.data.tokenizer_dir)

    # 1. Where it starts from: the model of the stage before.
    model, parent = stage.load_parent(chosen, tokenizer)

    # 2. What a line of the file means (dataset.py), and how conversations fill rows of max_seq_len tokens
    #    (engine/packing.py). One that is too long loses its last turns; none sees its neighbours.
    documents = stage.open_documents(SFTDataset, tokenizer, chosen.data, rt)
    rows = stage.pack(documents, cut_conversations, chosen, rt, model)

    # 3. What a token costs, by its class: the assistant's words as much as any other, the rest nothing.
    cost = {NO_LOSS: 0.0, LOSS: 1.0, TAG: 1.0}

    # 4. Train (engine/loop.py); leaves results/SFT.pth, .json, .state/, .metrics.jsonl, .png.
    return stage.train(model, rows, cost, chosen, rt, tokenizer, stage="SFT", parent=parent)


if __name__ == "__main__":
    cli.run(main)
