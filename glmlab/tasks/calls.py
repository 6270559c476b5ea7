"""The course's own calls: seeded telephone calls in the format of CMCC-34, made from a phrase bank.

A call is a chain of wishes, each settled or given up; the label is the last settled one. Bags of words see every wish,
only a reader sees which one was settled. Customer phrasings, scenarios and slot values of dev and test occur nowhere else.
"""

import csv
import io
import random
from functools import cache
from pathlib import Path

import yaml

from glmlab import paths
from glmlab.tasks.labels import LABELS

SIZES = {"train": 3000, "dev": 600, "test": 1000}
FULL_SIZES = {"train": 12799, "dev": 3200, "test": 4000}
#: At least this many calls of every label, however rare (test: enough for a per-class score to mean something).
LEAST = {"train": 14, "dev": 4, "test": 6}
SEED = 34
HEADER = ("word_mf2", "label_raw", "c_numerical", "num_cnum", "sentence_sep")
SEP = "[SEP]"
#: Which bank suffixes a split may draw from.
BANKS = {"train": ("train",), "dev": ("dev",), "test": ("test",), "pretrain": ("pre",)}
#: How the wishes of a call end (S settled, D dropped) and how often; the label is the last S.
PLANS = {"S": 30, "DS": 24, "SS": 16, "SD": 20, "DSD": 10}
#: Rows of the real training split per label, id 0 to 33: the shares to imitate. Source: two public copies of CMCC-34.
REAL_ROWS = (1961, 1552, 1303, 976, 925, 930, 875, 887, 563, 474, 399, 322, 258, 282, 191, 173, 135, 133, 88, 73, 49, 58,
             40, 29, 21, 34, 15, 20, 16, 5, 5, 5, 1, 1)
ACTS = ("inquiry", "complaint", "request")  # by group 0, 1, 2


# --- the phrase bank ---------------------------------------------------------------------------------------------

@cache
def bank() -> dict:
    """The phrase bank: {"frame": …, label id: {"near": […], "w_train": […], …}} with every phrase list split up."""
    here = Path(__file__).parent
    loaded = {"frame": _split_up(_read(here / "calls_frame.yaml"))}
    for act in ACTS:
        loaded |= _split_up(_read(here / f"calls_{act}.yaml"))
    return loaded


def _read(path: Path) -> dict:
    return yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)


def _split_up(node):
    if isinstance(node, dict):
        return {key: _split_up(value) for key, value in node.items()}
    return [phrase.strip() for phrase in node.split(" | ")] if isinstance(node, str) else node


@cache
def phrases(split: str, *keys) -> tuple[str, ...]:
    """The frame phrases a split may use, e.g. phrases("test", "drop"); common ones where the bank has no splits."""
    node = bank()["frame"]
    for key in keys:
        node = node[key]
    return tuple(node["common"]) if "common" in node else tuple(p for name in BANKS[split] for p in node[name])


@cache
def label_phrases(split: str, label: int, kind: str) -> tuple[str, ...]:
    """The phrases of a label a split may use; kind: w (wish), d (detail), a (how the agent deals with it)."""
    return tuple(p for name in BANKS[split] for p in bank()[label][f"{kind}_{name}"])


# --- one call ----------------------------------------------------------------------------------------------------

class Caller:
    """Draws phrases of one split and fills the slots, the same value for the same slot within a wish."""

    def __init__(self, split: str, rng: random.Random):
        self.split, self.rng, self.slots = split, rng, {}

    def new_topic(self):
        self.slots = {}

    def frame(self, *keys) -> tuple[str, ...]:
        """The frame phrases to draw from."""
        return phrases(self.split, *keys)

    def phrases_of(self, label: int, kind: str) -> tuple[str, ...]:
        """The phrases of a label to draw from."""
        return label_phrases(self.split, label, kind)

    def say(self, *keys) -> str:
        return self.fill(self.rng.choice(self.frame(*keys)))

    def of(self, label: int, kind: str) -> str:
        return self.fill(self.rng.choice(self.phrases_of(label, kind)))

    def fill(self, phrase: str) -> str:
        if "{" not in phrase:
            return phrase
        for name in ("pkg", "biz", "amt", "date", "place", "num", "phone"):
            if "{" + name + "}" in phrase:
                if name not in self.slots:
                    self.slots[name] = spoken_number(self.rng) if name == "phone" else self.say("slots", name)
                phrase = phrase.replace("{" + name + "}", self.slots[name])
        return phrase


def spoken_number(rng: random.Random) -> str:
    """A mobile number as it is spoken, 1 as 幺; the fourth to sixth digits are 000, which no operator gives out."""
    digits = "1" + rng.choice("3578") + rng.choice("0123456789") + "000" + "".join(rng.choices("0123456789", k=5))
    return digits.translate(str.maketrans("0123456789", "零幺二三四五六七八九"))


def _wish(caller: Caller, label: int, opening: str) -> tuple[list[str], str]:
    """The turns that raise a wish (customer, then agent and customer in turn), and the wish itself in the customer's words."""
    rng = caller.rng
    caller.new_topic()
    lead = caller.say("lead", ACTS[LABELS[label].group]) if rng.random() < 0.7 else ""
    why = caller.say("why") if rng.random() < 0.35 else ""
    wording = caller.of(label, "w")
    text = opening + why + lead + _stutter(caller, wording)
    if rng.random() < 0.15:
        text += caller.of(label, "w")
    turns = [text]
    if rng.random() < 0.35:
        a, b = rng.sample(caller.frame("acts"), 2)
        turns += [caller.say("clarify").format(a=a, b=b), caller.of(label, "d")]
    return turns, wording


def _stutter(caller: Caller, text: str) -> str:
    """Hesitation and doubled words, as a recogniser writes them down."""
    rng = caller.rng
    if rng.random() < 0.3:
        text = caller.say("hesitate") + text
    if rng.random() < 0.12:
        cut = rng.randrange(1, 4)
        text = text[:cut] + text
    return text


def _settle(caller: Caller, label: int) -> list[str]:
    """Agent and customer turns in which the wish is dealt with, the customer's last."""
    rng, turns = caller.rng, []
    if rng.random() < 0.6:
        number = spoken_number(rng) if rng.random() < 0.5 else caller.say("ack")
        turns += [caller.say("ask_number"), number]
    for _ in range(rng.choice((0, 1, 1, 2))):
        turns += [caller.say("wait") if rng.random() < 0.5 else _echo(caller, label), caller.of(label, "d")]
    if rng.random() < 0.3:
        turns += [caller.say("wait"), caller.say("smalltalk")]
    handle = caller.say(f"handle_{ACTS[LABELS[label].group]}")
    return [*turns, handle + caller.of(label, "a"), caller.say("settled")]


def _echo(caller: Caller, label: int) -> str:
    """The agent repeats what was said, in the words of the customer."""
    return "您是说" + caller.of(label, "w") + "是吧"


def _give_up(caller: Caller, label: int) -> list[str]:
    """Agent and customer turns in which the wish comes to nothing, the customer's last."""
    rng, turns = caller.rng, []
    if rng.random() < 0.5:
        turns += [_echo(caller, label), caller.of(label, "d")]
    if rng.random() < 0.3:
        turns += [caller.say("wait"), caller.say("ack")]
    if rng.random() < 0.3:
        turns += [caller.say("offer"), caller.say("decline")]
    return [*turns, caller.say("refuse"), caller.say("drop")]


def one_call(caller: Caller, label: int, plan: str = "") -> dict:
    """One call: {"turns": [str], "label": int, "wishes": [(label, settled)], "said": [wording of each wish]}, agent first,
    speakers alternating."""
    rng = caller.rng
    plan = plan or rng.choices(list(PLANS), PLANS.values())[0]
    deciding = plan.rindex("S")
    turns, wishes, said = [caller.say("greeting")], [], []
    for place, ending in enumerate(plan):
        about = label if place == deciding else _distractor(label, rng)
        opening = ""
        if place:
            opening = caller.say("more" if place > deciding else "switch")
        raised, wording = _wish(caller, about, opening)
        if place:  # the customer goes on speaking in the turn that ended the wish before
            turns[-1] += raised.pop(0)
        turns += raised
        turns += _settle(caller, about) if ending == "S" else _give_up(caller, about)
        wishes.append((about, ending == "S"))
        said.append(wording)
    if rng.random() < 0.45:
        turns += [caller.say("offer"), caller.say("decline")]
    if rng.random() < 0.8:
        turns += [caller.say("anything_else"), caller.say("no_more")]
    turns.append(caller.say("closing"))
    return {"turns": _lengthen(caller, turns), "label": label, "wishes": wishes, "said": said}


def _distractor(label: int, rng: random.Random) -> int:
    """A label the call is not about: a near neighbour, sometimes any other."""
    if rng.random() < 0.75:
        return rng.choice(bank()[label]["near"])
    return rng.choice([other.id for other in LABELS if other.id != label])


def _lengthen(caller: Caller, turns: list[str]) -> list[str]:
    """Talk as long as the real one: stock talk inside the turns, and a few calls that wait and chat for a long time."""
    rng = caller.rng
    said: set[str] = set()

    def more(key: str) -> str:
        text = caller.say(key)
        while text in said and rng.random() < 0.9:
            text = caller.say(key)
        said.add(text)
        return text

    for place in range(1, len(turns) - 1):
        for _ in range(rng.choices((0, 1, 2), (0.33, 0.51, 0.16))[0]):
            extra = more("customer_more" if place % 2 else "agent_more")
            # before or after: what matters stands in no fixed place of a turn
            turns[place] = turns[place] + extra if rng.random() < 0.6 else extra + turns[place]
    idle = []
    for _ in range(min(int(rng.paretovariate(1.3)) - 1 if rng.random() < 0.35 else 0, 50)):
        idle += [more("wait") + (more("agent_more") if rng.random() < 0.7 else ""),
                 more(rng.choice(("smalltalk", "why", "customer_more")))]
    at = rng.randrange(2, len(turns) - 1, 2)
    return turns[:at] + idle + turns[at:]


# --- a split -----------------------------------------------------------------------------------------------------

def label_counts(split: str, n: int) -> list[int]:
    """Calls a label, id 0 to 33: the real shares, but never fewer than `LEAST`. Errors: ValueError when n is too small."""
    least = min(LEAST[split], n // len(LABELS))
    if least == 0:
        raise ValueError(f"{n} calls cannot hold all {len(LABELS)} labels: ask for at least {len(LABELS)}")
    total = sum(REAL_ROWS)
    counts = [max(least, round(n * rows / total)) for rows in REAL_ROWS]
    while sum(counts) != n:  # take from, or give to, the label whose share allows it best
        step = 1 if sum(counts) < n else -1
        ratio = [counts[i] / REAL_ROWS[i] if counts[i] > least or step > 0 else -1 for i in range(len(counts))]
        counts[ratio.index(min(ratio) if step > 0 else max(ratio))] += step
    return counts


def make(split: str, n: int, seed: int = SEED) -> list[dict]:
    """n calls of a split ("train", "dev", "test") in random order, no two alike; each as `one_call` returns it."""
    rng = random.Random(f"{split}-{seed}")
    labels = [label for label, count in enumerate(label_counts(split, n)) for _ in range(count)]
    rng.shuffle(labels)
    calls, seen = [], set()
    for label in labels:
        call = one_call(Caller(split, rng), label)
        while (text := SEP.join(call["turns"])) in seen:
            call = one_call(Caller(split, rng), label)
        seen.add(text)
        calls.append(call)
    return calls


def as_csv(calls: list[dict]) -> str:
    """The text of a CSV file in the real format: BOM, header, one call a row."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEADER)
    for call in calls:
        label = LABELS[call["label"]]
        writer.writerow(("".join(call["turns"]), label.name, label.id, label.group, SEP.join(call["turns"])))
    return "\ufeff" + out.getvalue()


def write(folder: Path, sizes: dict[str, int] = SIZES, seed: int = SEED) -> list[Path]:
    """Write train_new.csv, dev_new.csv and test_new.csv; returns their paths."""
    written = []
    for split, n in sizes.items():
        path = Path(folder) / f"{split}_new.csv"
        paths.write_text(path, as_csv(make(split, n, seed)))
        written.append(path)
    return written
