"""Score rows with a tiny model, as eval_model.py --score does."""

from factories import TOKENIZER

from engine.checkpoint.weights import weights_hash
from engine.score.evaluate import score_files
from engine.score.records import EvalSettings, read_files


def chat(*turns, **fields):
    """Make a conversation's row of turns by user and assistant."""
    roles = ("user", "assistant") * 9
    messages = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]
    return {"conversations": messages} | fields


def question(number, *choices, **fields):
    """Make a multiple-choice row."""
    return {"question": f"问题{number}？", "choices": list(choices), "answer": number % len(choices)} | fields


def evaluate_file(model, path, *, batch=4, folder=None, **settings):
    """Return (summary, records) of one file."""
    settings = EvalSettings(**{"rows": 0, "max_new_tokens": 8} | settings)
    folder, weights = folder or path.parent / "scores", weights_hash(model.state_dict())
    files = read_files([path], settings.rows)
    results, records = score_files(model, TOKENIZER, files, folder, settings, batch, weights)
    return results[path.name], records[path.name]
