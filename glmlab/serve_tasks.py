"""What a loaded model does besides talking: the intent of a call, the triples of a text and their picture."""

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass

from glmlab import models, paths
from glmlab.worker import Ticket

GRAPH_WIDTH = 5.0  # inches of the page's graph, if its names allow: a phone shows no more


def classifier(talk) -> Callable | None:
    """text -> `predict.Intent`: by the loaded model where the task is intent, else by the shipped reference run, which is loaded at
    the first call; None where there is no such run."""
    from glmlab import predict
    if talk.persona.task == "intent":
        return lambda text: talk.worker.call(lambda: _classified(talk, text))
    if not (paths.runs("intent-reference") / "run.json").is_file():
        return None
    one_at_a_time = threading.Lock()

    @functools.cache
    def loaded():
        settings = models.read_run("intent-reference")["settings"]
        return predict.IntentClassifier(settings["base"], models.find_checkpoint("intent-reference", -1),
                                        models.quantization_of(settings["method"]))

    def classify(text: str):
        with one_at_a_time:
            return loaded().classify(text)

    return classify


def _classified(talk, text: str):
    """The intent of a call by the default voice, which is the model's active adapter; on the engine's thread.

    Errors: ValueError for a call without words.
    """
    from glmlab import evaluation, predict
    from glmlab.tasks import intent
    if not intent.says_anything(text):
        raise ValueError("the call is empty: nothing is said between its [SEP]")
    form = predict.trained_form(talk.voices[talk.default])
    with talk.lock:
        prompts = evaluation.encode_prompts(talk.tokenizer, [text], talk.limit, form)
    return predict.as_intent(evaluation.label_probabilities(talk.model, talk.tokenizer, prompts, 1)[0], prompts[0].cut)


@dataclass(frozen=True)
class Extracted:
    """The triples of one text, and how their answer was written."""
    triples: list | None  # heads and tails as the text writes them; None when none can be read
    ticket: Ticket


def extractor(talk) -> Callable | None:
    """(text, constrained=False) -> `Extracted` by the default voice; None for a task without triples.

    constrained: names are copied from the text, so that every answer can be read (`glmlab.constrained`). Errors: as `Talk.finished`.
    """
    if talk.persona.relations is None:
        return None
    from glmlab.constrained import Copying
    from glmlab.tasks import triplets
    relations = talk.persona.relations

    def extract(text: str, constrained: bool = False) -> Extracted:
        asked, options = [{"role": "user", "content": text}], {}
        if constrained:
            most = talk.room(talk.prompt(asked))
            with talk.lock:
                options = {"max_new_tokens": most, "allowed": Copying(talk.tokenizer, text, most, relations)}
        ticket = talk.finished(asked, **options)
        found = triplets.parse(ticket.text, relations)
        return Extracted(found and triplets.restore(text, found), ticket)

    return extract


def drawer(talk) -> Callable | None:
    """triples -> the picture of their knowledge graph, a matplotlib figure; None for a task without triples."""
    if talk.persona.relations is None:
        return None
    from glmlab import triplet_reports
    one_at_a_time = threading.Lock()  # pyplot makes the figure, and has one state for all threads

    def draw(triples: list):
        import matplotlib
        with one_at_a_time, matplotlib.rc_context({"figure.dpi": 200}):  # sharp on a phone and on a projector
            return triplet_reports.graph_figure(triplet_reports.knowledge_graph(triples), width=GRAPH_WIDTH)

    return draw
