"""Corpus generator: invented people, companies and schools in prose, questions about them, copying, light arithmetic.

`names()` gives every word that names are made of here, so that another data set can be drawn from other names.
"""

import random
from collections.abc import Iterator
from functools import cache

from glmlab.tiny.grammar import expand, load, pick, several

CAPITALS = "石家庄 太原 沈阳 长春 哈尔滨 南京 杭州 合肥 福州 南昌 济南 郑州 武汉 长沙 广州 海口 成都 贵阳 昆明 西安 兰州 西宁".split()
WEEKDAYS = [f"星期{day}" for day in "一二三四五六日"]
NAME_FIELDS = {
    "people": ("name", "founder", "boss", "head", "otherperson"),
    "companies": ("company", "oldcompany", "founded", "cname", "othercompany"),
    "cities": ("home", "fcity", "livecity", "hq", "branch", "scity", "othercity"), "schools": ("school", "sname", "otherschool"),
}
TITLE_FIELD = {"person": "name", "company": "cname", "school": "sname"}


@cache
def bank() -> dict:
    """The phrase bank, with the number slots that no record binds."""
    numbers = {
        "few": range(2, 10), "month": range(1, 13), "amount": range(12, 190), "staff": range(6, 80),
    }
    return load("facts") | {slot: [str(n) for n in span] for slot, span in numbers.items()}


def names() -> dict[str, list[str]]:
    """Words that names are built from: surnames, given names, company stems, school stems."""
    words = bank()
    return {"surnames": words["surnames"], "given": words["men"] + words["women"],
            "companies": words["stems"], "schools": words["school_stems"]}


def documents(rng: random.Random) -> Iterator[str | list[dict]]:
    """Endless documents, about half plain text and half conversations that end with the assistant."""
    makers = (plain_facts, plain_facts, plain_facts, plain_numbers, plain_geography,
              ask_facts, ask_facts, copying, ask_numbers, ask_geography)
    weights = (14, 14, 14, 5, 3, 17, 17, 12, 6, 3)
    while True:
        yield rng.choices(makers, weights)[0](rng)


# ---- records ----------------------------------------------------------------------------------------------------

def full_name(rng: random.Random, given: str = "") -> str:
    """An invented name: surname and one or two characters."""
    words = bank()
    surname, own = pick(rng, words["surnames"]), pick(rng, words[given or pick(rng, ("men", "women"))])
    return surname + own if surname[-1] != own[0] else full_name(rng, given)


def company_name(rng: random.Random, industry: str = "") -> str:
    """An invented company name, with or without its legal form."""
    words = bank()
    stem = pick(rng, words["stems"]) + (industry or pick(rng, list(words["industries"])))
    return stem + pick(rng, words["forms"]) if rng.random() < 0.55 else stem + "公司"


def school_name(rng: random.Random) -> str:
    """An invented school name."""
    return pick(rng, bank()["school_stems"]) + pick(rng, bank()["school_kinds"])


def place(rng: random.Random) -> tuple[str, str]:
    """A real (province, city)."""
    province = pick(rng, list(bank()["provinces"]))
    return province, pick(rng, bank()["provinces"][province])


def person(rng: random.Random) -> dict[str, str]:
    """The facts of one invented person; years are in a possible order."""
    words, sex = bank(), pick(rng, ("men", "women"))
    prov, home = place(rng)
    born = rng.randint(1958, 1998)
    graduated = born + rng.randint(22, 24)
    industry = pick(rng, list(words["industries"]))
    return {
        "kind": "person", "name": full_name(rng, sex), "pronoun": "他" if sex == "men" else "她", "prov": prov,
        "home": home, "born": str(born), "age": str(2025 - born), "graduated": str(graduated),
        "joined": str(min(graduated + rng.randint(0, 15), 2024)), "fyear": str(min(graduated + rng.randint(1, 15), 2024)),
        "school": school_name(rng), "major": pick(rng, words["majors"]), "company": company_name(rng),
        "oldcompany": company_name(rng), "title": pick(rng, words["titles"]),
        "founded": company_name(rng, industry), "fcity": place(rng)[1], "fdoes": pick(rng, words["industries"][industry]["does"]),
        "hobby": pick(rng, words["hobbies"]), "livecity": place(rng)[1], "road": pick(rng, words["roads"]),
    }


def company(rng: random.Random) -> dict[str, str]:
    """The facts of one invented company."""
    words = bank()
    industry = pick(rng, list(words["industries"]))
    does, does2 = rng.sample(words["industries"][industry]["does"], 2)
    hprov, hq = place(rng)
    branch = pick(rng, [city for city in CAPITALS if city != hq])
    year = rng.randint(1985, 2020)
    return {
        "kind": "company", "cname": company_name(rng, industry), "industry": industry, "does": does, "does2": does2,
        "makes": pick(rng, words["industries"][industry]["makes"]), "hprov": hprov, "hq": hq, "branch": branch,
        "founder": full_name(rng), "boss": full_name(rng), "bosstitle": pick(rng, words["titles"][:9]),
        "year": str(year), "year2": str(year + rng.randint(1, 4)), "staff": str(rng.randint(20, 500) * 10),
        "district": pick(rng, words["districts"]), "road": pick(rng, words["roads"]),
    }


def school(rng: random.Random) -> dict[str, str]:
    """The facts of one invented school."""
    words = bank()
    sprov, scity = place(rng)
    return {
        "kind": "school", "sname": school_name(rng), "sprov": sprov, "scity": scity, "head": full_name(rng),
        "syear": str(rng.randint(1920, 2010)), "smajor": pick(rng, words["majors"]), "pupils": str(rng.randint(30, 400) * 100),
        "district": pick(rng, words["districts"]), "road": pick(rng, words["roads"]), "sight": pick(rng, words["sights"]),
    }


def records(rng: random.Random) -> list[dict]:
    """One to three records that share facts: a founder with the company, an employee, a graduate with the school."""
    draw = rng.random()
    if draw < 0.38:
        return [person(rng)]
    if draw < 0.52:
        return [company(rng)]
    if draw < 0.60:
        return [school(rng)]
    if draw < 0.72:
        return [person(rng), person(rng)]
    if draw < 0.86:
        firm, founder = company(rng), person(rng)
        firm |= {"founder": founder["name"]}
        years = sorted((int(firm["year"]), int(founder["graduated"]) + 1))
        firm |= {"year": str(years[1]), "year2": str(years[1] + 2)}
        founder |= {"founded": firm["cname"], "fcity": firm["hq"], "fyear": firm["year"], "fdoes": firm["does"]}
        return [firm, founder]
    if draw < 0.94:
        firm, worker = company(rng), person(rng)
        firm |= {"boss": worker["name"], "year2": worker["joined"]}
        firm["year"] = str(min(int(firm["year"]), int(worker["joined"])))
        return [firm, worker | {"company": firm["cname"], "title": firm["bosstitle"]}]
    place_of_study, graduate = school(rng), person(rng)
    return [place_of_study, graduate | {"school": place_of_study["sname"]}]


# ---- paragraphs -------------------------------------------------------------------------------------------------

def sentences(rng: random.Random, record: dict, count: int, patterns: dict | None = None) -> tuple[list[str], set]:
    """`count` sentences on one record, a pronoun for the name after the first, and the fields they told. patterns: others than the bank's."""
    patterns = patterns or bank()[record["kind"]]
    groups = [group for group in patterns if group != "ask"]
    told, out = set(), []
    name = record[TITLE_FIELD[record["kind"]]]
    short = {"person": record.get("pronoun"), "company": pick(rng, ("该公司", "这家公司", "公司")), "school": "学校"}[record["kind"]]
    order = rng.sample(groups, len(groups))
    if count > 1 and "mixed" in order and rng.random() < 0.6:
        order.remove("mixed")
    for group in order[:count]:
        subject = name if not out or rng.random() < 0.25 else short
        bound = record | {"p": subject, "c": subject, "s": subject}
        line = expand(rng, pick(rng, patterns[group]), bound, bank(), told)
        if out and line.startswith(subject) and rng.random() < 0.12:
            line = pick(rng, bank()["links"]) + line
        out.append(line)
    return out, told


def paragraph(rng: random.Random, write=sentences) -> tuple[str, list[dict], list[set]]:
    """Text on one to three records, the records, and for each the fields that the text tells. write: what makes a record's sentences."""
    chosen = records(rng)
    most = 4 if len(chosen) == 1 else 2
    told, lines = [], []
    for record in chosen:
        some, fields = write(rng, record, rng.randint(1, most))
        lines += some
        told.append(fields)
    return "".join(lines), chosen, told


def plain_facts(rng: random.Random) -> str:
    """A plain paragraph, sometimes two."""
    text = paragraph(rng)[0]
    return text if rng.random() < 0.6 else text + pick(rng, ("\n", "\n\n", "")) + paragraph(rng)[0]


# ---- questions --------------------------------------------------------------------------------------------------

def question(rng: random.Random, text: str, chosen: list[dict], told: list[set]) -> tuple[str, str]:
    """A question about `text` and its answer: a field, the other way round, yes or no, not told, or a list of names."""
    draw = rng.random()
    if draw < 0.2:
        return listing(rng, text, chosen)
    number = int(rng.random() * len(chosen))
    record, fields = chosen[number], told[number]
    asks = bank()[record["kind"]]["ask"]
    known = [field for field in asks if field in fields]
    if not known or draw < 0.27:
        return not_told(rng, text, record, asks)
    field = pick(rng, known)
    ask, bound = asks[field], record
    full = expand(rng, pick(rng, ask["a"]), bound, bank())
    if draw < 0.42 and alone(field, number, chosen):
        return (expand(rng, pick(rng, ask["who"]), bound, bank()),
                pick(rng, (record[TITLE_FIELD[record["kind"]]] + "。", full)))
    if draw < 0.56:
        return yes_or_no(rng, record, field, full)
    answer = full if rng.random() < 0.6 else record[field] + ("年。" if field in ("born", "joined", "year", "syear") else "。")
    return expand(rng, pick(rng, ask["q"]), bound, bank()), answer


def alone(field: str, number: int, chosen: list[dict]) -> bool:
    """True if no other record could also answer the reversed question."""
    value, kind = chosen[number][field], chosen[number]["kind"]
    others = chosen[:number] + chosen[number + 1 :]
    return not any(value in other.values() for other in others if other["kind"] == kind or field == "company")


def not_told(rng: random.Random, text: str, record: dict, asks: dict) -> tuple[str, str]:
    """A question the text does not answer (or, when it tells everything, the list of people)."""
    missing = [field for field in asks if record[field] not in text and field not in ("joined", "boss")]
    if not missing:
        return listing(rng, text, [record])
    field = pick(rng, missing)
    bound = {"who": record[TITLE_FIELD[record["kind"]]], "label": asks[field]["label"][0]}
    return expand(rng, pick(rng, asks[field]["q"]), record, bank()), expand(rng, pick(rng, bank()["absent"]), bound, {})


def yes_or_no(rng: random.Random, record: dict, field: str, full: str) -> tuple[str, str]:
    """Is it so? With the true value or with one from elsewhere."""
    right = rng.random() < 0.5
    value = record[field]
    while not right and value == record[field]:
        value = {"person": person, "company": company, "school": school}[record["kind"]](rng)[field]
    asked = expand(rng, pick(rng, bank()[record["kind"]]["ask"][field]["yn"]), record | {"x": value}, bank())
    return asked, pick(rng, ("是的，", "对，") if right else ("不是，", "不对，")) + full


def listing(rng: random.Random, text: str, chosen: list[dict]) -> tuple[str, str]:
    """All people, companies, cities or schools of the text in their order."""
    what = pick(rng, ("people", "people", "companies", "cities", "schools"))
    found = {record[field] for record in chosen for field in NAME_FIELDS[what] if record.get(field, "\0") in text}
    asked = pick(rng, bank()["listing"][what]["q"])
    if not found:
        return asked, "".join(bank()["listing"][what]["none"])
    return asked, pick(rng, ("、", "、", "，")).join(sorted(found, key=text.index)) + "。"


def turn(role: str, content: str) -> dict:
    """One message."""
    return {"role": role, "content": content}


def ask_facts(rng: random.Random, written=paragraph) -> list[dict]:
    """A paragraph (of the function `written`) with one to three questions: text in the system prompt or in the first user turn."""
    text, chosen, told = written(rng)
    asked = dict(question(rng, text, chosen, told) for _ in range(pick(rng, (1, 1, 1, 2, 2, 3))))
    intro = expand(rng, pick(rng, bank()["readings"]), {}, {})
    messages = []
    if rng.random() < 0.3:
        messages.append(turn("system", intro + "\n" + text))
        text = intro = ""
    for position, (query, answer) in enumerate(asked.items()):
        if position == 0 and text:
            query = pick(rng, (f"{text}\n{query}", f"{query}\n{text}", f"{intro}\n{text}\n{query}", f"{text}{query}"))
        messages += [turn("user", query), turn("assistant", answer)]
    return messages


# ---- copying ----------------------------------------------------------------------------------------------------

def copying(rng: random.Random) -> list[dict]:
    """Repeat, fill a form, replace a name, complete a gap, or shorten: the answer is made of the words of the text."""
    return pick(rng, (repeat, repeat, fill_form, swap, gap))(rng)


def repeat(rng: random.Random) -> list[dict]:
    """The text again, word for word."""
    text = paragraph(rng)[0] if rng.random() < 0.4 else "".join(several(rng, plain_facts(rng).split("。"), 1)).strip() + "。"
    return [turn("user", expand(rng, pick(rng, bank()["repeat"]), {"text": text}, {})), turn("assistant", text)]


def fill_form(rng: random.Random) -> list[dict]:
    """A person's paragraph as one `label：value` a line."""
    record = person(rng)
    lines, told = sentences(rng, record, rng.randint(1, 4))
    text = "".join(lines)
    rows = [("姓名", record["name"])]
    rows += [(label, record[field] if field in told else "未知") for label, field in
             (("工作单位", "company"), ("职务", "title"), ("毕业学校", "school"), ("家乡", "home"))]
    return [turn("user", pick(rng, bank()["form_ask"]) + "\n" + text), turn("assistant", "\n".join(f"{a}：{b}" for a, b in rows))]


def swap(rng: random.Random, written=paragraph) -> list[dict]:
    """The text with another name put in."""
    text, chosen, _ = written(rng)
    old = next((record["name"] for record in chosen if record.get("name", "\0") in text), "")
    if not old:
        return repeat(rng)
    new = full_name(rng)
    asked = expand(rng, pick(rng, bank()["swap_ask"]), {"old": old, "new": new, "text": text}, {})
    return [turn("user", asked), turn("assistant", text.replace(old, new))]


def gap(rng: random.Random) -> list[dict]:
    """A sentence told before is shown again with a gap to fill."""
    record = person(rng)
    line, told = sentences(rng, record, 1)
    fields = [field for field in ("company", "title", "school", "home", "founded", "name") if record[field] in line[0]]
    field = pick(rng, fields or ["name"])
    bare = line[0].replace(record[field], "____", 1)
    asked = expand(rng, pick(rng, bank()["blank_ask"]), {"text": bare}, {})
    return [turn("user", f"{line[0]}\n{asked}"), turn("assistant", record[field])]


# ---- geography and numbers --------------------------------------------------------------------------------------

def geography(rng: random.Random) -> dict[str, str]:
    """Two cities and the capital of a province, and a city of another one."""
    provinces = bank()["provinces"]
    province, far = rng.sample(list(provinces), 2)
    cities = provinces[province]
    city, other = rng.sample(cities[1:], 2)
    return {"prov": province, "cap": cities[0], "city": city, "other": other, "farprov": far, "far": pick(rng, provinces[far])}


def plain_geography(rng: random.Random) -> str:
    """True sentences on provinces and cities."""
    return "".join(expand(rng, pick(rng, bank()["geo"]), geography(rng), bank()) for _ in range(rng.randint(1, 4)))


def ask_geography(rng: random.Random) -> list[dict]:
    """One or two questions on provinces and cities."""
    messages = []
    for _ in range(rng.randint(1, 2)):
        messages += exchange(rng, "geo_ask", bank()["geo_ask"], geography(rng))
    return messages


def exchange(rng: random.Random, key: str, lines: list[str], bound: dict) -> list[dict]:
    """A `question=>answer` line as two messages."""
    asked, answer = expand(rng, pick(rng, lines), bound, bank()).split("=>")
    return [turn("user", asked), turn("assistant", answer)]


def number_facts(rng: random.Random) -> dict[str, str]:
    """Quantities that agree with each other, as text, for all number patterns."""
    good, unit = pick(rng, bank()["goods"]).split("/")
    price, count = rng.randint(1, 20), rng.randint(2, 9)
    purse = price * count + rng.randint(1, 80)
    day, gap_days = rng.randint(1, 18), rng.randint(2, 10)
    start, hours, weekday = rng.randint(7, 16), rng.randint(1, 5), rng.randint(0, 6)
    who = list(dict.fromkeys(full_name(rng) for _ in range(rng.randint(3, 7))))
    a, b = rng.sample(range(12, 95), 2)
    code, code2 = ("".join(pick(rng, "0123456789") for _ in range(rng.randint(4, 11))) for _ in range(2))
    values = {
        "good": good, "unit": unit, "price": price, "count": count, "total": price * count, "purse": purse,
        "rest": purse - price * count, "day": day, "gap": gap_days, "later": day + gap_days, "month": rng.randint(1, 12),
        "start": start, "hours": hours, "end": start + hours, "weekday": WEEKDAYS[weekday],
        "tomorrow": WEEKDAYS[(weekday + 1) % 7], "yesterday": WEEKDAYS[weekday - 1], "event": pick(rng, bank()["events"]),
        "city": place(rng)[1], "names": "、".join(who), "n": len(who), "first": who[0], "last": who[-1],
        "others": "、".join(who[1:]), "reversed": "、".join(who[::-1]), "lines": "\n".join(who), "name": full_name(rng),
        "stranger": next(name for name in iter(lambda: full_name(rng), None) if name not in who),
        "a": a, "b": b, "sum": a + b, "diff": abs(a - b), "big": max(a, b), "small": min(a, b),
        "older": who[0] if a > b else who[-1], "younger": who[-1] if a > b else who[0],
        "code": code, "code2": code2, "firstdigit": code[0], "lastdigit": code[-1], "codelines": f"{code}\n{code2}",
    }
    return {slot: str(value) for slot, value in values.items()}


def plain_numbers(rng: random.Random) -> str:
    """Statements with dates, amounts and counts."""
    kinds = [kind for kind in bank()["numbers"] if not kind.endswith("_ask")]
    return "".join(expand(rng, pick(rng, bank()["numbers"][pick(rng, kinds)]), number_facts(rng), bank())
                   for _ in range(rng.randint(1, 4)))


def ask_numbers(rng: random.Random) -> list[dict]:
    """One or two questions with a computed answer."""
    kinds = [kind for kind in bank()["numbers"] if kind.endswith("_ask")]
    messages = []
    for _ in range(rng.randint(1, 2)):
        kind = pick(rng, kinds)
        messages += exchange(rng, kind, bank()["numbers"][kind], number_facts(rng))
    return messages
