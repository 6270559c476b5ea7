"""What a model has to beat in project 2: hand-written rules, written from training sentences only.

Names are found by suffix, word list and what stands around them, relations by cue words clause by clause; subjects are carried on.
"""

import re
from functools import cache

from glmlab.tasks import sentences
from glmlab.tasks.triplets import Triple, in_order

#: Words that cannot stand in a name, so that they end one; from the training sentences, as all lists here.
_CUES = """创立 创办 创始人 建立 成立 办起 加入 入职 进入 进了 离开 担任 出任 升任 接任 兼任 曾任 现任 原任 任命 聘请 聘任 录用 选举 辞职 观看 路过 毕业生 供职 就职 任职 受聘 卸任
辞去 毕业 培养 参观 拜访 拒绝 婉拒 接受 赞助 捐赠 起诉 位于 坐落 地处 设在 设于 选址 总部 总公司 走进 获悉 介绍说 身为 作为 来自 负责 获得 取得 拿到 现为 如今
目前 眼下 现在 去年 昨天 今年 曾经 不再 此前 早年 后来 不久 随后 同时 还 已 曾 先 新任 宣布 董事会 员工 前几天 平时 上周""".split()
_CUE = re.compile("|".join(sorted(_CUES, key=len, reverse=True)))
_DENIED = re.compile("拒|并未|没有|没能|从未|考虑|本想|打算|计划|传闻|不是|并非|想请|差点|竞聘|否认|只听过|报考|正在招聘|不在")
_DENIED_LATER = re.compile("误传|否认|回绝|没有去|未能|放弃")
_FORMER = re.compile(r"曾|原|(?<![目之])前|此前|做过|当过|当(?!选)|做|先|退休|早年|卸任|辞去|兼|不再|过去|离开|年至")
_FOUND = re.compile("创立|创办|创始人|办起|建立|成立|一手")
_STUDY = re.compile("毕业|母校|学位|研究生|学业|培养")
_WORK = re.compile("工作|任职|供职|就职|员工|加入|入职|上班|录用|进了")
_SEAT = re.compile("总部|总公司|^而在")
#: A unit that is somewhere: characters of sites, schools and companies before, of places behind the words.
_PLACED = re.compile("(?:[\ue000-\uebff]|公司|校)(?:的?校园|的办公楼)?就?(?:位于|坐落在|地处|建在|设在|选址|开在|在)[\uf000-\uf3ff]"
                     "|^位于[\uf000-\uf3ff]的|^[\uf000-\uf3ff](?:的[\ue000-\uebff]|有一)")
_TOGETHER = re.compile("和|与|、|同|都|两位")
#: Kind of span -> the private characters that stand for its spans in a tagged text.
_KINDS = {"site": 0xE000, "school": 0xE400, "company": 0xE800, "title": 0xEC00, "place": 0xF000, "person": 0xF400}
_SIZE = 0x400


@cache
def _finders() -> dict[str, re.Pattern]:
    """One expression a kind of name, in the order in which names are looked for: by suffix, by word list, by what stands around."""
    words = sentences.bank()["words"]
    common, own = words["common"], words["train"]
    trade, cities, surnames, roles = ("|".join(text.split()) for text in (common["trade"], own["city"], common["surname"], common["role"]))
    sites, schools = "|".join(common["sitekind"].split()), "大学|学院"
    inside = "(?:[（(][^（）()]*[）)])?"
    small = "在是的和与于由从为任被把将自也都又很同了对给聘"  # words of one character that may touch a person's name
    own_name = f"(?:(?![{small}])[\u4e00-\u9fff])"
    free = "(?:(?![了在是的由从于和与把对为被至给到向以将其他她该这那任年月])[\u4e00-\u9fff])"
    rank = f"(?:(?![原前过当聘做])(?!会议){free})"
    forms = "股份有限公司|有限责任公司|有限公司|集团|公司"
    area = "(?:市|高新区|开发区|新城区|老城区|工业园)?"
    post = (f"(?:副?董事长|副?总经理|首席{rank}{{2,3}}官|副?总裁|秘书长|院长|法律顾问|总?{rank}{{1,4}}师|[A-Z]{{3}}|"
            f"{rank}{{1,4}}?(?:{roles}))")
    return {name: re.compile(pattern) for name, pattern in {
        "site": f"{free}{{2,8}}?(?:{sites})",
        "school": f"{free}{{2,7}}?(?:{schools}){inside}",
        "company": (f"{free}{{2}}，{free}{{2}}与{free}{{2}}事务所|[A-Z][a-z]+, Inc\\.|"
                    f"{free}{{2,8}}?{inside}(?:{trade}){inside}(?:{forms})?|{free}{{2,4}}集团"),
        "title": f"{post}(?:兼{post})?{inside}",
        "place": f"(?:{cities}){area}|(?:(?<=位于\x02|地处\x02|选址\x02|设在\x02|设于\x02|总部\x02)|(?<=[^正现][在到])){free}{{2,3}}{area}(?=[，。；的）)]|$)",
        "person": f"(?<!\x01)(?<!{own_name})(?:{surnames})(?:{own_name}{{1,2}}(?!{own_name})|{own_name}{{2}})",
    }.items()}


def _tagged(text: str) -> tuple[str, dict[str, str]]:
    """The text with one private character in place of every name found, and {character: name}."""
    text = _CUE.sub(lambda found: f"\x01{found[0]}\x02", text)
    names: dict[str, str] = {}
    for kind, finder in _finders().items():
        def tag(found: re.Match, first: int = _KINDS[kind]) -> str:
            character = chr(first + len(names) % _SIZE)
            names[character] = found[0]
            return character
        text = finder.sub(tag, text)
    return re.sub("[\x01\x02]", "", text), names


def _of_kind(kind: str, tagged: str) -> list[str]:
    first = _KINDS[kind]
    return [character for character in tagged if first <= ord(character) < first + _SIZE]


def pattern_matcher(texts: list[str]) -> list[list[Triple]]:
    """What hand-written rules find: names by suffix and word list, relations by cue words clause by clause, subjects carried on.

    Written from training sentences only, for the seven relations of the course; refusals, plans and rumours are left out as there.
    """
    return [_by_rules(text) for text in texts]


def _by_rules(text: str) -> list[Triple]:
    tagged, names = _tagged(text)
    clauses = re.split("[，。；]", tagged)
    found: list[tuple[str, str, str]] = []
    people: list[str] = []
    last: dict[str, list[str]] = {"company": [], "school": [], "place": []}
    for clause, later in zip(clauses, [*clauses[1:], ""]):
        own = _of_kind("person", clause)
        ahead = _of_kind("person", later) if re.match("从|作为|身为", clause) else []
        actors = own or ahead or people
        if not (_DENIED.search(clause) or _DENIED_LATER.search(later)):
            found += _clause_triples(clause, actors, last)
        people = own[:1] or people
        for kind in last:
            last[kind] = _of_kind(kind, clause) or last[kind]
    spelt = [Triple(names[head], relation, names[tail]) for head, relation, tail in found]
    return in_order(text, spelt)


def _clause_triples(clause: str, actors: list[str], last: dict[str, list[str]]) -> list[tuple[str, str, str]]:
    """The triples of one clause over the characters that stand for names; last: the names of other kinds in the clauses before."""
    companies, schools, places = (_of_kind(kind, clause) for kind in ("company", "school", "place"))
    several = actors if _TOGETHER.search(clause) else actors[:1]
    found = []
    if schools and _STUDY.search(clause):
        found += [(person, "毕业于", schools[0]) for person in several]
    if companies and _FOUND.search(clause):
        found += [(person, "创立", companies[-1]) for person in several]
    titles = _of_kind("title", clause)
    found += _posts(clause, titles, actors, companies or (last["company"] if re.match("并|任|担任|职务|职位|现", clause) else []))
    if companies and not titles and _WORK.search(clause):
        found += [(person, "工作于", companies[-1]) for person in actors[:1]]
    if (seats := places or last["place"] if _SEAT.search(clause) else []):
        found += [(company, "总部在", seats[-1]) for company in (companies or last["company"])[:1]]
    elif places and _PLACED.search(clause):
        subjects = _of_kind("site", clause) or schools or companies or last["school" if "校" in clause else "company"]
        found += [(subject, "位于", places[0]) for subject in subjects[:1]]
    return found


def _posts(clause: str, titles: list[str], actors: list[str], companies: list[str]) -> list[tuple[str, str, str]]:
    """担任 or 任职 for every post of a clause, and 工作于 for the unit it belongs to."""
    found, start = [], 0
    for title in titles:
        at = clause.index(title)
        before, after = clause[start:at], clause[at + 1:]
        person = next((one for one in _of_kind("person", after[:5])[:1] if re.match(f"(?:是|叫|一职由|也?由|){one}", after)), None)
        person = person or next(reversed(_of_kind("person", clause[:at])), None) or next(iter(actors), None)
        if person is None:
            continue
        units = _of_kind("company", clause[:at])
        unit = (units[0] if re.search("任命|聘", clause) and before.endswith("为") else units[-1]) if units else next(iter(companies), None)
        found += [(person, "工作于", unit)] if unit else []
        former = _FORMER.search(before) or re.match(".{0,4}(?:退休|任上|岗位|位置)", after)
        found.append((person, "任职" if former else "担任", title))
        start = at + 1
    return found
