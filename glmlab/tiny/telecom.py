"""Corpus generator: telephone calls to a mobile operator, as they are transcribed, and conversations about them.

The calls have the build of the intent task's calls (`glmlab.tasks.calls`), but another phrase bank: no wording of its train, dev or
test calls occurs here, and no label name or number. What a call is about is told in free words, as a supervisor would note it.
"""

import random
from collections.abc import Iterator
from functools import cache

from glmlab.tasks import calls
from glmlab.tasks.labels import LABELS
from glmlab.tiny.grammar import load, pick

ORDINALS = "一二三四"


@cache
def bank() -> dict:
    """{"frame": {key: phrases}, label id: {"w", "d", "a", "sum", "heading", "term": phrases}}: the phrases of this package and the
    calls' own `pre` ones."""
    found = {"frame": load("telecom_frame")}
    titles = load("telecom_heading")
    for act in calls.ACTS:
        for label, kinds in load(f"telecom_{act}").items():
            own = {kind: (*kinds[kind], *calls.label_phrases("pretrain", int(label), kind)) for kind in "wda"}
            found[int(label)] = own | {"sum": tuple(kinds["sum"])} | {kind: tuple(titles[label][kind]) for kind in ("heading", "term")}
    return found


@cache
def frame(*keys) -> tuple[str, ...]:
    """The frame phrases of a key of `calls`, e.g. ("slots", "biz"), ("lead", "inquiry") or ("drop",)."""
    if keys == ("customer_more",):  # any small talk goes on without saying anything about the matter
        return (*calls.phrases("pretrain", *keys), *frame("smalltalk"), *frame("why"))
    own = bank()["frame"].get("_".join(keys).replace("slots_", "slot_"), ())
    return (*own, *calls.phrases("pretrain", *keys))


class Caller(calls.Caller):
    """A caller who draws from the pre-training bank."""

    def __init__(self, rng: random.Random):
        super().__init__("pretrain", rng)

    def frame(self, *keys):
        return frame(*keys)

    def phrases_of(self, label, kind):
        return bank()[label][kind]

    def of(self, label, kind):
        """As the recogniser heard it: now and then a word is lost, so that no wish hangs on one word or is learnt by heart."""
        text = super().of(label, kind)
        if len(text) > 6 and self.rng.random() < 0.4:
            for _ in range(pick(self.rng, (1, 1, 2))):
                cut = int(self.rng.random() * (len(text) - 2))
                text = text[:cut] + text[cut + pick(self.rng, (1, 2, 2)):]
        return text


def documents(rng: random.Random) -> Iterator[str | list[dict]]:
    """Endless documents: calls as they are, and conversations that end with the assistant."""
    makers = (transcript, course_of_call, last_settled, first_words, choose_matter, wordings, endings, agent_turn)
    weights = (10, 22, 18, 7, 28, 16, 4, 4)
    while True:
        yield rng.choices(makers, weights)[0](rng)


# ---- small tools ------------------------------------------------------------------------------------------------

def turn(role: str, content: str) -> dict:
    """One message."""
    return {"role": role, "content": content}


def any_label(rng: random.Random) -> int:
    """A matter: all equally often, so that rare ones are learnt too."""
    return int(rng.random() * len(LABELS))


def any_call(rng: random.Random) -> tuple[dict, str]:
    """A call and its transcript, with marks between the turns or without."""
    call = calls.one_call(Caller(rng), any_label(rng))
    return call, (calls.SEP if rng.random() < 0.8 else "").join(call["turns"])


def note(rng: random.Random, label: int) -> str:
    """A supervisor's note of a matter."""
    return Caller(rng).fill(pick(rng, bank()[label]["sum"]))


def asked_about(rng: random.Random, question: str, transcript: str) -> list[dict]:
    """The question with the call: in one user turn, or the question in the system prompt."""
    mark = pick(rng, ("对话：", "对话：", "对话：", "通话：", "录音："))
    if rng.random() < 0.6:
        return [turn("system", question), turn("user", mark + transcript)]
    return [turn("user", pick(rng, (f"{question}\n{mark}{transcript}", f"{mark}{transcript}\n{question}")))]


# ---- calls and what was said in them ----------------------------------------------------------------------------

def transcript(rng: random.Random) -> str:
    """A call as it is."""
    return any_call(rng)[1]


COURSE = ("客户先后说了哪几件事，每件的结果怎样？", "请按顺序写出来电的每件事和它的结果。", "把这通电话里客户提的事情一件一件列出来，写明办成了没有。",
          "复述通话经过：每件事是什么，解决了还是放弃了？")
SETTLED = ("解决了", "办妥了", "说清楚了", "处理好了")
DROPPED = ("放弃了", "没有办成", "客户不要了", "先不弄了")


def course_of_call(rng: random.Random) -> list[dict]:
    """What was raised one after another, and what became of it; often the last settled matter at the end."""
    call, text = any_call(rng)
    lines = [f"第{ORDINALS[place]}件：{note(rng, label)}，{pick(rng, SETTLED if settled else DROPPED)}。"
             for place, (label, settled) in enumerate(call["wishes"])]
    question = pick(rng, COURSE)
    if rng.random() < 0.5:
        last = max(place for place, (_, settled) in enumerate(call["wishes"]) if settled)
        question += pick(rng, ("最后写出最终解决的是哪一件。", "末尾注明最后谈成的一件。"))
        lines.append(f"最后解决的是第{ORDINALS[last]}件。")
    return [*asked_about(rng, question, text), turn("assistant", pick(rng, ("\n", "\n", "")).join(lines))]


LAST = ("这通电话最后解决的是什么事？", "客户最终谈妥的是哪件事？一句话回答。", "不算放弃的，客户最后一件落实的事情是什么？",
        "读完通话，写出最后一个有结果的要求，客户放弃的和客服推荐的都不算。", "概括本次来电真正处理完的最后一件事。")


def last_settled(rng: random.Random) -> list[dict]:
    """The last settled matter in a supervisor's words, or in the customer's."""
    call, text = any_call(rng)
    question = pick(rng, LAST)
    last = max(place for place, (_, settled) in enumerate(call["wishes"]) if settled)
    if rng.random() < 0.25:
        return [*asked_about(rng, question + "请引用客户的原话。", text), turn("assistant", f"客户说：{call['said'][last]}")]
    return [*asked_about(rng, question, text), turn("assistant", note(rng, call["label"]) + pick(rng, ("。", "。", "")))]


def first_words(rng: random.Random) -> list[dict]:
    """One of the matters by its place, in the customer's own words or noted."""
    call, text = any_call(rng)
    place = int(rng.random() * len(call["wishes"]))
    label, settled = call["wishes"][place]
    if rng.random() < 0.5:
        question, answer = f"客户提的第{ORDINALS[place]}件事，原话是怎么说的？", call["said"][place]
    else:
        question = f"客户提的第{ORDINALS[place]}件事办成了吗？"
        answer = (pick(rng, ("办成了", "解决了")) if settled else pick(rng, ("没有", "没办成"))) + "，" + note(rng, label) + "。"
    return [*asked_about(rng, question, text), turn("assistant", answer)]


# ---- matters among options --------------------------------------------------------------------------------------

ORDERS = ("你负责给客服通话归档。读通话，从下面的事项里选出最后解决的一件。", "下面是事项表。请判断通话最后谈成的是哪一项。",
          "你是质检员。看完对话，在列表中找出客户最后得到处理的事情。", "请从事项中选择：客户最后办妥或问清的是哪一件？",
          "判断客户打电话的来意，从表里选一项。", "你是客服来意分析员。输入是一通电话，输出它属于哪一类。", "给这通电话分类。")
HINTS = ("客户放弃的和客服推荐的都不算。", "一通电话里可能提到几件事，以最后一件有结果的为准。", "客户不要了的不算，只看最后解决的。",
         "客服顺便推销的不是客户的来意。", "没有办成的不选。", "")
#: How options are listed, and the answer by number first (a position must be looked up before anything is said) or by name first.
FORMS = (("{n}:{s}", "事项：{n}：{s}", "事项：{s}（{n}）"), ("{n}. {s}", "第{n}项：{s}", "{s}，第{n}项"), ("{n}:{s}", "类别：{n}：{s}", "类别：{s}"),
         ("{n}:{s}", "{n}", "{s}"), ("（{n}）{s}", "（{n}）{s}", "{s}（{n}）"), ("{n}、{s}", "{n}、{s}", "{s}、{n}"),
         ("{n}:{s}", "来意：{n}：{s}", "来意：{s}：{n}"), ("{n}：{s}", "编号{n}，{s}", "{s}，编号{n}"))
#: The codes of the house, which a supervisor knows by heart: two digits from 40 on, so that none is the number of a label.
CODES = dict(enumerate(random.Random("codes of the house").sample(range(40, 100), len(LABELS))))
ACT_WORDS = {"inquiry": ("咨询", "查询", "打听", "问事", "询问类", "问", "咨询类"), "complaint": ("投诉", "抱怨", "不满", "意见", "反映类", "怨", "投诉类"),
             "request": ("办理", "受理", "要办", "办事", "受理类", "办", "办理类")}
HEADING_FORMS = ("{s}", "{s}", "{g}{s}", "{g}（{s}）", "{g}-{s}", "{g}·{s}", "{g}：{s}", "{g}（含{h}）{s}", "{g}（或{h}）{s}")


def act_word(rng: random.Random, label: int) -> str:
    """A word for what the customer does: ask, complain, have something done."""
    return pick(rng, ACT_WORDS[calls.ACTS[LABELS[label].group]])


def headings(rng: random.Random, options: list[int]) -> list[str]:
    """What the options are called: notes, or headings, all of them with a word for asking, complaining or having done or none."""
    if rng.random() < 0.35:
        return [note(rng, option) for option in options]
    form = pick(rng, HEADING_FORMS)
    one, two = rng.sample(range(len(ACT_WORDS["inquiry"])), 2)
    kinds = pick(rng, (("heading",), ("term",), ("heading", "term")))
    names = []
    for option in options:
        words = ACT_WORDS[calls.ACTS[LABELS[option].group]]
        names.append(form.format(g=words[one], h=words[two], s=pick(rng, bank()[option][pick(rng, kinds)])))
    return names


def choose_matter(rng: random.Random) -> list[dict]:
    """Matters with the codes of the house (often listed in the system prompt) or numbered in a list; one to three calls or up to eight
    wishes; each time the right one in the form asked for."""
    if rng.random() < 0.35:
        made = [(label, Caller(rng).of(label, "w"), [label]) for label in (any_label(rng) for _ in range(rng.randint(4, 8)))]
    else:
        made = [(call["label"], text, [label for label, _ in call["wishes"]])
                for call, text in (any_call(rng) for _ in range(pick(rng, (1, 1, 2, 3))))]
    near = {other for label, _, wishes in made for other in [*wishes, *calls.bank()[label]["near"]]}
    coded = rng.random() < 0.65
    if coded or rng.random() < 0.5:
        near |= set(rng.sample(range(len(LABELS)), pick(rng, (0, 4, 8, 16, 34, 34))))
    else:
        near = {label for _, _, wishes in made for label in wishes}
    options = sorted(near)
    rng.shuffle(options)
    first = pick(rng, (0, 1))
    numbers = {option: CODES[option] if coded else place for place, option in enumerate(options, first)}
    if coded and rng.random() < 0.5:
        options.sort(key=numbers.get)
    names = dict(zip(options, headings(rng, options)))
    listed, by_number, by_name = pick(rng, FORMS)
    number_first = rng.random() < 0.8 if coded else len(options) <= 5 and rng.random() < 0.5
    answered = by_number if number_first else by_name
    head = [pick(rng, ORDERS), "".join(rng.sample(HINTS, 2))]
    if not coded or rng.random() < 0.5:
        lines = [listed.format(n=numbers[option], s=names[option]) for option in options]
        head += [pick(rng, ("事项：", "选项：", "列表：", "分类表：")), pick(rng, ("\n", "\n", "\n", "；")).join(lines)]
    wanted = "输出格式：" + answered.replace("{n}", pick(rng, ("编号", "代码")) if coded else "序号").replace("{s}", "事项")
    messages = [turn("system", "\n".join([*head, wanted]))]
    for label, text, _ in made:
        messages += [turn("user", "对话：" + text), turn("assistant", answered.format(n=numbers[label], s=names[label]))]
    return messages


# ---- wordings ---------------------------------------------------------------------------------------------------

def wordings(rng: random.Random) -> list[dict]:
    """Many ways to say the same: other wordings, the note of a wording, wordings of a note, same or different; one to four turns."""
    messages = []
    for _ in range(pick(rng, (1, 2, 3, 4))):
        label = any_label(rng)
        caller = Caller(rng)
        one, two = caller.of(label, "w"), caller.of(label, "w")
        other = pick(rng, calls.bank()[label]["near"])
        kind = pick(rng, ("again", "note", "note", "heading", "term", "code", "meaning", "act", "from note", "same", "detail", "answer"))
        if kind == "again":
            pair = f"换个说法：{one}", two
        elif kind == "note":
            pair = f"{pick(rng, ('客户是什么意思：', '这句话是要做什么：', '记录一下：'))}{one}", note(rng, label)
        elif kind == "heading":
            said = one if rng.random() < 0.6 else note(rng, label)
            pair = f"{pick(rng, ('归到哪一类：', '这属于什么：'))}{said}", pick(rng, bank()[label]["heading"])
        elif kind == "term":
            pair = f"{pick(rng, ('行话怎么说：', '用行话归类：'))}{one}", act_word(rng, label) + pick(rng, bank()[label]["term"])
        elif kind == "code":
            pair = pick(rng, ((f"代码是多少：{one}", str(CODES[label])), (f"代码{CODES[label]}是什么：", pick(rng, bank()[label]["heading"]))))
        elif kind == "meaning":
            term = pick(rng, bank()[label]["term"])
            pair = (f"{pick(rng, ('解释一下行话：', '什么叫：'))}{term}",
                    f"{act_word(rng, label)}一类，比如{note(rng, label)}。客户的话像“{one}”。")
        elif kind == "act":
            said = one if rng.random() < 0.6 else note(rng, label)
            pair = f"{pick(rng, ('是问、是怨还是要办：', '客户是咨询、投诉还是办理：'))}{said}", act_word(rng, label)
        elif kind == "from note":
            pair = f"客户会怎么说：{note(rng, label)}", one
        elif kind == "same":
            same = rng.random() < 0.5
            pair = (f"这两句说的是一件事吗？\n{one}\n{two if same else caller.of(other, 'w')}", "是一件事。" if same else "不是一件事。")
        elif kind == "detail":
            pair = f"客户说{caller.of(label, 'd')}，客服答{caller.of(label, 'a')}，这是什么事？", note(rng, label)
        else:
            pair = f"客服应该怎么回答：{one}", caller.of(label, "a")
        messages += [turn("user", pair[0]), turn("assistant", pair[1])]
    return messages


def endings(rng: random.Random) -> list[dict]:
    """Did the customer accept, or give up? Was it an offer of the agent? One to five turns."""
    meanings = {"drop": ("放弃了。", "客户不要了。"), "settled": ("同意了，事情有了结果。", "客户接受了。"), "refuse": ("客服说现在办不了。", "没有办成。"),
                "decline": ("客户拒绝了推荐。", "客户没有要推荐的东西。"), "offer": ("这是客服在推荐。", "客服推销，不是客户要的。"),
                "switch": ("客户换了一件事。", "接着说另一件事。"), "more": ("客户又提了一件事。",), "smalltalk": ("这是闲话。",), "why": ("客户在讲自己的情况。",)}
    messages = []
    for _ in range(rng.randint(1, 5)):
        kind = pick(rng, list(meanings))
        asked = pick(rng, ("这句话说明什么：", "这是什么意思：")) + Caller(rng).say(kind)
        messages += [turn("user", asked), turn("assistant", pick(rng, meanings[kind]))]
    return messages


def agent_turn(rng: random.Random) -> list[dict]:
    """The call goes on: the agent's next turn after the customer's."""
    call, _ = any_call(rng)
    end = rng.randrange(1, len(call["turns"]) - 1, 2) + 1
    start = max(0, end - 8)
    messages = [turn("assistant" if (start + place) % 2 == 0 else "user", text) for place, text in enumerate(call["turns"][start : end + 1])]
    return messages[1:] if messages[0]["role"] == "assistant" else messages
