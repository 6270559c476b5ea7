"""The course's own sentences for project 2: seeded, made from the phrase bank sentences.yaml, with the triples they tell.

A text is one to three facts about people, companies, schools and sites that share their names, among sentences that tell none.
Names and patterns of val and test occur nowhere else; what they mean (present or former post, seat or place, denied or real) is
said with words that training knows, mostly in other company.
"""

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import cache
from itertools import chain, cycle
from pathlib import Path
from typing import NamedTuple

import yaml

from glmlab.tasks import triplets
from glmlab.tasks.triplets import RELATIONS, Relation, Sentence, Triple, in_order
from glmlab.tiny.grammar import expand, pick

SIZES = {"train": 903, "val": 101, "test": 200}
SEED = 1
#: Share of texts without any triple, of companies, schools and titles with commas or brackets, of texts with a lead such as 据了解.
EMPTY, ODD, LEAD = 0.08, 0.09, 0.3
#: How many facts a text tells, and how many sentences without triples stand among them, with their weights.
FACTS, OTHERS = {1: 38, 2: 40, 3: 22}, {0: 29, 1: 34, 2: 16, 3: 8, 4: 7, 5: 6}
MOST_TRIPLES = 5
#: A character in so many patterns is no part of a made-up name.
COMMON = 3
#: The place modulo 5 of a pair of characters -> the split it belongs to.
PAIR_SPLITS = {0: "train", 1: "train", 2: "train", 3: "val", 4: "test"}
SPLITS = ("train", "val", "test")
#: The slots that are subjects -> the slot whose name they stand for.
SUBJECTS = {"A": "a", "P": "a", "C": "c", "S": "s"}
_SLOT = re.compile(r"\{(\w+)\}")


class Made(NamedTuple):
    """A text with its triples, the patterns it was made of (`fact/place`), and its names by slot."""
    text: str
    triples: list[Triple]
    patterns: list[str]
    names: dict[str, str]


# --- the phrase bank ---------------------------------------------------------------------------------------------

@cache
def bank() -> dict:
    """The phrase bank, as it stands in the file."""
    return yaml.load(Path(__file__).with_name("sentences.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)


class Fact(NamedTuple):
    """What a group of patterns tells: its triples as (slot, relation, slot), and how often it is drawn."""
    name: str
    carries: tuple[Triple, ...]
    weight: float
    lines: tuple[str, ...]


class Phrases(NamedTuple):
    """What one split may draw from."""
    facts: tuple[Fact, ...]
    others: dict[str, tuple[str, ...]]  # leads, fill, deny, none, firm
    kinds: dict[str, str]               # slot -> kind of name
    names: dict[str, tuple[str, ...]]   # kind -> templates
    words: dict[str, list[str]]


def phrases(split: str, source: dict, relations: Mapping[str, Relation]) -> Phrases:
    """The part of a phrase bank that a split may draw from. Errors: ValueError for an unknown split and what the bank lacks."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: choose {', '.join(SPLITS)}")
    facts = tuple(Fact(name, _carried(fact["carries"]), fact.get("weight", 1), tuple(fact[split].splitlines()))
                  for name, fact in source["facts"].items())
    told = {triple.relation for fact in facts for triple in fact.carries}
    if told != set(relations):
        bare, unknown = (", ".join(sorted(found)) or "no relation" for found in (set(relations) - told, told - set(relations)))
        raise ValueError(f"patterns and relations differ: {bare} without a fact in the phrase bank, {unknown} in the bank but not in RELATIONS")
    words = {name: listed.split() for name, listed in (source["words"]["common"] | source["words"][split]).items()}
    words |= {name: _pairs(split, *characters) for name, characters in source["pairs"].items()}
    names = {kind: tuple(lines.splitlines()) for kind, lines in source["names"].items()}
    others = {kind: tuple(source[kind][split].splitlines()) for kind in ("leads", "fill", "deny", "none", "firm")}
    return Phrases(facts, others, source["slots"], names, words)


def _carried(text: str) -> tuple[Triple, ...]:
    return tuple(Triple(*part.split()) for part in text.split(";"))


def _pairs(split: str, first: str, second: str) -> list[str]:
    """The pairs of two lists of characters that belong to a split."""
    return [one + two for i, one in enumerate(first) for j, two in enumerate(second) if PAIR_SPLITS[(i + j) % 5] == split and one != two]


def held_out(source: dict) -> tuple[set[str], set[str]]:
    """What only names of val and test are made of: pairs of characters, and single ones (given names such as 雯)."""
    later = [split for split in SPLITS if split != "train"]
    return ({pair for split in later for pairs in source["pairs"].values() for pair in _pairs(split, *pairs)},
            {name for split in later for name in source["words"][split]["single"].split()})


def widened(known: Phrases, source: dict) -> Phrases:
    """The phrases of train with thousands of made-up words for names, so many that no model can learn them by heart: it must copy.

    A word is any two characters of the bank that stand together nowhere in it; those of val's and test's names are left out too, and
    characters that sentences are made of: of a name such as 把交 nobody could tell where it ends.
    """
    text, (pairs, single) = json.dumps(source, ensure_ascii=False), held_out(source)
    lines = [line for fact in known.facts for line in fact.lines] + [line for lines in known.others.values() for line in lines]
    common = {character for character, count in Counter(chain.from_iterable(map(set, lines))).items() if count >= COMMON}
    characters = sorted({character for character in text if "\u4e00" <= character <= "\u9fff"} - single - common)
    rng, words = random.Random("wide"), dict(known.words)

    def some(count: int, ending: str = "") -> list[str]:
        drawn = ("".join(rng.sample(characters, 2)) for _ in range(2 * count))
        return [pair + rng.choice(ending or [""]) for pair in drawn if pair not in text and pair not in pairs][:count]

    for slot in ("given", "stem", "campus", "ground", "city"):
        words[slot] = words[slot] + some(4000)
    return known._replace(words=words | {"dept": words["dept"] + some(300, "部"), "post": words["post"] + some(300, "师长员官")})


# --- names -------------------------------------------------------------------------------------------------------

def name(rng: random.Random, kind: str, known: Phrases) -> str:
    """A name of a kind; now and then one with a comma or brackets."""
    odd = f"{kind}_odd"
    chosen = known.names[odd if odd in known.names and rng.random() < ODD else kind]
    return expand(rng, pick(rng, chosen), {}, known.words)


def names(rng: random.Random, slots: list[str], known: Phrases) -> dict[str, str]:
    """A name for every slot, none a part of another: a span must be one thing only."""
    while True:
        drawn = {slot: name(rng, known.kinds[slot], known) for slot in slots}
        values = list(drawn.values())
        if not any(one in other for i, one in enumerate(values) for j, other in enumerate(values) if i != j):
            return drawn


# --- one text ----------------------------------------------------------------------------------------------------

def _choose_facts(rng: random.Random, known: Phrases, count: int) -> list[Fact]:
    """Facts that share names, at most MOST_TRIPLES triples, no pair of names twice."""
    chosen: list[Fact] = []
    for _ in range(count):
        told = {(triple.head, triple.tail) for fact in chosen for triple in fact.carries}
        room = MOST_TRIPLES - sum(len(fact.carries) for fact in chosen)
        slots = {slot for pair in told for slot in pair}

        def weight(fact: Fact) -> float:
            own = {(triple.head, triple.tail) for triple in fact.carries}
            if own & told or len(fact.carries) > room:
                return 0
            return fact.weight * (1 if not told or any(slot in slots for pair in own for slot in pair) else 0.15)

        weights = [weight(fact) for fact in known.facts]
        if not any(weights):
            break
        chosen += rng.choices(known.facts, weights)
    return chosen


def _choose_lines(rng: random.Random, known: Phrases, facts: list[Fact]) -> list[tuple[str, str]]:
    """(pattern id, pattern) of the sentences of a text, in their order."""
    lines = [_drawn(rng, fact.name, fact.lines) for fact in facts]
    slots = {slot for fact in facts for triple in fact.carries for slot in triple}
    kinds = ["none"] + ["deny", "fill"] * ("a" in slots or not facts) + ["firm"] * ("c" in slots)
    for _ in range(rng.choices(list(OTHERS), OTHERS.values())[0] if facts else rng.randint(1, 3)):
        kind = pick(rng, kinds)
        line = _drawn(rng, kind, known.others[kind])
        if line not in lines:
            lines.insert(rng.randint(0 if kind in ("none", "deny") else min(1, len(lines)), len(lines)), line)
    return lines


def _drawn(rng: random.Random, group: str, lines: tuple[str, ...]) -> tuple[str, str]:
    place = int(rng.random() * len(lines))
    return f"{group}/{place}", lines[place]


def _mentions(rng: random.Random, line: str, drawn: dict[str, str], seen: dict[str, set], before: str, pronoun: str) -> dict[str, str]:
    """How a line calls its subjects: {A} left out, by pronoun or by name; {P}, {C}, {S} by pronoun or by name.

    Only the one person, company or school that was named so far may go without its name. seen: kind -> slots named so far.
    """
    person, company, school = (drawn.get(slot, "") for slot in "acs")
    alone = seen["person"] == {"a"}
    if alone and before.startswith("{A}") and rng.random() < 0.6:
        subject = ""
    else:
        subject = pronoun if alone and rng.random() < 0.7 else person
    named_here = re.search(r"\{[aA]\}", line) and not re.search(r"\{[bx]\}", line)
    return {"A": subject, "P": pronoun if alone or named_here else person,
            "C": pick(rng, ("该公司", "这家公司", company)) if seen["company"] == {"c"} else company,
            "S": pick(rng, ("该校", "学校", school)) if seen["school"] == {"s"} else school}


def one(rng: random.Random, known: Phrases) -> Made:
    """One text."""
    facts = [] if rng.random() < EMPTY else _choose_facts(rng, known, rng.choices(list(FACTS), FACTS.values())[0])
    lines = _choose_lines(rng, known, facts)
    slots = sorted({SUBJECTS.get(slot, slot) for _, line in lines for slot in _SLOT.findall(line)} & set(known.kinds))
    drawn, pronoun = names(rng, slots, known), pick(rng, "他她")
    text = expand(rng, pick(rng, known.others["leads"]), {}, known.words) if rng.random() < LEAD else ""
    seen: dict[str, set] = defaultdict(set)
    before = ""
    for place, (_, line) in enumerate(lines):
        bound = drawn | _mentions(rng, line, drawn, seen, before, pronoun)
        if place:
            text += "，" if line.startswith("{A}") and not bound["A"] else pick(rng, "。。，；")
        written: set[str] = set()
        text += expand(rng, line, bound, known.words, written)
        for slot in {SUBJECTS.get(slot, slot) for slot in written} & set(drawn):
            seen[known.kinds[slot]].add(slot)
        before = line
    used = {slot: drawn[slot] for slot in slots if slot in set().union(*seen.values())}
    triples = [Triple(drawn[head], relation, drawn[tail]) for fact in facts for head, relation, tail in fact.carries]
    return Made(text + "。", in_order(text, triples), [pattern for pattern, _ in lines], used)


# --- a split -----------------------------------------------------------------------------------------------------

def make(split: str, count: int, seed: int = SEED, source: dict | None = None, relations: Mapping[str, Relation] = RELATIONS,
         wide: bool = False) -> list[Made]:
    """`count` different texts of a split ("train", "val", "test"); the first n of them are what `make` gives for n.

    source: a phrase bank in place of the shipped one, for relations of your own. wide: every second text with names from `widened`, for
    train only.
    Errors: as `phrases`, and ValueError for wide names of another split.
    """
    if wide and split != "train":
        raise ValueError(f"wide names are for train, not for {split}: they would change what is tested")
    known = phrases(split, source or bank(), relations)
    chosen = cycle([known, widened(known, source or bank())] if wide else [known])
    rng, made = random.Random(f"{split}-{seed}"), {}
    while len(made) < count:
        text = one(rng, next(chosen))
        made.setdefault(text.text, text)
    return list(made.values())


def sentences(made: list[Made]) -> list[Sentence]:
    """The texts as rows of the task."""
    return [Sentence(row, one.text, tuple(one.triples)) for row, one in enumerate(made)]


def write(folder: Path, sizes: dict[str, int] = SIZES, seed: int = SEED, wide: bool = False) -> list[Path]:
    """Write train_triplet.jsonl, val_triplet.jsonl and test_triplet.jsonl; returns their paths. wide: train with names from `widened`.

    A different file that stood there is kept, as `triplets.write` does.
    """
    return [triplets.write(Path(folder) / f"{split}_triplet.jsonl", sentences(make(split, count, seed, wide=wide and split == "train")))[0]
            for split, count in sizes.items()]
