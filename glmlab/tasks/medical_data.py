"""The course's own medical questions: text/medical_<department>.yaml -> audit, near-duplicates, splits, CSV; and the retention set.

The questions and answers were written for the course. Near-duplicates leave before the split, and what is similar stays in one split:
else a nearest neighbour would answer the test questions by heart.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from glmlab import paths
from glmlab.tasks import medical, rows
from glmlab.tasks.medical import Question
from glmlab.tasks.rows import Problem

#: Name of the file -> department, in the order of the data.
DEPARTMENTS = {"neike_xinxueguan": "心血管内科", "huxi": "呼吸内科", "xiaohua": "消化内科", "neifenmi": "内分泌科", "shenjing": "神经内科",
               "erke": "儿科", "fuchan": "妇产科", "pifu": "皮肤科", "guke": "骨科", "jizhen": "急诊科"}
SHARES = {"train": 0.75, "dev": 0.10, "test": 0.15}
SEED = 3
#: Cosine of the character n-grams of two questions from which they are the same (one leaves), or similar (one split). In the shipped set
#: pairs above 0.3 describe the same case in other words, those below only the same illness.
SAME, SIMILAR = 0.8, 0.3
KEYS = ("title", "ask", "answer")


@dataclass(frozen=True)
class Entry:
    """A question with the place where it is written."""
    file: str
    line: int
    question: Question


# --- the YAML files ----------------------------------------------------------------------------------------------

def entries(folder: Path = medical.TEXT) -> list[Question]:
    """The questions of all departments whose file is there; row counts through them.

    Errors: ValueError with file and line for whatever is not {department, entries: [{title, ask, answer}, …]}; FileNotFoundError if
    there is no file at all.
    """
    return [entry.question for entry in _load(folder)]


def retention() -> list[Question]:
    """Forty short questions outside medicine with their answers; department is the kind (shop, telecom, facts, prose, arithmetic, copy)."""
    import yaml
    found = yaml.load((medical.TEXT / "retention.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)
    return [Question(row, entry["ask"], "", entry["answer"], entry["kind"]) for row, entry in enumerate(found)]


def _load(folder: Path) -> list[Entry]:
    files = [Path(folder) / f"medical_{name}.yaml" for name in DEPARTMENTS]
    found = [(file, department) for file, department in zip(files, DEPARTMENTS.values()) if file.exists()]
    if not found:
        raise FileNotFoundError(f"no questions in {paths.shown(folder)}: needed are files such as {files[0].name}")
    loaded: list[Entry] = []
    for file, department in found:
        for line, entry in _entries(file, department):
            loaded.append(Entry(paths.shown(file), line, Question(len(loaded), *(entry[key] for key in KEYS), department)))
    return loaded


def _entries(file: Path, department: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, {title, ask, answer}) of the entries of a file."""
    import yaml
    name = paths.shown(file)
    try:
        root = yaml.compose(file.read_text(encoding="utf-8"), yaml.CSafeLoader)
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"{name}, line {error.problem_mark.line + 1}: no valid YAML: {error.problem}") from None
    top = _mapping(root, name, ("department", "entries"))
    if top["department"].value != department:
        raise ValueError(f"{name}, {_line(top['department'])}: department {top['department'].value!r}, needed: {department}")
    if not isinstance(top["entries"], yaml.SequenceNode):
        raise ValueError(f"{name}, {_line(top['entries'])}: entries is no list")
    for node in top["entries"].value:
        entry = _mapping(node, name, KEYS)
        for key, value in entry.items():
            if not isinstance(value, yaml.ScalarNode) or not value.value.strip():
                raise ValueError(f"{name}, {_line(value)}: {key} is {'empty' if isinstance(value, yaml.ScalarNode) else 'no text'}")
        yield node.start_mark.line + 1, {key: value.value.strip() for key, value in entry.items()}


def _mapping(node, name: str, keys: tuple[str, ...]) -> dict:
    """{key: node} of a mapping that has exactly these keys, once."""
    import yaml
    if not isinstance(node, yaml.MappingNode):
        raise ValueError(f"{name}, {_line(node)}: needed is a mapping with {', '.join(keys)}")
    found = [key.value for key, _ in node.value]
    if sorted(found) != sorted(keys):
        raise ValueError(f"{name}, {_line(node)}: keys {', '.join(map(str, found))}; needed, each once: {', '.join(keys)}")
    return {key.value: value for key, value in node.value}


def _line(node) -> str:
    return f"line {node.start_mark.line + 1 if node is not None else 1}"


# --- near-duplicates ---------------------------------------------------------------------------------------------

def near_duplicates(questions: list[Question], threshold: float = SIMILAR) -> list[list[int]]:
    """Groups of places of questions that are alike, each sorted, by their first; a chain of pairs is one group.

    Alike: cosine of the TF-IDF of character pairs and triples of title and description, marks and blanks left out, at least threshold.
    """
    root = list(range(len(questions)))

    def find(place: int) -> int:
        while root[place] != place:
            root[place] = place = root[root[place]]
        return place

    for first, second, _ in similar_pairs(questions, threshold):
        low, high = sorted((find(first), find(second)))
        root[high] = low
    groups = defaultdict(list)
    for place in range(len(questions)):
        groups[find(place)].append(place)
    return [group for group in groups.values() if len(group) > 1]


def similar_pairs(questions: list[Question], threshold: float = SIMILAR) -> list[tuple[int, int, float]]:
    """(place, later place, cosine) of all pairs at least that alike. A thousand questions at a time, so that memory stays small."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    if len(questions) < 2:
        return []
    vectors = TfidfVectorizer(analyzer="char", ngram_range=(2, 3), sublinear_tf=True).fit_transform(
        [medical.words_of(question.text) for question in questions])
    pairs = []
    for start in range(0, len(questions), 1000):
        cosines = (vectors[start:start + 1000] @ vectors.T).tocoo()
        found = zip((cosines.row + start).tolist(), cosines.col.tolist(), cosines.data.tolist())
        pairs += [(row, column, cosine) for row, column, cosine in found if row < column and cosine >= threshold]
    return sorted(pairs)


def without_near_duplicates(questions: list[Question], threshold: float = SAME) -> tuple[list[Question], list[Problem]]:
    """(questions of which no two are the same, a Problem for each one left out); the first one stays."""
    left_out = {place: group[0] for group in near_duplicates(questions, threshold) for place in group[1:]}
    problems = [Problem("questions", questions[place].row, f"near-duplicate: much the same as row {questions[first].row}", "left out")
                for place, first in sorted(left_out.items())]
    return [question for place, question in enumerate(questions) if place not in left_out], problems


# --- the splits --------------------------------------------------------------------------------------------------

def split(questions: list[Question], seed: int = SEED) -> dict[str, list[Question]]:
    """{"train", "dev", "test": questions}, about 75/10/15 % of every department, in an order drawn with the seed.

    Near-duplicates (SAME) leave first; questions that are alike (SIMILAR) stay in one split. Rows are the places in the split.
    """
    kept, _ = without_near_duplicates(questions)
    groups = {group[0]: group for group in near_duplicates(kept)}
    grouped = {place for group in groups.values() for place in group[1:]}
    units = defaultdict(list)
    for place, question in enumerate(kept):
        if place not in grouped:
            units[question.department].append(groups.get(place, [place]))
    splits: dict[str, list[int]] = {name: [] for name in SHARES}
    for department, members in units.items():
        random.Random(f"{department}-{seed}").shuffle(members)
        _share_out(members, splits)
    for name, places in splits.items():
        random.Random(f"{name}-{seed}").shuffle(places)  # so that the head of a file holds every department
    return {name: [_moved(kept[place], row) for row, place in enumerate(places)] for name, places in splits.items()}


def _share_out(members: list[list[int]], splits: dict[str, list[int]]) -> None:
    """Fill test, then dev, up to their share of a department; the rest is train. A group that would overfill goes on to the next."""
    total = sum(map(len, members))
    for name in ("test", "dev"):
        room = round(total * SHARES[name])
        for group in list(members):
            if len(group) <= room:
                splits[name] += group
                room -= len(group)
                members.remove(group)
    splits["train"] += [place for group in members for place in group]


def _moved(question: Question, row: int) -> Question:
    return Question(row, question.title, question.ask, question.answer, question.department)


def write(folder: Path, source: Path = medical.TEXT, seed: int = SEED) -> list[Path]:
    """Write train.csv, dev.csv and test.csv (table form, UTF-8 with LF) of the questions in `source`; returns their paths."""
    written = []
    for name, questions in split(entries(source), seed).items():
        written.append(medical.write_table(Path(folder) / f"{name}.csv", questions)[0])
    return written


# --- the audit ---------------------------------------------------------------------------------------------------

TITLE, ASK, ANSWER = (5, 40), (10, 160), (60, 260)  # characters, least and most
#: One of these must stand in an answer: when to see a doctor, or whom to call.
CUES = re.compile("就医|就诊|看医生|问医生|咨询医生|找医生|医院|急诊|门诊|[面复]诊|检查|告诉医生|由[^，。；]{0,4}医生|尽快做|120|12356|[看去挂][^，。；]{0,8}科")
URGENT = re.compile("120|110|12356|急诊|急救|(?:立即|立刻|马上|尽快|及时|当天)[^，。；]{0,6}(?:就医|就诊|医院|医生)")
#: A number and a unit of medicine; concentrations such as mg/dL are none.
DOSE = re.compile(r"[0-9一二三四五六七八九十百半两]\s*(?:mg|毫克|[μu]g|微克|iu|国际单位|个?单位)(?!/|每)"
                  r"|(?:每次|一次|每日|每天|服用?|吃)[^，。；、有]{0,4}?[0-9一二三四五六七八九两半]+(?:片|粒|丸|袋|支)", re.I)
#: Flagged unless a denial (不能根治, 不要信秘方) stands before it in the clause.
PROMISE = re.compile("根治(?!治疗|幽门)|包治|包[您你]好|彻底治愈|药到病除|永不复发|百分之百|100%|保证(?:能|会|治|好|有效|痊愈|恢复|没事|不|见效|一定|安全)"
                     "|一定能?(?:治好|会好|痊愈|治愈)|绝对(?:安全|没事|没问题|有效)|祖传|秘方|神药|特效药")
DENIAL = re.compile("[不别勿无没难未]")
BRANDS = re.compile("芬必得|泰诺|美林|百服宁|白加黑|感康|快克|护彤|好娃娃|康泰克|斯达舒|吗丁啉|达喜|洛赛克|耐信|思密达|妈咪爱|达克宁|皮炎平|派瑞松|"
                    "兰美抒|百多邦|尤卓尔|艾洛松|马应龙|云南白药|邦迪|拜新同|络活喜|代文|倍他乐克|立普妥|可定|波立维|拜阿司|拜糖[平苹]|格华止|诺和灵|诺和锐|"
                    "来得时|优甲乐|开瑞坦|息斯敏|仙特明|顺尔宁|信必可|舒利迭|万托林|普米克|希舒美|达菲|力度伸|善存|钙尔奇|迪巧|妈富隆|优思明|毓婷|万艾可|"
                    "伟哥|扶他林|西乐葆|思诺思")


def audit(folder: Path = medical.TEXT) -> list[Problem]:
    """What is wrong with the entries: missing files, lengths, marks the line form cannot hold, no advice when to see a doctor, an emergency
    without a number to call, doses, promises, brand names, questions that stand twice or nearly so. Errors: as `entries`."""
    loaded = _load(folder)
    problems = [Problem(paths.shown(Path(folder) / f"medical_{name}.yaml"), None, f"missing file: no questions of {department}", "left out")
                for name, department in DEPARTMENTS.items() if not (Path(folder) / f"medical_{name}.yaml").exists()]
    for entry in loaded:
        problems += [_problem(entry, reason) for reason in _faults(entry.question)]
    questions = [entry.question for entry in loaded]
    for first, second, cosine in similar_pairs(questions, SAME):
        problems.append(_problem(loaded[second], f"duplicate: {cosine:.2f} alike {loaded[first].file}, line {loaded[first].line}"))
    answers: dict[str, Entry] = {}
    for entry in loaded:
        if (first := answers.setdefault(medical.words_of(entry.question.answer), entry)) is not entry:
            problems.append(_problem(entry, f"duplicate answer: the same as {first.file}, line {first.line}"))
    return problems


def _problem(entry: Entry, reason: str) -> Problem:
    return rows.Row(entry.line, number=entry.question.row).problem(entry.file, reason, "kept")


def _faults(question: Question) -> Iterator[str]:
    for name, (least, most) in {"title": TITLE, "ask": ASK, "answer": ANSWER}.items():
        text = getattr(question, name)
        if not least <= len(text) <= most:
            yield f"length: {name} has {len(text)} characters, needed: {least} to {most}"
        if found := re.search(r"[,\"\n\r\t]", text):
            yield f"mark: {found[0]!r} in {name}, which the line form cannot hold"
    if not re.fullmatch(r"[^？?]+？", question.title):
        yield f"title: {question.title!r} is not one question with ？ at its end"
    answer = question.answer
    if not CUES.search(answer):
        yield "no doctor: the answer does not say when to see a doctor or call 120"
    if medical.emergency(question.text) and not URGENT.search(answer):
        yield "emergency: the question shows one, the answer neither names a number to call nor sends to a hospital at once"
    for kind, pattern in {"dose": DOSE, "promise": PROMISE, "brand": BRANDS}.items():
        for found in pattern.finditer(answer):
            clause = re.search("[^，。；！？：]*$", answer[:found.start()])[0]
            if kind != "promise" or not DENIAL.search(clause):
                yield f"{kind}: {answer[max(0, found.start() - 6):found.end() + 6]!r}"
