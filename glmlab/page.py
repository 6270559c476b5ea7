"""The web page: conversations that stay, ratings, A/B votes, intent and triplet tabs. The words are in page_words, the files in chats.

The conversations belong to the server: whoever may open the page sees them all.
"""

import random
import secrets
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue

import gradio as gr

from glmlab import chats
from glmlab.page_words import LANGUAGES, facts, word
from glmlab.worker import Busy, Ticket

REDRAW = 0.06  # seconds between two pictures of a growing answer
LIVELY = 0.8   # temperature of another answer to the same question: the most probable one has been seen


def build(talk, classify: Callable | None = None, extract: Callable | None = None, graph: Callable | None = None) -> gr.Blocks:
    """The page of a loaded model.

    classify(text) -> `predict.Intent` shows the intent tab; extract(text) -> triples, None when none can be read, the triplet tab;
    graph(triples) -> matplotlib figure adds their picture to it.
    """
    return _Page(talk, classify, extract, graph).blocks


class _Page:
    """The components of one page, and the answers that its visitors wait for."""

    def __init__(self, talk, classify: Callable | None, extract: Callable | None, graph: Callable | None):
        self.talk, self.task, self.language = talk, talk.persona.task, talk.config.language
        self.running: dict[str, list[Ticket]] = {}  # visitor -> what is being written for them
        self.texts = []                             # (component, property, word) that change with the language
        with gr.Blocks(title=self._word("title"), analytics_enabled=False) as self.blocks:
            with gr.Row(elem_id="head"):
                self._named(gr.Markdown, "value", "title", prefix="# ")
                language = gr.Radio(list(LANGUAGES.items()), value=self.language, show_label=False, container=False, elem_id="language")
            if talk.persona.disclaimer:
                self._named(gr.Markdown, "value", "disclaimer", elem_classes="banner", elem_id="disclaimer")
            with gr.Tabs():
                with self._named(gr.Tab, "label", "chat"):
                    self._chat_tab(language)
                if len(talk.voices) > 1:
                    with self._named(gr.Tab, "label", "compare"):
                        self._compare_tab(language)
                if classify:
                    with self._named(gr.Tab, "label", "intent"):
                        self._intent_tab(classify)
                if extract:
                    with self._named(gr.Tab, "label", "triplets"):
                        self._triplet_tab(extract, graph, language)
            language.input(self._relabel, [language, self.list], [*(component for component, *_ in self.texts), self.chat], queue=False)
            self.blocks.load(self._opened, language, [self.list, self.chat])
            self.blocks.unload(self._left)
        self.blocks.queue(default_concurrency_limit=talk.worker.places, max_size=4 * talk.worker.places)

    # --- words ---

    def _word(self, name: str, language: str = "") -> str:
        language = language or self.language
        if name == "disclaimer":
            return self.talk.persona.disclaimer[language]
        return word(name, language, **({"task": word(self.task, language)} if name == "title" else {}))

    def _named(self, kind, attribute: str, name: str, prefix: str = "", **options):
        """A component whose `attribute` is a word of the page."""
        component = kind(**{attribute: prefix + self._word(name)}, **options)
        self.texts.append((component, attribute, name, prefix))
        return component

    def _relabel(self, language: str, name: str | None) -> list:
        changed = [gr.update(**{attribute: prefix + self._word(key, language)}) for _, attribute, key, prefix in self.texts]
        return [*changed, self._shown(self._open(name), language)]

    # --- conversations ---

    def _chat_tab(self, language) -> None:
        with gr.Row():
            self.list = self._named(gr.Dropdown, "label", "conversation", choices=[], value=None, show_label=False, container=False,
                                    elem_id="list")
            new = self._named(gr.Button, "value", "new", scale=0, min_width=110, elem_id="new")
            delete = self._named(gr.Button, "value", "delete", scale=0, min_width=80, elem_id="delete")
        self.chat = self._named(gr.Chatbot, "placeholder", "empty", elem_id="chat", show_label=False, sanitize_html=True, allow_tags=False,
                                latex_delimiters=[], buttons=["copy"], layout="bubble", feedback_options=("Like", "Dislike"))
        with gr.Group(visible=False) as correcting:
            correction = self._named(gr.Textbox, "label", "correction", lines=3, elem_id="correction")
            save = self._named(gr.Button, "value", "save", variant="primary", size="sm", elem_id="save")
        with gr.Row():
            box = self._named(gr.Textbox, "placeholder", "question", show_label=False, container=False, lines=1, max_lines=6,
                              elem_id="question")
            send = self._named(gr.Button, "value", "send", variant="primary", scale=0, min_width=90, elem_id="send")
            stop = self._named(gr.Button, "value", "stop", variant="stop", visible=False, scale=0, min_width=90, elem_id="stop")
            retry = self._named(gr.Button, "value", "retry", scale=0, min_width=80, elem_id="retry")
        examples = self._examples()
        with self._named(gr.Accordion, "label", "settings", open=False):
            model = self._named(gr.Dropdown, "label", "model", choices=list(self.talk.voices), value=self.talk.default)
            temperature = self._named(gr.Slider, "label", "temperature", minimum=0, maximum=1.5, step=0.1, value=0)

        rated, asking = gr.State(None), [self.list, model, temperature, language]
        drawn = [self.chat, self.list, box, send, stop]
        gr.on([box.submit, send.click], self._ask, [box, *asking], drawn, show_progress="hidden")
        for button, question in examples:
            button.click(self._ask, [gr.State(question), *asking], drawn, show_progress="hidden")
        retry.click(self._retry, asking, drawn, show_progress="hidden")
        stop.click(self._left, queue=False)
        self.list.input(lambda name, language: (self._shown(self._open(name), language), gr.Group(visible=False)), [self.list, language],
                        [self.chat, correcting], queue=False)
        new.click(lambda language: (*self._listed(None, language), gr.Group(visible=False)), language, [self.list, self.chat, correcting],
                  queue=False)
        delete.click(self._delete, [self.list, language], [self.list, self.chat], queue=False)
        self.chat.like(self._rate, [self.list, language], [rated, correcting, correction], queue=False)
        save.click(self._correct, [self.list, rated, correction, language], [correcting, correction], queue=False)

    def _examples(self) -> list[tuple]:
        """(button, question) of every example, scene by scene."""
        found = []
        for scene, questions in self.talk.persona.examples.items():
            with gr.Row(elem_classes="scene"):
                gr.Markdown(f"**{scene}**")
                found += [(gr.Button(question, size="sm"), question) for question in questions]
        return found

    def _open(self, name: str | None) -> dict:
        return chats.load(self.task, name) if name else chats.new(self.task)

    def _opened(self, language: str) -> tuple:
        """What a visitor finds: the conversation that was last written."""
        found = chats.saved(self.task)
        return self._listed(found[0]["id"] if found else None, language, found)

    def _listed(self, name: str | None, language: str, found: list[dict] | None = None) -> tuple:
        """The list with a conversation chosen, and that conversation."""
        found = chats.saved(self.task) if found is None else found
        chosen = next((conversation for conversation in found if conversation["id"] == name), None)
        choices = [(chats.title(conversation), conversation["id"]) for conversation in found]
        return gr.Dropdown(choices=choices, value=name if chosen else None), self._shown(chosen or chats.new(self.task), language)

    def _shown(self, conversation: dict, language: str):
        """A conversation as the chatbot draws it."""
        turns = conversation["turns"]
        drawn = []
        for turn in turns:
            below = [f"<small>{facts(turn, language)}</small>"] if turn["finish"] else []
            drawn += [{"role": "user", "content": turn["question"]}, {"role": "assistant", "content": [turn["answer"] or "…", *below]}]
        thumbs = {"up": "Like", "down": "Dislike"}
        return gr.Chatbot(value=drawn, feedback_value=[thumbs.get(turn.get("rating")) for turn in turns])

    def _delete(self, name: str | None, language: str, request: gr.Request) -> tuple:
        self._left(request)
        if name:
            chats.delete(self.task, name)
        return self._opened(language)

    # --- asking ---

    def _ask(self, question: str, name: str | None, model: str, temperature: float, language: str, request: gr.Request) -> Iterator[tuple]:
        if question.strip() and not self.running.get(request.session_hash):
            conversation = self._open(name)
            conversation["turns"].append({"question": question.strip()})
            yield from self._answer(conversation, model, {"temperature": temperature}, language, request)

    def _retry(self, name: str | None, model: str, temperature: float, language: str, request: gr.Request) -> Iterator[tuple]:
        conversation = self._open(name)
        if conversation["turns"] and not self.running.get(request.session_hash):
            conversation["turns"][-1] = {"question": conversation["turns"][-1]["question"]}
            options = {"temperature": max(temperature, LIVELY), "seed": secrets.randbelow(2**31)}
            yield from self._answer(conversation, model, options, language, request)

    def _answer(self, conversation: dict, model: str, options: dict, language: str, request: gr.Request) -> Iterator[tuple]:
        """Write the answer to the last question, drawing as it grows; what has come is kept whatever happens."""
        turn, queue = conversation["turns"][-1], SimpleQueue()
        turn.update(answer="", model=model, finish="", first=None, seconds=0.0, tokens=0)
        messages, turn["left_out"] = self.talk.fitting(chats.messages(conversation["turns"]))
        try:
            ticket = self.talk.ask(messages, queue.put, model, session=conversation["id"], **options)
        except (Busy, ValueError) as error:
            gr.Warning(str(error))
            yield gr.skip(), gr.skip(), turn["question"], gr.skip(), gr.skip()
            return
        self.running.setdefault(request.session_hash, []).append(ticket)
        try:
            chats.save(conversation)
            yield *self._listed(conversation["id"], language)[::-1], "", gr.Button(visible=False), gr.Button(visible=True)
            for _ in _growing(queue, [ticket]):
                turn["answer"] = ticket.text
                yield self._shown(conversation, language), gr.skip(), gr.skip(), gr.skip(), gr.skip()
        finally:
            self._done(request, [ticket])
            turn.update(answer=ticket.text, finish=ticket.finish or "cancelled", first=ticket.first, tokens=ticket.tokens,
                        seconds=ticket.seconds or time.perf_counter() - ticket.started)
            chats.save(conversation)
        if ticket.error:
            gr.Warning(ticket.error)
        yield self._shown(conversation, language), gr.skip(), gr.skip(), gr.Button(visible=True), gr.Button(visible=False)

    def _done(self, request: gr.Request, tickets: list[Ticket]) -> None:
        """Forget what a visitor waited for; a ticket nobody reads any more frees its slot."""
        waited = self.running.get(request.session_hash, [])
        for ticket in tickets:
            self.talk.worker.cancel(ticket)
            if ticket in waited:
                waited.remove(ticket)

    def _left(self, request: gr.Request) -> None:
        """Stop everything that is being written for a visitor: the button, a closed tab."""
        for ticket in list(self.running.get(request.session_hash, [])):
            self.talk.worker.cancel(ticket)

    # --- ratings ---

    def _rate(self, name: str | None, language: str, data: gr.LikeData) -> tuple:
        """Keep a thumb; a thumb down asks for the right answer."""
        place = (data.index[0] if isinstance(data.index, (list, tuple)) else data.index) // 2
        rating = {True: "up", False: "down"}.get(data.liked)
        if not name or rating is None:
            return gr.skip(), gr.skip(), gr.skip()
        self._keep_rating(name, place, rating)
        gr.Info(word("thanks", language), duration=2)
        return place, gr.Group(visible=rating == "down"), ""

    def _correct(self, name: str | None, place: int | None, correction: str, language: str) -> tuple:
        if name and place is not None and correction.strip():
            self._keep_rating(name, place, "down", correction.strip())
            gr.Info(word("thanks", language), duration=2)
        return gr.Group(visible=False), ""

    def _keep_rating(self, name: str, place: int, rating: str, correction: str = "") -> None:
        conversation = self._open(name)
        turn = conversation["turns"][place]
        turn["rating"] = rating
        chats.save(conversation)
        chats.rate(self.task, turn["model"], chats.messages(conversation["turns"][:place + 1]), turn["answer"], rating, correction)

    # --- A/B ---

    def _compare_tab(self, language) -> None:
        adapters = [name for name in self.talk.voices if name != self.talk.base]
        box = self._named(gr.Textbox, "label", "question", lines=2, elem_id="both_question")
        adapter = self._named(gr.Dropdown, "label", "model", choices=adapters, value=adapters[0], visible=len(adapters) > 1)
        both = self._named(gr.Button, "value", "ask_both", variant="primary", elem_id="both")
        with gr.Row():
            shown = []
            for letter in "AB":
                with gr.Column(min_width=280):
                    gr.Markdown(f"### {letter}")
                    shown.append(gr.Markdown(sanitize_html=True, latex_delimiters=[], elem_classes="answer", elem_id=f"answer_{letter}"))
        with gr.Row(visible=False) as voting:
            buttons = [(self._named(gr.Button, "value", key, elem_id=key), choice)
                       for key, choice in (("better_a", "a"), ("tie", "tie"), ("better_b", "b"))]
        reveal, answers = gr.Markdown(elem_id="reveal"), gr.State(None)
        gr.on([both.click, box.submit], self._both, [box, adapter], [*shown, voting, reveal, answers], show_progress="hidden")
        for button, choice in buttons:
            button.click(self._vote, [gr.State(choice), answers, language], [voting, reveal, answers], queue=False)

    def _both(self, question: str, adapter: str, request: gr.Request) -> Iterator[tuple]:
        """Both answers at once, left and right by chance."""
        if not question.strip():
            return
        messages, tickets, queue = [{"role": "user", "content": question.strip()}], [], SimpleQueue()
        models = random.sample([self.talk.base, adapter], 2)
        try:
            for model in models:
                tickets.append(self.talk.ask(messages, queue.put, model))
                self.running.setdefault(request.session_hash, []).append(tickets[-1])
            for _ in _growing(queue, tickets):
                yield *(ticket.text or "…" for ticket in tickets), gr.Row(visible=False), "", None
        except (Busy, ValueError) as error:
            gr.Warning(str(error))
            return
        finally:
            self._done(request, tickets)
        kept = {"messages": messages, "answers": [(model, ticket.text) for model, ticket in zip(models, tickets)]}
        yield *(ticket.text or "—" for ticket in tickets), gr.Row(visible=True), "", kept

    def _vote(self, choice: str, answers: dict | None, language: str) -> tuple:
        if not answers:
            return gr.skip(), gr.skip(), gr.skip()
        chats.vote(self.task, answers["messages"], answers["answers"], choice)
        (a, _), (b, _) = answers["answers"]
        return gr.Row(visible=False), word("reveal", language, a=a, b=b), None

    # --- other tasks ---

    def _intent_tab(self, classify: Callable) -> None:
        box = self._named(gr.Textbox, "label", "call", lines=4, elem_id="call")
        button = self._named(gr.Button, "value", "classify", variant="primary", elem_id="classify")
        label = self._named(gr.Label, "label", "label", num_top_classes=3, elem_id="intent")

        def bars(text: str):
            return {f"{number}：{name}": probability for number, name, probability in classify(text).top3} if text.strip() else None

        gr.on([button.click], _told(bars), box, label)

    def _triplet_tab(self, extract: Callable, graph: Callable | None, language) -> None:
        box = self._named(gr.Textbox, "label", "sentence", lines=4, elem_id="sentence")
        button = self._named(gr.Button, "value", "extract", variant="primary", elem_id="extract")
        table = self._named(gr.Dataframe, "label", "triples", headers=["主体", "关系", "客体"], type="array", interactive=False, elem_id="triples")
        picture = self._named(gr.Plot, "label", "graph", visible=bool(graph), elem_id="graph")

        def triples(text: str, language: str) -> tuple:
            found = extract(text.strip()) if text.strip() else []
            if found is None:
                gr.Info(word("nothing", language))
            return [list(triple) for triple in found or []], graph(found) if graph and found else None

        button.click(_told(triples), [box, language], [table, picture])


def _growing(queue: SimpleQueue, tickets: list[Ticket]) -> Iterator[None]:
    """A moment to draw, again and again until all tickets have ended."""
    left, drawn = len(tickets), 0.0
    while left:
        left -= isinstance(queue.get(), Ticket)
        if time.monotonic() - drawn > REDRAW:
            drawn = time.monotonic()
            yield


def _told(function: Callable) -> Callable:
    """The function, what it refuses shown to the visitor."""
    def told(*arguments):
        try:
            return function(*arguments)
        except (Busy, ValueError, RuntimeError) as error:
            raise gr.Error(str(error)) from error
    return told
