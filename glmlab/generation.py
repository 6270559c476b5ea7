"""Greedy answers to many prompts and one streamed answer, with the stop ids of the chat format. `engine` does the work."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from glmlab import chat


@dataclass(frozen=True)
class Answer:
    """One answer and how it came about."""
    text: str | None            # None: given up, it did not fit the memory
    stopped: bool               # it ended with a stop id, not at max_new_tokens
    tokens: int                 # written, stop id included
    first_token_seconds: float  # from the start of its prompt's pass to its first token
    seconds: float              # and to its last one


def generate(model, tokenizer, prompts: list[list[int]], max_new_tokens: int = 32, batch_size: int = 25,
             progress: Callable[[int], None] = lambda done: None,
             shorter: Callable[[int], list[int] | None] | None = None) -> list[str | None]:
    """Greedy answers to prompts of ids, in the order given; what does not fit the memory at once is written in smaller batches.

    prompts: ids as `chat.prompt_ids` makes them, of any length; what they share is computed once. batch_size: answers written at a
    time; when one is finished, the next takes its place. progress(done) is called with the number of answers so far. shorter(place)
    gives a shorter prompt for one that does not fit alone, or None to give it up: its answer is None then.
    Errors: ValueError for a prompt too long for the model; without `shorter`, the memory error of a prompt that does not fit alone.
    """
    return [answer.text for answer in generate_facts(model, tokenizer, prompts, max_new_tokens, batch_size, progress, shorter)]


def generate_facts(model, tokenizer, prompts: list[list[int]], max_new_tokens: int = 32, batch_size: int = 25,
                   progress: Callable[[int], None] = lambda done: None,
                   shorter: Callable[[int], list[int] | None] | None = None,
                   allowed: list[Callable[[list[int]], list[int]]] | None = None) -> list[Answer]:
    """`generate`, with what is known of each answer besides its text. allowed: for each prompt what may be written (`Engine.submit`)."""
    from glmlab.engine import Engine, active_adapter
    order = deque(sorted(range(len(prompts)), key=lambda place: len(prompts[place])))  # rows of like lengths read little of others' room
    answers: list[Answer | None] = [None] * len(prompts)
    running, done = {}, 0  # request -> place of its prompt
    was_training = model.training
    try:
        shared = chat.shared_prefix(prompts, tokenizer) if len(prompts) > 1 else 0
        engine = Engine(model, tokenizer, batch_size, shared=prompts[0][:shared] if shared else ())

        def submit(place: int, ids: list[int]) -> None:
            running[engine.submit(ids, max_new_tokens, adapter=active_adapter(model), allowed=allowed and allowed[place])] = place

        while running or order:
            while order and len(running) < 2 * batch_size:  # some are waiting always
                place = order.popleft()
                submit(place, prompts[place])
            engine.step()
            for request in [request for request in running if request.finish]:
                place = running.pop(request)
                if request.error and not shorter:
                    raise request.error
                ids = shorter(place) if request.error else None
                if ids is None:
                    answers[place] = _answer(request)
                else:
                    submit(place, ids)
            if len(prompts) - len(running) - len(order) > done:
                done = len(prompts) - len(running) - len(order)
                progress(done)
    finally:
        model.train(was_training)
    return answers


def _answer(request) -> Answer:
    if request.error:
        return Answer(None, False, 0, 0.0, 0.0)
    return Answer(request.text, request.finish == "stop", len(request.tokens), request.first - request.started,
                  request.finished - request.started)


def answer_text(tokenizer, ids: list[int]) -> str:
    """The text of generated ids up to the first stop id, without the newline that opens every GLM-4 answer."""
    stops = chat.stop_ids(tokenizer)
    end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
    return tokenizer.decode(ids[:end], skip_special_tokens=True).strip()


def stream(model, tokenizer, messages: list[dict], max_new_tokens: int = 256) -> Iterator[str]:
    """The greedy answer to a conversation, piece by piece as it is written. Errors: as `generate`."""
    from glmlab.engine import Engine, active_adapter
    engine = Engine(model, tokenizer, slots=1)
    request = engine.submit(chat.prompt_ids(tokenizer, messages), max_new_tokens, adapter=active_adapter(model))
    while not request.finish:
        engine.step()
        if piece := request.new_text():
            yield piece
    if request.error:
        raise request.error
