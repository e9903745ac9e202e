"""Conversations of the two SFT stages: questions, instructions, and notes to remember."""

from random import Random

from texts import FACTS, FOLK, HELD_FACTS, VOCABULARY, Person, draw_pairs, is_held, read_pairs, story, tell
from world import ATTRS, DISHES, MONTHS, NOTES, TOWN_QA

Row = dict  # one line of a file: {"conversations": [...]} and, held out, its task and answer
SYSTEM = "你是贝壳湾的向导，回答要简短、有礼貌。"
HELLO = {"zh": "您好，", "en": "Hello, "}
MONTH_NAMES = [zh for zh, _ in read_pairs(MONTHS)]
TIMES = "零一两三四五"


def row(turns: list[str], system: str | None = None, **extra: str) -> Row:
    """Turn [question, answer, question, answer, ...] into a row of the file."""
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    return {"conversations": messages, **extra}


def turns(made: Row) -> list[str]:
    """What `row` was made of."""
    return [message["content"] for message in made["conversations"]]


def ask(person: Person, attr: str, rng: Random, lang: str = "zh", form: int | None = None) -> list[str]:
    """A question about one fact and its polite answer."""
    templates = ATTRS[attr]["ask" if lang == "zh" else "ask_en"]
    question = (rng.choice(templates) if form is None else templates[form]).format(n=person[lang])
    lead = rng.choice(["", "请问，"]) if lang == "zh" else ""
    return [lead + question, HELLO[lang] + tell(person, attr, rng, lang, form=0)]


def asked_facts() -> list[tuple[Person, str]]:
    """The facts that training may ask about."""
    return [(person, attr) for person in FOLK for attr in ATTRS if (person["zh"], attr) not in HELD_FACTS]


def question_rows(rng: Random) -> list[Row]:
    """Every fact that may be asked: in each wording alone, and several in one conversation."""
    facts = asked_facts()
    rows = [
        row(ask(person, attr, rng, form=form), SYSTEM if rng.random() < 0.05 else None)
        for person, attr in facts
        for form in range(3)
        if rng.random() < 0.8
    ]
    rows += [row(ask(person, attr, rng, "en")) for person, attr in facts if rng.random() < 0.7]
    for _ in range(140):
        chosen = rng.sample(facts, rng.randint(2, 4))
        rows.append(row(sum((ask(person, attr, rng) for person, attr in chosen), [])))
    for _ in range(100):
        rows.append(row(follow_up(rng)))
    return rows


def follow_up(rng: Random) -> list[str]:
    """Ask about one person, then go on about the same person by pronoun."""
    person = rng.choice(FOLK)
    attrs = [attr for attr in ATTRS if (person["zh"], attr) not in HELD_FACTS]
    first, second = rng.sample(attrs, 2)
    later = rng.choice(ATTRS[second]["ask"]).format(n=person["pronoun"])
    return ask(person, first, rng) + ["那" + later, ask(person, second, rng)[1]]


def held_question_rows(rng: Random) -> list[Row]:
    """Facts told in pretraining that no training conversation asks about."""
    rows = []
    for person in FOLK:
        for attr in ATTRS:
            if (person["zh"], attr) in HELD_FACTS:
                for lang, form in [("zh", form) for form in rng.sample(range(3), 2)] + [("en", None)] * (
                    rng.random() < 0.4
                ):
                    turns = ask(person, attr, rng, lang, form)
                    rows.append(
                        row(
                            turns,
                            task="fact" if lang == "zh" else "fact_en",
                            answer=turns[1],
                            value=FACTS[person["zh"], attr][lang == "en"],
                        )
                    )
    return rows


def choice_rows(rng: Random) -> list[Row]:
    """The held-out facts as questions with four choices; the wrong ones are true of others."""
    rows = []
    for person in FOLK:
        for attr in ATTRS:
            if (person["zh"], attr) in HELD_FACTS:
                right = FACTS[person["zh"], attr][0]
                others = sorted({FACTS[other["zh"], attr][0] for other in FOLK} - {right, person["zh"]})
                choices = [right, *rng.sample(others, 3)]
                rng.shuffle(choices)
                question = rng.choice(ATTRS[attr]["ask"]).format(n=person["zh"])
                rows.append({"question": question, "choices": choices, "answer": choices.index(right), "subject": attr})
    return rows


def word_task(task: str, rng: Random) -> tuple[str, str, str]:
    """An instruction about one to five words, as (key, question, answer)."""
    words = rng.sample([zh for zh, _ in VOCABULARY], rng.randint(3, 5))
    (word, english), count = rng.choice(VOCABULARY), rng.randint(2, 4)
    listed = "、".join(words)
    if task == "repeat":
        return f"{word}{count}", f"请把“{word}”说{TIMES[count]}遍。", "，".join([word] * count) + "。"
    if task == "repeat_en":
        return f"{english}{count}", f'Say the word "{english}" {count} times.', ", ".join([english] * count) + "."
    if task == "reverse":
        return listed, f"请把这些词倒过来说：{listed}。", "、".join(words[::-1]) + "。"
    if task == "count":
        return listed, f"数一数这里有几样东西：{listed}。", f"一共有{TIMES[len(words)]}样。"
    if task == "pick":
        place = rng.randint(1, 3)
        return f"{place}{listed}", f"请说出第{'零一二三'[place]}个词：{listed}。", words[place - 1] + "。"
    if task == "translate":
        return word, rng.choice(["“{}”用英语怎么说？", "请把“{}”译成英语。"]).format(word), english + "."
    if task == "sentence":
        return (
            word,
            rng.choice(["请用“{}”写一句话。", "请写一句话，里面要有“{}”。"]).format(word),
            f"我在贝壳湾见过{word}。",
        )
    months = rng.sample(range(12), 3)
    early = "、".join(MONTH_NAMES[m] for m in sorted(months))
    return str(sorted(months)), f"请按先后排好：{'、'.join(MONTH_NAMES[m] for m in months)}。", early + "。"


def fact_task(task: str, rng: Random) -> tuple[str, str, str]:
    """An instruction on the form of the answer to a question about the town."""
    person, attr = rng.choice(asked_facts())
    question = rng.choice(ATTRS[attr]["ask"]).format(n=person["zh"])
    if task == "one_word":
        return f"{person['zh']}{attr}", "只用一个词回答：" + question, FACTS[person["zh"], attr][0]
    return f"{person['zh']}{attr}", "请用英语回答：" + question, tell(person, attr, rng, "en", form=0)


WORD_TASKS = ["repeat", "repeat_en", "reverse", "count", "pick", "translate", "sentence", "months"]
FACT_TASKS = ["one_word", "in_english"]


def instruction_row(rng: Random, held: bool, number: int) -> Row:
    """One instruction; held-out ones have arguments never used with that instruction."""
    task = (WORD_TASKS + FACT_TASKS)[number % 10]
    while True:
        key, question, answer = (word_task if task in WORD_TASKS else fact_task)(task, rng)
        if is_held(f"{task}:{key}") == held:
            return row([question, answer], task=task, answer=answer) if held else row([question, answer])


def draw_note(rng: Random, held: bool, kinds: list[str]) -> tuple[list[str], list[str]]:
    """A request to remember some things of each kind, and two questions of each kind with their answers."""
    said, asked = [], []
    for kind in kinds:
        pairs = draw_pairs(rng, held, kind)
        lines = [line for _, line in pairs]
        said.append("，".join(lines))
        asked += rng.sample([[question, f"{HELLO['zh']}{line}。"] for question, line in pairs], 2)
    rng.shuffle(asked)
    return ["请帮我记住：" + "；".join(said) + "。", HELLO["zh"] + "我记住了。"], sum(asked, [])


def recall_row(rng: Random, held: bool, number: int) -> Row:
    """A note, perhaps a few questions about the town, then two questions about the note."""
    note, asked = draw_note(rng, held, [rng.choice(list(NOTES))])
    chat = sum((small_talk(rng) for _ in range(rng.choice([0, 0, 1, 2]))), [])
    turns = note + chat + asked
    return row(turns, task="recall", answer=turns[-1]) if held else row(turns)


def small_talk(rng: Random) -> list[str]:
    """One exchange between a visitor and the guide; it never touches a held-out fact."""
    kind = rng.choices(["town", "story", "recipe", "fact"], [3, 4, 1, 2])[0]
    if kind == "town":
        question, answer = rng.choice(TOWN_QA).split("|")
        return [question, HELLO["zh"] + answer]
    if kind == "recipe":
        dish, things, steps = rng.choice(DISHES).split("|")
        return [f"{dish}怎么做？", f"{HELLO['zh']}做{dish}要用{things}，{steps}。"]
    if kind == "story":
        return [
            rng.choice(["请讲一个镇上的小故事。", "再讲一个故事吧。"]),
            HELLO["zh"] + "故事是这样的。" + story(rng, False, None, True),
        ]
    return ask(*rng.choice(asked_facts()), rng)


def long_row(rng: Random, held: bool, number: int, size: tuple[int, int]) -> Row:
    """A conversation whose last answer comes late.

    Two out of three need a note from its very beginning (far), the others one from
    just before the question (near), so that reaching far can be told from staying
    fluent at late positions.
    """
    note, asked = draw_note(rng, held, [rng.choice(["place", "locker"]), "page"])
    far = number % 3 != 2
    chat, wanted = [], rng.randint(*size)
    while sum(len(text.encode()) for text in chat) < wanted:
        exchange = small_talk(rng)
        if exchange[1] not in chat:
            chat += exchange
    turns = (note + chat if far else chat + note) + asked
    return row(turns, task="far" if far else "near", answer=turns[-1]) if held else row(turns)
