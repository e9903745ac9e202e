"""Problems with a worked chain of thought for the last training stage.

Numbers are spelt digit by digit (三七 is thirty-seven), so that every digit is a token of
its own and carrying can be learnt from few examples; a column's result is one digit too,
and what is carried or borrowed is said behind it. Every number has two digits, and none
is 11 or 12, which the tokenizer would join.

Each problem has a key made of its operands alone: whether a problem is held out depends
on the key, so a word problem never gives away the answer of a held-out bare sum.
"""

from random import Random

Problem = tuple[str, str, str, str]  # key, question, thought, answer
DIGITS = "零一二三四五六七八九"
SUMS = [  # pretraining asks in them too: beside a word it never saw, a distilled model copies the digit wrongly
    "计算{sum}。",
    "请算一算{sum}等于多少？",
    "{sum}的结果是多少？",
    "{sum}等于多少？",
    "{sum}是多少？",
    "{sum}=？",
    "请算{sum}。",
    "请问，{sum}等于多少？",
    "帮我算一下{sum}。",
    "我想知道{sum}是多少。",
    "算一算，{sum}得多少？",
    "求{sum}的结果。",
]
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
# more, less: the most and the least are said with the same words
ORDERS = ["高矮", "重轻", "快慢"]


def spell(number: int) -> str:
    """Write a number digit by digit: 37 becomes 三七."""
    return "".join(DIGITS[int(digit)] for digit in str(number))


def digit_sum(x: int, sign: str, y: int) -> str:
    """One column: 七+八=五，进一 or 三-八=五，借一."""
    result = x + y if sign == "+" else x - y
    moved = "" if 0 <= result <= 9 else "，进一" if sign == "+" else "，借一"
    return f"{spell(x)}{sign}{spell(y)}={spell(result % 10)}{moved}"


def on_paper(a: int, sign: str, b: int) -> tuple[str, int]:
    """Add or subtract two numbers below 100 on paper, ones before tens; return the words and the result."""
    result = a + b if sign == "+" else a - b
    ones = digit_sum(a % 10, sign, b % 10)
    moved = f"{sign}一" if "，" in ones else ""
    tens = f"{spell(a // 10)}{sign}{spell(b // 10)}{moved}={spell(result // 10)}"
    return f"：{ones}；{tens}；得{spell(result)}。", result


def two_digits(number: int) -> bool:
    return 10 <= number <= 99 and number not in (11, 12)


def draw_operands(rng: Random) -> tuple[str, int, int, int]:
    """Draw signs and operands of a two-step problem whose every result has two digits."""
    while True:
        signs = rng.choice(["++", "+-", "-+", "--"])
        a, b, c = (rng.choice([10, *range(13, 90)]) for _ in range(3))
        middle = a + b if signs[0] == "+" else a - b
        end = middle + c if signs[1] == "+" else middle - c
        if two_digits(middle) and two_digits(end):
            return signs, a, b, c


def worked_sum(rng: Random) -> tuple[str, tuple[str, int, int, int], str, str, str]:
    """A two-step sum as (key, (signs, operands), question in signs, working, result), one column after the other.

    The working begins with the whole sum, so that the last operand is found again behind the word 再.
    """
    signs, a, b, c = draw_operands(rng)
    first, middle = on_paper(a, signs[0], b)
    second, end = on_paper(middle, signs[1], c)
    plus = sorted([a] + [n for sign, n in zip(signs, (b, c), strict=True) if sign == "+"])
    minus = sorted(n for sign, n in zip(signs, (b, c), strict=True) if sign == "-")
    asked = f"{spell(a)}{signs[0]}{spell(b)}{signs[1]}{spell(c)}"
    start, rest = f"{spell(a)}{signs[0]}{spell(b)}", f"再{signs[1]}{spell(c)}"
    words = f"{start}，{rest}。{start}{first}{rest}{second}"
    return f"sum:{plus}{minus}", (signs, a, b, c), asked, words, spell(end)


def sum_problem(rng: Random, names: list[str], told: bool) -> Problem:
    """A two-step sum, bare or told as a story."""
    key, (signs, a, b, c), asked, words, end = worked_sum(rng)
    if told:
        p, q, r = names
        question = rng.choice(STORIES[signs]).format(p=p, q=q, r=r, a=spell(a), b=spell(b), c=spell(c))
    else:
        question = rng.choice(SUMS).format(sum=asked)
    return key, question, words, end


def compare(p: str, a: int, q: str, b: int, sign: int, word: str) -> tuple[str, str, int]:
    """Compare two weights digit by digit; return the words, the winner and its weight."""
    winner, weight = (p, a) if (a - b) * sign > 0 else (q, b)
    x, y, place = (a // 10, b // 10, "十位") if a // 10 != b // 10 else (a % 10, b % 10, "十位相同，个位")
    words = f"比{p}{spell(a)}和{q}{spell(b)}：{place}{spell(x)}{'>' if x > y else '<'}{spell(y)}，{winner}{word}。"
    return words, winner, weight


def weigh_problem(rng: Random, names: list[str]) -> Problem:
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


def sort_problem(rng: Random) -> Problem:
    """Sort three numbers whose tens differ: sort the tens first."""
    tens = rng.sample(range(1, 10), 3)
    numbers = [10 * ten + rng.randint(3 if ten == 1 else 0, 9) for ten in tens]
    down = rng.random() < 0.5
    words = "从大到小" if down else "从小到大"
    ordered = sorted(numbers, reverse=down)
    thought = f"十位是{'、'.join(map(spell, tens))}。十位{words}是{'、'.join(spell(n // 10) for n in ordered)}。"
    question = f"请把{'、'.join(map(spell, numbers))}{words}排好。"
    return f"three:{sorted(numbers)}", question, thought, "、".join(map(spell, ordered))


def order_problem(rng: Random, trio: list[str]) -> Problem:
    """Put three persons in order from two statements that may be turned round or swapped."""
    a, b, c = trio
    more, less = rng.choice(ORDERS)
    pairs = rng.sample([(a, b), (b, c)], 2)
    said = [f"{x}比{y}{more}" if rng.random() < 0.6 else f"{y}比{x}{less}" for x, y in pairs]
    first, second = (f"{x}比{y}{more}" for x, y in pairs)
    wanted, answer = rng.choice([(more, a), (less, c)])
    question = f"{said[0]}，{said[1]}。三个人里谁最{wanted}？"
    thought = f"{first}，{second}。中间是{b}。从{more}到{less}是{a}、{b}、{c}。最{wanted}：{answer}。"
    return f"order:{a}>{b}>{c}", question, thought, answer


def draw_problem(
    rng: Random, people: list[dict[str, str]], shares: tuple[int, ...] = (45, 36, 7, 4, 8)
) -> tuple[str, str, str, str, str]:
    """Draw one problem of any kind as (task, key, question, thought, answer)."""
    names = [person["zh"] for person in rng.sample(people, 3)]
    task = rng.choices(["sum", "story", "weigh", "sort", "order"], shares)[0]
    if task == "weigh":
        return task, *weigh_problem(rng, names)
    if task == "sort":
        return task, *sort_problem(rng)
    if task == "order":
        return task, *order_problem(rng, names)
    return task, *sum_problem(rng, names, told=task == "story")
