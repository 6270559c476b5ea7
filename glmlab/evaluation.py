"""Calls -> prompts within the token limit -> predictions: the intent task brought together with scoring and generation."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from glmlab import chat, encoding, processes
from glmlab.encoding import Prompt, room
from glmlab.tasks import intent

#: Tokens of one pass on a CPU: a small model gains nothing from longer packs.
CPU_PASS_TOKENS = 4096


@dataclass
class Predictions:
    """What a model said about calls, row by row in the order of the calls."""
    truth: list[int]
    predicted: list[int | None]         # None: no usable answer, which counts as wrong
    probabilities: np.ndarray | None    # (rows, 34), mode score only
    responses: list[str | None] | None  # what was written, mode generate only; None where nothing could be
    turns_dropped: list[int]
    seconds: float                      # encoding included
    errors: dict[int, str] = field(default_factory=dict)  # place in these lists -> why there is no answer

    def confidence(self) -> list[float | None]:
        """The probability of each row's predicted label; None where there is none."""
        if self.probabilities is None:
            return [None] * len(self.predicted)
        return [None if label is None else float(row[label]) for row, label in zip(self.probabilities, self.predicted)]

    def ranked(self, k: int = 3) -> list[list[int]]:
        """The k most probable labels of each row, best first; an empty list a row without probabilities."""
        if self.probabilities is None:
            return [[] for _ in self.predicted]
        return np.argsort(-self.probabilities, axis=1, kind="stable")[:, :k].tolist()


# --- calls -> ids ------------------------------------------------------------------------------------------------

def encode_prompts(tokenizer, texts: list[str], max_length: int, form: str = "system", reserve: int = 32, first: int = 0) -> list[Prompt]:
    """The prompts of calls, at most max_length - reserve tokens each; longer calls lose turns from their middle.

    form: system or template, as the model was trained. reserve: tokens kept free for the answer.
    first: the number of the first text in messages. Errors: ValueError that names the text when max_length leaves no room for it.
    """
    calls = [intent.Call(number, text, None) for number, text in enumerate(texts, first)]
    return encoding.prompts(tokenizer, intent.TASK, calls, max_length, form, reserve, named="text")


def encode_samples(tokenizer, calls: list, max_length: int, form: str = "system") -> tuple[list[chat.Sample], int]:
    """Training samples of labelled calls within max_length tokens, answer and stop id included: `(samples, calls shortened)`.

    Errors: ValueError that names the row of a call without label, or one that max_length leaves no room for.
    """
    check_labelled(calls)
    return encoding.samples(tokenizer, intent.TASK, calls, max_length, form)


def check_labelled(calls: list) -> None:
    """Refuse to score or train on calls without label, before any time is spent. Errors: ValueError that names the rows."""
    if not calls:
        raise ValueError("no calls: the file is empty, or nothing in it could be read")
    missing = [call.row for call in calls if call.label is None]
    if missing:
        shown = ", ".join(map(str, missing[:5])) + (" …" if len(missing) > 5 else "")
        raise ValueError(f"{len(missing)} of {len(calls)} calls have no label (rows {shown}); this needs a file with c_numerical and "
                         "label_raw. Unlabelled calls: IntentClassifier(...).classify(texts)")


# --- mode score --------------------------------------------------------------------------------------------------

def label_probabilities(model, tokenizer, prompts: list[Prompt], batch_size: int,
                        progress: Callable[[int], None] = lambda done: None) -> np.ndarray:
    """The probability of each of the 34 labels for every prompt: float (prompts, 34), rows sum to 1.

    batch_size: calls in one forward pass, on average; a CPU takes fewer when they are long, because it is faster so.
    progress(done) is called once a pass. Several processes each compute some of the passes, and all get all rows.
    Errors: as `scoring.score`.
    """
    from glmlab import scoring
    ids = [prompt.ids for prompt in prompts]
    prefix = chat.shared_prefix(ids, tokenizer)
    branches = len(scoring.label_trie([chat.answer_ids(tokenizer, answer) for answer in intent.ANSWERS]).fed)
    lengths = [len(prompt) - prefix + branches for prompt in ids]
    limit = _pass_tokens(model, lengths, batch_size)
    passes = list(scoring._groups(lengths, limit))  # the passes of one process: another pass would round otherwise
    own = [ids[place] for number in processes.own(len(passes)) for place in passes[number]]
    found = scoring.score(model, tokenizer, own, intent.ANSWERS, prefix, limit, processes.scaled(progress, len(own), len(ids)))
    return np.concatenate(processes.joined([found]))


def _pass_tokens(model, lengths: list[int], batch_size: int) -> int:
    """Tokens behind the shared prefix that make batch_size calls of average length. lengths: of each, with what the answers add to it."""
    tokens = int(batch_size * sum(lengths) / max(1, len(lengths)))
    return min(tokens, CPU_PASS_TOKENS) if model.device.type == "cpu" else tokens


def score_rows(model, tokenizer, calls: list, max_length: int = 1536, batch_size: int = 25, form: str = "system",
               progress: Callable[[int], None] = lambda done: None) -> Predictions:
    """Choose the most probable of the 34 answers for every call. Errors: ValueError for calls without label."""
    check_labelled(calls)
    started = time.perf_counter()
    prompts = encode_prompts(tokenizer, [call.text for call in calls], room(model, max_length), form)
    probabilities = label_probabilities(model, tokenizer, prompts, batch_size, progress)
    return Predictions([call.label for call in calls], probabilities.argmax(1).tolist(), probabilities, None,
                       [prompt.cut for prompt in prompts], time.perf_counter() - started)


# --- mode generate -----------------------------------------------------------------------------------------------

def generate_rows(model, tokenizer, calls: list, max_length: int = 1536, max_new_tokens: int = 32, batch_size: int = 25,
                  form: str = "system", progress: Callable[[int], None] = lambda done: None) -> Predictions:
    """Write the answer to every call greedily and parse it; what holds no label is unanswered (None).

    Several processes each write a part. A batch that does not fit the memory is halved; a call that does not fit alone is shortened, in
    the end given up and reported in `errors`. Errors: ValueError for calls without label.
    """
    from glmlab import generation
    check_labelled(calls)
    started = time.perf_counter()
    texts, limit, errors = [call.text for call in calls], room(model, max_length), {}
    prompts = encode_prompts(tokenizer, texts, limit, form, max_new_tokens)
    bare = len(encode_prompts(tokenizer, [""], limit, form, max_new_tokens)[0].ids)

    def shorter(place: int) -> list[int] | None:
        """The prompt with half of its call, or None when there is nothing left to halve."""
        own = len(prompts[place].ids) - bare
        if own > 32:
            prompts[place], = encode_prompts(tokenizer, [texts[place]], bare + own // 2 + max_new_tokens, form, max_new_tokens)
            return prompts[place].ids
        errors[place] = f"out of memory even with the call cut to {own} tokens"
        return None

    own = processes.own(len(prompts))
    mine = generation.generate(model, tokenizer, [prompts[place].ids for place in own], max_new_tokens, batch_size,
                               processes.scaled(progress, len(own), len(prompts)), lambda place: shorter(own[place]))
    responses, errors = processes.joined(mine), dict(processes.joined(list(errors.items())))
    dropped = processes.joined([prompts[place].cut for place in own])
    predicted = [None if text is None else intent.parse(text) for text in responses]
    errors |= {place: intent.NO_LABEL for place, label in enumerate(predicted) if label is None and place not in errors}
    return Predictions([call.label for call in calls], predicted, None, responses, dropped, time.perf_counter() - started, errors)


# --- telling how far it is ---------------------------------------------------------------------------------------

def progress_lines(total: int, what: str = "calls", log: Callable[[str], None] = print, lines: int = 10) -> Callable[[int], None]:
    """A progress callback for reports: a line every tenth of the way, and at least one a minute."""
    started = time.perf_counter()
    told, told_at = 0, started

    def tell(done: int) -> None:
        nonlocal told, told_at
        now = time.perf_counter()
        if done * lines // max(1, total) <= told and now - told_at < 60:
            return
        told, told_at = done * lines // max(1, total), now
        rate = done / max(1e-9, now - started)
        log(f"{done:,} of {total:,} {what}, {rate:,.1f} a second, {(total - done) / max(1e-9, rate):,.0f} s left")

    return tell
