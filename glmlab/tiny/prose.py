"""Corpus generator: explanations, steps, stories, letters, and conversations that follow short instructions."""

import random
from collections.abc import Iterator
from functools import cache

from glmlab.tiny.grammar import expand, load, pick, several


@cache
def bank() -> dict:
    """The phrase bank; topics carry their name, plots and letters are cut into steps of alternatives."""
    words = load("prose")
    for name, topic in words["topics"].items():
        topic |= {"name": name} | {field: topic[field][0] for field in ("kind", "is", "use", "do")}
        topic["why"] = [line.split("=>") for line in topic["why"]]
    words["plots"] = [[step.split(" / ") for step in line.split(">>")] for line in words["plots"]]
    words["letters"] = [line.split(">>") for line in words["letters"]]
    words["choose_forms"] = [line.split(">>") for line in words["choose_forms"]]
    return words


def documents(rng: random.Random) -> Iterator[str | list[dict]]:
    """Endless documents, about half plain text and half conversations that end with the assistant."""
    makers = (explanation, steps_text, reasons, comparison, story, letter, daily,
              ask_topic, rewriting, choosing, small_talk, ask_story)
    weights = (11, 5, 5, 3, 14, 5, 7, 14, 14, 15, 5, 2)
    while True:
        yield rng.choices(makers, weights)[0](rng)


def turn(role: str, content: str) -> dict:
    """One message."""
    return {"role": role, "content": content}


def say(rng: random.Random, key: str, bound: dict) -> str:
    """A random line of the bank's `key` with `bound` filled in."""
    return expand(rng, pick(rng, bank()[key]), bound, bank())


def cast() -> dict:
    """Bound slots of a new document: none yet."""
    return {}


# ---- topics -----------------------------------------------------------------------------------------------------

def topic(rng: random.Random) -> dict:
    """A random topic."""
    return pick(rng, list(bank()["topics"].values()))


def words_of(chosen: dict, **more: str) -> dict:
    """The slots a topic binds."""
    return {field: chosen[field] for field in ("name", "kind", "is", "use", "do")} | more


def facts(rng: random.Random, chosen: dict, count: int) -> list[str]:
    """`count` sentences of the topic in their order."""
    return [expand(rng, line, {}, {}) for line in several(rng, chosen["facts"], count)]


def explanation(rng: random.Random) -> str:
    """Opening, some facts, now and then a reason and a closing."""
    chosen = topic(rng)
    lines = facts(rng, chosen, rng.randint(2, 7))
    if len(lines) > 3 and rng.random() < 0.4:
        lines[-1] = pick(rng, bank()["explain_join"]) + lines[-1]
    if rng.random() < 0.85:
        lines.insert(0, say(rng, "explain_open", words_of(chosen)))
    if rng.random() < 0.35:
        lines.append(why_line(rng, chosen))
    if rng.random() < 0.4:
        lines.append(say(rng, "explain_close", words_of(chosen)))
    head = f"{chosen['name']}\n" if rng.random() < 0.15 else ""
    return head + "".join(lines)


def why_line(rng: random.Random, chosen: dict) -> str:
    """One question and its reason inside running text."""
    asked, reason = pick(rng, chosen["why"])
    return say(rng, "why_open", cast() | {"q": asked, "a": reason})


def numbered(rng: random.Random, lines: list[str]) -> str:
    """Lines as a numbered list in one of the usual styles."""
    style = pick(rng, ("{}. {}", "{}、{}", "第{}步：{}", "（{}）{}"))
    return "\n".join(style.format(number, line) for number, line in enumerate(lines, 1))


def in_words(rng: random.Random, lines: list[str]) -> str:
    """Steps as running text: first, then, last."""
    joints = ["首先，", *("然后，", "接着，", "再") * 3][: len(lines) - 1] + ["最后，"]
    return "".join(joint + line for joint, line in zip(joints, lines))


def steps(rng: random.Random, chosen: dict) -> str:
    """How to do what the topic teaches: a numbered list or running text."""
    lines = chosen["steps"]
    opening = say(rng, "steps_open", words_of(chosen, n=str(len(lines))))
    if rng.random() < 0.35:
        return in_words(rng, lines)
    return opening + "\n" + numbered(rng, lines)


def steps_text(rng: random.Random) -> str:
    """Instructions under a heading."""
    chosen = topic(rng)
    return pick(rng, ("怎样", "如何", "")) + chosen["do"] + "\n" + steps(rng, chosen)


def reasons(rng: random.Random) -> str:
    """Two or three questions and reasons from any topics."""
    return pick(rng, ("", "\n")).join(why_line(rng, topic(rng)) for _ in range(rng.randint(1, 3)))


def comparison(rng: random.Random) -> str:
    """How two things differ."""
    return say(rng, "compare", pair(rng)) + (say(rng, "compare", pair(rng)) if rng.random() < 0.4 else "")


def pair(rng: random.Random) -> dict:
    """The slots of two different topics of one kind."""
    same: list[dict] = []
    while not same:  # a kind may have one topic only
        chosen = topic(rng)
        same = [other for other in bank()["topics"].values() if other["kind"] == chosen["kind"] and other is not chosen]
    other = pick(rng, same)
    return words_of(chosen, other=other["name"], otheris=other["is"], otheruse=other["use"])


def ask_topic(rng: random.Random) -> list[dict]:
    """One to three questions about one topic."""
    chosen, messages = topic(rng), opening(rng, 0.25)
    ways = rng.sample((ask_what, ask_use, ask_more, ask_do, ask_do, ask_why, ask_why, ask_kind, ask_difference, ask_points),
                      pick(rng, (1, 1, 1, 2, 2, 3)))
    for way in dict.fromkeys(ways):
        asked, answer = way(rng, chosen)
        messages += [turn("user", asked), turn("assistant", answer)]
    return messages


def ask_what(rng, chosen):
    """What is it?"""
    return say(rng, "ask_what", words_of(chosen)), say(rng, "answer_what", words_of(chosen))


def ask_use(rng, chosen):
    """What is it for?"""
    return say(rng, "ask_use", words_of(chosen)), say(rng, "answer_use", words_of(chosen))


def ask_more(rng, chosen):
    """Tell me about it."""
    lines = [say(rng, "answer_what", words_of(chosen)), *facts(rng, chosen, rng.randint(2, 4))]
    return say(rng, "ask_more", words_of(chosen)), "".join(lines)


def ask_points(rng, chosen):
    """Name so many facts, one a line."""
    lines = facts(rng, chosen, rng.randint(2, 5))
    count = "零一两三四五"[len(lines)]
    return say(rng, "ask_count", words_of(chosen, count=count)), numbered(rng, lines)


def ask_do(rng, chosen):
    """How is it done?"""
    return say(rng, "ask_do", words_of(chosen)), steps(rng, chosen)


def ask_why(rng, chosen):
    """Why is it so?"""
    asked, reason = pick(rng, chosen["why"])
    return pick(rng, ("", "请问", "我想知道，")) + asked + "？", reason


def ask_kind(rng, chosen):
    """Which kind does it belong to?"""
    kinds = sorted({other["kind"] for other in bank()["topics"].values()} - {chosen["kind"]})
    return tuple(say(rng, "kind_ask", words_of(chosen, otherkind=pick(rng, kinds))).split("=>"))


def ask_difference(rng, chosen):
    """What is the difference to another thing?"""
    bound = pair(rng)
    return say(rng, "compare_ask", bound), say(rng, "compare", bound)


# ---- stories, letters, daily lines ------------------------------------------------------------------------------

def tell(rng: random.Random, bound: dict) -> str:
    """A story: the steps of one plot in their order."""
    plot = pick(rng, bank()["plots"])
    return "".join(expand(rng, pick(rng, step), bound, bank()) for step in plot)


def two_people(rng: random.Random) -> dict:
    """Two different names for a story."""
    first, second = rng.sample(bank()["person"], 2)
    return {"person1": first, "person2": second}


def story(rng: random.Random) -> str:
    """A short story with cause and effect."""
    return tell(rng, two_people(rng))


def ask_story(rng: random.Random) -> list[dict]:
    """A story on request."""
    bound = two_people(rng)
    return [turn("user", say(rng, "story_ask", bound)), turn("assistant", tell(rng, bound))]


def letter_lines(rng: random.Random) -> tuple[str, str]:
    """What was asked for and the letter."""
    number = int(rng.random() * len(bank()["letters"]))
    bound = two_people(rng)
    lines = [expand(rng, line, bound, bank()) for line in bank()["letters"][number]]
    lines.append(say(rng, "letter_end", bound))
    return bank()["letter_ask"][number], "\n".join(lines)


def letter(rng: random.Random) -> str | list[dict]:
    """A polite letter, alone or on request."""
    asked, text = letter_lines(rng)
    return text if rng.random() < 0.6 else [turn("user", asked), turn("assistant", text)]


def daily(rng: random.Random) -> str:
    """A few lines from somebody's day."""
    bound = two_people(rng)
    lines = rng.sample(bank()["daily"], rng.randint(2, 5))
    return "".join(expand(rng, line, dict(bound), bank()) for line in lines)


# ---- instructions -----------------------------------------------------------------------------------------------

def opening(rng: random.Random, share: float) -> list[dict]:
    """A short system prompt in `share` of the conversations."""
    return [turn("system", say(rng, "persona", {}))] if rng.random() < share else []


def rewriting(rng: random.Random) -> list[dict]:
    """Rewrite politely or formally, say the opposite, summarise, continue, correct: one to three turns."""
    tasks = list(bank()["tasks"])
    task = pick(rng, tasks)
    messages, in_system = [], rng.random() < 0.3
    order = pick(rng, bank()["tasks"][task])
    if in_system:
        messages.append(turn("system", order))
    for _ in range(pick(rng, (1, 1, 2, 3))):
        if not in_system and rng.random() < 0.5:
            task = pick(rng, tasks)
            order = pick(rng, bank()["tasks"][task])
        given, wanted = say(rng, task, two_people(rng)).split("=>")
        asked = given if in_system else order + pick(rng, ("", "\n")) + given
        messages += [turn("user", asked), turn("assistant", wanted)]
    if rng.random() < 0.25:
        word, contrary = rng.sample(pick(rng, bank()["antonyms"]).split("/"), 2)
        messages = [turn("user", f"“{word}”的反义词是什么？"), turn("assistant", pick(rng, (f"“{word}”的反义词是“{contrary}”。", contrary)))]
    return messages


def choosing(rng: random.Random) -> list[dict]:
    """Options with numbers in the system prompt; the assistant names the right one in the form asked for."""
    categories = bank()["categories"]
    options = rng.sample(list(categories), pick(rng, (2, 3, 4, 5, 6, 8, 10, 12, 16, 20)))
    listed, answered, wanted = pick(rng, bank()["choose_forms"])
    first = pick(rng, (0, 1, 1))
    lines = [listed.replace("{id}", str(number)).replace("{name}", name) for number, name in enumerate(options, first)]
    parts = [say(rng, "choose_system", {}), pick(rng, ("\n", "\n", "；")).join(lines), wanted]
    if rng.random() < 0.5:
        parts.append(say(rng, "choose_end", {}))
    messages = [turn("system", "\n".join(parts))]
    for _ in range(pick(rng, (1, 1, 2, 3, 4))):
        number = int(rng.random() * len(options))
        asked = expand(rng, pick(rng, categories[options[number]]), {}, bank())
        answer = answered.replace("{id}", str(number + first)).replace("{name}", options[number])
        messages += [turn("user", asked), turn("assistant", answer)]
    return messages


def small_talk(rng: random.Random) -> list[dict]:
    """Greetings, who the model is, what it can do, everyday talk: one to four turns."""
    messages = opening(rng, 0.3)
    for _ in range(rng.randint(1, 4)):
        draw = rng.random()
        if draw < 0.2:
            pair_of_lines = say(rng, "who_ask", {}), say(rng, "who", {})
        elif draw < 0.3:
            pair_of_lines = say(rng, "can_ask", {}), say(rng, "can", {})
        else:
            pair_of_lines = say(rng, "chat", {}).split("=>")
        messages += [turn("user", pair_of_lines[0]), turn("assistant", pair_of_lines[1])]
    return messages
