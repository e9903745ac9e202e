"""Recipe 2, supervised fine-tuning: the pretrained model learns to answer. Only the assistant's words have a loss.

    python SFT.py              # results/pretrain.pth -> results/SFT.pth,      rows of 512 tokens
    python SFT.py --long       # results/SFT.pth      -> results/SFT_long.pth, rows of 1,024 tokens

Texts next to the conversations (--data_path sft_512.jsonl notes.jsonl) are learned in every word, so that the model
does not forget what pretraining told. They are validated apart: val_loss is of answers alone.

distill.py starts from these weights.
"""

from dataset import LOSS, NO_LOSS, TAG, SFTDataset
from engine import cli, options
from engine.flags import Args
from engine.machine import runtime
from engine.options import InitFrom
from engine.packing import truncate_conversations
from engine.stage.prepare import load_parent, open_documents, pack
from engine.stage.train import train
from engine.tokenizer import load_tokenizer

# The values of this stage: its data file, its parent stage, and defaults of the flags of the same name. LONG_OVERRIDES
# replaces some of them with --long, SAMPLE_OVERRIDES where the stage trains on the bundled sample.
DEFAULTS = {
    "data_file": "sft_512.jsonl",
    "parent_stage": "pretrain",
    "name": "SFT",
    "max_seq_len": 512,
    "batch_size": 32,
    "accumulation_steps": 4,  # 32 x 4 x 512 = 65,536 positions per step
    "learning_rate": 1e-4,
}
LONG_OVERRIDES = {
    "data_file": "sft_1024.jsonl",
    "parent_stage": "SFT",
    "name": "SFT_long",
    "max_seq_len": 1024,
    "batch_size": 16,
}
SAMPLE_OVERRIDES = {"batch_size": 4, "accumulation_steps": 1, "learning_rate": 3e-4, "max_steps": 40}


def parse_args(argv: list[str] | None = None) -> Args:
    return options.parse_args(
        __doc__, argv, DEFAULTS, long=LONG_OVERRIDES, on_sample=SAMPLE_OVERRIDES, groups=[InitFrom]
    )


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    rt = runtime.start(args.performance, args.training.seed)  # device, dtype, seed, processes
    tokenizer = load_tokenizer(args.data.tokenizer_dir)

    # 1. Start from the model of the stage before.
    model, parent = load_parent(args, tokenizer)

    # 2. What a line of the file means (dataset.py), and how conversations fill rows of max_seq_len tokens
    #    (engine/packing.py). One that is too long loses its last turns, a text next to them continues in another row;
    #    attention is masked between documents.
    documents = open_documents(SFTDataset, tokenizer, args.data, rt)
    rows = pack(documents, truncate_conversations, args, rt, model)

    # 3. Loss weight by label class: the tokens of answers, and of texts, count the same, all others nothing.
    loss_weights = {NO_LOSS: 0.0, LOSS: 1.0, TAG: 1.0}

    # 4. Train (engine/loop.py); leaves results/SFT.pth, .json, .state/, .metrics.jsonl, .png.
    return train(model, rows.sources(loss_weights), args, rt, tokenizer, stage="SFT", parent=parent)


if __name__ == "__main__":
    cli.run(main)
