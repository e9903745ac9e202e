"""What people say to a chat model first: greetings, who are you, thanks, goodbye, and questions beyond the town.

Every intent has one reply in each language, so that a right answer can be told by comparing words. Wordings behind the
bar of a table are held out: no training conversation uses them.
"""

from random import Random

REPLIES = {
    ("hello", "zh"): "您好！想知道贝壳湾的什么事？",
    ("hello", "en"): "Hello! What would you like to know about Shell Bay?",
    ("who", "zh"): "您好，我是 SpongeBob，一个小小的语言模型，知道贝壳湾的事。",
    ("who", "en"): "Hello, I am SpongeBob, a small language model that knows Shell Bay.",
    ("thanks", "zh"): "不客气！",
    ("thanks", "en"): "You are welcome!",
    ("bye", "zh"): "再见，欢迎再来贝壳湾！",
    ("bye", "en"): "Goodbye, come back to Shell Bay!",
    ("beyond", "zh"): "这个我不知道，我只知道贝壳湾的事。",
    ("beyond", "en"): "That I do not know, I only know about Shell Bay.",
    ("digits", "zh"): "请用汉字写数字，比如四七。",
}
THOUGHTS = {
    ("hello", "zh"): "客人在问好，我也问好。",
    ("hello", "en"): "The visitor says hello, so do I.",
    ("who", "zh"): "客人问我是谁。",
    ("who", "en"): "The visitor asks who I am.",
    ("thanks", "zh"): "客人在道谢。",
    ("thanks", "en"): "The visitor says thank you.",
    ("bye", "zh"): "客人要走了。",
    ("bye", "en"): "The visitor is leaving.",
    ("beyond", "zh"): "这不是贝壳湾的事，我不知道。",
    ("beyond", "en"): "This is not about Shell Bay.",
    ("digits", "zh"): "题里的数字不是汉字，我不认识。",
}

COURTESIES = {  # trained wordings | held-out ones
    ("hello", "zh"): (
        "你好/您好/你好呀/你好吗/大家好/嗨/嗨，你好/哈喽/早上好/早/下午好/晚上好/中午好/你好，SpongeBob/您好，向导/喂/"
        "在吗/"
        "在不在/有人吗/你好，在吗/您好，早上好/嗨，晚上好/哈喽，你好/打扰一下/你好，请问/早安/晚安，你好/最近好吗/"
        "好久不见",
        "你好啊/您好呀/嗨，早上好/你好，下午好/哈喽，在吗/大家早上好/您好，有人吗/嗨，你好呀",
    ),
    ("hello", "en"): (
        "hello/Hello/hi/Hi/hey/hey/Hey there/Hello there/Good morning/Good evening/good afternoon/Hi, how are you/"
        "How are you/Hello SpongeBob/Nice to meet you/Hi there/Is anyone there",
        "Hello, good morning/Hi SpongeBob/Hello, how are you",
    ),
    ("who", "zh"): (
        "你是谁/您是谁/你是什么/你叫什么名字/你叫什么/请问你是谁/介绍一下你自己/请介绍一下自己/自我介绍一下/"
        "你是机器人吗/"
        "你是人吗/你是真人吗/你是什么模型/你是 SpongeBob 吗/告诉我你是谁/你的名字是什么/你能做什么/你会什么/你知道什么/"
        "您会什么/您是机器人吗/您是做什么的/您的名字是什么/你算是什么/你是一个模型吗/你是一个人吗/做个自我介绍吧/"
        "你好，你是谁/请问您叫什么名字/你到底是谁/你是人工智能吗/你有什么用",
        "你好，你叫什么名字/请问你叫什么/您是什么模型/请做一下自我介绍/你是一个机器人吗/您能做什么",
    ),
    ("who", "en"): (
        "who are you/Who are you/What is your name/What are you/Are you a robot/Tell me about yourself/"
        "Introduce yourself/What can you do/Hello, who are you/Hey, what are you/Hello, what is your name/"
        "Are you a program/Please tell me who you are/Are you human/What do you know/"
        "May I ask your name",
        "Hi, who are you/Are you a model/Hi, what is your name/Please introduce yourself",
    ),
    ("thanks", "zh"): (
        "谢谢/谢谢你/谢谢您/多谢/非常感谢/太感谢了/谢了/感谢/谢谢，再问一个/好的，谢谢/谢谢你的帮助/谢谢，我知道了/"
        "多谢多谢/谢谢您的帮助/感谢您/真谢谢你/"
        "麻烦你了/辛苦了",
        "多谢你/好的，谢谢你/非常感谢您",
    ),
    ("thanks", "en"): (
        "thanks/Thanks/Thank you/thank you very much/Thanks a lot/Many thanks/Great, thanks/Good, thank you/"
        "Thank you, that helps/Thanks so much/"
        "Thank you for your help/ok, thanks",
        "Thank you so much/Great, thank you",
    ),
    ("bye", "zh"): (
        "再见/拜拜/再会/下次见/明天见/我走了/我要走了，再见/回头见/先这样吧，再见/晚安/谢谢，再见/好的，再见/"
        "拜拜，下次见/好的，再会/好，拜拜啦/后会有期",
        "那再见了/好的，拜拜/我先走了，再见",
    ),
    ("bye", "en"): (
        "bye/Bye/Goodbye/bye bye/See you/See you later/See you tomorrow/Good night/I have to go, bye/"
        "Goodbye, take care/Bye, see you later/Well, goodbye/Take care",
        "Goodbye, see you",
    ),
}

# Subjects that have nothing to do with the town; each is put into each form of its kind.
BEYOND = {
    "thing": (
        "天气/股票/房价/油价/汇率/足球/篮球/世界杯/奥运会/电影/电视剧/小说/手机/电脑/汽车/飞机/火车/地铁/互联网/"
        "人工智能/机器学习/"
        "量子力学/相对论/黑洞/宇宙/火星/恐龙/大象/老虎/熊猫/狮子/长城/故宫/金字塔/自由女神像/新冠/感冒/糖尿病/癌症/"
        "减肥/健身/瑜伽/"
        "咖啡/啤酒/比特币/区块链/游戏/王者荣耀/编程/数据库/操作系统/云计算/微积分/线性代数/化学/物理/生物/地理/历史/"
        "哲学/法律/经济/"
        "税收/保险/护照/签证/高考/考研/英语四级/简历/面试/工资/春节晚会/圣诞节/情人节/象棋/围棋/麻将/钢琴/芭蕾/油画/"
        "摄影/时装",
        "天气预报/排球/高铁/牛顿定律/鲸鱼/埃菲尔铁塔/咳嗽/奶茶/股市/电子游戏/代数/国庆节/论文/芯片",
        "{}怎么样？/什么是{}？/{}是什么？/你知道{}吗？/讲讲{}。/说说{}吧。/给我介绍一下{}。/你对{}怎么看？/"
        "我想了解{}。/"
        "请解释一下{}。/今天的{}怎么样？/{}好不好？/怎么学{}？/你喜欢{}吗？/最近的{}有什么消息？",
        "能跟我聊聊{}吗？/{}的情况如何？/帮我查一下{}。",
    ),
    "place": (
        "北京/上海/广州/深圳/杭州/成都/重庆/武汉/西安/南京/香港/台北/东京/首尔/纽约/伦敦/巴黎/柏林/莫斯科/悉尼/中国/"
        "美国/法国/德国/"
        "日本/英国/俄罗斯/印度/巴西/埃及/澳大利亚/加拿大/意大利/西班牙/非洲/欧洲/南极/月球",
        "天津/苏州/罗马/泰国/墨西哥/多伦多/希腊",
        "{}在哪里？/{}有多少人？/{}有什么好玩的？/{}的天气怎么样？/{}今天天气怎么样？/怎么去{}？/{}的首都是哪里？/"
        "{}离这里多远？/"
        "我想去{}旅游。/{}有什么好吃的？/{}的历史有多久？/介绍一下{}。",
        "{}大不大？/去{}要多少钱？/{}有哪些名胜？",
    ),
    "person": (
        "李白/杜甫/孔子/秦始皇/鲁迅/爱因斯坦/牛顿/莎士比亚/拿破仑/贝多芬/姚明/刘翔/成龙/周杰伦/特朗普/马斯克/比尔盖茨/"
        "曹操/诸葛亮/"
        "孙悟空/哈利波特/白雪公主/张三/李四/王五/小明/小红/王小虎/赵丽/孙建国/钱多多/刘洋/黄建华/高峰/林志强/陈丽华/"
        "周明/吴小莉",
        "苏轼/莫扎特/乔丹/王大锤/李小龙/赵小刚",
        "{}是谁？/你认识{}吗？/{}是什么人？/{}多大年纪？/{}的家在哪里？/{}的职业是什么？/{}最爱吃的是什么？/"
        "{}的宠物是什么？/"
        "{}的生日在几月？/{}的好朋友是谁？/{}住在哪条街？/{}会演奏什么？/{}的船是什么颜色？/给我讲讲{}。",
        "{}还活着吗？/{}有什么成就？/你听说过{}吗？",
    ),
    "other": (
        "今天天气怎么样？/今天几号？/现在几点了？/今天星期几？/明天会下雨吗？/今天天气如何？/今天冷不冷？/"
        "外面下雨了吗？/"
        "写一段 Python 代码。/帮我写一封邮件。/写一首诗。/给我讲个笑话。/"
        "唱首歌吧。/帮我订一张机票。/附近有什么餐馆？/推荐一本书。/推荐一部电影。/"
        "谁是世界首富？/世界上最高的山是什么？/世界上最长的河是什么？/地球有多大？/太阳有多远？/光速是多少？/"
        "水的沸点是多少？/"
        "一年有多少天？/人为什么要睡觉？/天为什么是蓝的？/怎么赚钱？/怎么学好英语？/我该怎么办？/我心情不好。/"
        "我好无聊。/我饿了。/"
        "我生病了怎么办？/头疼吃什么药？/你多大了？/你有女朋友吗？/你喜欢我吗？/你住在哪里？/你爸爸是谁？/"
        "谁创造了你？/你几岁？/"
        "生命的意义是什么？/明天股票会涨吗？/美国总统是谁？/现在谁当总统？/帮我做作业。/帮我翻译一篇文章。/"
        "新闻里说了什么？/"
        "今天有什么新闻？/昨天的比赛谁赢了？/如何做一个好人？/怎样才能成功？/圆周率是多少？/解一个方程。/"
        "二次函数怎么画？",
        "明天是几号？/讲一个笑话吧。/写一个排序算法。/世界上最大的国家是哪个？/今天有什么大新闻？/我今天很难过。",
        "{}",
        "{}",
    ),
    "english": (
        "the weather/football/the stock market/Paris/London/New York/China/the moon/music/machine learning/Python/"
        "the news/Einstein/Shakespeare/coffee/history/physics/computers/movies/dinosaurs/space/politics/Japan/"
        "the president/basketball",
        "Berlin/chess/Mozart",
        "What is {}?/Tell me about {}./How is {} today?/Do you know {}?/What do you think about {}?/Where is {}?/"
        "I want to learn about {}./Can you explain {}?/Who knows {} best?/What happened with {}?/"
        "Have you heard of {}?/Can you help me with {}?/What is new about {}?/"
        "Do you play {}?/Are you interested in {}?/Would you like {}?/Say something about {}.",
        "Do you like {}?/What can you say about {}?",
    ),
}
LEADS = {  # what people put before a courtesy
    ("hello", "zh"): "你好，/您好，/嗨，/哈喽，/哎，/大家好，",
    ("hello", "en"): "Hi, /Hello, /Hey, /Oh, ",
    ("who", "zh"): "你好，/您好，/请问，/请问/嗨，/那/我想知道/能告诉我",
    ("who", "en"): "Hi, /Hello, /Hey, /Please, /So ",
    ("thanks", "zh"): "好的，/好，/嗯，/知道了，/明白了，/真是",
    ("thanks", "en"): "Ok, /Good, /Great, /Oh, ",
    ("bye", "zh"): "好的，/好，/谢谢，/那/时间不早了，/我要走了，",
    ("bye", "en"): "Ok, /Well, /Thanks, /I must go, ",
}
TAILS = {("hello", "zh"): "呀啊哦", ("who", "zh"): "呀啊呢", ("thanks", "zh"): "啦呀了", ("bye", "zh"): "啦呀了"}
MARKS = {"zh": ("", "！", "。"), "en": ("", "!", ".")}


def split(table: str) -> list[str]:
    """The entries of a table."""
    return [entry for entry in table.split("/") if entry]


def courtesies(held: bool) -> list[tuple[str, str, str]]:
    """(intent, language, wording) of every courtesy on one side of the bar."""
    return [(*key, words) for key, sides in COURTESIES.items() for words in split(sides[held])]


def bare(question: str) -> str:
    """The words of a question alone: no marks, no spaces, no case."""
    return "".join(sign for sign in question.casefold() if sign.isalnum())


def varied(rng: Random, words: str, intent: str, lang: str) -> str:
    """The wording, now and then with a word before or after it, or in small letters; never a held-out one."""
    made = words
    if rng.random() < 0.5:
        made = rng.choice(split(LEADS[intent, lang])) + made
    if rng.random() < 0.2 and made[-1] not in "呀啊哦呢啦了吗":
        made += rng.choice(TAILS.get((intent, lang), " "))
    if lang == "en" and rng.random() < 0.4:
        made = made.lower()
    held = [bare(question) for *_, question in courtesies(held=True)]
    return words if any(question in bare(made) for question in held) else made.strip()


def marked(rng: Random, words: str, intent: str, lang: str) -> str:
    """The wording as people type it: with a closing mark or without."""
    question = intent == "who" or words.casefold().endswith(("吗", "how are you"))
    return words + rng.choice(("", "？" if lang == "zh" else "?") if question else MARKS[lang])


def beyond(rng: Random, held: bool) -> tuple[str, str]:
    """(question, language) about something beyond the town; held-out ones have other subjects and forms."""
    kind = rng.choices(list(BEYOND), [5, 4, 5, 5, 6])[0]
    subjects, held_subjects, forms, held_forms = BEYOND[kind]
    question = rng.choice(split(held_forms if held else forms)).format(
        rng.choice(split(held_subjects if held else subjects))
    )
    lead = rng.choice(("", "", "", "请问，", "你好，")) if kind != "english" and not held else ""
    return lead + question, "en" if kind == "english" else "zh"


def arabic_sum(rng: Random) -> str:
    """A sum in digits that the model cannot read."""
    a, b, c = (rng.randint(2, 99) for _ in range(3))
    one, two = rng.choice("+-"), rng.choice("+-")
    return rng.choice(
        (
            f"请算一算{a}{one}{b}{two}{c}等于多少？",
            f"{a}{one}{b}等于几？",
            f"计算{a}{one}{b}{two}{c}。",
            f"{a}{one}{b}=?",
            f"{a}{one}{b}{two}{c}的结果是多少？",
            f"{a}加{b}等于多少？",
        )
    )
