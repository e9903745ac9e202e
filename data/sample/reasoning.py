"""Problems with a worked chain of thought for the last training stage.

Numbers are spelt digit by digit (三七 is thirty-seven; in English "3 7"), so that every
digit is a token of its own and carrying can be learnt from few examples; a column's
result is one digit too, and what is carried or borrowed is said behind it.  Every
number has two digits, and none is 11 or 12, which the tokenizer would join.

Each problem has a key made of its operands alone: whether a problem is held out depends
on the key, so a word problem never gives away the answer of a held-out bare sum.
"""

DIGITS = {"zh": "零一二三四五六七八九", "en": "0123456789"}
SAY = {
    "zh": dict(
        gap="",
        colon="：",
        carry="，进",
        borrow="，借",
        semi="；",
        get="得",
        stop="。",
        first="先算",
        then="再算",
    ),
    "en": dict(
        gap=" ",
        colon=": ",
        carry=", carry",
        borrow=", borrow",
        semi="; ",
        get="get",
        stop=".",
        first="First",
        then=" Then",
    ),
}
SUMS = {
    "zh": ["计算{sum}。", "请算一算{sum}等于多少？", "{sum}的结果是多少？"],
    "en": ["Compute {sum}.", "What is {sum}?"],
}
STORIES = {  # operations on a, b, c: what happened in town
    "++": [
        "{p}捡到{a}枚贝壳，{q}捡到{b}枚，{r}捡到{c}枚，一共多少枚？",
        "船上先装{a}只木箱，再装{b}只，又装{c}只，一共多少只？",
        "{p}今年{a}岁，{q}比{p}大{b}岁，{r}比{q}大{c}岁，{r}今年多少岁？",
    ],
    "+-": [
        "{p}早上捕到{a}尾鱼，下午又捕到{b}尾，卖掉{c}尾，还剩多少尾？",
        "茶馆里坐着{a}位客人，又来{b}位，走掉{c}位，还剩多少位？",
        "{p}今年{a}岁，{q}比{p}大{b}岁，{r}比{q}小{c}岁，{r}今年多少岁？",
    ],
    "-+": [
        "仓库里存着{a}斤盐，运走{b}斤，又运来{c}斤，现在多少斤？",
        "{p}带着{a}颗糖，送给{q}{b}颗，又收到{c}颗，现在多少颗？",
    ],
    "--": [
        "{p}攒下{a}枚铜钱，买茶用去{b}枚，买布用去{c}枚，还剩多少枚？",
        "面包房烤出{a}块饼，上午卖掉{b}块，下午卖掉{c}块，还剩多少块？",
    ],
}
ORDERS = {  # (more, most, less, least)
    "zh": [("高", "高", "矮", "矮"), ("重", "重", "轻", "轻"), ("快", "快", "慢", "慢")],
    "en": [
        ("taller", "tallest", "shorter", "shortest"),
        ("older", "oldest", "younger", "youngest"),
        ("faster", "fastest", "slower", "slowest"),
    ],
}


def spell(number, lang="zh"):
    """Write a number digit by digit: 37 becomes 三七, in English "3 7"."""
    return SAY[lang]["gap"].join(DIGITS[lang][int(digit)] for digit in str(number))


def formula(lang, *terms):
    """Write terms and signs in a row: 三七+二八, in English "3 7 + 2 8"."""
    return SAY[lang]["gap"].join(term if isinstance(term, str) else spell(term, lang) for term in terms)


def column(a, sign, b, lang="zh"):
    """Add or subtract two numbers below 100 on paper, ones before tens; return the words and the result."""
    say, (x, y), result = SAY[lang], (a % 10, b % 10), a + b if sign == "+" else a - b
    move = x + y > 9 if sign == "+" else x < y
    ones = formula(lang, x, sign, y, "=", result % 10)
    if move:
        ones += formula(lang, say["carry" if sign == "+" else "borrow"], 1)
    tens = formula(lang, a // 10, sign, b // 10, *([sign, 1] if move else []), "=", result // 10)
    steps = [ones, tens, formula(lang, say["get"], result)]
    return formula(lang, a, sign, b) + say["colon"] + say["semi"].join(steps) + say["stop"], result


def two_digits(number):
    return 10 <= number <= 99 and number not in (11, 12)


def draw_operands(rng):
    """Draw signs and operands of a two-step problem whose every result has two digits."""
    while True:
        signs = rng.choice(["++", "+-", "-+", "--"])
        a, b, c = (rng.choice([10, *range(13, 90)]) for _ in range(3))
        middle = a + b if signs[0] == "+" else a - b
        end = middle + c if signs[1] == "+" else middle - c
        if two_digits(middle) and two_digits(end):
            return signs, a, b, c


def sum_problem(rng, names, lang, told):
    """A two-step sum, bare or told as a story: work out one column after the other."""
    signs, a, b, c = draw_operands(rng)
    first, middle = column(a, signs[0], b, lang)
    second, end = column(middle, signs[1], c, lang)
    if told:
        p, q, r = names
        question = rng.choice(STORIES[signs]).format(p=p, q=q, r=r, a=spell(a), b=spell(b), c=spell(c))
    else:
        question = rng.choice(SUMS[lang]).format(sum=formula(lang, a, signs[0], b, signs[1], c))
    plus = sorted([a] + [n for sign, n in zip(signs, (b, c), strict=True) if sign == "+"])
    minus = sorted(n for sign, n in zip(signs, (b, c), strict=True) if sign == "-")
    thought = formula(lang, SAY[lang]["first"], first) + formula(lang, SAY[lang]["then"], second)
    return f"sum:{plus}{minus}", question, thought, spell(end, lang)


def compare(p, a, q, b, sign, word):
    """Compare two weights digit by digit; return the words, the winner and its weight."""
    winner, weight = (p, a) if (a - b) * sign > 0 else (q, b)
    x, y, place = (a // 10, b // 10, "十位") if a // 10 != b // 10 else (a % 10, b % 10, "十位相同，个位")
    words = f"比{p}{spell(a)}和{q}{spell(b)}：{place}{spell(x)}{'>' if x > y else '<'}{spell(y)}，{winner}{word}。"
    return words, winner, weight


def weigh_problem(rng, names):
    """Who is the heaviest (or lightest) of three: two comparisons."""
    a = rng.randint(20, 79)
    near = rng.random() < 0.4
    b = a // 10 * 10 + rng.randint(0, 9) if near else rng.randint(20, 79)
    weights = [a, b, rng.randint(20, 79)]
    if len(set(weights)) < 3:
        return weigh_problem(rng, names)
    rng.shuffle(weights)
    word, sign = rng.choice([("重", 1), ("轻", -1)])
    told = "，".join(f"{name}重{spell(weight)}斤" for name, weight in zip(names, weights, strict=True))
    first, winner, weight = compare(names[0], weights[0], names[1], weights[1], sign, word)
    second, winner, _ = compare(winner, weight, names[2], weights[2], sign, word)
    return f"three:{sorted(weights)}", f"{told}。谁最{word}？", f"先{first}再{second}", winner


def sort_problem(rng):
    """Sort three numbers whose tens differ: sort the tens first."""
    tens = rng.sample(range(1, 10), 3)
    numbers = [10 * ten + rng.randint(3 if ten == 1 else 0, 9) for ten in tens]
    down = rng.random() < 0.5
    words = "从大到小" if down else "从小到大"
    ordered = sorted(numbers, reverse=down)
    thought = f"十位是{'、'.join(map(spell, tens))}。十位{words}是{'、'.join(spell(n // 10) for n in ordered)}。"
    question = f"请把{'、'.join(map(spell, numbers))}{words}排好。"
    return f"three:{sorted(numbers)}", question, thought, "、".join(map(spell, ordered))


def order_problem(rng, trio, lang):
    """Put three persons in order from two statements that may be turned round or swapped."""
    a, b, c = (person[lang] for person in trio)
    key = "order:" + ">".join(person["zh"] for person in trio)
    more, most, less, least = rng.choice(ORDERS[lang])
    link = "{}比{}{}" if lang == "zh" else "{0} is {2} than {1}"
    pairs = rng.sample([(a, b), (b, c)], 2)
    said = [link.format(x, y, more) if rng.random() < 0.6 else link.format(y, x, less) for x, y in pairs]
    first, second = (link.format(x, y, more) for x, y in pairs)
    wanted, answer = rng.choice([(most, a), (least, c)])
    if lang == "zh":
        question = f"{said[0]}，{said[1]}。三个人里谁最{wanted}？"
        thought = f"{first}，{second}。中间是{b}。从{more}到{less}是{a}、{b}、{c}。最{wanted}的是{answer}。"
    else:
        question = f"{said[0]}. {said[1]}. Who is the {wanted}?"
        thought = f"{first}. {second}. In the middle is {b}. The order is {a}, {b}, {c}. The {wanted} is {answer}."
    return key, question, thought, answer


def draw_problem(rng, people):
    """Draw one problem of any kind as (task, key, question, thought, answer)."""
    trio = rng.sample(people, 3)
    names = [person["zh"] for person in trio]
    task = rng.choices(["sum", "sum_en", "story", "weigh", "sort", "order", "order_en"], [42, 4, 34, 7, 4, 7, 2])[0]
    if task == "weigh":
        return task, *weigh_problem(rng, names)
    if task == "sort":
        return task, *sort_problem(rng)
    lang = "en" if task.endswith("_en") else "zh"
    if task.startswith("order"):
        return task, *order_problem(rng, trio, lang)
    return task, *sum_problem(rng, names, lang, told=task == "story")
