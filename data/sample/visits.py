"""Rows that every chat stage holds: greetings, honest noes and facts; in the last stage after a thought."""

from random import Random

from dialogues import HELLO, Row, ask, asked_facts, row, turns
from everyday import REPLIES, THOUGHTS, arabic_sum, beyond, courtesies, marked, varied
from reasoning import draw_problem
from texts import FOLK, HELD_FACTS, Person, tell
from world import ATTRS, TOWN_QA

TALK_SIZE = 900  # characters of a talk of several questions, so that it has fewer than 1,024 tokens
LABELS = {
    "job": "职业",
    "street": "住处",
    "pet": "宠物",
    "dish": "口味",
    "music": "乐器",
    "friend": "好朋友",
    "month": "生日",
    "boat": "船的颜色",
}
LABELS_EN = {
    "job": "work",
    "street": "home",
    "pet": "pet",
    "dish": "favourite dish",
    "music": "music",
    "friend": "best friend",
    "month": "birthday",
    "boat": "boat",
}


def thought(words: str, answer: str) -> str:
    """An answer in the form of the last stage."""
    return f"<think>\n{words}\n</think>\n<answer>\n{answer}\n</answer>"


def reply(intent: str, lang: str, thinks: bool) -> str:
    """The one reply to an intent."""
    answer = REPLIES[intent, lang]
    return thought(THOUGHTS[intent, lang], answer) if thinks else answer


def courtesy(rng: Random, intent: str, lang: str, words: str, thinks: bool = False, held: bool = False) -> list[str]:
    """A courtesy and its reply; a held-out wording stays as it is."""
    words = words if held else varied(rng, words, intent, lang)
    return [marked(rng, words, intent, lang), reply(intent, lang, thinks)]


def honest_no(rng: Random, held: bool = False, thinks: bool = False) -> list[str]:
    """A question beyond the town and the answer that it is not known."""
    question, lang = beyond(rng, held)
    return [question, reply("beyond", lang, thinks)]


def no_digits(rng: Random, thinks: bool = False) -> list[str]:
    """A sum in digits that cannot be read, and how to ask instead."""
    return [arabic_sum(rng), reply("digits", "zh", thinks)]


def fact(
    rng: Random, person: Person, attr: str, lang: str = "zh", form: int | None = None, thinks: bool = False
) -> list[str]:
    """A question about one fact; with a thought: what is asked, what is known."""
    question, answer = ask(person, attr, rng, lang, form)
    if not thinks:
        return [question, answer]
    known = tell(person, attr, rng, lang, form=0)
    asked = f"问的是{LABELS[attr]}。" if lang == "zh" else f"Asked: {LABELS_EN[attr]}. "
    return [question, thought(asked + known, answer)]


def everyday_rows(rng: Random, times: int, noes: int, digits: int, thinks: bool = False) -> list[Row]:
    """Every trained courtesy `times` times, honest noes, and sums in unknown digits.

    Twice as often: who are you, whose wordings differ most, and English, of which the town's texts hold little.
    """
    rows = []
    for intent, lang, words in courtesies(held=False):
        for _ in range(times * (1 + (intent == "who" or lang == "en"))):
            rows.append(row(courtesy(rng, intent, lang, words, thinks)))
    rows += [row(honest_no(rng, thinks=thinks)) for _ in range(noes)]
    return rows + [row(no_digits(rng, thinks)) for _ in range(digits)]


def mixed_row(rng: Random, thinks: bool = False) -> Row:
    """A visit: perhaps a greeting, one to three questions about the town or beyond it, perhaps thanks or goodbye."""
    known = courtesies(held=False)
    lang = rng.choices(["zh", "en"], [5, 1])[0]
    facts = asked_facts()
    turns = []
    if rng.random() < 0.7:
        turns += courtesy(
            rng, *rng.choice([one for one in known if one[0] in ("hello", "who") and one[1] == lang]), thinks
        )
    for _ in range(rng.randint(1, 3)):
        if rng.random() < 0.75:
            turns += fact(rng, *rng.choice(facts), lang=lang, thinks=thinks)
        else:
            turns += honest_no(rng, thinks=thinks)
    if rng.random() < 0.4:
        turns += courtesy(
            rng, *rng.choice([one for one in known if one[0] in ("thanks", "bye") and one[1] == lang]), thinks
        )
    return row(turns)


def cannot_reckon(rng: Random) -> Row:
    """A sum before the stage that teaches to reason: an honest no."""
    return row([draw_problem(rng, FOLK)[2], REPLIES["beyond", "zh"]])


def thinking_rows(rng: Random) -> list[Row]:
    """The questions of the earlier stages, answered with a thought."""
    facts = asked_facts()
    rows = [row(fact(rng, *one, form=form, thinks=True)) for one in facts for form in range(3)]
    rows += [row(fact(rng, *one, lang="en", thinks=True)) for one in facts if rng.random() < 0.5]
    for question, answer in (entry.split("|") for entry in TOWN_QA):
        rows.append(row([question, thought(f"问的是贝壳湾。{answer}", HELLO["zh"] + answer)]))
    rows += everyday_rows(rng, times=3, noes=360, digits=60, thinks=True)
    return rows + [mixed_row(rng, thinks=True) for _ in range(300)]


def in_talks(rng: Random, rows: list[Row]) -> list[Row]:
    """The rows again, up to eight after one another in one conversation, as people ask and a chat sends them."""
    talks: list[list[str]] = []
    wanted = 0
    for one in map(turns, rows):
        if not talks or len(talks[-1]) >= wanted or sum(map(len, talks[-1] + one)) > TALK_SIZE:
            talks.append([])
            wanted = 2 * rng.randint(2, 8)
        talks[-1] += one
    return [row(talk) for talk in talks]


def talks_heldout(rng: Random, problems: list[list[str]]) -> list[Row]:
    """Each problem in a talk with a courtesy, a fact and a question beyond the town, in any order."""
    rows = []
    held_facts = [(person, attr) for person in FOLK for attr in ATTRS if (person["zh"], attr) in HELD_FACTS]
    for problem, greeting in zip(problems, courtesies(held=True), strict=True):
        asked = {
            "problem": problem,
            greeting[0]: courtesy(rng, *greeting, thinks=True, held=True),
            "fact": fact(rng, *rng.choice(held_facts), thinks=True),
            "beyond": honest_no(rng, held=True, thinks=True),
        }
        order = rng.sample(list(asked), len(asked))
        answer = asked[order[-1]][1].split("<answer>\n")[1].removesuffix("\n</answer>")
        rows.append(row([words for kind in order for words in asked[kind]], task=order[-1], answer=answer))
    return rows


def everyday_heldout(rng: Random) -> list[Row]:
    """30 courtesies in wordings, and 30 questions beyond the town on subjects, that were never trained on."""
    rows = [row(courtesy(rng, *one, held=True), task=one[0], answer=REPLIES[one[:2]]) for one in courtesies(held=True)]
    seen = set()
    while len(seen) < 30:
        question, answer = honest_no(rng, held=True)
        if question not in seen:
            seen.add(question)
            rows.append(row([question, answer], task="beyond", answer=answer))
    return rows
