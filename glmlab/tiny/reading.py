"""Corpus generator: reading about people, companies, schools, posts and towns that nobody has heard of.

Patterns of facts.py and many more, also such that deny something or tell nothing, with names of characters drawn at random: what such a
text says can only be read there, never known. So the model gets what extraction needs and a few thousand training rows cannot teach:
to copy a name to its end, and to tell what is said of whom. The words of val's and test's names in project 2 do not come about, no
five characters of their sentences stand here, and none of its answers.
"""

import random
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import chain

from glmlab.tiny import facts
from glmlab.tiny.facts import turn
from glmlab.tiny.grammar import expand, load, pick

#: Share of names in a text that are replaced, of replaced ones with a comma or brackets, of surnames that are real.
REPLACED, ODD, REAL_SURNAME = 0.85, 0.1, 0.8
#: A character in so many patterns is no part of a made-up name.
COMMON = 8
#: How many sentences without a fact stand by those on one record, each as likely.
BESIDE = (0, 0, 1, 1, 2)
#: Groups of patterns that tell nothing about their subject.
IDLE = ("denied", "neutral")
#: The fields of facts' records that hold names -> the kind of name.
KINDS = {"name": "person", "founder": "person", "boss": "person", "head": "person",
         "company": "company", "oldcompany": "company", "founded": "company", "cname": "company", "school": "school", "sname": "school",
         "title": "post", "bosstitle": "post", "home": "town", "fcity": "town", "livecity": "town", "hq": "town", "branch": "town",
         "scity": "town", "oldtitle": "post", "otherperson": "person", "othercompany": "company", "otherschool": "school",
         "othercity": "town", "othertitle": "post"}
#: What a listing calls the fields that facts.py does not ask for.
LABELS = {"oldcompany": "从前的单位", "oldtitle": "从前的职务", "branch": "外地的机构所在"}


@cache
def bank() -> dict:
    """The phrase bank, and the characters that names are drawn from: none that many patterns hold, or nobody could tell where a name ends."""
    from glmlab.tasks import sentences
    words = load("reading")
    pairs, single = sentences.held_out(sentences.bank())
    lines = [line for known in (facts.bank(), words) for kind in facts.TITLE_FIELD for group, some in known[kind].items() if group != "ask"
             for line in some]
    held = Counter(chain.from_iterable(map(set, lines)))
    written = "".join(str(load(name)) for name in ("facts", "prose", "service", "medical"))
    characters = sorted({character for character in written if "\u4e00" <= character <= "\u9fff" and held[character] < COMMON} - single)
    return words | {"characters": characters, "pairs": pairs}


def documents(rng: random.Random) -> Iterator[str | list[dict]]:
    """Endless documents: texts, and conversations about them that end with the assistant."""
    makers = (plain, ask, listing, repeat, swap, row)
    weights = (26, 26, 26, 5, 5, 12)
    while True:
        yield rng.choices(makers, weights)[0](rng)


# --- names -------------------------------------------------------------------------------------------------------

def word(rng: random.Random, least: int = 2, most: int = 2) -> str:
    """Characters drawn at random; no two neighbours of them are a pair that val's or test's names are made of."""
    while True:
        drawn = "".join(pick(rng, bank()["characters"]) for _ in range(rng.randint(least, most)))
        if not any(drawn[place : place + 2] in bank()["pairs"] for place in range(len(drawn) - 1)):
            return drawn


def name(rng: random.Random, kind: str) -> str:
    """A name of a kind that nobody has heard; now and then one with a comma or brackets."""
    known, odd = facts.bank(), rng.random() < ODD
    if kind == "person":
        surname = pick(rng, known["surnames"]) if rng.random() < REAL_SURNAME else word(rng, 1, 1)
        given = word(rng, 1, 2)
        return surname + given if surname[-1] + given[0] not in bank()["pairs"] else name(rng, kind)
    if kind == "town":
        return word(rng) + pick(rng, ("", "", "", "市", "县", "镇"))
    if kind == "post":
        return _post(rng, odd)
    stem = word(rng, 2, 3)
    if kind == "school":
        return stem + pick(rng, known["school_kinds"]) + (f"（{word(rng)}校区）" if odd else "")
    trade, form = pick(rng, list(known["industries"])), pick(rng, known["forms"])
    if odd:
        return pick(rng, (f"{stem}（{word(rng)}）{trade}{form}", f"{stem}{trade}（集团）有限公司", f"{stem}({word(rng)}){trade}{form}",
                          f"{stem}，{word(rng)}{pick(rng, bank()['unions'])}{word(rng)}事务所", f"{stem}{trade}（{word(rng)}，{word(rng)}）{form}"))
    return stem + pick(rng, (trade + form, trade + form, trade, trade + "公司", "集团", "公司", ""))


def _post(rng: random.Random, odd: bool) -> str:
    """A post: of made-up characters, or a known one of a made-up department."""
    department = word(rng) + pick(rng, bank()["departments"])
    post = pick(rng, (word(rng) + pick(rng, bank()["posts"]), department + pick(rng, bank()["posts"]), pick(rng, facts.bank()["titles"])))
    return f"{post}（{department}）" if odd else post


@cache
def patterns(kind: str) -> dict[str, list[str]]:
    """All patterns about a person, company or school by group, those of facts.py among them."""
    known, more = facts.bank()[kind], bank()[kind]
    return {group: known.get(group, []) + more.get(group, []) for group in (*known, *more) if group not in ("ask", *IDLE)}


def sentences(rng: random.Random, record: dict, count: int) -> tuple[list[str], set]:
    """`facts.sentences` with more patterns, before or behind them some that tell nothing about the record."""
    others = {"oldtitle": pick(rng, facts.bank()["titles"]), "othertitle": pick(rng, facts.bank()["titles"]),
              "otherperson": facts.full_name(rng), "othercompany": facts.company_name(rng), "otherschool": facts.school_name(rng),
              "othercity": facts.place(rng)[1]}
    record |= {field: value for field, value in others.items() if field not in record}
    lines, told = facts.sentences(rng, record, count, patterns(record["kind"]))
    called = record | dict.fromkeys("pcs", record[facts.TITLE_FIELD[record["kind"]]])
    for _ in range(pick(rng, BESIDE)):
        line = expand(rng, pick(rng, bank()[record["kind"]][pick(rng, IDLE)]), called, facts.bank())
        lines.insert(pick(rng, (0, len(lines))), line)
    return lines, told


def paragraph(rng: random.Random) -> tuple[str, list[dict], list[set]]:
    """`facts.paragraph` of these sentences with most names replaced, in the text and in the records."""
    text, records, told = facts.paragraph(rng, sentences)
    new: dict[str, str] = {}
    for record in records:
        for field, kind in KINDS.items():
            if field in record and record[field] not in new and rng.random() < REPLACED:
                new[record[field]] = name(rng, kind)
    if not new:
        return text, records, told
    found = re.compile("|".join(map(re.escape, sorted(new, key=len, reverse=True))))
    return (found.sub(lambda match: new[match.group()], text),
            [{field: new.get(value, value) if field in KINDS else value for field, value in record.items()} for record in records], told)


# --- documents ---------------------------------------------------------------------------------------------------

def plain(rng: random.Random) -> str:
    """One or two paragraphs."""
    return "".join(paragraph(rng)[0] for _ in range(pick(rng, (1, 1, 2))))


def ask(rng: random.Random) -> list[dict]:
    """A paragraph with one to three questions."""
    return facts.ask_facts(rng, paragraph)


def swap(rng: random.Random) -> list[dict]:
    """A paragraph with another name put in."""
    return facts.swap(rng, paragraph)


def repeat(rng: random.Random) -> list[dict]:
    """A paragraph, or a row of made-up words, again word for word."""
    text = paragraph(rng)[0] if rng.random() < 0.6 else pick(rng, " 、，").join(word(rng, 1, 4) for _ in range(rng.randint(2, 8)))
    return [turn("user", expand(rng, pick(rng, bank()["repeat"]), {"text": text}, {})), turn("assistant", text)]


def labels(kind: str) -> dict[str, str]:
    """Field -> what a listing calls it."""
    return {field: ask["label"][0] for field, ask in facts.bank()[kind]["ask"].items()} | LABELS


def stated(records: list[dict], told: list[set], text: str) -> list[tuple[str, str, str]]:
    """(whom, what, the value) of all that a text tells and a question of facts.py could ask, in the order in which it stands there."""
    found = []
    for record, fields in zip(records, told):
        whom = record[facts.TITLE_FIELD[record["kind"]]]
        found += [(whom, label, record[field]) for field, label in labels(record["kind"]).items()
                  if field in fields and record[field] in text and whom in text and record[field] != whom]
    return sorted(dict.fromkeys(found), key=lambda one: sorted((text.find(one[0]), text.find(one[2])), reverse=True))


def listing(rng: random.Random) -> list[dict]:
    """All that a paragraph tells, or all of some kinds, one a line."""
    text, records, told = paragraph(rng)
    lines, asked = stated(records, told, text), pick(rng, bank()["list_all"])
    if rng.random() < 0.5 or not lines:
        all_labels = sorted({label for record in records for label in labels(record["kind"]).values()})
        chosen = rng.sample(all_labels, rng.randint(1, 3))
        lines, asked = [line for line in lines if line[1] in chosen], pick(rng, bank()["list_some"])
        asked = expand(rng, asked, {"labels": "、".join(chosen)}, {})
    form = pick(rng, ("{}：{}：{}", "{} | {} | {}", "{}的{}是{}。", "{}——{}——{}", "{1}：{2}（{0}）", "{}，{}，{}"))
    answer = "\n".join(form.format(*line) for line in lines) or pick(rng, bank()["listed_nothing"])
    asked = expand(rng, asked, {}, {})
    return [turn("user", pick(rng, (f"{text}\n{asked}", f"{asked}\n{text}"))), turn("assistant", answer)]


def row(rng: random.Random) -> list[dict]:
    """Made-up words in a row and a question about their order or their characters."""
    words = list(dict.fromkeys(word(rng, 2, 4) for _ in range(rng.randint(3, 8))))
    while len({one[0] for one in words} | {one[-1] for one in words}) < 2 * len(words):  # a first or last character tells the word
        words = [word(rng, 2, 4) for _ in words]
    place, new, sign = rng.randint(0, len(words) - 2), word(rng, 2, 4), pick(rng, ("、", "，", " ", "\n"))
    values = {"text": words, "reversed": words[::-1], "others": words[:place] + words[place + 1 :],
              "swapped": words[:place] + [new] + words[place + 1 :]}
    bound = {slot: sign.join(some) for slot, some in values.items()}
    bound |= {"one": words[place], "next": words[place + 1], "first": words[0], "last": words[-1], "new": new,
              "start": words[place][0], "end": words[place][-1]}
    asked, answer = expand(rng, pick(rng, bank()["row_lines"]).replace("\\n", "\n"), bound, {}).split("=>")
    return [turn("user", asked), turn("assistant", answer)]
