"""The tabs beside the chat: two models side by side with votes, the intent of a call, the triples of a text."""

import random
from collections.abc import Callable, Iterator
from queue import SimpleQueue

import gradio as gr

from glmlab import chats
from glmlab.page_text import as_markdown
from glmlab.page_waiting import growing
from glmlab.page_words import facts, failure, refusal, word
from glmlab.tasks.intent import says_anything
from glmlab.worker import Busy


def place(request: gr.Request) -> tuple:
    """Where a visitor's A/B tab waits for its answers."""
    return request.session_hash, "compare"


# --- A/B ---------------------------------------------------------------------------------------------------------

def compare(page) -> None:
    """A question to the base and an adapter at once, their answers in random order, and a vote. page: the `page.Page` that gets the tab."""
    adapters = [name for name in page.talk.voices if name != page.talk.base]
    box = page.named(gr.Textbox, "label", "question", lines=2, elem_id="both_question")
    adapter = page.named(gr.Dropdown, "label", "model", choices=adapters, value=adapters[0], visible=len(adapters) > 1)
    both = page.named(gr.Button, "value", "ask_both", variant="primary", elem_id="both")
    shown, below = [], []
    with gr.Row():
        for letter in "AB":
            with gr.Column(min_width=280):
                gr.Markdown(f"### {letter}")
                shown.append(gr.Markdown(sanitize_html=True, latex_delimiters=[], line_breaks=True, elem_classes="answer",
                                         elem_id=f"answer_{letter}"))
                below.append(gr.Markdown(elem_classes="facts", elem_id=f"facts_{letter}"))
    with gr.Row(visible=False) as voting:
        buttons = [(page.named(gr.Button, "value", key, elem_id=key), choice)
                   for key, choice in (("better_a", "a"), ("tie", "tie"), ("better_b", "b"))]
    reveal, answers = gr.Markdown(elem_id="reveal"), gr.State(None)

    def ask(question: str, adapter: str, language: str, request: gr.Request) -> Iterator[tuple]:
        if not question.strip() or page.waiting.has(place(request)):
            yield (gr.skip(),) * 7  # without any yield Gradio would empty everything
        else:
            yield from _both(page, question.strip(), adapter, language, request)

    def vote(choice: str, answers: dict | None, language: str) -> tuple:
        if not answers:
            return (gr.skip(),) * 3
        chats.vote(page.task, answers["messages"], answers["answers"], choice, answers["finish"])
        (a, _), (b, _) = answers["answers"]
        return gr.Row(visible=False), word("reveal", language, a=a, b=b), None

    gr.on([both.click, box.submit], ask, [box, adapter, page.language], [*shown, *below, voting, reveal, answers], show_progress="hidden")
    for button, choice in buttons:
        button.click(vote, [gr.State(choice), answers, page.language], [voting, reveal, answers], queue=False)


def _both(page, question: str, adapter: str, language: str, request: gr.Request) -> Iterator[tuple]:
    """Both answers as they grow, left and right by chance; then their times, the vote and what it is about."""
    messages, tickets, queue = [{"role": "user", "content": question}], [], SimpleQueue()
    models = random.sample([page.talk.base, adapter], 2)
    try:
        for model in models:
            tickets.append(page.talk.ask(messages, queue.put, model))
            page.waiting.add(place(request), tickets[-1])
        for _ in growing(queue, tickets):
            yield *(as_markdown(ticket.text) or "…" for ticket in tickets), "", "", gr.Row(visible=False), "", None
    except (Busy, ValueError) as error:
        gr.Warning(refusal(error, language))
        yield (gr.skip(),) * 7
        return
    finally:
        page.waiting.done(place(request), tickets)
    for why in dict.fromkeys(failure(ticket, page.talk.config.time_limit, language) for ticket in tickets):
        if why:
            gr.Warning(why)
    whole = all(ticket.finish not in ("error", "refused") for ticket in tickets)
    kept = {"messages": messages, "answers": [(model, ticket.text) for model, ticket in zip(models, tickets)],
            "finish": tuple(ticket.finish for ticket in tickets)} if whole else None
    yield (*(as_markdown(ticket.text) or "—" for ticket in tickets), *(facts(ticket.facts(), language) for ticket in tickets),
           gr.Row(visible=whole), "", kept)


# --- intent ------------------------------------------------------------------------------------------------------

def intent(page, classify: Callable) -> None:
    """The three most probable intents of a call. page, classify: as `page.build`."""
    box = page.named(gr.Textbox, "label", "call", lines=4, elem_id="call")
    button = page.named(gr.Button, "value", "classify", variant="primary", elem_id="classify")
    label = page.named(gr.Label, "label", "label", num_top_classes=3, elem_id="intent")
    below = gr.Markdown(elem_classes="facts", elem_id="facts_intent")

    def bars(text: str, language: str) -> tuple:
        if not says_anything(text):
            gr.Info(word("no_call", language))
            return None, ""
        found = classify(text)
        cut = word("cut_call", language, dropped=found.turns_dropped) if found.turns_dropped else ""
        return {f"{number}：{name}": probability for number, name, probability in found.top3}, cut

    button.click(_told(bars), [box, page.language], [label, below])


# --- triples -----------------------------------------------------------------------------------------------------

def triplets(page, extract: Callable, graph: Callable | None) -> None:
    """The triples of a text as a table and a graph, with the times of the answer. page, extract, graph: as `page.build`."""
    box = page.named(gr.Textbox, "label", "sentence", lines=4, elem_id="sentence")
    constrained = page.named(gr.Checkbox, "label", "constrained", value=False, container=False, elem_id="constrained")
    button = page.named(gr.Button, "value", "extract", variant="primary", elem_id="extract")
    table = gr.Dataframe(_table([], page.talk.config.language), type="array", interactive=False, wrap=True,
                         show_label=False, column_widths=["37%", "26%", "37%"], elem_id="triples")
    below = gr.Markdown(elem_classes="facts", elem_id="facts_triples")
    picture = gr.Plot(show_label=False, visible=False, elem_id="graph")

    def read(text: str, constrained: bool, language: str) -> tuple:
        if not text.strip():
            gr.Info(word("no_text", language))
            return (gr.skip(),) * 3
        found = extract(text.strip(), constrained)
        line = facts(found.ticket.facts(), language)
        if not found.triples:
            line = f"**{word('nothing' if found.triples is None else 'none', language)}** · {line}"
        drawn = graph(found.triples) if graph and found.triples else None
        return _table(found.triples or [], language), line, gr.Plot(drawn, visible=drawn is not None)

    button.click(_told(read), [box, constrained, page.language], [table, below, picture])
    page.language.input(lambda language, triples: _table(triples, language), [page.language, table], table, queue=False)


def _table(triples: list, language: str) -> dict:
    return {"headers": word("heads", language).split(" · "), "data": [list(triple) for triple in triples]}


def _told(function: Callable) -> Callable:
    """A function whose last argument is the language; what it refuses is shown to the visitor."""
    def told(*arguments):
        try:
            return function(*arguments)
        except (Busy, ValueError, RuntimeError) as error:
            raise gr.Error(refusal(error, arguments[-1])) from error
    return told
