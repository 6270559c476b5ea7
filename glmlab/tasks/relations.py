"""The relations of project 2, triples, and their written form: triples -> answer -> triples.

Names may hold commas and brackets: the parser goes by the relations, which stand alone between two separators.
"""

import re
import unicodedata
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple


class Triple(NamedTuple):
    """(主体, 关系, 客体): two spans of a sentence and the relation between them."""
    head: str
    relation: str
    tail: str


class Relation(NamedTuple):
    """What a relation means, in one line, and the kinds of its head and tail."""
    description: str
    head: str = "名称"
    tail: str = "名称"


#: The relations of the course. A new one needs an entry here and a pattern in sentences.yaml; prompt, parser and scores follow.
#: A run keeps the names of those it was trained on.
#: A post is 担任 or 任职 but never both, a place 位于 or 总部在; a unit as tail of a person is 工作于, whatever verb the text uses.
RELATIONS = {
    "工作于": Relation("人在哪个单位做事，现在、从前、兼职都算；只创办不算", "人", "单位"),
    "担任": Relation("人现在的本职职位", "人", "职位"),
    "位于": Relation("单位、学校或设施在什么地方，没有说是总部", "单位、学校或设施", "地点"),
    "毕业于": Relation("人从哪所学校毕业，没有毕业的不算", "人", "学校"),
    "创立": Relation("人独自或与人一起创办了哪个单位", "人", "单位"),
    "总部在": Relation("单位的总部或总公司在什么地方", "单位", "地点"),
    "任职": Relation("人从前的职位，或兼任的职位", "人", "职位"),
}


# --- triples -> an answer ----------------------------------------------------------------------------------------

#: The answer for a text without triples.
NONE = "无"


def answer(triples) -> str:
    """The answer to learn: one `(主体, 关系, 客体)` a line, `无` for none. Errors: ValueError for an empty name or a line break in one."""
    for triple in triples:
        if not all(part.strip() for part in triple) or len(("".join(triple) + ".").splitlines()) != 1:
            raise ValueError(f"{tuple(triple)} cannot be written as one line: a part of it is empty or holds a line break")
    return "\n".join(f"({', '.join(triple)})" for triple in triples) or NONE


def in_order(text: str, triples) -> list[Triple]:
    """The triples in order of mention, each once: by where in the text both head and tail have been named, then by the earlier of them."""
    def place(triple: Triple) -> list[int]:
        return sorted((text.find(triple.head), text.find(triple.tail)), reverse=True)
    return sorted(dict.fromkeys(triples), key=place)


# --- an answer -> its triples ------------------------------------------------------------------------------------

_ALIKE = str.maketrans("“”„‟‘’‚‛•・∙⋅", "\"\"\"\"''''····")
_BLANK = re.compile(r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9])")


def normalise(text: str) -> str:
    """A span as it is compared: full-width forms as ASCII (NFKC), one kind of quotation mark, blanks only between Latin words or digits.

    ChatGLM-6B writes half-width punctuation for full-width, so truth and answer must both pass through here.
    """
    return _BLANK.sub("", " ".join(unicodedata.normalize("NFKC", text).translate(_ALIKE).split()))


def normal(triple) -> Triple:
    """A triple as it is compared: parts normalised, without quotation marks around a whole one, which answers may add or leave out."""
    return Triple(*(_unquoted(normalise(part)) for part in triple))


def _unquoted(part: str) -> str:
    while len(part) > 2 and part[0] == part[-1] and part[0] in "\"'" and part[0] not in part[1:-1]:
        part = part[1:-1]
    return part


def in_text(span: str, text: str) -> bool:
    """Whether a span stands in the text, both normalised."""
    return normalise(span) in normalise(text)


_NOTHING = re.compile(r"(答案?:)?[(\[]*(文[本中]|句[子中]|原文|这[段句]话)?[里中]?(无|没有|未发现|不存在|不包含|不含|空|none|null)"
                      r"(任何|相关|明确|可抽取)?的?(三元组|关系)?[)\].。!,]*|\[\]|\(\)", re.IGNORECASE)
_NUMBERING = re.compile(r"\s*(?:[-*+·>]+\s*|\(\d{1,3}\)\s*|\d{1,3}\s*[.、:)](?!\d)\s*)*")
_CLOSING = re.compile(r"[\s。.;,、!]+$")
_PAIRS = {"(": ")", "[": "]", "<": ">", "{": "}", "【": "】"}


@cache
def _anchor(names: tuple[str, ...]) -> re.Pattern:
    """A known relation that stands alone between two separators."""
    known = "|".join(re.escape(normalise(name)) for name in sorted(names, key=len, reverse=True))
    return re.compile(rf"\s*[,;、|]\s*[\"']?({known})[\"']?\s*[,;、|]\s*")


def parse(text: str, relations: Mapping[str, Relation] = RELATIONS) -> list[Triple] | None:
    """The triples of an answer, normalised, in its order, each once; [] for `无` or an empty answer, None when none can be read.

    A triple is found by its relation (separator, relation, separator) and ends at the brackets around it, so that commas and
    brackets inside a name do no harm. The limit: a name whose brackets do not match is read right only alone on its line, where it
    makes the brackets of the line unequal. Numbering, bullets, prose, full-width forms, missing outer brackets are taken. A line that
    is one pair of brackets with two commas but an unknown relation counts too: an invented relation is a wrong answer, not none.
    """
    plain = unicodedata.normalize("NFKC", text).translate(_ALIKE)
    bare = "".join(plain.split())
    if not bare or _NOTHING.fullmatch(bare):
        return []
    found = [triple for line in plain.splitlines() for triple in _line_triples(line, _anchor(tuple(relations)))]
    clean = map(normal, found)
    return list(dict.fromkeys(triple for triple in clean if all(triple))) or None


def _line_triples(line: str, anchor: re.Pattern) -> list[tuple]:
    line = _CLOSING.sub("", line[_NUMBERING.match(line).end():])
    anchors = list(anchor.finditer(line))
    wrapped = len(line) > 2 and _PAIRS.get(line[0]) == line[-1]
    if not anchors:
        parts = line[1:-1].split(",") if wrapped else []
        return [tuple(parts)] if len(parts) == 3 else []
    if wrapped and len(anchors) == 1 and _is_one_group(line):
        return [(line[1:anchors[0].start()], anchors[0][1], line[anchors[0].end():-1])]
    if len(anchors) > 1 and not re.search(r"[(\[]", line):
        return [triple for piece in re.split("[;。]", line) for triple in _scan(piece, list(anchor.finditer(piece)))]
    return _scan(line, anchors)


def _is_one_group(line: str) -> bool:
    """Whether the last bracket of a line closes its first, or the brackets do not match at all, which is then a name's own affair."""
    opening, closing = line[0], line[-1]
    if line.count(opening) != line.count(closing):
        return True
    depth = 0
    for place, character in enumerate(line):
        depth += (character == opening) - (character == closing)
        if depth <= 0:
            return place == len(line) - 1
    return False


def _scan(line: str, anchors: list) -> list[tuple]:
    """The triples of a line with words around them: from each relation outwards to the first bracket that is not a name's own."""
    found, start = [], 0
    for number, anchor in enumerate(anchors):
        if anchor.start() < start:  # inside the tail of the triple before
            continue
        limit = anchors[number + 1].start() if number + 1 < len(anchors) else len(line)
        opened = _outwards(line, range(anchor.start() - 1, start - 1, -1), ")]】", "([【")
        closed = _outwards(line, range(anchor.end(), limit), "([【", ")]】")
        head = line[start if opened is None else opened + 1:anchor.start()]
        end = limit if closed is None else closed
        found.append((head, anchor[1], line[anchor.end():end]))
        start = end + 1
    return found


def _outwards(line: str, places: range, deeper: str, outer: str) -> int | None:
    """The first place whose bracket has no partner on the way; None where every bracket has one."""
    depth = 0
    for place in places:
        if line[place] in outer:
            if depth == 0:
                return place
            depth -= 1
        depth += line[place] in deeper
    return None


def restore(text: str, triples: list[Triple]) -> list[Triple]:
    """The triples with head and tail as the text writes them (`（` where the answer has `(`); what is not in the text stays as it is."""
    plain, places = [], []
    for place, character in enumerate(text):
        for part in unicodedata.normalize("NFKC", character).translate(_ALIKE):
            if not part.isspace():
                plain.append(part)
                places.append(place)
    plain = "".join(plain)

    def original(span: str) -> str:
        bare = "".join(normalise(span).split())
        start = plain.find(bare) if bare else -1
        return span if start < 0 else text[places[start]:places[start + len(bare) - 1] + 1]

    return [Triple(original(triple.head), triple.relation, original(triple.tail)) for triple in triples]
