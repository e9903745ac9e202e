"""Messages and a context -> the ids of a prompt, and what the model answers."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tokenizers import Tokenizer

from dataset import PretrainDataset, SFTDataset
from engine.generate.decode import complete, generate, stream_text
from model import SpongeBob


class Conversation(NamedTuple):
    """A model that is ready to talk, and how it talks. `chats`: with roles; otherwise it continues a text."""

    model: SpongeBob
    tokenizer: Tokenizer
    chats: bool
    system: str | None
    max_new_tokens: int
    sampling: dict

    def encode(self, question: str, history: list[tuple[str, str]]) -> list[int]:
        # A shell's broken bytes are no text to the tokenizer.
        question, system = (text.encode("utf-8", "replace").decode() for text in (question, self.system or ""))
        if not self.chats:
            return PretrainDataset(self.tokenizer).encode([question])[0].ids[:-1].tolist()
        turns = [] if self.system is None else [("system", system)]  # an empty one means none
        for asked, answered in history:
            turns += [("user", asked), ("assistant", answered)]
        turns.append(("user", question))
        return SFTDataset(self.tokenizer).prompt([{"role": role, "content": content} for role, content in turns])

    def prompt(self, question: str, history: Iterable[tuple[str, str]] = ()) -> list[int]:
        """Ids to continue. The oldest pairs are left out until a quarter of the context is free for the answer.

        ValueError: the question alone fills the context.
        """
        history, context = list(history), self.model.config.max_seq_len
        ids = self.encode(question, history)
        while history and len(ids) + min(self.max_new_tokens, context // 4) > context:
            ids = self.encode(question, history := history[1:])
        if len(ids) >= context:
            raise ValueError(
                f"the question takes {len(ids)} tokens of a context of {context}, which leaves no room for an answer: "
                "shorten it, or raise --max_seq_len"
            )
        return ids

    def limit(self, ids: list[int]) -> int:
        return min(self.max_new_tokens, self.model.config.max_seq_len - len(ids))

    def stream(self, ids: list[int]) -> Iterator[str]:
        steps = generate(self.model, [ids], max_new_tokens=self.limit(ids), **self.sampling)
        return stream_text(self.tokenizer, (step[0] for step in steps if step[0] is not None))

    def answers(self, prompts: list[list[int]]) -> list[str]:
        """All at once, each no longer than it would be alone."""
        limits = [self.limit(ids) for ids in prompts]
        answers = complete(self.model, prompts, max_new_tokens=max(limits), **self.sampling)
        cut = [ids[:limit] for ids, limit in zip(answers, limits, strict=True)]
        return self.tokenizer.decode_batch(cut, skip_special_tokens=False)
