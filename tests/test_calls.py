"""The generated calls: nothing of dev and test in train, the shares and lengths of the real data, the same files every time."""

import csv
import re
from functools import cache

import pytest

from glmlab import paths
from glmlab.tasks import calls, intent
from glmlab.tasks.labels import LABELS

SPLITS = ("train", "dev", "test")
#: Shorter pieces are plain words ("加一个"), which no two texts can avoid sharing.
PIECE = 4
#: Digits: telephone numbers say every short one of them in every split.
DIGITS = ("frame", "slots", "num")


@cache
def phrases(suffix):
    """{place in the bank: phrases} of every list that belongs to one split, for the suffixes train, dev, test, pre."""
    found = {}

    def walk(node, place):
        if isinstance(node, dict):
            for key, value in node.items():
                walk(value, (*place, key))
        elif str(place[-1]).split("_")[-1] == suffix:
            found[place] = node

    walk(calls.bank(), ())
    return found


def pieces(suffix):
    """{what stands between the slots of a phrase, of at least PIECE characters: the place of the phrase}."""
    return {piece: place for place, found in phrases(suffix).items() for phrase in found
            for piece in re.split(r"\{\w+\}", phrase) if len(piece) >= PIECE}


@cache
def shipped(split):
    """The calls of a shipped CSV file, marks left out."""
    return [call.text.replace("[SEP]", "") for call in intent.read(paths.data(f"intent/{split}_new.csv"))[0]]


@pytest.fixture(scope="module")
def made():
    return {split: calls.make(split, calls.SIZES[split]) for split in SPLITS}


# --- dev and test are unseen -------------------------------------------------------------------------------------

def test_the_bank_has_everything_for_every_split():
    kinds = {place[:-1] for place in phrases("train") if place[0] == "frame"}
    for suffix in ("train", "dev", "test", "pre"):
        assert {place[:-1] for place in phrases(suffix) if place[0] == "frame"} == kinds
        assert {place for place in phrases(suffix) if place[0] != "frame"} == {(label,
            f"{kind}_{suffix}") for label in range(34) for kind in "wda"}
        assert all(phrase and len(set(found)) == len(found) for found in phrases(suffix).values() for phrase in found)
    assert sum(map(len, phrases("test").values())) > 400 and len(pieces("test")) > 400


@pytest.mark.parametrize("held_out", ["dev", "test"])
def test_no_phrase_scenario_or_slot_value_is_in_another_list(held_out):
    """In no list of another split as it is; in none of train or of the pre-training text as a part of a longer phrase."""
    for other in {"train", "pre", "dev", "test"} - {held_out}:
        theirs = {phrase: place for place, found in phrases(other).items() for phrase in found}
        text = "\n".join(theirs)
        for place, found in phrases(held_out).items():
            for phrase in found:
                assert phrase not in theirs, f"{phrase!r} of {place} stands in {theirs.get(phrase)} too"
        for piece, place in pieces(held_out).items():
            assert other in ("dev", "test") or piece not in text, f"{piece!r} of {place} stands in a phrase of {other}"


@pytest.mark.parametrize("held_out", ["dev", "test"])
def test_the_shipped_training_calls_hold_nothing_of_dev_and_test(held_out):
    """No piece of a phrase, and no slot value however short, occurs in any training call; digits excepted."""
    text = "\n".join(shipped("train"))
    found = {piece: place for piece, place in pieces(held_out).items() if piece in text}
    values = {place: [value for value in values if value in text] for place,
        values in phrases(held_out).items() if place[:2] == ("frame", "slots")}
    assert not found, f"phrases of {held_out} in training calls: {found}"
    assert not {place: value for place, value in values.items() if value and place[:3] != DIGITS}


@pytest.mark.parametrize("held_out, longest", [("dev", 6), ("test", 7)])
def test_no_long_run_of_a_held_out_phrase_stands_in_a_training_call(held_out, longest):
    """No run of so many characters of a phrase, wherever it begins: reworded phrases share words, but no clause."""
    text = "\n".join(shipped("train"))
    for piece, place in pieces(held_out).items():
        for start in range(len(piece) - longest + 1):
            assert piece[start:start + longest] not in text, f"{piece[start:start + longest]!r} of {piece!r}, {place}"


@pytest.mark.parametrize("split", ["dev", "test"])
def test_the_shipped_held_out_calls_speak_their_own_phrases_only(split):
    text = "\n".join(shipped(split))
    assert not [piece for piece in pieces("train") if piece in text]
    own = re.compile("|".join(map(re.escape, pieces(split))))
    assert all(len(set(own.findall(call))) >= 2 for call in shipped(split))


def test_the_deciding_wish_is_the_last_settled_one(made):
    for call in made["test"]:
        settled = [label for label, done in call["wishes"] if done]
        assert settled[-1] == call["label"]
        assert sum(said in "".join(call["turns"]) for said in call["said"]) == len(call["wishes"])
    several = sum(len(call["wishes"]) > 1 for call in made["test"])
    dropped_last = sum(not call["wishes"][-1][1] for call in made["test"])
    assert several > 600 and 150 < dropped_last < 450  # hard in the way real calls are
    assert all(label != call["label"] for call in made["test"] for label, done in call["wishes"] if not done)


# --- like the real data ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("split", SPLITS)
def test_the_shipped_files_are_what_the_generator_makes(split, made):
    text = paths.data(f"intent/{split}_new.csv").read_text(encoding="utf-8")
    assert text == calls.as_csv(made[split]), f"make them again: python -m glmlab calls ({split})"


def test_the_file_format(made, tmp_path):
    written = calls.write(tmp_path, {split: 60 for split in SPLITS})
    assert [path.name for path in written] == ["train_new.csv", "dev_new.csv", "test_new.csv"]
    raw = written[0].read_bytes()
    assert raw.startswith(b"\xef\xbb\xbfword_mf2,label_raw,c_numerical,num_cnum,sentence_sep\n") and raw.count(b"\xef\xbb\xbf") == 1
    rows = list(csv.DictReader(raw.decode("utf-8-sig").splitlines()))
    assert len(rows) == 60
    for row in rows:
        label = LABELS[int(row["c_numerical"])]
        assert row["label_raw"] == label.name and row["num_cnum"] == str(label.group)
        assert row["sentence_sep"].replace("[SEP]", "") == row["word_mf2"]
        assert re.fullmatch(r"[\u4e00-\u9fffg]+", row["word_mf2"])  # no punctuation, digits, speaker tags; g: 四g
        assert row["word_mf2"].startswith(("您好请讲", "您好很高兴为您服务", "您好请问有什么", "很高兴为您服务"))


@pytest.mark.parametrize("split", SPLITS)
def test_length_and_turns(split, made):
    lengths = sorted(sum(map(len, call["turns"])) for call in made[split])
    turns = [len(call["turns"]) for call in made[split]]
    assert 330 <= sum(lengths) / len(lengths) <= 450  # real: 386
    assert 14 <= sum(turns) / len(turns) <= 18        # real: 16
    assert lengths[0] < 150 and 1500 < lengths[-1] <= 3300


def test_spoken_numbers_are_nobodys(made):
    text = "\n".join("".join(call["turns"]) for call in made["train"])
    numbers = re.findall(r"幺[零幺二三四五六七八九]{10}", text)
    assert len(numbers) > 500 and not re.search(r"[0-9一]\d{2}", text)
    assert all(number[3:6] == "零零零" for number in numbers)


@pytest.mark.parametrize("split", SPLITS)
def test_the_shares_of_the_classes_are_the_real_ones(split, made):
    counts = [0] * len(LABELS)
    for call in made[split]:
        counts[call["label"]] += 1
    assert counts == calls.label_counts(split, calls.SIZES[split]) and min(counts) >= calls.LEAST[split]
    assert calls.LEAST["test"] >= 6
    share = [real / sum(calls.REAL_ROWS) for real in calls.REAL_ROWS]
    for label, count in enumerate(counts):  # rare classes are raised, the others pay for it in proportion
        expected = calls.SIZES[split] * share[label]
        assert count == calls.LEAST[split] or 0.85 * expected - 1 < count < 1.02 * expected + 1, label


def test_the_full_sizes_work():
    for split, n in calls.FULL_SIZES.items():
        counts = calls.label_counts(split, n)
        assert sum(counts) == n and min(counts) >= calls.LEAST[split]
        assert all(abs(count - real * n / 12799) <= 25 for count, real in zip(counts, calls.REAL_ROWS))
    assert len(calls.make("dev", 3200)) == 3200
    with pytest.raises(ValueError, match="33 calls cannot hold all 34 labels: ask for at least 34"):
        calls.label_counts("train", 33)
    assert calls.label_counts("train", 34) == [1] * 34


def test_the_seed_decides_and_no_call_comes_twice(made):
    assert calls.make("train", 200) == calls.make("train", 200)
    one, two = (["".join(call["turns"]) for call in calls.make("train", 200, seed)] for seed in (34, 35))
    assert not set(one) & set(two)
    texts = ["".join(call["turns"]) for split in SPLITS for call in made[split]]
    assert len(set(texts)) == len(texts)


# --- the text the tiny bases are trained on ----------------------------------------------------------------------

@pytest.mark.parametrize("held_out", ["dev", "test"])
def test_the_pretraining_text_holds_no_phrase_of_dev_and_test(held_out):
    """Of 6 characters and more: shorter ones ("是做什么的") are said everywhere."""
    for path in sorted((paths.ROOT / "glmlab" / "tiny" / "text").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        assert not {piece: place for piece, place in pieces(held_out).items() if len(piece) >= 6 and piece in text}, path.name
