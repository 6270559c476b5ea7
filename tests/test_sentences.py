"""The generated sentences: nothing of val and test in train, shares and lengths of real data, a relation added in one place, the same
files every time."""

import copy
import re
from functools import cache

import pytest

from glmlab import paths, triplet_scores
from glmlab.tasks import sentences, triplets
from glmlab.tasks.sentences import SIZES, SPLITS
from glmlab.tasks.triplets import RELATIONS, Relation, Triple

HELD_OUT = ("val", "test")
#: How all splits say "the company" and "the school"; no pattern.
COMMON = "该公司|这家公司|该校|学校"
ODD = re.compile("[,，()（）]")


@cache
def made(split, count=0):
    return sentences.make(split, count or SIZES[split])


def bare(text):
    """The runs of a text outside names and numbers."""
    words = text.text
    for value in sorted(text.names.values(), key=len, reverse=True):
        words = words.replace(value, "\0")
    return [run for run in re.split(f"\0|[0-9]+|{COMMON}|[，。；：]", words) if run]


def share(found, test):
    return sum(map(test, found)) / len(found)


# --- val and test are unseen -------------------------------------------------------------------------------------

@pytest.mark.parametrize("split", HELD_OUT)
@pytest.mark.parametrize("count", [0, 6000])
def test_no_name_of_val_and_test_stands_in_a_training_text(split, count):
    text = "\n".join(one.text for one in made("train", count))
    assert not {name for one in made(split) for name in one.names.values() if name in text}


def test_val_and_test_share_no_name():
    val, test = ({name for one in made(split) for name in one.names.values()} for split in HELD_OUT)
    assert len(val) > 300 and len(test) > 600 and not val & test


@cache
def patterns(split):
    """{pattern: its place} of a split; a place in the bank belongs to one split only."""
    known = sentences.phrases(split, sentences.bank(), RELATIONS)
    found = {f"{fact.name}/{place}": line for fact in known.facts for place, line in enumerate(fact.lines)}
    return {line: place for place, line in (found | {f"{kind}/{place}": line for kind, listed in known.others.items()
                                                     for place, line in enumerate(listed)}).items()}


def test_every_split_has_patterns_of_its_own_for_every_fact():
    for one in SPLITS:
        for other in SPLITS:
            assert one == other or not patterns(one).keys() & patterns(other).keys()
    assert len(patterns("train")) > 250 and len(patterns("val")) > 100 and len(patterns("test")) > 110
    for split in SPLITS:
        used = {pattern for text in made(split, 3000) for pattern in text.patterns}
        assert used == {place for place in patterns(split).values() if not place.startswith("leads/")}


@pytest.mark.parametrize("split", HELD_OUT)
def test_no_run_of_five_characters_outside_names_stands_in_a_training_text(split):
    train = "\n".join(run for one in made("train", 6000) for run in bare(one))
    runs = {run[start:start + 5] for one in made(split) for run in bare(one) for start in range(len(run) - 4)}
    assert len(runs) > 100 and not {run for run in runs if run in train}


def test_val_and_test_share_no_run_of_six_characters():
    val = "\n".join(run for one in made("val", 1000) for run in bare(one))
    runs = {run[start:start + 6] for one in made("test") for run in bare(one) for start in range(len(run) - 5)}
    assert len(runs) > 60 and not {run for run in runs if run in val}


#: What train says often of the seven relations, in words that val and test say too.
CUES = ("现任 担任 出任 任 是 为 聘 升任 接任 工作 上班 员工 加入 录用 曾 前 原 兼 做 卸任 退休 毕业 母校 学位 创立 创办 创始人 建立 成立 总部 总公司 "
        "位于 坐落 建在 设 就在 开在 的").split()


@pytest.mark.parametrize("split", HELD_OUT)
def test_most_cues_of_val_and_test_are_known_in_other_company(split):
    """What is learnt must be enough to read on, and not quite: a few patterns have words of their own only."""
    lines = [re.sub(r"\{\w+\}", "|", line) for fact in sentences.phrases(split, sentences.bank(), RELATIONS).facts for line in fact.lines]
    assert all(cue in "\n".join(patterns("train")) for cue in CUES)
    assert 0.75 < share(lines, lambda line: any(cue in line for cue in CUES)) < 0.98


def test_the_tiny_bases_have_read_the_characters_of_the_held_out_names():
    folder = paths.ROOT / "glmlab" / "tiny" / "text"
    known = {character for file in sorted(folder.glob("*.yaml")) for character in file.read_text(encoding="utf-8")}
    written = [character for split in HELD_OUT for one in made(split) for name in one.names.values() for character in name]
    assert share(written, known.__contains__) > 0.99


# --- the triples -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("split", SPLITS)
def test_every_triple_is_told_by_a_pattern_and_stands_in_the_text(split):
    facts = sentences.bank()["facts"]
    for one in made(split):
        told = {Triple(one.names[head], relation, one.names[tail]) for pattern in one.patterns if (name := pattern.split("/")[0]) in facts
                for head, relation, tail in (part.split() for part in facts[name]["carries"].split(";"))}
        assert told == set(one.triples) and len(one.triples) == len(told) <= 5
        assert one.triples == triplets.in_order(one.text, one.triples)
        assert all(name in one.text for name in one.names.values())
        assert triplets.parse(triplets.answer(one.triples)) == [triplets.normal(triple) for triple in one.triples]


@pytest.mark.parametrize("split", SPLITS)
def test_a_name_is_one_thing_only(split):
    for one in made(split):
        values = list(one.names.values())
        assert not any(a in b for a in values for b in values if a is not b)
        posts = [triple for triple in one.triples if triple.relation in ("担任", "任职")]
        assert len({(triple.head, triple.tail) for triple in posts}) == len(posts)


@pytest.mark.parametrize("cue, relation", [("担任", "担任"), ("出任", "担任"), ("创立|创办|创始", "创立"), ("毕业", "毕业于"), ("总部", "总部在"), ("加入|工作", "工作于")])
def test_cue_words_alone_decide_nothing(cue, relation):
    """Words of a relation also stand where it does not hold: a former post, a refusal, a plan."""
    with_cue = [one for one in made("train", 6000) if re.search(cue, one.text)]
    assert 0.03 < share(with_cue, lambda one: all(triple.relation != relation for triple in one.triples)) < 0.6


def test_denied_and_planned_relations_carry_no_triple():
    for split in SPLITS:
        only = [one for one in made(split, 3000) if {pattern.split("/")[0] for pattern in one.patterns} <= {"deny", "none", "fill", "firm"}]
        assert len(only) > 150 and all(one.triples == [] for one in only)
        assert sum(any(pattern.startswith("deny/") for pattern in one.patterns) for one in only) > 60
        assert share(made(split, 3000), lambda one: bool(one.triples) and any(p.startswith("deny/") for p in one.patterns)) > 0.1


# --- like real data ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("split", SPLITS)
def test_lengths_and_shares(split):
    found = made(split)
    assert len(found) == {"train": 903, "val": 101, "test": 200}[split] and len({one.text for one in found}) == len(found)
    lengths = sorted(len(one.text) for one in found)
    assert 46 <= lengths[len(lengths) // 2] <= 72 and 105 <= lengths[int(len(lengths) * 0.95)] <= 185 and lengths[-1] <= 300
    assert 0.04 <= share(found, lambda one: not one.triples) <= 0.1
    triples = [triple for one in found for triple in one.triples]
    assert {triple.relation for triple in triples} == set(RELATIONS) and 2 < len(triples) / len(found) < 3
    assert all(sum(triple.relation == relation for triple in triples) >= len(found) // 8 for relation in RELATIONS)
    assert 0.05 <= share(triples, lambda triple: bool(ODD.search(triple.head + triple.tail))) <= 0.11
    assert share(found, lambda one: len({triple.head for triple in one.triples}) < len(one.triples)) > 0.3  # shared subjects
    inverse = [one.text.find(triple.tail) < one.text.find(triple.head) for one in found for triple in one.triples]
    assert sum(inverse) / len(inverse) > 0.2


# --- the same every time -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("split", SPLITS)
def test_the_shipped_files_are_what_the_generator_makes(split):
    file = paths.data(f"triplets/{split}_triplet.jsonl")
    rows = sentences.sentences(made(split))
    assert file.read_text(encoding="utf-8") == triplets.as_lines(rows), "make them again: python -m glmlab sentences"
    assert triplets.read(file) == (rows, [])


def test_more_sentences_begin_with_the_same_ones(tmp_path):
    assert made("train", 6000)[:903] == made("train") and len({one.text for one in made("train", 6000)}) == 6000
    one, two = ({text.text for text in sentences.make("train", 200, seed)} for seed in (1, 2))
    assert not one & two
    written = sentences.write(tmp_path, {"train": 20, "val": 5, "test": 5})
    assert [path.name for path in written] == ["train_triplet.jsonl", "val_triplet.jsonl", "test_triplet.jsonl"]
    assert triplets.read(written[0])[0] == sentences.sentences(made("train"))[:20]
    old = written[0].read_bytes()
    sentences.write(tmp_path, {"train": 10, "val": 5, "test": 5})
    assert sorted(path.name for path in tmp_path.glob("*.bak*")) == ["train_triplet.jsonl.bak"]  # what stays the same needs no copy
    assert (tmp_path / "train_triplet.jsonl.bak").read_bytes() == old


# --- an eighth relation ------------------------------------------------------------------------------------------

def test_a_relation_is_added_by_one_entry_and_its_patterns():
    relations = {**RELATIONS, "获得": Relation("人得了什么奖", "人", "奖项")}
    source = copy.deepcopy(sentences.bank())
    source["facts"]["prize"] = {"carries": "a 获得 w", "weight": 4,
                                "train": "{A}获得{w}\n{w}颁给了{a}\n", "val": "{A}捧回{w}\n", "test": "{w}归{a}\n"}
    source["slots"]["w"] = "prize"
    source["names"]["prize"] = "{stem}奖\n"
    made = sentences.make("train", 200, source=source, relations=relations)
    prizes = [triple for one in made for triple in one.triples if triple.relation == "获得"]
    assert len(prizes) > 15 and all(triple.tail.endswith("奖") for triple in prizes)
    assert any(len(one.triples) > 1 for one in made if any(triple.relation == "获得" for triple in one.triples))  # among the other facts
    assert "\n获得：人得了什么奖\n" in triplets.messages("x", form="relations", relations=relations)[0]["content"]
    truth = [one.triples for one in made]
    said = [triplets.parse(triplets.answer(one.triples), relations) for one in made]
    entry = triplet_scores.score(truth, said, [one.text for one in made], relations, resamples=20)["per_relation"][-1]
    assert entry == {"relation": "获得", "precision": 1, "recall": 1, "f1_score": 1, "support": len(prizes), "predicted": len(prizes)}


def test_a_relation_without_patterns_is_named():
    with pytest.raises(ValueError, match="获得 without a fact in the phrase bank, no relation in the bank but not in RELATIONS"):
        sentences.make("train", 1, relations={**RELATIONS, "获得": Relation("")})
    with pytest.raises(ValueError, match="split 'dev': choose train, val, test"):
        sentences.make("dev", 1)


# --- names that nobody can learn by heart ------------------------------------------------------------------------

def test_wide_names_hold_no_name_of_val_or_test():
    held_out = {name for split, count in (("val", 101), ("test", 200)) for made in sentences.make(split, count) for name in made.names.values()}
    wide = sentences.make("train", 2000, wide=True)
    longer = {name for name in held_out if len(name) > 2}  # 南通 stands in 限南通信 too, where it is no town
    assert not [(name, made.text) for made in wide for name in longer if name in made.text]
    assert not held_out & {name for made in wide for name in made.names.values()}
    assert all(part in made.text for made in wide for triple in made.triples for part in (triple.head, triple.tail))
    people = [triple.head for made in wide for triple in made.triples if triple.relation == "毕业于"]
    assert len(set(people)) > 0.9 * len(people)


def test_wide_names_are_for_train_only():
    assert [made.text for made in sentences.make("train", 20, wide=True)] == [made.text for made in sentences.make("train", 30, wide=True)[:20]]
    with pytest.raises(ValueError, match="wide names are for train"):
        sentences.make("test", 5, wide=True)
