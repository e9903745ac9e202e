"""--rope_scaling: a model is trained on longer rows than before, and later stages and exports know of it."""

import json

import pytest
import torch
import torch.nn.functional as F
from factories import SHAPE, SHORT, save
from tiny_model import tiny

import pretrain
import SFT
from Config import LLMConfig, scale_rope
from engine.checkpoint.weights import load_model
from engine.export.hugging_face import hf_config
from engine.flags import ROOT
from model import SpongeBob, rope_frequencies

pytestmark = pytest.mark.usefixtures("quick")
SHORTER = [*SHORT, "--eval_step", "0", "--val_fraction", "0", "--max_steps", "2", "--warmup_iters", "0"]


def rope_of(path):
    return json.loads(path.with_suffix(".json").read_text("utf-8"))["config"]["rope_parameters"]


def test_a_factor_and_the_first_length_go_from_stage_to_stage(folder, capsys):
    pretrain.main([*SHAPE, *SHORTER])
    SFT.main([*SHORTER, "--max_seq_len", "128", "--rope_scaling", "2"])
    assert "RoPE scaled by 2, rows 64 -> 128" in capsys.readouterr().err
    wanted = {
        "rope_type": "llama3",
        "rope_theta": 1e6,
        "factor": 2.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    assert rope_of(folder / "results/SFT.pth") == wanted
    assert rope_of(folder / "results/pretrain.pth")["rope_type"] == "default"
    model, _ = load_model(folder / "results/SFT.pth", max_seq_len=512)
    assert model.config.rope_parameters == wanted  # without the flag: as before
    assert dict(hf_config(model.config).rope_parameters) == wanted
    again, _ = load_model(folder / "results/SFT.pth", max_seq_len=256, rope_scaling=4)
    assert again.config.rope_parameters == wanted | {"factor": 4.0}  # the first length stays


def test_rope_scaling_of_a_fresh_model_equals_that_of_a_stretched_one(folder):
    pretrain.main([*SHAPE, *SHORTER, "--rope_scaling", "4"])
    found = rope_of(folder / "results/pretrain.pth")
    assert (found["factor"], found["original_max_position_embeddings"]) == (4.0, 16)
    scaled = LLMConfig(dim=64, n_heads=4, n_kv_heads=2, rope_parameters=found)
    plain = rope_frequencies(LLMConfig(dim=64, n_heads=4), torch.device("cpu"))
    divisors = plain / rope_frequencies(scaled, torch.device("cpu"))
    assert divisors.max() == pytest.approx(4) and divisors.min() < 2


@pytest.mark.parametrize(
    "has_json, length, reason",
    [
        (True, 128, "trained with rows of 128, --max_seq_len is 128"),
        (True, None, "trained with rows of 128"),
        (False, 512, "w.json is missing"),
    ],
)
def test_rows_that_are_no_longer_than_before_are_refused(has_json, length, reason, tmp_path):
    save(tiny(vocab_size=300), tmp_path / "w.pth")
    if not has_json:
        (tmp_path / "w.json").unlink()
    with pytest.raises(ValueError, match=f"--rope_scaling 2 is for rows longer than before: .*{reason}"):
        load_model(tmp_path / "w.pth", max_seq_len=length, rope_scaling=2, n_heads=None if has_json else 4)


def test_a_factor_of_one_or_less_is_refused(folder):
    for factor in ("1", "0.5", "nan"):
        with pytest.raises(ValueError, match="--rope_scaling"):
            pretrain.parse_args(["--rope_scaling", factor])


# ---------------------------------------------------------------------------------------------- what it is good for

SHORT_ROW, LONG_ROW = 32, 64


def sample(name: str) -> torch.Tensor:
    lines = (ROOT / f"data/sample/{name}.jsonl").read_text("utf-8").split("\n")
    return torch.tensor(list("\n".join(json.loads(line)["text"] for line in lines if line)[:400_000].encode()))


def cut(text: torch.Tensor, rows: int, length: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return text[torch.randint(len(text) - length - 1, (rows, 1), generator=generator) + torch.arange(length + 1)]


def train(model: SpongeBob, text: torch.Tensor, length: int, steps: int, rate: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for step in range(steps):
        rows = cut(text, 256 // length, length, step)
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 10) * (1 - step / steps)
        F.cross_entropy(model(rows[:, :-1]).logits.flatten(0, 1), rows[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def by_position(model: SpongeBob, rows: torch.Tensor) -> dict[str, float]:
    """Nats per byte at the positions that training had, and at the two halves of those that it had not."""
    nats = F.cross_entropy(model(rows[:, :-1]).logits.transpose(1, 2), rows[:, 1:], reduction="none").mean(0)
    return {"16 to 31": nats[16:32].mean().item(), "32 to 63": nats[32:].mean().item()}


def test_a_stretched_model_reads_on_where_a_plain_one_is_lost(one_thread):
    """A model of bytes, trained at 32 and read at 64: loss by position before, stretched, and trained on a little."""
    torch.manual_seed(0)
    text, held_out = sample("pretrain"), cut(sample("pretrain_heldout"), 128, LONG_ROW, 9)
    shape = {"dim": 32, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "vocab_size": 256}
    model = SpongeBob(LLMConfig(**shape, max_seq_len=SHORT_ROW, rope_theta=1e4))  # lost with each of four seeds
    train(model, text, SHORT_ROW, 300, 7e-3)
    told = {"before": by_position(model, held_out)}
    model.config.rope_parameters = scale_rope(model.config.rope_parameters, 2.0, SHORT_ROW)
    told["scale_rope"] = by_position(model, held_out)
    train(model, text, LONG_ROW, 30, 2e-3)
    told["trained on"] = by_position(model, held_out)
    print("\n".join(f"{when:10} {nats}" for when, nats in told.items()))
    before, at_once, after = told.values()
    assert before["32 to 63"] > before["16 to 31"] + 0.15  # lost
    assert at_once["32 to 63"] < before["32 to 63"] - 0.1
    assert after["32 to 63"] < at_once["32 to 63"] and after["16 to 31"] < before["16 to 31"] + 0.05
