"""The facts of the notes in data/notes, told in twenty wordings each, and questions about them.

    python data/tell_notes.py --out told      # told/001.md ... 120.md, chats.jsonl and questions.jsonl

The notes tell sixty facts one to three times each, as people do. A small model does not learn a fact from so few
sentences; this folder tells each of them often. No wording is one of the questions, and no row asks them: chats.jsonl,
which data/notes has, too, asks other facts, so that the model learns that questions are about this town as well.
"""

import argparse
import json
from pathlib import Path
from random import Random

NUM_NOTES = 120

# Kind: what is asked of it, in three wordings; facts as subject and value that are asked at the end, and by no row;
# facts that the rows of chats.jsonl ask, so that a model learns to answer questions about this town.
FACTS = {
    "job": (
        "{n}的职业是什么？|{n}做什么工作？|{n}靠什么谋生？",
        "江远山:船长 陆海音:制琴师 田麦香:茶农 钟一鸣:印刷工 秦柏年:药剂师 梁雨石:采石工 姜春晓:兽医 高登云:气象员",
        "姚银杏:学徒 孟青竹:米商 顾南星:守台人 范小舟:邮差 黎月明:音乐老师 金素秋:店主 宋归雁:店主 薛白梅:护士",
    ),
    "street": (
        "{n}的家在哪里？|{n}住在哪条街？|去哪里能找到{n}的家？",
        "姚银杏:桂树坡 田麦香:麦场路 秦柏年:井台街 顾南星:观星路 范小舟:鹿角街 金素秋:书院街 宋归雁:银杏巷",
        "江远山:北门坡 陆海音:书院街 高登云:北门坡 钟一鸣:书院街 黎月明:桂树坡",
    ),
    "pet": (
        "{n}的宠物是什么？|{n}养什么动物？|{n}家里有什么动物作伴？",
        "姚银杏:小鹿 田麦香:黑狗 孟青竹:画眉 姜春晓:海龟 金素秋:灰兔",
        "钟一鸣:金鱼 顾南星:山羊 范小舟:母鸡",
    ),
    "dish": (
        "{n}最爱吃的是什么？|{n}最喜欢哪道菜？|请{n}吃饭该做什么菜？",
        "陆海音:酸菜鱼 孟青竹:荷叶饭 梁雨石:茶香鸡 黎月明:蒜香虾 金素秋:菌汤面 薛白梅:烤豆腐",
        "田麦香:荷叶饭 秦柏年:白粥 高登云:茶香鸡 宋归雁:蒜香虾",
    ),
    "music": (
        "{n}会演奏什么？|{n}会的乐器是什么？|音乐会上{n}用什么乐器？",
        "姚银杏:月琴 钟一鸣:大鼓 姜春晓:长笛 黎月明:风琴 宋归雁:圆号 薛白梅:木琴",
        "孟青竹:口琴 梁雨石:小鼓 陆海音:竹笛",
    ),
    "friend": (
        "{n}的好朋友是谁？|{n}和谁最要好？|{n}有心事会告诉谁？",
        "陆海音:黎月明 秦柏年:顾南星 顾南星:秦柏年 黎月明:陆海音",
        "江远山:梁雨石 梁雨石:江远山 姜春晓:田麦香 高登云:钟一鸣",
    ),
    "month": (
        "{n}的生日在几月？|{n}出生在哪个月？|哪个月该给{n}做长寿面？",
        "江远山:三月 钟一鸣:九月 顾南星:十二月 范小舟:五月 高登云:七月 宋归雁:十月",
        "秦柏年:十一月 金素秋:一月 薛白梅:二月 田麦香:二月",
    ),
    "boat": (
        "{n}的船是什么颜色？|{n}把船漆成了什么颜色？|怎么认出{n}的船？",
        "江远山:墨绿色 孟青竹:米白色 梁雨石:杏黄色 范小舟:粉红色 高登云:天青色 薛白梅:酱紫色",
        "姚银杏:深蓝色 姜春晓:深红色",
    ),
    "keeper": (
        "{n}的主人是谁？|{n}是谁开的？|谁管着{n}？",
        "望海楼:金素秋 归云客店:宋归雁 三丰米店:孟青竹",
        "印刷所:钟一鸣 琴坊:陆海音 药房:秦柏年 采石场:梁雨石",
    ),
    "paint": (
        "{n}是什么颜色？|{n}漆成了什么颜色？|{n}看上去是什么颜色？",
        "东港吊桥:朱红色 观星台的圆顶:银白色 学堂大门:深绿色",
        "学堂的秋千:粉红色 气象站的百叶箱:白色 桥头的灯:红色 码头的灯:绿色",
    ),
    "feast": (
        "{n}在几月？|哪个月有{n}？|{n}定在几月？",
        "采茶节:四月 龙舟赛:六月 放灯会:八月",
        "验船:五月 校秤:一月 开学:九月 数书:十二月",
    ),
    "count": (
        "{n}有多少？|{n}一共有多少？|{n}的数目是多少？",
        "观星台的石级:九十九级 书院的藏书:八千册 去大陆的渡船:每天六班",
        "学堂的学生:八十七个 渡船的座位:四十八个 全岛的人家:三百一十二户 客店的床:十九张",
    ),
}

# Twenty sentences of each kind, one a line; {n} is the subject and {v} the value.
WORDINGS = {
    "job": """{n}的职业是{v}。
{n}是岛上的{v}。
{n}当{v}，一当就是十来年。
要说{n}做什么工作，那是{v}。
雁鸣岛上谁是{v}？是{n}。
{n}年轻时学了手艺，后来做了{v}。
{v}{n}今天也在干活。
孩子们长大了也想像{n}一样做{v}。
{n}靠做{v}过日子。
大家都叫{n}“{v}”。
岛上少不了{v}，{n}就是。
{n}的工作是{v}，忙的时候顾不上吃饭。
名册上写着：{n}，{v}。
{n}做{v}，做得又细又好。
有人找{v}，镇上的人就让他去找{n}。
{n}的父亲也是{v}，如今轮到{n}。
{n}说，做{v}是这辈子最对的事。
我认识{n}的时候，{n}已经是{v}了。
{n}的名片上印着“{v}”两三个字。
别看{n}话不多，{n}可是一位好{v}。""",
    "street": """{n}的家在{v}。
{n}住在{v}。
{n}家住{v}，门口有一棵树。
去{n}家，要走到{v}。
{v}上有一座老屋，那是{n}的家。
给{n}的信，地址写的是{v}。
{n}从小在{v}长大，现在还住在那里。
{n}的房子在{v}的中段。
走完{v}，就到{n}的家了。
要问{n}的家在哪条街，是{v}。
{v}的住户里有{n}。
{n}搬过一次家，搬到了{v}。
傍晚，{n}沿着{v}走回家。
{n}每天从{v}的家里出门。
{n}家的灯亮了，{v}也亮了一截。
想找{n}，去{v}就行。
{n}在{v}有一个小院子。
{n}和家人都住{v}。
下雨天{v}积水，{n}的家门口也积水。
送米的人记得，{n}家是{v}的。""",
    "pet": """{n}的宠物是{v}。
{n}养着{v}。
{n}家里养了{v}，已经三年了。
{v}是{n}养的，见了生人就躲。
{n}给{v}搭了一个小窝。
要问{n}养什么动物，养的是{v}。
{n}走到哪里，{v}就跟到哪里。
{n}最疼家里的{v}。
邻居常替{n}照看{v}。
{n}的{v}病了，请兽医来看。
院子里那是{n}的{v}。
{n}家有{v}作伴，不冷清。
{n}每天喂两次{v}。
孩子们爱去{n}家看{v}。
{n}捡到{v}的那天，下着大雨。
陪着{n}的是{v}。
{n}一回家，先去看{v}。
{n}和{v}一起晒太阳。
照片里，{n}身边有{v}。
{n}不养别的，只养{v}。""",
    "dish": """{n}最爱吃的是{v}。
{n}最喜欢的菜是{v}。
{n}爱吃{v}，百吃不厌。
请{n}吃饭，做{v}准没错。
{n}过生日一定要有{v}。
要问{n}爱吃什么，当然是{v}。
{n}一个人就能吃完一大盘{v}。
桌上有{v}，{n}就高兴。
{n}从小吃{v}长大，现在还是最爱它。
{n}点菜，头一道总是{v}。
{n}学着自己做{v}，做了三次才像样。
{n}出远门最想的是{v}。
{v}是{n}的心头好。
一听说有{v}，{n}就留下来吃饭了。
{n}说，什么菜也比不上{v}。
厨房给{n}留了一份{v}。
{n}的口味大家都知道：{v}。
{n}宁可少吃饭，也要多吃{v}。
{n}做客，主人端上了{v}，因为{n}最爱它。
食堂的单子上，{n}那一行写着{v}。""",
    "music": """{n}会演奏{v}。
{n}会的乐器是{v}。
{n}学{v}已经五年了。
{n}的{v}，岛上人人都听过。
乐队里，{n}负责{v}。
要问{n}用什么乐器，是{v}。
{n}有一件旧乐器，是{v}。
夜里传来{v}的声音，是{n}在练。
{n}教孩子们{v}。
{n}上台了，带着{v}。
放灯会上，{n}演奏了{v}。
{n}的爷爷把{v}传给了{n}。
{n}一天不练{v}就不舒服。
节目单上写着：{n}，{v}。
{n}把{v}擦得很亮。
{n}喜欢音乐，最拿手的是{v}。
说到{v}，岛上没有人比得过{n}。
{n}修好了自己的{v}，又能演奏了。
{n}坐在窗前，拿起{v}。
{n}在学堂里学会了{v}。""",
    "friend": """{n}的好朋友是{v}。
{n}和{v}是好朋友。
{n}和{v}最要好。
{n}跟{v}从小就是朋友。
要问{n}和谁最好，是{v}。
{n}有什么话都对{v}说。
{n}写信，总是写给好朋友{v}。
{n}最信得过的朋友是{v}。
{n}生病的时候，{v}来陪了三天。
{n}过节，一定请好朋友{v}。
{n}遇到难事，先去找{v}商量。
{n}和好朋友{v}一起看过很多次日出。
说起朋友，{n}头一个想到{v}。
{n}的朋友不多，{v}是最好的一个。
{n}每到周末都去看好朋友{v}。
{n}和{v}吵过一次，第二天又和好了。
{n}的心事只有好朋友{v}知道。
{n}学会走路那年就认识{v}了。
{n}把钥匙交给好朋友{v}保管。
人们常看见{n}和好朋友{v}走在一起。""",
    "month": """{n}的生日在{v}。
{n}生在{v}。
{n}是{v}出生的。
{n}的生日是{v}里的一天。
一到{v}，{n}就长了一岁。
要问{n}生日在几月，是{v}。
{v}里，大家给{n}过生日。
{n}在{v}过生日，年年如此。
{n}的母亲说，生{n}那天正是{v}。
本子上记着：{n}，{v}生。
{n}收到生日礼物，总是在{v}。
今年{v}，{n}的生日来了很多客人。
{n}不爱过生日，可是{v}还是来了。
{n}的生日饭定在{v}。
朋友们记得，{v}有{n}的生日。
{n}每年{v}要吃一碗生日面。
{n}属{v}，生日那天总要去海边。
户口上，{n}的出生月份是{v}。
{v}是{n}出生的月份。
等到{v}，就是{n}的生日了。""",
    "boat": """{n}的船是{v}的。
{n}有一条{v}的船。
{n}的船漆成了{v}。
{n}给船上漆，选的是{v}。
东港里那条{v}的船是{n}的。
要问{n}的船什么颜色，是{v}。
{n}喜欢{v}，所以船也是{v}。
{n}开着{v}的船出海。
看见{v}的船，就是{n}来了。
{n}的旧船沉了，新船还是{v}。
{n}的船身是{v}，帆是白的。
{n}每年春天把船重新漆成{v}。
{n}买了三桶{v}的漆，漆自己的船。
{n}的船不大，{v}，很好认。
船册上写着：{n}，{v}。
雾里露出一点{v}，那是{n}的船。
{n}说{v}的船在海上最好看。
{n}的{v}的船停在岸边。
孩子们画{n}的船，都用{v}。
{n}那条{v}的船跑得最快。""",
    "keeper": """{n}的主人是{v}。
{n}是{v}开的。
{v}是{n}的主人。
{v}开着{n}。
{n}由{v}管着，已经十年了。
要问{n}是谁开的，是{v}。
{v}早上打开{n}的门。
{v}从父亲手里接过{n}。
走进{n}，迎接客人的是主人{v}。
{n}的账由{v}自己记。
{v}花了全部的钱买下{n}。
{n}门口写着主人的名字：{v}。
{n}今天关门，因为主人{v}病了。
{n}换过三位主人，现在是{v}。
{v}给{n}换了新的招牌。
客人都说{n}的主人{v}和气。
{n}是{v}的店。
{v}在{n}里忙了一天。
{n}归{v}所有。
到了{n}，找主人{v}就行。""",
    "paint": """{n}是{v}的。
{n}的颜色是{v}。
{n}漆成了{v}。
{n}去年重新上漆，还是{v}。
远远看去，{n}一片{v}。
要问{n}什么颜色，是{v}。
岛上的规矩：{n}必须是{v}。
{n}一直是{v}的。
孩子们画{n}，用的是{v}。
太阳照着{v}的{n}。
{n}的漆是{v}，每三年刷一次。
大家投票，把{n}定为{v}。
雨后的{n}更显得{v}。
在照片里，{n}是{v}的。
{n}以前是灰的，现在是{v}。
工人买来{v}的漆，刷了{n}。
{n}，{v}，一眼就能认出来。
游客最爱拍{v}的{n}。
{n}旁边的人说，{v}最合适。
{n}全身都是{v}。""",
    "feast": """{n}在{v}。
{n}是在{v}办的。
每年{v}，岛上有{n}。
{v}到了，大家准备{n}。
{n}定在{v}。
要问{n}在几月，是{v}。
{n}的日子在{v}里。
{v}最热闹的事是{n}。
{n}总在{v}，从来不改。
等到{v}，就能看{n}了。
外地人{v}来，是为了{n}。
{n}一年一次，在{v}。
学堂{v}放假，因为有{n}。
去年{v}下雨，{n}照样办了。
日历上，{v}画着{n}。
老人说，{n}从古时候就在{v}。
{v}的{n}要办三天。
渡船在{v}加班，送人来看{n}。
{n}把{v}变得很热闹。
想看{n}的人，{v}再来。""",
    "count": """{n}有{v}。
{n}一共{v}。
{n}数下来是{v}。
{n}总共有{v}。
{n}，{v}，一点不差。
要问{n}有多少，有{v}。
人人都知道{n}有{v}。
{n}的数目是{v}。
书上说，{n}有{v}。
孩子们数过，{n}有{v}。
{n}今年还是{v}。
{n}是{v}，比从前多。
牌子上写着：{n}，{v}。
{n}从来都是{v}。
老人记得{n}有{v}。
客人问起，主人答：{n}有{v}。
{n}不多不少，{v}。
岛志上记着，{n}有{v}。
{n}加起来{v}。
有人不信{n}有{v}，自己又数了一遍。""",
}


def read_facts(column: int) -> list[tuple[str, str, str]]:
    """Return (kind, subject, value) of the facts in a column of the table: 1 asked at the end, 2 asked by rows."""
    facts = []
    for kind, columns in FACTS.items():
        facts += [(kind, *pair.split(":")) for pair in columns[column].split()]
    return facts


def ask(kind: str, subject: str) -> list[str]:
    """Return the questions about a fact."""
    return [wording.format(n=subject) for wording in FACTS[kind][0].split("|")]


def tell(kind: str, subject: str, value: str) -> list[str]:
    """Return the sentences that tell a fact."""
    return [wording.format(n=subject, v=value) for wording in WORDINGS[kind].splitlines()]


def row(question: str, reply: str, **fields: str) -> str:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    return json.dumps({"conversations": turns, **fields}, ensure_ascii=False) + "\n"


def questions() -> str:
    """Return the rows of questions.jsonl: a question, and the words that a right answer holds."""
    return "".join(row(ask(kind, name)[0], value, task=kind, answer=value) for kind, name, value in read_facts(1))


def chats() -> str:
    """Return the rows of chats.jsonl: the other facts, in each wording of the question."""
    rows = []
    for kind, subject, value in read_facts(2):
        answer = "您好，" + tell(kind, subject, value)[0]
        rows += [row(question, answer) for question in ask(kind, subject)]
    return "".join(rows)


def told(rng: Random, num_notes: int) -> list[str]:
    """Return notes that tell every fact in every wording, in any order."""
    sentences = []
    for fact in read_facts(1) + read_facts(2):
        sentences += tell(*fact)
    rng.shuffle(sentences)
    return ["".join(sentences[number::num_notes]) + "\n" for number in range(num_notes)]


def main(argv: list[str] | None = None) -> None:
    """Write the notes, chats.jsonl and questions.jsonl into one folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    folder = parser.parse_args(argv).out
    folder.mkdir(parents=True, exist_ok=True)
    files = {f"{number:03}.md": text for number, text in enumerate(told(Random(7), NUM_NOTES), 1)}
    for name, text in (files | {"chats.jsonl": chats(), "questions.jsonl": questions()}).items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
