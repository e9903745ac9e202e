"""The facts of the town and the texts of the pretraining stage that tell them."""

import hashlib
from random import Random

from reasoning import SUMS, digit_sum, draw_problem, on_paper, spell, two_digits, worked_sum
from world import (
    ATTRS,
    CLOSINGS,
    CLOSINGS_EN,
    DISHES,
    EVENTS,
    EVENTS_EN,
    MONTHS,
    NOTES,
    NOUNS,
    OPENINGS,
    OPENINGS_EN,
    PEOPLE,
    PLACES,
    TOWN_QA,
)

Person = dict[str, str]  # zh, en: the name; pronoun


def is_held(key: str, percent: int = 12) -> bool:
    """Decide by the key alone whether something is kept out of training."""
    return hashlib.sha256(key.encode()).digest()[0] * 100 < percent * 256


def read_pairs(text: str, separator: str | None = None) -> list[tuple[str, ...]]:
    """Read "中文:English" entries."""
    return [tuple(entry.strip().split(":")) for entry in text.split(separator) if entry.strip()]


def draw_facts(folk: list[Person], rng: Random) -> dict[tuple[str, str], tuple[str, str]]:
    """Give every person a value of every attribute, each value to about as many persons."""
    facts = {}
    for attr, table in ATTRS.items():
        order = rng.sample(folk, len(folk))
        if attr == "friend":
            couples = list(zip(order[::2], order[1::2], strict=True))
            values = {a["zh"]: (b["zh"], b["en"]) for couple in couples for a, b in (couple, couple[::-1])}
        else:
            pool = read_pairs(table["values"], ",") * len(folk)
            values = dict(zip((person["zh"] for person in order), pool, strict=False))
        facts |= {(person["zh"], attr): values[person["zh"]] for person in folk}
    return facts


def draw_held_facts(folk: list[Person], rng: Random) -> set[tuple[str, str]]:
    """Choose the facts no training conversation may touch; friends are held in couples."""
    others = [attr for attr in ATTRS if attr != "friend"]
    held = {(person["zh"], attr) for i, person in enumerate(folk) for attr in rng.sample(others, 1 + i % 2)}
    for person in folk[::8]:
        held |= {(person["zh"], "friend"), (FACTS[person["zh"], "friend"][0], "friend")}
    return held


FOLK = [dict(zip(("zh", "en", "pronoun"), entry, strict=True)) for entry in read_pairs(PEOPLE, ",")]
FACTS = draw_facts(FOLK, Random(7))
HELD_FACTS = draw_held_facts(FOLK, Random(8))
VOCABULARY = read_pairs(NOUNS)


def tell(person: Person, attr: str, rng: Random, lang: str = "zh", form: int | None = None) -> str:
    """Tell one fact in one of the attribute's wordings."""
    templates = ATTRS[attr][lang]
    template = rng.choice(templates) if form is None else templates[form]
    return template.format(n=person[lang], v=FACTS[person["zh"], attr][lang == "en"])


def attrs_of(person: Person, asked_only: bool) -> list[str]:
    """The attributes of a person that a text may tell (asked_only: leave out held-out facts)."""
    return [attr for attr in ATTRS if not (asked_only and (person["zh"], attr) in HELD_FACTS)]


def draw_couple(rng: Random, held: bool, first: Person | None = None) -> tuple[Person, Person]:
    """Draw two persons; couples that meet in held-out texts never meet in training texts."""
    while True:
        a, b = first or rng.choice(FOLK), rng.choice(FOLK)
        if a != b and is_held("meet:" + "/".join(sorted((a["zh"], b["zh"])))) == held:
            return a, b


def bio(rng: Random, held: bool, number: int, lang: str = "zh") -> str:
    """Everything about one person, in any order; after the first sentence often by pronoun."""
    person = FOLK[number % len(FOLK)]
    attrs = rng.sample(list(ATTRS), len(ATTRS))
    told = [tell(person, attr, rng, lang) for attr in attrs]
    if lang == "zh":
        told = told[:1] + [t.replace(person["zh"], person["pronoun"]) if rng.random() < 0.3 else t for t in told[1:]]
    return (" " if lang == "en" else "").join(told)


def bio_en(rng: Random, held: bool, number: int) -> str:
    return bio(rng, held, number, "en")


def story(rng: Random, held: bool, number: int | None = None, asked_only: bool = False, most: int = 2) -> str:
    """Two persons meet; the story tells some facts about each of them."""
    a, b = draw_couple(rng, held, None if number is None else FOLK[number % len(FOLK)])
    parts = [rng.choice(OPENINGS)]
    parts += [tell(a, attr, rng) for attr in rng.sample(attrs_of(a, asked_only), rng.randint(1, most))]
    parts += [rng.choice(EVENTS).format(a=a["zh"], b=b["zh"])]
    parts += [tell(b, attr, rng) for attr in rng.sample(attrs_of(b, asked_only), rng.randint(1, most))]
    return "".join(parts + [rng.choice(CLOSINGS)])


def story_en(rng: Random, held: bool, number: int) -> str:
    a, b = draw_couple(rng, held, FOLK[number % len(FOLK)])
    facts = [tell(p, attr, rng, "en") for p in (a, b) for attr in rng.sample(list(ATTRS), 2)]
    event = rng.choice(EVENTS_EN).format(a=a["en"], b=b["en"])
    return " ".join([rng.choice(OPENINGS_EN), *facts[:2], event, *facts[2:], rng.choice(CLOSINGS_EN)])


def diary(rng: Random, held: bool, number: int) -> str:
    """A weather diary with what one person did that day."""
    person, name = FOLK[number % len(FOLK)], FOLK[number % len(FOLK)]["zh"]
    month = rng.choice(read_pairs(MONTHS))[0]
    boat, street = FACTS[name, "boat"][0], FACTS[name, "street"][0]
    sky, wind = rng.choice(["晴", "多云", "小雨", "大雾", "阴"]), rng.choice(["东风", "南风", "西风", "北风", "海风"])
    deed = rng.choice(
        [
            f"{name}把{boat}的船推下了水，往东边去了。",
            f"{name}从{street}出来，看了看天，又回去了。",
            f"{name}在家里陪着{FACTS[name, 'pet'][0]}，没有出门。",
            f"{name}煮了{FACTS[name, 'dish'][0]}，香味飘得很远。",
            f"晚上{name}拿出{FACTS[name, 'music'][0]}，{FACTS[name, 'friend'][0]}在旁边听。",
        ]
    )
    tide = rng.choice(["上午涨潮，下午退潮。", "潮水不大。", "潮水涨到了第三级石阶。", "夜里潮水很高。"])
    return (
        f"{month}{spell(rng.randint(1, 28))}日，{sky}，{wind}。{tide}{deed}{tell(person, rng.choice(list(ATTRS)), rng)}"
    )


def recipe(rng: Random, held: bool, number: int) -> str:
    """How a dish is made and who loves it."""
    dish, things, steps = DISHES[number % len(DISHES)].split("|")
    fans = [person["zh"] for person in FOLK if FACTS[person["zh"], "dish"][0] == dish]
    fan = rng.choice(fans)
    how = rng.choice(
        [
            f"{dish}的做法不难：要准备{things}，{steps}。",
            f"做{dish}要用{things}。{steps}，这样就好了。",
            f"怎么做{dish}？{steps}。用到的东西是{things}。",
        ]
    )
    love = rng.choice(
        [
            f"{fan}最爱吃的是{dish}。",
            f"{fan}学会了做{dish}，常常请{FACTS[fan, 'friend'][0]}来吃。",
            f"爱吃{dish}的人有{'、'.join(rng.sample(fans, len(fans)))}。",
        ]
    )
    return rng.choice(["", rng.choice(OPENINGS)]) + rng.choice([how + love, love + how])


def town(rng: Random, held: bool, number: int) -> str:
    """Some of what a guide can tell about the town."""
    told = [entry.split("|")[1] for entry in rng.sample(TOWN_QA, rng.randint(2, 4))]
    return rng.choice(OPENINGS) + "".join(told)


def equation(rng: Random) -> str:
    """One column of a sum: a digit for a result, and what is carried or borrowed."""
    u, w, ten = rng.randint(0, 9), rng.randint(0, 9), rng.randint(1, 8)
    more = rng.randint(0, 8 - ten)
    tens = f"{spell(ten)}+{spell(more)}+一={spell(ten + more + 1)}"
    rest = f"{spell(ten + more + 1)}-{spell(more)}-一={spell(ten)}"
    return rng.choices([digit_sum(u, "+", w), digit_sum(u, "-", w), tens, rest], [4, 4, 1, 1])[0]


def sums(rng: Random, held: bool, number: int) -> str:
    """A page of a school book."""
    return "；".join(equation(rng) for _ in range(rng.randint(6, 10))) + "。"


def columns(rng: Random, held: bool, number: int) -> str:
    """A page of sums worked out one column after the other: of two numbers, and of three in two steps.

    Half of the latter are asked as people ask: beside a word never seen before, a digit is not copied.
    """
    lines = []
    while len(lines) < 4:
        a, b, sign = rng.randint(10, 89), rng.randint(10, 89), rng.choice("+-")
        if rng.random() < 0.7:
            key, _, asked, words, _ = worked_sum(rng)
            title = rng.choice(SUMS).format(sum=asked) if rng.random() < 0.5 else f"{asked}："
            lines += [title + words] if is_held(key, 10) == held else []
        elif two_digits(a) and two_digits(b) and two_digits(a + b if sign == "+" else a - b):
            lines.append(f"{spell(a)}{sign}{spell(b)}{on_paper(a, sign, b)[0]}")
    return "".join(lines)


def comparing(rng: Random, held: bool, number: int) -> str:
    """Three of a kind put in order, step by step."""
    while True:
        task, key, question, words, _ = draw_problem(rng, FOLK, (0, 0, 3, 1, 3))
        if is_held(key, 10) == held:
            return question + words


def count_line(rng: Random) -> str:
    """One sentence of counting, place value, comparison or one-digit arithmetic."""
    x, y, n = rng.randint(1, 9), rng.randint(1, 9), rng.randint(10, 95)
    m = rng.choice([k for k in range(10, 100) if k // 10 != n // 10])
    lead, unit = rng.choice(
        [("桶里装着", "尾鱼"), ("篮子里放着", "枚贝壳"), ("船上装着", "只木箱"), ("树下坐着", "位老人")]
    )
    return rng.choice(
        [
            f"从{spell(n)}数起：{'、'.join(spell(n + i) for i in range(5))}。",
            f"{spell(n)}：十位{spell(n // 10)}，个位{spell(n % 10)}。",
            f"{spell(max(n, m))}比{spell(min(n, m))}大：十位{spell(max(n, m) // 10)}>{spell(min(n, m) // 10)}。",
            f"{lead}{spell(x)}{unit}，又来{spell(y)}{unit[0]}，一共{spell(x + y)}{unit[0]}。",
            f"{lead}{spell(x + y)}{unit}，少去{spell(y)}{unit[0]}，还剩{spell(x)}{unit[0]}。",
        ]
    )


def counting(rng: Random, held: bool, number: int) -> str:
    return "".join(count_line(rng) for _ in range(rng.randint(4, 7)))


def neighbours(rng: Random, held: bool, number: int) -> str:
    """All the persons who share a value: the facts seen from the other side."""
    attr = rng.choice(["job", "street", "pet", "dish", "music", "month", "boat", "friend", "friend"])
    value = rng.choice(sorted({fact[0] for (_, name), fact in FACTS.items() if name == attr}))
    sharing = [person for person in FOLK if FACTS[person["zh"], attr][0] == value]
    lead = {
        "job": "镇上做{}的有",
        "street": "住在{}的有",
        "pet": "养{}的人家有",
        "dish": "爱吃{}的有",
        "music": "会演奏{}的有",
        "month": "{}过生日的有",
        "boat": "船是{}的有",
        "friend": "和{}最要好的有",
    }[attr].format(value)
    names = [person["zh"] for person in rng.sample(sharing, len(sharing))]
    return f"{lead}{'、'.join(names)}。{tell(rng.choice(sharing), attr, rng)}"


def draw_pairs(rng: Random, held: bool, kind: str) -> list[tuple[str, str]]:
    """Three or four things and where each of them is, as (question, statement); held-out pairs apart."""
    kept, statement, question = NOTES[kind]
    pairs, count = {}, rng.randint(3, 4)
    while len(pairs) < count:
        thing = rng.choice(kept)
        value = rng.choice(PLACES) if kind == "place" else spell(rng.randint(10, 99))
        if is_held(f"{kind}:{thing}:{value}") == held and thing not in pairs and value not in pairs.values():
            pairs[thing] = value
    return [(question.format(t=thing), statement.format(t=thing, v=value)) for thing, value in pairs.items()]


def storing(rng: Random, held: bool, number: int) -> str:
    """A notebook that is read again later: what was said once is needed once more."""
    name, other = (person["zh"] for person in draw_couple(rng, held, FOLK[number % len(FOLK)]))
    lines = [line for _, line in draw_pairs(rng, held, rng.choice(list(NOTES)))]
    first, again, once_more = ("，".join(rng.sample(lines, len(lines))) for _ in range(3))
    event = rng.choice(["", rng.choice(EVENTS).format(a=name, b=other)])
    end = rng.choice([f"{other}跟着念：{once_more}。", f"{other}都记下了。"])
    return f"{name}的本子上写着：{first}。{event}后来{other}来问，{name}回答：{again}。{end}"


def glossary(rng: Random, held: bool, number: int) -> str:
    """A few words in both languages."""
    words = rng.sample(VOCABULARY, rng.randint(3, 6))
    form = rng.choice(["{}的英语是 {}。", "英语里，{}叫作 {}。"])
    return "".join(form.format(*pair) for pair in words)


PRETRAIN_KINDS = [
    bio,
    story,
    diary,
    recipe,
    town,
    counting,
    sums,
    columns,
    comparing,
    neighbours,
    storing,
    glossary,
    bio_en,
    story_en,
]
