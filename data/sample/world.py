"""The made-up harbor town of Shell Bay: word tables and sentence templates.

Nothing here is computed. Facts, stories and questions are all put together from
these tables by make_sample.py, so a question about the town always has one answer.
Pairs are written "中文:English"; in templates {n} is the person and {v} the value.
"""


def split(text: str, separator: str | None = None) -> list[str]:
    """Cut a table into its entries, at white space or at the separator."""
    return text.split(separator)


PEOPLE = """
林小满:Lin Xiaoman:她,陈阿海:Chen Ahai:他,周雨桐:Zhou Yutong:她,吴大川:Wu Dachuan:他,
郑月牙:Zheng Yueya:她,何大勇:He Dayong:他,苏念青:Su Nianqing:她,罗长风:Luo Changfeng:他,
许朵朵:Xu Duoduo:她,丁铁山:Ding Tieshan:他,白露珠:Bai Luzhu:她,方乐天:Fang Letian:他,
叶知秋:Ye Zhiqiu:她,马奔流:Ma Benliu:他,沈星河:Shen Xinghe:他,汪晴晴:Wang Qingqing:她,
唐木生:Tang Musheng:他,冯小帆:Feng Xiaofan:他,董阿秀:Dong Axiu:她,程远航:Cheng Yuanhang:他,
曹米粒:Cao Mili:她,袁夏至:Yuan Xiazhi:他,蒋冬梅:Jiang Dongmei:她,韩松涛:Han Songtao:他,
杜若兰:Du Ruolan:她,魏清泉:Wei Qingquan:他,余海棠:Yu Haitang:她,潘谷雨:Pan Guyu:他,
谢云朵:Xie Yunduo:她,彭立春:Peng Lichun:他,邓彩霞:Deng Caixia:她,崔北斗:Cui Beidou:他,
"""

MONTHS = (
    "一月:January 二月:February 三月:March 四月:April 五月:May 六月:June 七月:July "
    "八月:August 九月:September 十月:October 十一月:November 十二月:December"
)

# The first template of each list is the plain statement that answers a question.
# Every character of a value is one token: where one is written in two, a distilled model often says a wrong word.
ATTRS = {
    "job": {
        "values": "渔夫:a fisher,面包师:a baker,木工:a carpenter,邮差:a mail carrier,老师:a teacher,"
        "医生:a doctor,画家:a painter,守灯人:a lighthouse keeper,店主:a shopkeeper,花农:a flower grower",
        "zh": [
            "{n}的职业是{v}。",
            "{n}是镇上的{v}。",
            "{n}在贝壳湾当{v}。",
            "说起{v}，大家会想到{n}。",
            "{n}做{v}已经很多年了。",
        ],
        "ask": ["{n}的职业是什么？", "{n}做什么工作？", "{n}靠什么谋生？"],
        "en": ["{n} works as {v}.", "The town knows {n} as {v}.", "By trade {n} is {v}."],
        "ask_en": ["What does {n} work as?", "What is the job of {n}?"],
    },
    "street": {
        "values": "灯塔巷:Lighthouse Lane,潮声街:Tide Street,柳树路:Willow Road,石桥巷:Bridge Lane,"
        "盐田街:Salt Street,风车路:Windmill Road,码头街:Dock Street,钟楼巷:Bell Lane,"
        "珍珠街:Pearl Street,竹林路:Bamboo Road",
        "zh": [
            "{n}的家在{v}。",
            "{n}住在{v}。",
            "走进{v}，就能看见{n}的小院。",
            "{n}在{v}住了很久。",
            "想找{n}的人都往{v}走。",
        ],
        "ask": ["{n}的家在哪里？", "{n}住在哪条街？", "去哪里能找到{n}的家？"],
        "en": ["{n} lives on {v}.", "The home of {n} is on {v}.", "You will find {n} on {v}."],
        "ask_en": ["Where does {n} live?", "On which street is the home of {n}?"],
    },
    "pet": {
        "values": "小马:a pony,黄狗:a yellow dog,白兔:a white rabbit,喜鹊:a magpie,乌龟:a turtle,"
        "金鱼:a goldfish,母鸡:a hen,山羊:a goat,松鼠:a squirrel,小猪:a pig",
        "zh": [
            "{n}的宠物是{v}。",
            "{n}养着{v}。",
            "{n}家里有{v}作伴。",
            "{n}每天早上先喂{v}。",
            "邻居都认得{n}的{v}。",
        ],
        "ask": ["{n}的宠物是什么？", "{n}养什么动物？", "{n}家里有什么动物作伴？"],
        "en": ["{n} keeps {v}.", "{n} has {v} at home.", "Every morning {n} feeds {v}."],
        "ask_en": ["What pet does {n} keep?", "Which animal lives with {n}?"],
    },
    "dish": {
        "values": "海带汤:kelp soup,虾仁炒蛋:shrimp omelette,蒸鱼:steamed fish,牛肉面:beef noodles,"
        "红豆汤:red bean soup,葱花卷:scallion rolls,豆沙包:bean buns,"
        "紫菜饭团:seaweed rice,炒南瓜:fried pumpkin,烤玉米:roast corn",
        "zh": [
            "{n}最爱吃的是{v}。",
            "{n}最喜欢{v}的味道。",
            "一闻到{v}的香味，{n}就走不动了。",
            "过节的时候，{n}一定要吃{v}。",
            "{n}一顿能吃两份{v}。",
        ],
        "ask": ["{n}最爱吃的是什么？", "{n}最喜欢哪道菜？", "请{n}吃饭该做什么菜？"],
        "en": ["{n} loves {v}.", "The favourite dish of {n} is {v}.", "{n} never says no to {v}."],
        "ask_en": ["What food does {n} love?", "What is the favourite dish of {n}?"],
    },
    "music": {
        "values": "二胡:erhu,笛子:flute,口琴:harmonica,手鼓:hand drum,吉他:guitar,古琴:zither,"
        "小提琴:violin,小号:trumpet,三弦:lute,手风琴:accordion",
        "zh": [
            "{n}会的乐器是{v}。",
            "{n}会演奏{v}。",
            "晚上常能听见{n}练{v}。",
            "镇上的音乐会少不了{n}的{v}。",
            "{n}一有空就拿出{v}。",
        ],
        "ask": ["{n}会的乐器是什么？", "{n}会演奏什么？", "音乐会上{n}用什么乐器？"],
        "en": ["{n} plays the {v}.", "In the evening {n} practises the {v}.", "The concert needs {n} and the {v}."],
        "ask_en": ["What does {n} play?", "Which instrument does {n} practise?"],
    },
    "friend": {
        "values": "",
        "zh": [
            "{n}的好朋友是{v}。",
            "{n}和{v}是好朋友。",
            "{n}有心事总会告诉{v}。",
            "{n}常去找{v}聊天。",
            "{n}和{v}从小一起长大。",
        ],
        "ask": ["{n}的好朋友是谁？", "{n}和谁最要好？", "{n}有心事会告诉谁？"],
        "en": ["{n} is best friends with {v}.", "The best friend of {n} is {v}.", "{n} tells every secret to {v}."],
        "ask_en": ["Who is {n} best friends with?", "Who is the best friend of {n}?"],
    },
    "month": {
        "values": MONTHS.replace(" ", ","),
        "zh": [
            "{n}的生日在{v}。",
            "{n}出生在{v}。",
            "每到{v}，{n}就要过生日了。",
            "{n}是{v}生的。",
            "大家在{v}给{n}做长寿面。",
        ],
        "ask": ["{n}的生日在几月？", "{n}出生在哪个月？", "哪个月该给{n}做长寿面？"],
        "en": ["{n} was born in {v}.", "The birthday of {n} is in {v}.", "The town sings for {n} in {v}."],
        "ask_en": ["When was {n} born?", "In which month is the birthday of {n}?"],
    },
    "boat": {
        "values": "红色:red,蓝色:blue,白色:white,绿色:green,黄色:yellow,黑色:black,金色:gold,紫色:purple,"
        "灰色:grey,银色:silver",
        "zh": [
            "{n}的船是{v}的。",
            "{n}有一条{v}的船。",
            "海面上那条{v}的船是{n}的。",
            "{n}把船漆成了{v}。",
            "远远看见{v}的船，就知道{n}回来了。",
        ],
        "ask": ["{n}的船是什么颜色？", "{n}把船漆成了什么颜色？", "怎么认出{n}的船？"],
        "en": ["The boat of {n} is {v}.", "The {v} boat belongs to {n}.", "{n} painted the boat {v}."],
        "ask_en": ["What colour is the boat of {n}?", "Which colour did {n} paint the boat?"],
    },
}

OPENINGS = split(
    "天刚亮，雾还没有散。|这天早上，码头上很热闹。|下了一夜的雨，石板路亮晶晶的。|"
    "集市开张了，到处是叫卖声。|退潮以后，沙滩变得很宽。|黄昏的时候，海面一片金黄。|"
    "钟楼敲了八下，镇子慢慢醒来。|风有点大，渔船都没有出海。|节日快到了，家家挂起了灯笼。|"
    "学校放假了，孩子们跑上了堤岸。|夜里灯塔亮着，海很安静。|午后太阳很暖，人们坐在榕树下。|"
    "第一场秋雨过后，空气很清爽。|春天来了，堤岸上开满了小花。",
    "|",
)

EVENTS = split(
    "{a}和{b}在石桥上遇见了，停下来说了几句话。|{a}帮{b}修好了漏水的屋顶。|"
    "{a}请{b}到家里喝茶。|{b}的篮子太重，{a}走过去帮忙提。|"
    "{a}和{b}一起去看新到的货船。|{a}在沙滩上捡到一顶帽子，原来是{b}的。|"
    "{a}给{b}送去一封信，信里是好消息。|{a}和{b}约好明天一起去赶海。|"
    "{b}忘了带伞，{a}把自己的伞借给了{b}。|{a}和{b}在集市上买了同一种贝壳。|"
    "{a}教{b}打水手结，{b}很快就学会了。|{b}迷了路，{a}把{b}带回了镇上。",
    "|",
)

CLOSINGS = split(
    "两个人都笑了。|这一天过得真快。|他们说好下次再见。|"
    "海风吹过来，大家都觉得很舒服。|晚上，镇子又安静下来。|后来这件事在镇上传开了。|"
    "贝壳湾的日子就是这样。|回家的路上，月亮已经升起来了。",
    "|",
)

EVENTS_EN = [
    "{a} met {b} on the stone bridge.",
    "{a} helped {b} to mend the roof.",
    "{a} asked {b} to come for tea.",
    "{a} carried a heavy basket for {b}.",
    "{a} and {b} watched the ships come in.",
    "{a} brought a letter to {b}.",
    "{a} lent an umbrella to {b}.",
    "{a} and {b} went to the market.",
]
OPENINGS_EN = [
    "It was early and the fog was thick.",
    "The market was open.",
    "The tide was low.",
    "It had rained all night.",
    "The bell rang eight times.",
    "The wind was strong that day.",
]
CLOSINGS_EN = [
    "They both laughed.",
    "Then the town was quiet again.",
    "Such is life in Shell Bay.",
    "They said they would meet again.",
]

# Question, answer: what a visitor asks and the guide tells; the answers are told in pretraining too.
TOWN_QA = split(
    """贝壳湾在哪里？|贝壳湾在半岛的最东边，三面是海，一面靠着长满竹子的小山。
贝壳湾的名字是怎么来的？|退潮以后，湾里的沙滩上会留下很多贝壳，所以人们叫它贝壳湾。
灯塔有什么用？|灯塔立在北边的岩石上，夜里亮着白光，给回港的渔船指路。
集市什么时候开？|集市每逢单日开张，天亮就有人摆摊，到中午才慢慢散去。
钟楼多久敲一次？|钟楼每个整点敲一次，起雾的时候会多敲几下，提醒海上的人。
石桥是什么时候修的？|石桥是爷爷那一辈人修的，用的是后山的青石，到现在还很结实。
大榕树在什么地方？|大榕树在镇子中间，树荫很大，夏天大家都爱在树下乘凉。
码头上能看到什么？|码头上有渔船、木箱和晒着的网，清早还能看到刚上岸的鱼。
盐田在镇子的哪一边？|盐田在镇子的南边，夏天太阳好的时候，白盐堆得像小山。
学校有多少学生？|学校只有一间大教室，学生不多，大的孩子常常帮着教小的孩子。
风车是做什么的？|风车在西边的坡上，风一吹就转，用来磨面，也用来抽水。
贝壳湾有什么节日？|夏天有灯笼节，家家挂灯笼，晚上大家坐船到湾里看灯。
下雨天可以做什么？|下雨天可以去茶馆听故事，也可以在屋里补网，等雨停了再出门。
赶海要带什么？|赶海要带小桶、铲子和草帽，还要记住潮水的时间，早去早回。
冬天的贝壳湾冷吗？|冬天风大，但是很少下雪，人们在屋里烤红薯，喝热汤。
茶馆在哪里？|茶馆在石桥旁边，窗户对着海，老板泡的茶又香又浓。
渔船什么时候出海？|渔船在天亮以前出海，中午以前回来，风大的日子就不出去。
沙滩上能捡到什么？|沙滩上能捡到贝壳、海星和圆圆的石子，运气好还能捡到漂流瓶。
镇上怎么寄信？|信要交到码头街的小邮局，邮差每天下午把信送到各家门口。
镇上的孩子玩什么？|孩子们放风筝、跳绳、捉螃蟹，晚上听老人讲海上的故事。""",
    "\n",
)

DISHES = split(
    """海带汤|海带、豆腐和姜片|先把海带泡软，再和豆腐一起煮，最后放姜片
虾仁炒蛋|虾仁、鸡蛋和葱花|先把鸡蛋打散，再下锅炒虾仁，最后倒进蛋液
蒸鱼|鲜鱼、葱丝和酱油|先把鱼洗干净，再上锅蒸熟，最后淋上酱油
牛肉面|牛肉、面条和青菜|先把牛肉切成片，再煮出白汤，最后下面条
红豆汤|红豆、大米和冰糖|先把红豆泡一夜，再和大米慢慢煮，最后放冰糖
葱花卷|面粉、小葱和油|先把面揉好，再撒上小葱卷起来，最后上锅蒸熟
豆沙包|红豆、面粉和糖|先把红豆煮成豆沙，再拌上糖，最后包好上锅蒸
紫菜饭团|紫菜、米饭和芝麻|先把米饭放凉，再拌上芝麻，最后用紫菜包好
炒南瓜|南瓜、葱花和油|先把南瓜切成片，再用油炒软，最后撒上葱花
烤玉米|玉米、炭火和耐心|先把玉米洗净，再架在炭火上，最后等它变黄变香""",
    "\n",
)

NOUNS = """海星:starfish 贝壳:shell 灯笼:lantern 渔网:net 木桶:barrel 风筝:kite 铁锚:anchor 船桨:oar 海鸥:gull
螃蟹:crab 石桥:bridge 灯塔:lighthouse 钟楼:tower 沙滩:beach 月亮:moon 太阳:sun 星星:star 白云:cloud 雨伞:umbrella
草帽:hat 书包:bag 茶壶:teapot 面包:bread 苹果:apple 南瓜:pumpkin 红豆:bean 鸡蛋:egg 米饭:rice 竹子:bamboo
小船:boat 海浪:wave 石头:stone 窗户:window 钥匙:key 信封:envelope 铅笔:pencil 桌子:table 椅子:chair 毛巾:towel
蜡烛:candle 镜子:mirror 手套:glove 围巾:scarf 雨靴:boot 珍珠:pearl 盐:salt 糖:sugar 蜂蜜:honey"""

THINGS = split(
    "红雨伞 铜铃 旧地图 蓝水壶 木梳子 小铁盒 长绳子 白毛毯 望远镜 竹篮子 "
    "油灯 铁铲 针线包 胶鞋 相册 瓷碗 剪刀 怀表 帆布包 鱼钩盒"
)
PLACES = split("钟楼 盐仓 凉亭 茶馆 邮局 磨坊 船坞 学校 灯塔 地窖 阁楼 花房 鱼市 祠堂 粮仓 渡口 药铺 戏台 井边 桥洞")
TOPICS = split(
    "潮汐表 鱼价单 菜谱 船期表 借书单 歌词 修船账 花种单 来信地址 值班表 药方 货物单 天气记录 礼物单 座位表 棋谱"
)

NOTES = {  # kind: (what is kept, where it is, how that is asked)
    "place": (THINGS, "{t}放在{v}", "{t}放在哪里？"),
    "locker": (THINGS, "{t}锁在{v}号柜", "{t}锁在几号柜？"),
    "page": (TOPICS, "{t}记在{v}页", "{t}记在几页？"),
}
