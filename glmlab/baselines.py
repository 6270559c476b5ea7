"""What a fine-tuned model has to beat: the majority class, and character TF-IDF with logistic regression."""

from collections import Counter

from glmlab.tasks import intent

#: Tried on dev: regularisation of the logistic regression, and whether rare classes weigh as much as frequent ones.
STRENGTHS = (0.3, 1.0, 3.0, 10.0)
CLASS_WEIGHTS = (None, "balanced")


def majority(train: list, test: list) -> list[int]:
    """The most frequent training label, once a test call (the smaller id where two are as frequent)."""
    counts = Counter(call.label for call in train)
    label = min(counts, key=lambda label: (-counts[label], label))
    return [label] * len(test)


def tfidf(train: list, test: list, seed: int = 7, dev: list | None = None, log=lambda line: None):
    """Character TF-IDF and logistic regression: labels and probabilities of the test calls, `(list[int], float (calls, 34))`.

    Strength and class weights are the ones with the best mean of accuracy and macro-F1 on dev, as checkpoints are chosen too;
    without dev on a fifth of train, which flatters, because calls of one set share their phrases. The same result every time.
    About 25 s on one core for 3,000 calls of 370 characters; single characters and pairs beat longer n-grams here.
    Errors: ValueError when the training calls have fewer than two labels.
    """
    if len({call.label for call in train}) < 2:
        raise ValueError(f"TF-IDF needs training calls of at least two labels; these {len(train)} calls have one")
    fitted, held_out = (train, dev) if dev else _split(train, seed)
    vectorizer, features = _vectors(fitted)
    truth, held_out = [call.label for call in held_out], vectorizer.transform(_texts(held_out))
    best, score = None, -1.0
    for weights in CLASS_WEIGHTS:
        for strength in STRENGTHS:
            model = _classifier(features, fitted, strength, weights)
            found = _mean_score(truth, model.predict(held_out))
            log(f"TF-IDF, C {strength:g}, class weights {weights or 'equal'}: {found:.3f} (mean of accuracy and macro-F1 on "
                f"{len(truth)} calls)")
            if found > score:
                best, score, chosen = model, found, (strength, weights)
    if fitted is not train:
        vectorizer, features = _vectors(train)
        best = _classifier(features, train, *chosen)
    probabilities = _spread(best, vectorizer, test)
    return probabilities.argmax(1).tolist(), probabilities


def label_probabilities(train: list, calls: list, strength: float = 10.0, weights: str | None = "balanced"):
    """`tfidf` with given settings, fitted once: the probability of each label for calls, float (calls, 34).

    Errors: ValueError when the training calls have fewer than two labels.
    """
    if len({call.label for call in train}) < 2:
        raise ValueError(f"TF-IDF needs training calls of at least two labels; these {len(train)} calls have one")
    vectorizer, features = _vectors(train)
    return _spread(_classifier(features, train, strength, weights), vectorizer, calls)


def _spread(model, vectorizer, calls: list):
    """Probabilities over all labels, 0 for those the model has never seen."""
    import numpy as np
    found = np.zeros((len(calls), len(intent.NAMES)))
    found[:, model.classes_] = model.predict_proba(vectorizer.transform(_texts(calls)))
    return found


def _texts(calls: list) -> list[str]:
    """The spoken text, without the marks between turns."""
    return [call.text.replace("[SEP]", "") for call in calls]


def _split(calls: list, seed: int) -> tuple[list, list]:
    """Four fifths and one fifth, drawn with the seed."""
    from sklearn.model_selection import train_test_split
    return train_test_split(calls, test_size=0.2, random_state=seed)


def _vectors(calls: list):
    from sklearn.feature_extraction.text import TfidfVectorizer
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 2), sublinear_tf=True)
    return vectorizer, vectorizer.fit_transform(_texts(calls))


def _classifier(features, calls: list, strength: float, weights):
    from sklearn.linear_model import LogisticRegression
    return LogisticRegression(C=strength, class_weight=weights, max_iter=500).fit(features, [call.label for call in calls])


def _mean_score(truth: list[int], predicted) -> float:
    from glmlab.metrics import classification
    scores = classification(truth, predicted.tolist(), len(intent.NAMES))
    return (scores["accuracy"] + scores["f1_macro"]) / 2
