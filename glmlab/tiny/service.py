"""Corpus generator: shop, technical-support and financial-service dialogues, tasks on service text, FAQ entries, notices."""

import random
import re
from collections.abc import Iterator
from datetime import date, timedelta
from functools import cache

from glmlab.tiny.grammar import expand, load, pick

#: Key of a scene in the phrase bank: its names as a class.
SCENES = {"shop": ("网上购物", "购物", "电商客服"), "support": ("技术支持", "技术", "技术客服"), "finance": ("金融服务", "金融", "银行客服")}
OTHER_SCENES = ("医疗咨询", "旅游出行", "法律咨询", "教育培训", "餐饮外卖", "房屋租赁", "政务服务", "水电燃气")
#: Slots worked out from others: an answer may write them only when the customer has told those.
DERIVED = {"week": ("date",), "diff": ("price", "now"), "each": ("amount", "months"), "interest": ("amount",)}
#: Slots that each answer may write, whoever said them first.
FREE = {"line", "store", "bank", "firm"}
#: Slots an agent asks back for.
WANTED = ("order", "goods", "track", "model", "app", "wifi", "tail")
NUMERALS = "零一二三四五六七八九十"
SLOT = re.compile(r"\{(\w+)\}")


@cache
def bank() -> dict:
    """The phrase bank; each matter carries its name and scene, later questions are (ways to ask, answer)."""
    words = load("service")
    for scene in SCENES:
        for name, matter in words[scene].items():
            matter |= {"name": name, "scene": scene, "brief": matter["brief"][0], "give": matter.get("give", []),
                       "goods": matter.get("goods", ["goods"])[0], "more": [split_pair(line) for line in matter["more"]]}
    words["matters"] = {scene: list(words[scene].values()) for scene in SCENES}
    words["label"] = {slot: label[0] for slot, label in words["label"].items()}
    words["unit"] = {slot: unit[0] for slot, unit in words["unit"].items()}
    return words


def split_pair(line: str) -> tuple[list[str], str]:
    """`way to ask / other way=>answer` as (ways, answer)."""
    ways, answer = line.split("=>")
    return ways.split(" / "), answer


def documents(rng: random.Random) -> Iterator[str | list[dict]]:
    """Endless documents, about 80 % conversations that end with the assistant, else plain text."""
    makers = (consult, consult_later, asked_back, greeting_first, summarise, classify_scene, classify_matter, rewrite, judge, find_fact,
              faq, guide, notices, transcript, tips)
    weights = (20, 22, 8, 5, 5, 5, 5, 6, 3, 3, 6, 4, 5, 4, 2)
    while True:
        yield rng.choices(makers, weights)[0](rng)


# ---- small tools ------------------------------------------------------------------------------------------------

def turn(role: str, content: str) -> dict:
    """One message."""
    return {"role": role, "content": content}


def fill(rng: random.Random, line: str, bound: dict, used: set | None = None) -> str:
    """`line` with its slots and choices filled in; names of written slots go into `used`."""
    return expand(rng, line, bound, bank(), used)


def say(rng: random.Random, key: str, bound: dict) -> str:
    """A random line of the bank's `key`, filled in."""
    return fill(rng, pick(rng, bank()[key]), bound)


@cache
def needs(line: str) -> frozenset:
    """The slots the customer must have told before `line` may be said."""
    names = set(SLOT.findall(line)) - FREE
    return frozenset(base for name in names for base in DERIVED.get(name, (name,)))


def allowed(lines, known: set) -> list[str]:
    """The lines that write nothing the customer has not told."""
    return [line for line in lines if needs(line) <= known]


def digits(rng: random.Random, count: int) -> str:
    """A number of `count` digits that does not start with 0."""
    return str(rng.randrange(10 ** (count - 1), 10**count))


def cast(rng: random.Random, matter: dict | None = None) -> dict:
    """The bound slots of a document: one order, one device, one card, sums of money and days that fit together."""
    words, day = bank(), date(2023, 1, 1) + timedelta(rng.randrange(365))
    week, months, now, cut = day + timedelta(7), pick(rng, (3, 6, 12, 24)), rng.randint(30, 800), rng.randint(5, 90)
    each = pick(rng, (50, 80, 100, 120, 150, 200, 250, 300, 400, 500, 600, 750, 800, 1000, 1200, 1500, 2000))
    return {"order": digits(rng, pick(rng, (8, 8, 10, 12))), "track": pick(rng, ("KD", "YS", "TK", "")) + digits(rng, pick(rng, (9, 11))),
            "goods": pick(rng, words[matter["goods"] if matter else "goods"]), "size": pick(rng, words["size"]),
            "city": pick(rng, words["city"]), "date": f"{day.month}月{day.day}日", "week": f"{week.month}月{week.day}日",
            "price": str(now + cut), "now": str(now), "diff": str(cut),
            "app": pick(rng, words["app"]), "model": pick(rng, words["maker"]) + pick(rng, "AKMPX") + str(rng.randint(1, 60)),
            "code": pick(rng, ("E", "0x", "ERR", "")) + digits(rng, pick(rng, (3, 4))), "ver": f"{rng.randint(1, 15)}.{rng.randint(0, 9)}",
            "wifi": pick(rng, ("Home", "TP", "WiFi", "MyNet", "Room")) + pick(rng, ("_", "-", "")) + digits(rng, pick(rng, (2, 3, 4))),
            "gb": pick(rng, ("32", "64", "128", "256")), "tail": f"{rng.randrange(10000):04d}", "months": str(months), "each": str(each),
            "amount": str(each * months), "interest": f"{each * months * 0.015:.2f}".rstrip("0").rstrip("."),
            "fee": str(rng.randint(5, 30)),
            "n": str(rng.randint(2, 9)), "few": pick(rng, ("2", "3")), "store": pick(rng, words["store"]), "bank": pick(rng, words["bank"]),
            "firm": pick(rng, words["firm"])}


def any_matter(rng: random.Random, scene: str | None = None) -> dict:
    """A random matter, of `scene` if given."""
    return pick(rng, bank()["matters"][scene or pick(rng, list(SCENES))])


def numbered(rng: random.Random, lines: list[str]) -> str:
    """Lines as a numbered list in one of the usual styles."""
    mark = pick(rng, ("{}. ", "{}. ", "{}、", "（{}）", "第{}步："))
    return "\n".join(mark.format(NUMERALS[number] if mark[0] == "第" else number) + line + "。" for number, line in enumerate(lines, 1))


def spoken(rng: random.Random, text: str) -> str:
    """User text as it reaches the model: now and then with a word for the speaker before it."""
    return (pick(rng, ("用户问：", "用户问：", "客户：", "问：")) if rng.random() < 0.12 else "") + typed(rng, text)


def typed(rng: random.Random, text: str) -> str:
    """Text as people type it: sometimes without punctuation."""
    draw = rng.random()
    if draw < 0.12:
        return text.rstrip("？。！").translate(str.maketrans("，。？！", "    "))
    if draw < 0.2:
        return text.translate(str.maketrans("", "", "，。？！"))
    return text.rstrip("？。") if draw < 0.26 else text


# ---- a consultation ---------------------------------------------------------------------------------------------

class Talk:
    """One consultation: what has been said so far, which slots the customer has told, and the steps last given."""

    def __init__(self, rng: random.Random, matter: dict, system_share: float = 0.34):
        self.rng, self.matter, self.bound, self.known = rng, matter, cast(rng, matter), set()
        self.messages, self.steps, self.answered = [], [], set()
        self.style = pick(rng, ("list",) * 8 + ("run", "short"))
        if rng.random() < system_share:
            hint = say(rng, f"style_{self.style}", {}) if self.style != "list" or rng.random() < 0.3 else ""
            self.messages.append(turn("system", say(rng, f"system_{matter['scene']}", self.bound) + hint))

    def exchange(self, asked: str, answer: str):
        """The customer says `asked`, the agent `answer`."""
        self.messages += [turn("user", spoken(self.rng, asked)), turn("assistant", answer)]

    def question(self) -> str:
        """One way to ask about the matter."""
        return fill(self.rng, pick(self.rng, self.matter["ask"]), self.bound, self.known)

    def detail(self) -> tuple[str, str]:
        """Something more the customer tells and the agent's repetition of it; empty where nothing new fits."""
        new = set(self.matter["give"]) - self.known
        lines = [line for line in bank()["told"] if needs(line) and needs(line) <= new]
        if not lines:
            return "", ""
        return tuple(fill(self.rng, part, self.bound, self.known) for part in pick(self.rng, lines).split("=>"))

    def answer(self, style: str | None = None) -> str:
        """Opening, steps and closing, all within what the customer has told."""
        rng, matter, style = self.rng, self.matter, style or self.style
        lines = [line.lstrip("~") for line in matter["do"] if line[0] != "~" or rng.random() < 0.6]
        self.steps = [fill(rng, line, self.bound) for line in lines]
        opening, closing = self.line("open"), self.line("end")
        if style == "short":
            self.steps = []
            lead = pick(rng, ("", f"关于{matter['name']}，建议您", "请您", "可以这样做："))
            return f"{lead}{matter['brief']}。{closing}"
        if style == "run":
            joints = ["首先，", *(pick(rng, ("然后，", "接着，", "接下来，")) for _ in self.steps[2:]), "最后，"]
            return opening + "；".join(joint + step.removeprefix("先") for joint, step in zip(joints, self.steps)) + "。" + closing
        return opening + "\n" + numbered(rng, self.steps) + "\n" + closing

    def line(self, part: str) -> str:
        """An opening or closing of the matter; lines that repeat what the customer told come first."""
        lines = allowed(self.matter[part], self.known)
        repeating = [line for line in lines if needs(line)]
        return fill(self.rng, pick(self.rng, repeating if repeating and self.rng.random() < 0.75 else lines), self.bound)

    def ask(self, lead: str = ""):
        """The customer's question, perhaps with a detail, and the whole answer."""
        rng = self.rng
        asked, head = lead + self.question(), pick(rng, ("", "", say(rng, "head", self.bound)))
        if rng.random() < 0.1 and not lead:
            asked, head = say(rng, "urgent", self.bound) + asked, say(rng, "calm", self.bound)
        if rng.random() < 0.3:
            told, echo = self.detail()
            asked, head = pick(rng, (asked + told, told + asked)) if not lead else asked + told, head + echo
        elif not lead and len(self.messages) < 2 and rng.random() < 0.4:
            asked = say(rng, "hello", self.bound) + asked
        self.exchange(asked, head + self.answer())

    def later(self):
        """A question that only makes sense after the answer before it."""
        rng = self.rng
        pairs = [pair for pair in self.matter["more"] if needs(pair[1]) <= self.known and pair[1] not in self.answered]
        if pairs and rng.random() < 0.65:
            ways, answer = pick(rng, pairs)
            self.answered.add(answer)
            self.exchange(fill(rng, pick(rng, ways), self.bound), fill(rng, answer, self.bound))
            return
        facts, number = {"name": self.matter["name"], "brief": self.matter["brief"]}, 0
        keys = ["brief"] + [f"recall_{slot}" for slot in sorted(self.known) if f"recall_{slot}" in bank()] * 2
        if self.steps:
            number = rng.randint(1, len(self.steps))
            keys += ["again", "again", "count", "last"]
            facts |= {"k": NUMERALS[number], "n": NUMERALS[len(self.steps)], "first": self.steps[0], "final": self.steps[-1],
                      "step": self.steps[number - 1]}
        lines = [line for key in keys for line in bank()[key] if line not in self.answered]
        line = pick(rng, lines)
        self.answered.add(line)
        self.exchange(*(fill(rng, part, self.bound | facts) for part in line.split("=>")))

    def close(self):
        """Thanks and a farewell."""
        key = pick(self.rng, ("bye", "bye", f"bye_{self.matter['scene']}"))
        self.exchange(*(fill(self.rng, part, self.bound) for part in pick(self.rng, bank()[key]).split("=>")))


def consult(rng: random.Random) -> list[dict]:
    """One question and its answer, now and then a farewell."""
    talk = Talk(rng, any_matter(rng))
    talk.ask()
    if rng.random() < 0.15:
        talk.close()
    return talk.messages


def consult_later(rng: random.Random) -> list[dict]:
    """A question, one to three later questions on the answer, perhaps a second matter of the same scene."""
    talk = Talk(rng, any_matter(rng))
    talk.ask()
    for _ in range(pick(rng, (1, 1, 2, 2, 3))):
        talk.later()
    if rng.random() < 0.2:
        change_matter(talk)
        talk.ask(say(rng, "second", talk.bound))
        if rng.random() < 0.5:
            talk.later()
    if rng.random() < 0.3:
        talk.close()
    return talk.messages


def change_matter(talk: Talk):
    """Another matter of the same scene; things bought are new, numbers told before stay known."""
    previous = talk.matter
    while talk.matter is previous:
        talk.matter = any_matter(talk.rng, previous["scene"])
    talk.bound["goods"] = pick(talk.rng, bank()[talk.matter["goods"]])
    talk.known.clear()


def asked_back(rng: random.Random) -> list[dict]:
    """The agent asks for a number or a name before answering, and repeats it."""
    missing: list[str] = []
    while not missing:
        talk = Talk(rng, any_matter(rng))
        asked = talk.question()
        missing = [slot for slot in WANTED if slot in talk.matter["give"] and slot not in talk.known]
    slot = pick(rng, missing)
    label, value = bank()["label"][slot], talk.bound[slot]
    talk.exchange(asked, pick(rng, ("", "您好，", "好的，")) + say(rng, "need", {"label": label}))
    talk.known.add(slot)
    given = pick(rng, (value, f"{label}是{value}", f"是{value}", f"{value}，麻烦您了"))
    talk.exchange(given, say(rng, "got", {}) + pick(rng, (f"{label}{value}已记下。", f"您的{label}是{value}。")) + talk.answer())
    if rng.random() < 0.4:
        talk.later()
    return talk.messages


def greeting_first(rng: random.Random) -> list[dict]:
    """A greeting and a welcome before the question."""
    talk = Talk(rng, any_matter(rng))
    talk.exchange(say(rng, "hello", {}).rstrip("，"), say(rng, "greet", {}))
    talk.ask()
    if rng.random() < 0.5:
        talk.later()
    return talk.messages


# ---- tasks on service text --------------------------------------------------------------------------------------

def chat_lines(rng: random.Random, matter: dict) -> tuple[str, Talk]:
    """A consultation as printed lines, and the talk behind it."""
    talk = Talk(rng, matter, 0)
    talk.style = "run"
    talk.ask()
    if rng.random() < 0.5:
        talk.later()
    people = pick(rng, (("客户：", "客服："), ("顾客：", "客服："), ("用户：", "坐席：")))
    said = [re.sub("^(用户问|客户|问)：", "", message["content"]) for message in talk.messages]
    return "\n".join(people[number % 2] + text for number, text in enumerate(said)), talk


def summarise(rng: random.Random) -> list[dict]:
    """A printed dialogue with a request for a summary or for its topic."""
    text, talk = chat_lines(rng, any_matter(rng))
    if rng.random() < 0.6:
        asked, answer = say(rng, "sum_ask", {}), say(rng, "sum", {"name": talk.matter["name"], "brief": talk.matter["brief"]})
    else:
        asked, answer = say(rng, "topic_ask", {}), talk.matter["name"]
    return [turn("user", f"{asked}\n{text}"), turn("assistant", answer)]


def choose(rng: random.Random, head: str, names: list[str], right: list[str], texts: list[str]) -> list[dict]:
    """Options in the system prompt or in the user turn; one answer for each text."""
    form, word = pick(rng, ("name", "number", "both", "both")), pick(rng, ("", "", "类别：", "结果："))
    first = pick(rng, (0, 1, 1))
    listed = [name if form == "name" else f"{number}：{name}" for number, name in enumerate(names, first)]
    rule = {"name": "只回答名称。", "number": "只回答编号。", "both": "按“编号：名称”回答。"}[form]
    between = pick(rng, ("\n", "\n", "、" if form == "name" else "；"))
    request = f"{head}{rule}\n{pick(rng, ('选项：', '类别：', '可选：'))}" + between * (between == "\n") + between.join(listed)
    in_system = rng.random() < 0.6
    messages = [turn("system", request)] if in_system else []
    for name, text in zip(right, texts):
        number = names.index(name)
        answer = word + {"name": name, "number": str(number + first), "both": f"{number + first}：{name}"}[form]
        asked = text if in_system else f"{request}\n{pick(rng, ('问题：', '内容：', '客户说：'))}{text}"
        messages += [turn("user", asked), turn("assistant", answer)]
    return messages


def classify_scene(rng: random.Random) -> list[dict]:
    """Which of the given scenes a customer's words belong to."""
    name = {scene: pick(rng, words) for scene, words in SCENES.items()}
    names = [*name.values(), *rng.sample(OTHER_SCENES, rng.randint(0, 4))]
    rng.shuffle(names)
    chosen = [any_matter(rng) for _ in range(pick(rng, (1, 1, 2, 3)))]
    right, texts = [name[matter["scene"]] for matter in chosen], [typed(rng, Talk(rng, matter).question()) for matter in chosen]
    return choose(rng, say(rng, "scene_head", {}), names, right, texts)


def classify_matter(rng: random.Random) -> list[dict]:
    """Which of the given matters a customer's words belong to."""
    everything = [matter for scene in SCENES for matter in bank()["matters"][scene]]
    pool = everything if rng.random() < 0.6 else bank()["matters"][pick(rng, list(SCENES))]
    options = rng.sample(pool, rng.randint(2, 12))
    chosen = [pick(rng, options) for _ in range(pick(rng, (1, 1, 2, 3)))]
    return choose(rng, say(rng, "class_head", {}), [matter["name"] for matter in options],
                  [matter["name"] for matter in chosen], [typed(rng, Talk(rng, matter).question()) for matter in chosen])


def blunt_pair(rng: random.Random, bound: dict) -> tuple[str, str]:
    """A curt line and the same thing said politely."""
    return tuple(fill(rng, part, bound) for part in pick(rng, bank()["blunt"]).split("=>"))


def rewrite(rng: random.Random) -> list[dict]:
    """Curt service lines rewritten politely, one to three turns."""
    head, in_system = say(rng, "rewrite_head", {}), rng.random() < 0.3
    messages = [turn("system", head.rstrip("：") + "。")] if in_system else []
    for _ in range(pick(rng, (1, 1, 2, 3))):
        given, wanted = blunt_pair(rng, cast(rng))
        messages += [turn("user", given if in_system else head + pick(rng, ("", "\n")) + given), turn("assistant", wanted)]
    return messages


def judge(rng: random.Random) -> list[dict]:
    """The customer's tone, or whether a line of an agent is polite."""
    bound = cast(rng)
    if rng.random() < 0.5:
        answer = pick(rng, list(bank()["tone"]))
        text, head = fill(rng, pick(rng, bank()["tone"][answer]), bound), say(rng, "tone_head", {})
    else:
        polite = rng.random() < 0.5
        text, answer, head = blunt_pair(rng, bound)[polite], "礼貌" if polite else "不礼貌", say(rng, "manner_head", {})
    return [turn("user", f"{head}\n{text}"), turn("assistant", answer)]


def find_fact(rng: random.Random) -> list[dict]:
    """A number, name or day taken out of a customer's words."""
    talk, told = None, ""
    while not told:
        talk = Talk(rng, any_matter(rng))
        asked = talk.question()
        told = talk.detail()[0]
    text, label, unit = pick(rng, (asked + told, told + asked)), bank()["label"], bank()["unit"]
    values = {slot: talk.bound[slot] + unit.get(slot, "") for slot in sorted(talk.known) if slot in label}
    slot, value = pick(rng, [(slot, value) for slot, value in values.items() if value in text])
    return [turn("user", say(rng, "facts_ask", {"label": label[slot]}) + "\n" + text), turn("assistant", value)]


# ---- plain text -------------------------------------------------------------------------------------------------

def faq(rng: random.Random) -> str:
    """One to three questions with answers of one scene."""
    scene, marks = pick(rng, list(SCENES)), pick(rng, (("问：", "答："), ("Q：", "A："), ("", ""), ("问题：", "回答：")))
    entries = []
    for matter in rng.sample(bank()["matters"][scene], rng.randint(1, 3)):
        talk = Talk(rng, matter, 0)
        entries.append(f"{marks[0]}{talk.question()}\n{marks[1]}{talk.answer(pick(rng, ('list', 'run', 'short')))}")
    head = pick(rng, ("", "", f"{SCENES[scene][0]}常见问题\n"))
    return head + "\n".join(entries)


def guide(rng: random.Random) -> str:
    """One matter as an article: steps under its name, then questions and answers in a row."""
    matter = any_matter(rng)
    talk = Talk(rng, matter, 0)
    parts = [matter["name"] + pick(rng, ("指南", "", "说明", "怎么办")), talk.answer("list" if rng.random() < 0.6 else "run")]
    for ways, answer in rng.sample(matter["more"], rng.randint(0, 2)):
        if not needs(answer):
            parts.append(fill(rng, pick(rng, ways), talk.bound) + pick(rng, ("\n", "")) + fill(rng, answer, talk.bound))
    return "\n".join(parts)


def notices(rng: random.Random) -> str:
    """One or two notices of one scene."""
    lines = bank()[f"notice_{pick(rng, list(SCENES))}"]
    return "\n".join(fill(rng, line, cast(rng)) for line in rng.sample(lines, pick(rng, (1, 1, 2))))


def transcript(rng: random.Random) -> str:
    """A consultation as printed lines."""
    return chat_lines(rng, any_matter(rng))[0]


def tips(rng: random.Random) -> str:
    """Short advice on several matters of one scene."""
    scene = pick(rng, list(SCENES))
    lines = [f"{matter['name']}：{matter['brief']}" for matter in rng.sample(bank()["matters"][scene], rng.randint(3, 6))]
    return f"{SCENES[scene][0]}小提示\n" + numbered(rng, lines)
