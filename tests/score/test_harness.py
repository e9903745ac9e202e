"""lm-evaluation-harness, which others trust, finds our figures."""

import socket

import pytest
from making import TOKENIZER_DIR, measure, question, tiny, write_rows

from engine.checkpoint import hugging_face
from engine.flags import ROOT

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    """lm-evaluation-harness, with a folder of its own for what it keeps."""
    with pytest.MonkeyPatch.context() as patch:  # read when it is imported
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        import lm_eval

        return lm_eval


@pytest.mark.parametrize("exported, chats", [(False, False), (True, True)], ids=["live", "exported_chat"])
def test_the_harness_finds_our_figures_without_network(harness, tmp_path, monkeypatch, exported, chats):
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoTokenizer

    def no_network(*_):
        raise AssertionError("the network was asked")

    model, folder = tiny(max_seq_len=512), tmp_path / "data/sample"
    folder.mkdir(parents=True)
    texts = [{"text": "海风吹过码头。" * n + "a boat"} for n in (1, 40, 3, 150)]
    texts_file = write_rows(folder / "pretrain_heldout.jsonl", texts)
    rows = [question(n, "红", f"蓝色的船{n}", "green", *["灰"] * (n % 2)) for n in range(9)]
    choices_file = write_rows(folder / "choices_heldout.jsonl", rows)
    ours = measure(model, choices_file, chats=chats, shots=(0, 2))[0]["figures"]
    ours |= measure(model, texts_file)[0]["figures"]

    if exported:
        hugging_face.to_hf(model, TOKENIZER_DIR, tmp_path / "hf")
    theirs = {"pretrained": str(tmp_path / "hf")} if exported else {"pretrained": model}
    ending, found = "_chat" * chats, {}
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(socket.socket, "connect", no_network)
        tasks = TaskManager(include_path=str(ROOT / "data/harness"), include_defaults=False)
        lm = HFLM(**theirs, tokenizer=AutoTokenizer.from_pretrained(TOKENIZER_DIR), device="cpu", batch_size=4)
        for shots in (0, 2):
            names = [f"spongebob_letter{ending}", f"spongebob_words{ending}", *["spongebob_text"] * (shots == 0)]
            results = harness.simple_evaluate(
                model=lm, tasks=names, task_manager=tasks, num_fewshot=shots, bootstrap_iters=0,
                apply_chat_template=chats, fewshot_as_multiturn=chats,
            )["results"]  # fmt: skip
            found[f"letter_{shots}shot"] = results[f"spongebob_letter{ending}"]["acc,none"]
            found[f"text_{shots}shot"] = results[f"spongebob_words{ending}"]["acc,none"]
            found[f"text_norm_{shots}shot"] = results[f"spongebob_words{ending}"]["acc_norm,none"]
            found |= {name: results["spongebob_text"]["bits_per_byte,none"] for name in ["bits_per_byte"][shots:]}
    if chats:  # it counts the line break before the answer to the answer, so lengths are shared out differently
        found = {name: value for name, value in found.items() if "norm" not in name}
    assert found == pytest.approx({name: ours[name]["value"] for name in found}, abs=1e-3)
