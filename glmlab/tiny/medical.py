"""Corpus generator: online consultations, first aid, medicines, choosing a department, and prose on the body and health."""

import random
from collections.abc import Iterator
from functools import cache

from glmlab.tiny.grammar import expand, load, pick, several

#: Joined for a slot: how many phrases, and the words between them.
LISTS = {"feel": (2, 4, "、"), "cause": (2, 4, "、"), "eat": (2, 4, "、"), "avoid": (1, 3, "、"), "test": (1, 3, "和"),
         "do": (2, 4, "，"), "prevent": (2, 4, "，"), "warn": (2, 3, "、")}
#: Aspects of a condition: title of its section in an article, phrases of its numbered list.
ASPECTS = {"what": "概述", "why": "原因", "sym": "症状", "do": "护理", "eat": "饮食", "prevent": "预防", "dept": "就诊科室",
           "test": "检查", "warn": "就医信号", "med": "用药", "last": "恢复"}
PERSONS = {"任何人": ("我", "我爱人", "我弟弟", "我妈妈", "我孩子", "我同事"), "孩子": ("孩子", "宝宝", "我儿子", "我女儿", "我家孩子", "小孩"),
           "大人": ("我", "我爱人", "我爸爸", "我妈妈", "我哥哥", "我姐姐"), "老人": ("我爸爸", "我妈妈", "家里老人", "我爷爷", "我外婆", "我岳父"),
           "女人": ("我", "我姐姐", "我爱人", "我妹妹", "我闺蜜"), "男人": ("我", "我爸爸", "我丈夫", "我哥哥", "我舅舅"),
           "孕妇": ("我怀孕三个月，", "我怀孕五个月，", "我爱人怀孕了，", "我现在是孕期，"), "年轻人": ("我", "我弟弟", "我妹妹", "我女儿", "我儿子")}
AGES = {"我孩子": (3, 12), "孩子": (2, 10), "宝宝": (1, 3), "我儿子": (3, 14), "我女儿": (3, 14), "我家孩子": (2, 10), "小孩": (2, 8),
        "我爸爸": (50, 78), "我妈妈": (48, 76), "家里老人": (65, 85), "我爷爷": (66, 88), "我外婆": (66, 88), "我岳父": (55, 78)}


@cache
def bank() -> dict:
    """The phrase bank; a condition, a medicine, an emergency and a body topic carry their name and their single fields."""
    words = load("medical")
    for group in ("conditions", "firstaid", "drugs", "body"):
        for name, entry in words[group].items():
            single = {key: entry[key][0] for key in ("is", "dept", "who", "use", "how", "mix") if key in entry}
            words[group][name] = entry | single | {"name": name}
    for entry in words["body"].values():
        entry["question"], entry["because"] = entry["why"][0].split("=>")
    for group in ("conditions", "firstaid", "drugs", "body"):
        words[f"all_{group}"] = list(words[group].values())
    return words


def documents(rng: random.Random) -> Iterator[str | list[dict]]:
    """Endless documents, about 70 % conversations that end with the assistant, else plain text."""
    makers = (title_question, consultation, long_consultation, choose_department, ask_firstaid, ask_drug, ask_body,
              ask_food, record_summary, article, body_article, printed_answer, firstaid_card, record)
    weights = (14, 15, 14, 8, 5, 5, 5, 4, 5, 10, 7, 6, 3, 4)
    while True:
        yield rng.choices(makers, weights)[0](rng)


# ---- small tools ------------------------------------------------------------------------------------------------

def turn(role: str, content: str) -> dict:
    """One message."""
    return {"role": role, "content": content}


def say(rng: random.Random, key: str, bound: dict) -> str:
    """A random line of the bank's `key` with `bound` filled in."""
    return expand(rng, pick(rng, bank()[key]), bound, bank())


def joined(rng: random.Random, phrases: list, least: int, most: int, between: str) -> str:
    """Some of `phrases` in one line; between 、 the last two are joined by 和."""
    chosen = rng.sample(phrases, min(len(phrases), rng.randint(least, most)))
    if between == "、" and len(chosen) > 1 and rng.random() < 0.6:
        return "、".join(chosen[:-1]) + pick(rng, "和或" if least == 2 and most == 3 else "和") + chosen[-1]
    return between.join(chosen)


def numbered(rng: random.Random, lines: list[str]) -> str:
    """Lines with one of the usual kinds of numbers before them."""
    mark = pick(rng, ("{}. ", "{}、", "（{}）", "{}）"))
    return "\n".join(mark.format(number) + line for number, line in enumerate(lines, 1))


def spoken(rng: random.Random, text: str) -> str:
    """User text as people type it: sometimes without punctuation."""
    draw = rng.random()
    if draw < 0.12:
        return text.rstrip("？。").translate(str.maketrans("，。？、", "    "))
    if draw < 0.2:
        return text.translate(str.maketrans("", "", "，。？、"))
    return text


def patient(rng: random.Random, condition: dict) -> dict:
    """Who is ill: the word for the person and an age that fits."""
    who = pick(rng, PERSONS[condition["who"]])
    low, high = AGES.get(who, (20, 45))
    if who in ("我儿子", "我女儿") and condition["who"] == "年轻人":
        low, high = 13, 20
    age = "" if condition["who"] == "孕妇" else pick(rng, (f"{rng.randint(low, high)}岁", f"今年{rng.randint(low, high)}岁"))
    return {"who": who, "age": age}


def slots(rng: random.Random, condition: dict) -> dict:
    """The slots a condition binds, lists drawn anew."""
    bound = {key: condition[key] for key in ("name", "is", "dept")} | {"last": condition["last"][0]}
    for key, (least, most, between) in LISTS.items():
        bound[key] = joined(rng, condition[key], least, most, between)
    first = rng.sample(condition["feel"], 3)
    return bound | {"f1": first[0], "f2": first[1], "f3": first[2], "symptom": first[0]}


def aspect(rng: random.Random, condition: dict, kind: str) -> str:
    """One sentence (for medicines one or two) on an aspect of a condition."""
    if kind == "med":
        return "".join(several(rng, condition["med"], rng.randint(1, 2)))
    return say(rng, f"tell_{kind}", slots(rng, condition))


def any_condition(rng: random.Random) -> dict:
    """A random condition."""
    return pick(rng, bank()["all_conditions"])


# ---- questions about a condition --------------------------------------------------------------------------------

def title_question(rng: random.Random) -> list[dict]:
    """A short question on one aspect; the answer gives that aspect first, then related ones; sometimes a second question."""
    condition = any_condition(rng)
    first, second = rng.sample(list(ASPECTS), 2)
    chat = opening(rng, condition) + [
        turn("user", spoken(rng, pick(rng, ("", "", "医生，", "请问")) + say(rng, f"ask_{first}", condition_name(condition)) + pick(rng, "？？。"))),
        turn("assistant", answer_aspect(rng, condition, first)),
    ]
    if rng.random() < 0.35:
        lead = pick(rng, ("那", "再问一下，", "还想问，", "另外，"))
        chat += [turn("user", spoken(rng, lead + say(rng, f"ask_{second}", condition_name(condition)) + "？")),
                 turn("assistant", answer_aspect(rng, condition, second))]
    return chat


def condition_name(condition: dict) -> dict:
    """The bound slots of a question on a condition."""
    return {"name": condition["name"]}


def opening(rng: random.Random, condition: dict) -> list[dict]:
    """No message, or a system prompt."""
    return [turn("system", say(rng, "system", {"dept": condition["dept"]}))] if rng.random() < 0.4 else []


def answer_aspect(rng: random.Random, condition: dict, kind: str) -> str:
    """An answer that opens with the asked aspect: prose, or a numbered list where the aspect has phrases."""
    phrases = {"why": "cause", "sym": "feel", "do": "do", "prevent": "prevent", "warn": "warn"}.get(kind)
    if phrases and rng.random() < 0.4:
        title = {"why": "常见的原因有：", "sym": "常见的症状有：", "do": "可以这样做：", "prevent": "预防的方法：", "warn": "出现下面的情况要马上就医："}[kind]
        text = condition["name"] + pick(rng, ("", "的情况下", "")) * (kind == "do") + ("" if kind in ("do", "warn") else "") + title
        lines = several(rng, condition[phrases], rng.randint(3, 5))
        text = text + "\n" + numbered(rng, [line + pick(rng, ("。", "；"))[:1] if False else line + "。" for line in lines])
        tail = [pick(rng, ("warn", "dept"))] if kind != "warn" else ["dept"]
        return text + "\n" + "".join(aspect(rng, condition, other) for other in tail)
    extra = {"what": ("sym", "do", "warn"), "why": ("prevent", "do"), "sym": ("warn", "dept"), "do": ("med", "eat", "warn"),
             "eat": ("do", "warn"), "prevent": ("do", "warn"), "dept": ("test", "sym"), "test": ("dept", "warn"),
             "warn": ("dept",), "med": ("warn", "end"), "last": ("do", "warn")}[kind]
    parts = [aspect(rng, condition, other) for other in (kind, *several(rng, extra, rng.randint(0, 2)))]
    return pick(rng, ("", "", "您好，", "你好，")) + pick(rng, ("", "\n") if len(parts) > 2 else ("",)).join(parts)


def consultation(rng: random.Random) -> list[dict]:
    """A described complaint and a long answer: what it may be, why, what to do, when to see a doctor."""
    condition = any_condition(rng)
    chat = opening(rng, condition)
    chat += [turn("user", spoken(rng, complaint(rng, condition))), turn("assistant", long_answer(rng, condition))]
    if rng.random() < 0.3:
        chat += [turn("user", say(rng, "thanks", {})), turn("assistant", say(rng, "welcome", {}))]
    return chat


def complaint(rng: random.Random, condition: dict) -> str:
    """A short question and a description, or one of them."""
    bound = slots(rng, condition) | patient(rng, condition)
    title, detail = say(rng, "consult_title", bound) + "？", say(rng, "consult_detail", bound)
    return pick(rng, (title + detail, detail, pick(rng, bank()["hi"]) + "，" + detail, title + "\n" + detail))


def long_answer(rng: random.Random, condition: dict) -> str:
    """An answer in three to five sentences or in numbered advice."""
    bound = slots(rng, condition)
    head = say(rng, "open_reply", bound) + say(rng, "maybe", bound)
    middle = several(rng, ("why", "test", "med", "eat"), rng.randint(1, 2))
    tail = "".join(aspect(rng, condition, kind) for kind in several(rng, ("warn", "dept", "end"), rng.randint(1, 2)))
    if rng.random() < 0.4:
        advice = [line + "。" for line in several(rng, condition["do"], rng.randint(2, 4))]
        advice += [aspect(rng, condition, kind) for kind in middle]
        return head + pick(rng, ("建议：", "建议您：", "可以这样做：")) + "\n" + numbered(rng, advice) + "\n" + tail
    return head + "".join(aspect(rng, condition, kind) for kind in (*middle, "do")) + tail


def long_consultation(rng: random.Random) -> list[dict]:
    """A chat of several turns in which the doctor asks back before advising."""
    condition = any_condition(rng)
    bound = slots(rng, condition) | patient(rng, condition)
    other = bound | {"symptom": bound["f2"]}
    chat = opening(rng, condition) + [turn("user", spoken(rng, short_complaint(rng, bound)))]
    asked = several(rng, ("time", "more", "before"), rng.randint(1, 3))
    for question in asked:
        chat += [turn("assistant", expand(rng, pick(rng, bank()[f"doc_ask_{question}"]), bound, bank())),
                 turn("user", spoken(rng, say(rng, f"say_{question}", other)))]
    chat.append(turn("assistant", long_answer(rng, condition)))
    if rng.random() < 0.4:
        chat += [turn("user", say(rng, "say_fear", {})), turn("assistant", say(rng, "tell_fear", bound))]
    if rng.random() < 0.4:
        kind = pick(rng, list(ASPECTS))
        chat += [turn("user", pick(rng, ("那", "还有，", "")) + say(rng, f"ask_{kind}", condition_name(condition)) + "？"),
                 turn("assistant", answer_aspect(rng, condition, kind))]
    if rng.random() < 0.5:
        chat += [turn("user", say(rng, "thanks", {})), turn("assistant", say(rng, "welcome", {}))]
    return chat


def short_complaint(rng: random.Random, bound: dict) -> str:
    """The first turn of a chat."""
    return pick(rng, bank()["hi"]) + "，" + bound["who"] + pick(rng, ("最近", "", "这两天", "老是")) * (bound["who"][-1] != "，") + bound["f1"]


# ---- choosing a department --------------------------------------------------------------------------------------

def choose_department(rng: random.Random) -> list[dict]:
    """Departments with arbitrary numbers in the system prompt; the answer is `number：name`."""
    condition = any_condition(rng)
    others = [name for name in bank()["departments"] if name != condition["dept"]]
    names = [*rng.sample(others, rng.randint(2, 9)), condition["dept"]]
    rng.shuffle(names)
    start, mark = pick(rng, (0, 1, 1, 10)), pick(rng, ("：", ":", " "))
    numbers = rng.sample(range(60), len(names)) if rng.random() < 0.5 else list(range(start, start + len(names)))
    options = pick(rng, ("\n", "；")).join(f"{number}{mark}{name}" for number, name in zip(numbers, names))
    system = pick(rng, ("你是医院的导诊员。请根据患者的描述选择一个科室，只回答“编号：名称”。", "请判断患者应该挂哪个科，从下面选一个，按“编号：名称”回答。",
                        "输入是患者的描述，输出科室的编号和名称。", "根据症状分诊，回答格式为编号：名称。"))
    bound = slots(rng, condition) | patient(rng, condition)
    text = pick(rng, (say(rng, "consult_detail", bound | {"name": "别的病"}), short_complaint(rng, bound) + "，" + bound["f2"], f"{bound['f1']}，{bound['f2']}，{bound['f3']}",
                      f"确诊{condition['name']}，来复查", f"想看{condition['name']}"))
    answer = f"{numbers[names.index(condition['dept'])]}：{condition['dept']}"
    return [turn("system", f"{system}\n{pick(rng, ('科室：', '可选科室：', '选项：'))}\n{options}"),
            turn("user", pick(rng, ("", "患者：", "描述：")) + spoken(rng, text)), turn("assistant", answer)]


# ---- first aid, medicines, the body, food -----------------------------------------------------------------------

def ask_firstaid(rng: random.Random) -> list[dict]:
    """What happened, and the steps in their order with what not to do."""
    case = pick(rng, bank()["all_firstaid"])
    happened = case["who"]
    ask = pick(rng, (f"{happened}，怎么办", f"{case['name']}怎么急救", f"{happened}，应该先做什么", f"急，{happened}", f"遇到{case['name']}要怎么处理",
                     f"{case['name']}的时候不能做什么", f"请教一下{case['name']}的急救方法"))
    dont = "不要" + pick(rng, ("，不要", "，也不要", "、不要")).join(several(rng, case["dont"], rng.randint(2, 3))) + "。"
    steps = numbered(rng, [step + "。" for step in case["steps"]])
    if "不能做" in ask:
        reply = f"{case['name']}的时候，{dont}{case['why'][0]}。正确的做法是：\n{steps}"
    else:
        reply = pick(rng, ("请按下面的步骤做：", "别慌，这样处理：", f"{case['name']}的处理方法：", "")) + "\n" + steps + "\n" + dont
        reply = reply.lstrip("\n") + pick(rng, ("", case["why"][0] + "。"))
    chat = [turn("user", spoken(rng, ask + pick(rng, "？。"))), turn("assistant", reply)]
    if rng.random() < 0.3:
        chat += [turn("user", pick(rng, ("为什么要这样做？", "这是什么道理？", "为什么？"))), turn("assistant", case["why"][0] + "。")]
    return chat


def ask_drug(rng: random.Random) -> list[dict]:
    """Use, way of taking, cautions of a medicine, or whether it may be taken with another thing."""
    drug = pick(rng, bank()["all_drugs"])
    name, care = drug["name"], "".join(several(rng, drug["care"], rng.randint(1, 3)))
    forms = (
        (f"{name}是治什么的", f"{name}主要用来{drug['use']}，常用于{'、'.join(drug['for'])}。{care}"),
        (f"{name}怎么用", f"{drug['how']}。{care}"), (f"{name}有什么作用", f"它的作用是{drug['use']}。用法：{drug['how']}。"),
        (f"用{name}要注意什么", f"{care}另外不要和{drug['mix']}一起用。"), (f"{name}能和{drug['mix']}一起用吗", f"不能。{name}不要和{drug['mix']}一起用，拿不准时请问医生或者药师。"),
        (f"{name}什么时候用比较好", f"{drug['how']}，具体听医生的。{care}"),
        (f"{pick(rng, drug['for'])}可以用{name}吗", f"可以在医生或药师指导下使用，{name}能{drug['use']}。{drug['how']}。{care}"),
    )
    ask, reply = pick(rng, forms)
    chat = [turn("user", spoken(rng, pick(rng, ("", "请问", "药师您好，", "想问一下，")) + ask + "？")), turn("assistant", pick(rng, ("", "您好，")) + reply)]
    if rng.random() < 0.35:
        chat += [turn("user", pick(rng, ("忘记吃了一次怎么办？", "漏了一次要不要补？"))),
                 turn("assistant", pick(rng, ("想起来就补上，如果快到下一次的时间，就跳过这一次，不要加倍。", "一般不要一次用两倍的量，离下一次近就不补了，具体请问药师。")))]
    return chat


def ask_body(rng: random.Random) -> list[dict]:
    """A question about the body or healthy living."""
    topic = pick(rng, bank()["all_body"])
    name, facts = topic["name"], several(rng, topic["facts"], rng.randint(2, 4))
    forms = (
        (f"请介绍一下{name}", f"{name}是{topic['is']}。{''.join(facts)}"), (f"关于{name}，有哪些知识", numbered(rng, facts)),
        (topic["question"], topic["because"]), (topic["question"], topic["because"] + facts[0]),
        (pick(rng, (f"{name}方面要注意什么", f"说到{name}，平时有什么建议")), numbered(rng, [tip + "。" for tip in several(rng, topic["tips"], 4)])),
        (f"什么是{name}", f"{name}是{topic['is']}。{facts[0]}"),
    )
    ask, reply = pick(rng, forms)
    return [turn("user", spoken(rng, ask + "？")), turn("assistant", reply)]


def ask_food(rng: random.Random) -> list[dict]:
    """Whether a food suits a condition."""
    condition = any_condition(rng)
    kind = pick(rng, ("eat", "avoid"))
    food, name = pick(rng, condition[kind]), condition["name"]
    ask = pick(rng, (f"{name}可以吃{food}吗", f"{name}能不能吃{food}", f"得了{name}吃{food}行不行", f"{name}的人能碰{food}吗"))
    rest = joined(rng, condition[kind], 2, 4, "、")
    other = joined(rng, condition["avoid" if kind == "eat" else "eat"], 1, 3, "、")
    reply = (f"可以，{food}比较合适，但也要适量。还可以吃{rest}，少吃{other}。" if kind == "eat"
             else f"最好不要，{food}可能加重不适。{name}要少碰{rest}，可以吃{other}。")
    return [turn("user", spoken(rng, ask + "？")), turn("assistant", reply + pick(rng, ("", aspect(rng, condition, "do"))))]


# ---- records ----------------------------------------------------------------------------------------------------

def visit(rng: random.Random) -> dict:
    """The facts of one invented visit to a doctor."""
    condition = any_condition(rng)
    person = patient(rng, condition)
    return slots(rng, condition) | {"days": pick(rng, bank()["days"]), "doctor": pick(rng, bank()["surname"]), "age": person["age"].removeprefix("今年") or f"{rng.randint(24, 38)}岁",
                                    "condition": condition, "advice": "，".join(several(rng, condition["do"], 3))}


def record_text(rng: random.Random, facts: dict) -> str:
    """An outpatient record of a visit."""
    return "\n".join((
        f"主诉：{facts['f1']}{facts['days']}。", f"现病史：患者{facts['age']}，{facts['days']}前开始{facts['f1']}，伴{facts['f2']}、{facts['f3']}，{pick(rng, bank()['tried'])}。",
        f"检查：{facts['test']}。", f"初步诊断：{facts['name']}。", f"处理：{facts['advice']}。", pick(rng, (f"如有{facts['warn']}，及时就诊。", f"{pick(rng, ('一周', '两周', '三天', '一个月'))}后到{facts['dept']}复查。"))))


def record(rng: random.Random) -> str:
    """A record as plain text."""
    return record_text(rng, visit(rng))


def record_summary(rng: random.Random) -> list[dict]:
    """A record or a dialogue with one thing to take out of it."""
    facts = visit(rng)
    if rng.random() < 0.5:
        text = record_text(rng, facts)
    else:
        text = "\n".join((f"患者：{facts['f1']}，有{facts['days']}了", "医生：还有别的不舒服吗", f"患者：还{facts['f2']}", f"医生：考虑{facts['name']}，先做{facts['test']}", f"患者：{pick(rng, bank()['tried'])}，要注意什么", f"医生：{facts['advice']}，{facts['warn']}要马上来"))
    ask, reply = pick(rng, (
        ("用一句话总结", f"患者{facts['f1']}{facts['days']}，考虑{facts['name']}，建议{facts['advice']}。"), ("患者最主要的不舒服是什么", f"{facts['f1']}，已经{facts['days']}。"),
        ("诊断是什么", facts["name"] + "。"), ("医生建议做什么", facts["advice"] + "。"), ("要做哪些检查", facts["test"] + "。"),
        ("应该挂什么科", facts["dept"] + "。"), ("列出症状", facts["f1"] + "、" + facts["f2"] + ("、" + facts["f3"] if text.startswith("主诉") else "") + "。")))
    return [turn("user", f"{pick(rng, ('请看下面的记录，', '阅读以下内容，', '根据材料'))}{ask}：\n{text}"), turn("assistant", reply)]


# ---- plain text -------------------------------------------------------------------------------------------------

def article(rng: random.Random) -> str:
    """A leaflet on a condition, in sections or running."""
    condition = any_condition(rng)
    kinds = ["what", *several(rng, list(ASPECTS)[1:], rng.randint(3, 7))]
    if rng.random() < 0.5:
        lines = [f"{ASPECTS[kind]}：{aspect(rng, condition, kind)}" for kind in kinds]
        return pick(rng, (f"{condition['name']}小知识\n", f"认识{condition['name']}\n", f"{condition['name']}\n")) + "\n".join(lines)
    return "".join(aspect(rng, condition, kind) for kind in kinds)


def body_article(rng: random.Random) -> str:
    """A paragraph on one or two topics of the body, with tips or a question."""
    parts = []
    for topic in rng.sample(bank()["all_body"], rng.randint(1, 2)):
        facts = "".join(several(rng, topic["facts"], rng.randint(2, 5)))
        tips = pick(rng, ("，", "、")).join(several(rng, topic["tips"], rng.randint(2, 4)))
        tail = pick(rng, (f"{pick(rng, ('平时要', '建议', '日常生活中可以'))}{tips}。", f"{topic['question']}？{topic['because']}", ""))
        parts.append(f"{topic['name']}是{topic['is']}。{facts}{tail}")
    return "\n".join(parts)


def printed_answer(rng: random.Random) -> str:
    """A consultation as it stands on a page: question, answer."""
    condition = any_condition(rng)
    asked, answered = pick(rng, (("问：", "答："), ("患者：", "医生："), ("", ""), ("病情描述：", "医生回复：")))
    return f"{asked}{complaint(rng, condition)}\n{answered}{long_answer(rng, condition)}"


def firstaid_card(rng: random.Random) -> str:
    """An emergency as a card, or a medicine as a short leaflet."""
    if rng.random() < 0.5:
        drug = pick(rng, bank()["all_drugs"])
        return f"{drug['name']}说明\n作用：{drug['use']}。\n用法：{drug['how']}。\n注意：{''.join(several(rng, drug['care'], rng.randint(2, 3)))}\n不要和{drug['mix']}一起用。"
    case = pick(rng, bank()["all_firstaid"])
    return f"{case['name']}的急救\n{numbered(rng, [step + '。' for step in case['steps']])}\n不要{pick(rng, ('、', '，不要')).join(case['dont'])}。{case['why'][0]}。"
