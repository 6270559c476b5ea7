"""Scores of written answers against references: n-grams, similarity, length, latency; intervals, paired tests, floors.

Scales: BLEU and ROUGE 0..100; cosines at most 1; shares 0..1. A blank answer scores 0 and is counted, never left out.
Figures of other repositories can be set beside these only where the definition is the same one.
"""

import functools
import html
import math
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from glmlab import metrics

#: What stands in `score`, row by row (a perplexity: over all rows): how a figure calls it, and whether more of it is better (1), worse
#: (-1) or neither (0).
MEASURES = {
    "bleu_4": ("BLEU-4", 1), "rouge_1": ("ROUGE-1", 1), "rouge_2": ("ROUGE-2", 1), "rouge_l": ("ROUGE-L", 1),
    "similarity": ("TF-IDF similarity", 1), "similarity_hidden": ("hidden-state similarity", 1),
    "similarity_sentence": ("sentence similarity", 1), "length": ("length in characters", 0), "repetition": ("repetition", -1),
    "overlap": ("overlap with the prompt", 0), "density": ("term density", 0), "right": ("right answer", 1),
    "recall_3": ("recall at 3", 1), "recall_5": ("recall at 5", 1), "stopped": ("stop rate", 1),
    "first_token": ("seconds to the first token", -1), "seconds": ("seconds in all", -1), "perplexity": ("held-out perplexity", -1),
}


# --- words and n-grams -------------------------------------------------------------------------------------------

@functools.cache
def _jieba():
    """A jieba tokenizer of our own: words that others add to the shared one change no score, and nothing is printed.

    Its `initialize` would leave a cache in the temporary folder and trust one that lies there; the dictionary is read instead (1 s).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jieba 0.42 has old string escapes and asks for pkg_resources
        import jieba
    tokenizer = jieba.Tokenizer()
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer


@functools.lru_cache(maxsize=20_000)
def units(text: str, unit: str = "words") -> tuple[str, ...]:
    """The words (by jieba, with its model for unknown words) or the characters of a text, white space left out.

    Errors: ValueError for another unit.
    """
    if unit not in ("words", "characters"):
        raise ValueError(f"unit is {unit!r}; it must be words or characters")
    return tuple(part for part in (_jieba().cut(text) if unit == "words" else text) if not part.isspace())


def _ngrams(sequence: Sequence, n: int) -> list:
    return [sequence[start:start + n] for start in range(len(sequence) - n + 1)]


# --- one answer against its reference ----------------------------------------------------------------------------

def bleu4(reference: str, answer: str) -> float:
    """Sentence BLEU-4 over characters, 0..100, as the fine-tuning scripts of ChatGLM-6B (ptuning/main.py) and its followers have it.

    They call NLTK's sentence_bleu(list(reference), list(answer)) with smoothing method 3: the k-th n-gram order without a match
    counts 1 / 2**k matches; every character counts, white space too; an order that a short answer has not counts as one n-gram.
    Without one common character, 0. Sources: Papineni et al. 2002; Chen & Cherry 2014, smoothing 3.
    """
    if not answer.strip():
        return 0.0
    logarithm, without = 0.0, 0
    for n in range(1, 5):
        grams = _ngrams(answer, n)
        matches = (Counter(grams) & Counter(_ngrams(reference, n))).total()
        if not matches and n == 1:
            return 0.0
        without += not matches
        logarithm += math.log((matches or 0.5 ** without) / max(1, len(grams))) / 4
    return 100 * math.exp(logarithm + min(0.0, 1 - len(reference) / len(answer)))


def corpus_bleu(references: list[str], answers: list[str]) -> float:
    """BLEU of a whole set through sacrebleu, 0..100: tokenize="zh" (Chinese characters, else words), its exp smoothing.

    One score with one brevity penalty, not the mean of `bleu4`; a blank answer adds to the length that is missing.
    """
    from sacrebleu.metrics import BLEU
    return BLEU(tokenize="zh", force=True).corpus_score(answers, [references]).score  # force: no advice about tokenized text


def rouge(reference: str, answer: str, unit: str = "words") -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L, F1 x 100, over jieba words or characters: {"rouge_1", "rouge_2", "rouge_l"}.

    As rouge-chinese 1.0.3 computes them: ROUGE-1 and -2 over *distinct* n-grams, not over the clipped counts of Lin 2004; ROUGE-L
    over the longest common subsequence of the whole texts, with repetitions, not the union over sentences that its name promises.
    Differences: a blank answer is 0 (an exception there); white space is nothing (there a blank line, or a line break behind 。！？,
    counts as an empty word, which moves the score of multi-line answers); F1 is exact (there 1e-8 is added). A text of one unit has
    no pair, so no ROUGE-2.
    """
    wanted, said = units(reference, unit), units(answer, unit)
    scores = {}
    for n in (1, 2):
        these, those = set(_ngrams(wanted, n)), set(_ngrams(said, n))
        scores[f"rouge_{n}"] = 200 * len(these & those) / max(1, len(these) + len(those))
    return scores | {"rouge_l": 200 * _common(wanted, said) / max(1, len(wanted) + len(said))}


def _common(wanted: Sequence, said: Sequence) -> int:
    """Length of the longest common subsequence; a bit a place of `wanted`, all at once. Source: Hyyrö 2004."""
    places: dict = {}
    for place, part in enumerate(wanted):
        places[part] = places.get(part, 0) | 1 << place
    free = full = (1 << len(wanted)) - 1
    for part in said:
        hits = free & places.get(part, 0)
        free = (free + hits | free - hits) & full
    return len(wanted) - free.bit_count()


# --- answers by themselves ---------------------------------------------------------------------------------------

def distinct(answers: list[str], n: int, unit: str = "words") -> float:
    """Distinct-n: different n-grams of all answers together / all their n-grams. It falls with more rows: compare equal numbers.

    Source: Li et al. 2016, arXiv 1510.03055.
    """
    grams = [gram for answer in answers for gram in _ngrams(units(answer, unit), n)]
    return len(set(grams)) / max(1, len(grams))


def repetition(answer: str) -> float:
    """The share of an answer's 4-grams of characters that stood in it before; 0 below five characters."""
    grams = _ngrams(answer.strip(), 4)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def length(answer: str) -> int:
    """Characters of an answer, without the white space around it."""
    return len(answer.strip())


def overlap(prompt: str, answer: str) -> float:
    """The share of an answer's words that stand in the prompt; marks and signs are no words. Words that repeat count each time."""
    said = [word for word in units(answer) if any(map(str.isalnum, word))]
    asked = set(units(prompt))
    return sum(word in asked for word in said) / max(1, len(said))


# --- similarity --------------------------------------------------------------------------------------------------

def similarity(references: list[str], answers: list[str], fitted_on: list[str] | None = None,
               embed: Callable[[list[str]], np.ndarray] | None = None) -> list[float]:
    """The cosine of each answer with its reference, row by row; 0 for a blank answer. Needs no download.

    Without embed: TF-IDF of single characters and pairs, 0..1, weighted by how rare they are in fitted_on (default: the references, so
    that the answers of one system do not move the scores of another). embed: texts -> (texts, width), for instance `embedder`.
    """
    if embed is not None:
        first, second = (np.asarray(embed(texts), dtype=float) for texts in (references, answers))
        products = (first * second).sum(1) / np.maximum(1e-12, np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1))
    else:
        vectorizer = _tfidf(references if fitted_on is None else fitted_on)
        first, second = (vectorizer.transform(texts) for texts in (references, answers))
        products = np.asarray(first.multiply(second).sum(axis=1)).ravel()
    return [float(product) if answer.strip() else 0.0 for product, answer in zip(products, answers, strict=True)]


def _tfidf(texts: list[str]):
    from sklearn.feature_extraction.text import TfidfVectorizer
    if not any(text.strip() for text in texts):
        raise ValueError("TF-IDF has no text to be fitted on: the list is empty or holds blank texts only")
    return TfidfVectorizer(analyzer="char", ngram_range=(1, 2), sublinear_tf=True).fit(texts)


def embedder(model, tokenizer) -> Callable[[list[str]], np.ndarray]:
    """An `embed` for `similarity`: the last hidden states of a language model, mean over the tokens; texts one after another.

    Such states point in one common direction: cosines near 0.9 are usual even for strangers. Compare systems, not absolute values.
    """
    import torch

    def one(text: str) -> np.ndarray:
        with torch.inference_mode():
            encoded = tokenizer(text or " ", return_tensors="pt").to(model.device)
            states = model(**encoded, output_hidden_states=True).hidden_states[-1]  # (1, tokens, width)
        return states[0].float().mean(0).cpu().numpy()

    return lambda texts: np.stack([one(text) for text in texts])


def sentence_similarity(references: list[str], answers: list[str], model_name: str) -> list[float]:
    """`similarity` by a sentence model of the user. model_name: a folder or a Hub id, which is downloaded once.

    Errors: ImportError with the remedy when sentence-transformers, which the course does not need, is missing.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError("the sentence similarity needs sentence-transformers: pip install sentence-transformers, or leave the "
                          "sentence model empty; the TF-IDF similarity needs no download") from error
    return similarity(references, answers, embed=SentenceTransformer(model_name).encode)


# --- a system on a set of rows -----------------------------------------------------------------------------------

def score(references: list[str], answers: list[str | None], prompts: list[str], stopped: list[bool] | None = None,
          seconds: list[float] | None = None, first_token: list[float] | None = None, density: Callable[[str], float] | None = None,
          unit: str = "words", fitted_on: list[str] | None = None, embed: Callable | None = None, sentence_model: str = "",
          seed: int = 7, resamples: int = 2000) -> dict:
    """Every measure of a system's answers; what is not given (a floor has no seconds) is left out.

    stopped: did the answer end by its stop token. seconds, first_token: of each answer. density: the task's own share of its terms.
    unit: of ROUGE and Distinct. fitted_on, embed, sentence_model: of `similarity` and `sentence_similarity`. None as an answer: blank.
    Returns rows, empty (blank answers), unit, per_row {measure: values}, means {measure: {"mean", "interval" (95 %)}},
    corpus {"bleu", "distinct_1", "distinct_2"} and latency {measure: {"p50", "p95"}}. Errors: ValueError that names the row.
    """
    answers = [answer or "" for answer in answers]
    given = {"stopped": stopped, "first_token": first_token, "seconds": seconds}
    given = {name: [math.nan if value is None else float(value) for value in values]
             for name, values in given.items() if values is not None}
    _check(references, {"answers": answers, "prompts": prompts, **given})
    rouges = [rouge(*pair, unit) for pair in zip(references, answers)]
    rows = {
        "bleu_4": [bleu4(*pair) for pair in zip(references, answers)],
        **{name: [row[name] for row in rouges] for name in ("rouge_1", "rouge_2", "rouge_l")},
        "similarity": similarity(references, answers, fitted_on),
        **({"similarity_hidden": similarity(references, answers, embed=embed)} if embed else {}),
        **({"similarity_sentence": sentence_similarity(references, answers, sentence_model)} if sentence_model else {}),
        "length": [float(length(answer)) for answer in answers],
        "repetition": [repetition(answer) for answer in answers],
        "overlap": [overlap(*pair) for pair in zip(prompts, answers)],
        **({"density": [float(density(answer)) for answer in answers]} if density else {}), **given,
    }
    return {
        "rows": len(answers), "empty": sum(not answer.strip() for answer in answers), "unit": unit, "per_row": rows,
        "means": {name: mean_interval(values, seed, resamples) for name, values in rows.items()},
        "corpus": {"bleu": corpus_bleu(references, answers), **{f"distinct_{n}": distinct(answers, n, unit) for n in (1, 2)}},
        "latency": {name: {f"p{part}": float(np.quantile(rows[name], part / 100)) for part in (50, 95)}
                    for name in ("first_token", "seconds") if name in rows},
    }


def _check(references: list[str], columns: dict[str, list]) -> None:
    if not references:
        raise ValueError("no rows to score: the file or the selection is empty")
    for name, values in columns.items():
        if len(values) != len(references):
            raise ValueError(f"{len(references)} references but {len(values)} {name}: both must come from the same rows")
        for row, value in enumerate(values):
            if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"row {row} has the value {value} in {name}; it must be a number of at least 0")
    for row, reference in enumerate(references):
        if not reference.strip():
            raise ValueError(f"row {row} has a blank reference: nothing can be compared with it, so leave the row out")


def mean_interval(values: Sequence[float], seed: int = 7, resamples: int = 2000, level: float = 0.95) -> dict:
    """{"mean", "interval": [low, high]}: the mean of rows and its percentile bootstrap; the order of the rows changes nothing."""
    drawn, counts = metrics._draw(np.asarray(values, dtype=float)[:, None], resamples, seed)
    return {"mean": _mean(values), "interval": metrics._interval(counts @ drawn[:, 0] / len(values), level)}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def by_group(per_row: dict[str, list[float]], groups: list[str]) -> dict[str, dict]:
    """Means of each group of rows (department, scene), the largest group first: {group: {"rows", measure: mean, …}}.

    per_row: as in `score`. Errors: ValueError for another number of rows.
    """
    for name, values in per_row.items():
        if len(values) != len(groups):
            raise ValueError(f"{len(values)} rows of {name} but {len(groups)} groups: both must come from the same rows")
    return {group: {"rows": size, **{name: _mean([value for value, own in zip(values, groups) if own == group])
                                     for name, values in per_row.items()}}
            for group, size in sorted(Counter(groups).items(), key=lambda item: (-item[1], item[0]))}


# --- two systems on the same rows --------------------------------------------------------------------------------

def paired(first: Sequence[float], second: Sequence[float], seed: int = 7, resamples: int = 2000, names=("first", "second"),
           measure: str = "rouge_l") -> dict:
    """The difference of two means, first - second, with rows drawn again in pairs; the conventions of `metrics.paired_bootstrap`.

    Returns names, measure, rows, resamples, first, second (means), difference, change (of the second mean; None when that is 0),
    interval (95 %), p (two-sided) and reading, a sentence for people. Errors: ValueError for other rows.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"{len(first)} rows of {names[0]}, {len(second)} of {names[1]}: a paired test needs the same rows, at least one")
    drawn, counts = metrics._draw(np.stack([first, second], axis=1).astype(float), resamples, seed)
    differences = counts @ (drawn[:, 0] - drawn[:, 1]) / len(first)
    # rounding noise must not decide whether two equal means count as a tie
    aside = min((differences <= 1e-12).sum(), (differences >= -1e-12).sum())
    means = _mean(first), _mean(second)
    test = {"names": list(names), "measure": measure, "rows": len(first), "resamples": resamples, "first": means[0], "second": means[1],
            "difference": means[0] - means[1], "change": (means[0] - means[1]) / means[1] if means[1] else None,
            "interval": metrics._interval(differences, 0.95), "p": float(min(1, 2 * (aside + 1) / (resamples + 1)))}
    return test | {"reading": _reading(test)}


def _reading(test: dict) -> str:
    """One sentence for a reader who knows no statistics; 5 % is the limit, as in `metrics.in_words`."""
    (higher, lower), difference, (low, high) = test["names"], test["difference"], test["interval"]
    if difference < 0:
        higher, lower, difference, low, high = lower, higher, -difference, -high, -low
    what, better = MEASURES[test["measure"]]
    digits = 2 if difference >= 0.1 else 3
    difference, low, high = (f"{round(value, digits) + 0.0:.{digits}f}" for value in (difference, low, high))  # + 0.0: no "-0.00"
    numbers = f"{difference} (95 % interval {low}..{high})"
    chance = f"if both were equal, a difference this large would arise by chance in {metrics._frequency(test['p'])}"
    if test["p"] >= 0.05:
        where = f"on these {test['rows']:,} rows"
        return f"{higher} and {lower} cannot be told apart in {what} {where}: they differ by {numbers}, and {chance}."
    verdict = {1: f"{higher} is better than {lower}", -1: f"{lower} is better (lower) than {higher}", 0: f"{higher} is higher than {lower}"}
    return f"{verdict[better]} in {what} by {numbers}; {chance}."


def compare(first: dict, second: dict, names=("first", "second"), seed: int = 7, resamples: int = 2000) -> dict[str, dict]:
    """`paired` for every measure that two results of `score` share."""
    return {name: paired(values, second["per_row"][name], seed, resamples, names, name)
            for name, values in first["per_row"].items() if name in second["per_row"]}


# --- what a model has to beat ------------------------------------------------------------------------------------

def floors(train_questions: list[str], train_answers: list[str], questions: list[str], seed: int = 7, sample: int = 200,
           sentences: Sequence[str] = ()) -> dict[str, list[str]]:
    """Answers without a model, one a question: {"constant", "random", "nearest"}. They see neither dev nor a reference.

    constant: of the answers of `sample` training rows and the given sentences, the one with the best mean ROUGE-L (words) against
    those rows. random: a training answer drawn by seed and question. nearest: the answer of the training question with the highest
    TF-IDF cosine (characters). The order of the training rows changes nothing; of equals the first in code order is taken.
    """
    if len(train_questions) != len(train_answers) or not train_answers:
        raise ValueError(f"{len(train_questions)} training questions, {len(train_answers)} answers: floors need pairs, at least one")
    rows = sorted(zip(train_questions, train_answers))
    asked, answers = [question for question, _ in rows], [answer for _, answer in rows]
    return {"constant": [_constant(answers, sentences, sample, seed)] * len(questions),
            "random": [random.Random(f"{seed} {question}").choice(answers) for question in questions],
            "nearest": [answers[place] for place in _nearest(asked, questions)]}


def _constant(answers: list[str], sentences: Sequence[str], sample: int, seed: int) -> str:
    drawn = random.Random(seed).sample(answers, min(sample, len(answers)))
    targets = [units(answer) for answer in drawn]
    return max(sorted({*drawn, *sentences}), key=lambda text: _mean_rouge_l(units(text), targets))


def _mean_rouge_l(said: Sequence[str], targets: list[Sequence[str]]) -> float:
    return _mean([200 * _common(wanted, said) / max(1, len(wanted) + len(said)) for wanted in targets])


def _nearest(asked: list[str], questions: list[str]) -> list[int]:
    return [int(cosines.argmax()) for cosines in _cosines(asked, questions)]


def _cosines(known: list[str], texts: list[str]) -> Iterator[np.ndarray]:
    """For each text its TF-IDF cosines with all known ones, rounded: noise must not choose between equals."""
    vectorizer = _tfidf(known)
    turned = vectorizer.transform(known).T
    for start in range(0, len(texts), 500):  # 500 x 100,000 cosines are 400 MB
        yield from np.round((vectorizer.transform(texts[start:start + 500]) @ turned).toarray(), 9)


def ranks(known: list[str], answers: list[str], wanted: Sequence[int]) -> list[int]:
    """The rank of known[wanted[row]] among the known texts, the one most like the row's answer first (1); 0 if it is not like it at all.

    Likeness is the TF-IDF cosine of characters; of equals the earlier known text comes first.
    """
    found = []
    for cosines, place in zip(_cosines(known, answers), wanted, strict=True):
        before = (cosines > cosines[place]).sum() + (cosines[:place] == cosines[place]).sum()
        found.append(int(before) + 1 if cosines[place] > 0 else 0)
    return found


# --- for the eye -------------------------------------------------------------------------------------------------

def side_by_side(prompts: list[str], references: list[str], systems: dict[str, list[str]], scores: dict[str, list[float]] | None = None,
                 measure: str = "rouge_l") -> str:
    """An HTML table for a notebook, a row a question: prompt, reference, the answer of each system. All text is escaped.

    scores: {system: one value of `measure` a row}, shown below the answers.
    """
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("question", "reference", *systems))
    body = []
    for row, pair in enumerate(zip(prompts, references, strict=True)):
        notes = ["", "", *(f"{MEASURES[measure][0]} {scores[name][row]:.1f}" if name in (scores or {}) else "" for name in systems)]
        cells = zip((*pair, *(answers[row] for answers in systems.values())), notes)
        body.append("<tr>" + "".join(_cell(text, note) for text, note in cells) + "</tr>")
    # the classes keep the notebook from reading $…$ in an answer as a formula
    return f'<table class="tex2jax_ignore mathjax_ignore"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'


def _cell(text: str, note: str) -> str:
    shown = html.escape(text) if text.strip() else "<em>(empty)</em>"
    below = f'<div style="color:#666;font-size:85%">{html.escape(note)}</div>' if note else ""
    return f'<td style="text-align:left;vertical-align:top;white-space:pre-wrap">{shown}{below}</td>'


def side_by_side_text(prompts: list[str], references: list[str], systems: dict[str, list[str]]) -> str:
    """The same as plain text, for a log file or a terminal."""
    blocks = []
    for row, (prompt, reference) in enumerate(zip(prompts, references, strict=True)):
        parts = {"question": prompt, "reference": reference, **{name: answers[row] for name, answers in systems.items()}}
        blocks.append("\n".join([f"--- row {row}", *(f"[{name}]\n{text.strip() or '(empty)'}" for name, text in parts.items())]))
    return "\n\n".join(blocks)
