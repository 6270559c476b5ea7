"""The web page: conversations that stay, and ratings of answers. The other tabs are in page_tabs, the words in page_words, the files in chats.

The conversations belong to the server: whoever may open the page sees them all.
"""

import html
import secrets
from collections.abc import Callable, Iterator
from queue import SimpleQueue

import gradio as gr

from glmlab import chats, page_tabs
from glmlab.page_text import as_markdown, as_text
from glmlab.page_waiting import Waiting, growing
from glmlab.page_words import LANGUAGES, facts, failure, refusal, word
from glmlab.worker import Busy

LIVELY = 0.8   # temperature of another answer to the same question: the most probable one has been seen
KEEP = (gr.skip(),) * 5  # leaves everything that an event could draw as it is


def build(talk, classify: Callable | None = None, extract: Callable | None = None, graph: Callable | None = None) -> gr.Blocks:
    """The page of a loaded model.

    classify(text) -> `predict.Intent` shows the intent tab; extract(text, constrained) -> `serve_tasks.Extracted` the triplet tab;
    graph(triples) -> matplotlib figure adds their picture to it.
    """
    return Page(talk, classify, extract, graph).blocks


class Page:
    """The components of one page, and the answers that its visitors wait for."""

    def __init__(self, talk, classify: Callable | None, extract: Callable | None, graph: Callable | None):
        self.talk, self.task, self.waiting = talk, talk.persona.task, Waiting(talk.worker)
        self.texts = []  # (component, property, word, what stands before it) that change with the language
        with gr.Blocks(title=self.word("title"), analytics_enabled=False) as self.blocks:
            with gr.Row(elem_id="head"):
                self.named(gr.Markdown, "value", "title", prefix="# ")
                self.language = gr.Radio(list(LANGUAGES.items()), value=talk.config.language, show_label=False, container=False,
                                         elem_id="language")
            if talk.persona.disclaimer:
                self.named(gr.Markdown, "value", "disclaimer", elem_classes="banner", elem_id="disclaimer")
            with gr.Tabs():
                with self.named(gr.Tab, "label", "chat"):
                    self._chat_tab()
                if len(talk.voices) > 1:
                    with self.named(gr.Tab, "label", "compare"):
                        page_tabs.compare(self)
                if classify:
                    with self.named(gr.Tab, "label", "intent"):
                        page_tabs.intent(self, classify)
                if extract:
                    with self.named(gr.Tab, "label", "triplets"):
                        page_tabs.triplets(self, extract, graph)
            self.language.input(self._relabel, [self.language, self.list], [*(component for component, *_ in self.texts), self.chat], queue=False)
            self.blocks.load(lambda language: self._listed(None, language, newest=True), self.language, [self.list, self.chat])
            self.blocks.unload(self._closed)
        self.blocks.queue(default_concurrency_limit=talk.worker.places, max_size=4 * talk.worker.places)

    # --- words ---

    def word(self, name: str, language: str = "") -> str:
        """A word of this page; language: that of the server where none is given."""
        language = language or self.talk.config.language
        if name == "disclaimer":
            return self.talk.persona.disclaimer[language]
        return word(name, language, **({"task": word(self.task, language)} if name == "title" else {}))

    def named(self, kind, attribute: str, name: str, prefix: str = "", **options):
        """A component whose `attribute` is a word of the page."""
        component = kind(**{attribute: prefix + self.word(name)}, **options)
        self.texts.append((component, attribute, name, prefix))
        return component

    def _relabel(self, language: str, name: str | None) -> list:
        changed = [gr.update(**{attribute: prefix + self.word(key, language)}) for _, attribute, key, prefix in self.texts]
        return [*changed, self._listed(name, language)[1]]

    # --- conversations ---

    def _chat_tab(self) -> None:
        with gr.Row():
            self.list = self.named(gr.Dropdown, "label", "conversation", choices=[], value=None, show_label=False, container=False,
                                    elem_id="list")
            new = self.named(gr.Button, "value", "new", scale=0, min_width=110, elem_id="new")
            delete = self.named(gr.Button, "value", "delete", scale=0, min_width=110, elem_id="delete")
        self.chat = self.named(gr.Chatbot, "placeholder", "empty", elem_id="chat", show_label=False, sanitize_html=True, allow_tags=False,
                                latex_delimiters=[], buttons=["copy"], layout="bubble", feedback_options=("Like", "Dislike"))
        with gr.Group(visible=False) as correcting:
            correction = self.named(gr.Textbox, "label", "correction", lines=3, elem_id="correction")
            save = self.named(gr.Button, "value", "save", variant="primary", size="sm", elem_id="save")
        with gr.Row():
            box = self.named(gr.Textbox, "placeholder", "question", show_label=False, container=False, lines=1, max_lines=6,
                              elem_id="question")
            send = self.named(gr.Button, "value", "send", variant="primary", scale=0, min_width=90, elem_id="send")
            stop = self.named(gr.Button, "value", "stop", variant="stop", visible=False, scale=0, min_width=90, elem_id="stop")
            retry = self.named(gr.Button, "value", "retry", scale=0, min_width=90, elem_id="retry")
        examples = self._examples()
        with self.named(gr.Accordion, "label", "settings", open=False):
            model = self.named(gr.Dropdown, "label", "model", choices=list(self.talk.voices), value=self.talk.default)
            temperature = self.named(gr.Slider, "label", "temperature", minimum=0, maximum=1.5, step=0.1, value=0)

        rated, asking = gr.State(None), [self.list, model, temperature, self.language]
        drawn = [self.chat, self.list, box, send, stop]
        gr.on([box.submit, send.click], self._ask, [box, *asking], drawn, show_progress="hidden")
        for button, question in examples:
            button.click(self._ask, [gr.State(question), *asking], drawn, show_progress="hidden")
        retry.click(self._retry, asking, drawn, show_progress="hidden")
        stop.click(self._stop, queue=False)
        chosen = [self.list, self.chat, correcting, send, stop]
        self.list.input(self._choose, [self.list, self.language], chosen, queue=False)
        new.click(self._choose, [gr.State(None), self.language], chosen, queue=False)
        delete.click(self._delete, [self.list, self.language], chosen, queue=False)
        self.chat.like(self._rate, [self.list, self.language], [rated, correcting, correction], queue=False)
        save.click(self._correct, [self.list, rated, correction, self.language], [correcting, correction], queue=False)

    def _examples(self) -> list[tuple]:
        """(button, question) of every example, scene by scene."""
        found = []
        for scene, questions in self.talk.persona.examples.items():
            with gr.Row(elem_classes="scene"):
                gr.Markdown(f"**{scene}**")
                found += [(gr.Button(question, size="sm"), question) for question in questions]
        return found

    def _listed(self, name: str | None, language: str, newest: bool = False) -> tuple:
        """The list with a conversation chosen, the one last written where the newest is wanted, and that conversation."""
        found = chats.saved(self.task)
        chosen = found[0] if newest and found else next((conversation for conversation in found if conversation["id"] == name), None)
        choices = [(chats.title(conversation), conversation["id"]) for conversation in found]
        shown = self._shown(chosen or chats.new(self.task), language)
        return gr.Dropdown(choices=choices, value=chosen["id"] if chosen else None), shown

    def _shown(self, conversation: dict, language: str):
        """A conversation as the chatbot draws it."""
        turns = conversation["turns"]
        drawn = []
        for turn in turns:
            below = [f"<small>{html.escape(facts(turn, language))}</small>"] if turn["finish"] else []
            drawn += [{"role": "user", "content": as_text(turn["question"])},
                      {"role": "assistant", "content": [as_markdown(turn["answer"]) or "…", *below]}]
        thumbs = {"up": "Like", "down": "Dislike"}
        return gr.Chatbot(value=drawn, feedback_value=[thumbs.get(turn.get("rating")) for turn in turns])

    def _choose(self, name: str | None, language: str, request: gr.Request, newest: bool = False) -> tuple:
        """Go to another conversation, None for a new one. What is being written for the visitor ends, and stays in the one they left."""
        self.waiting.leave(_place(request))
        if name and name not in [conversation["id"] for conversation in chats.saved(self.task)]:
            gr.Warning(word("gone", language))
        return *self._listed(name, language, newest), gr.Group(visible=False), gr.Button(visible=True), gr.Button(visible=False)

    def _delete(self, name: str | None, language: str, request: gr.Request) -> tuple:
        self.waiting.leave(_place(request))
        if name:
            chats.delete(self.task, name)
        return self._choose(None, language, request, newest=True)

    def _stop(self, request: gr.Request) -> None:
        self.waiting.stop(_place(request))

    def _closed(self, request: gr.Request) -> None:
        for place in (_place(request), page_tabs.place(request)):
            self.waiting.leave(place)

    # --- asking ---

    def _ask(self, question: str, name: str | None, model: str, temperature: float, language: str, request: gr.Request) -> Iterator[tuple]:
        if not question.strip() or self.waiting.has(_place(request)):
            yield KEEP  # without any yield Gradio would empty everything
            return
        yield from self._answer(name, question.strip(), None, model, {"temperature": temperature}, language, request)

    def _retry(self, name: str | None, model: str, temperature: float, language: str, request: gr.Request) -> Iterator[tuple]:
        turns = next((found["turns"] for found in chats.saved(self.task) if found["id"] == name), [])
        if not turns or self.waiting.has(_place(request)):
            yield KEEP
            return
        options = {"temperature": max(temperature, LIVELY), "seed": secrets.randbelow(2**31)}
        yield from self._answer(name, turns[-1]["question"], len(turns) - 1, model, options, language, request)

    def _answer(self, name: str | None, question: str, number: int | None, model: str, options: dict, language: str,
                request: gr.Request) -> Iterator[tuple]:
        """Write an answer and draw it as it grows; what has come is kept whatever happens.

        name: of the conversation, None for a new one; number: of the turn to replace, None for one more.
        """
        queue, place, turn = SimpleQueue(), _place(request), chats.new_turn(question, model)
        try:
            conversation = chats.load(self.task, name) if name else chats.new(self.task)
            messages, turn["left_out"] = self.talk.fitting(chats.messages([*conversation["turns"][:number], turn]))
            ticket = self.talk.ask(messages, queue.put, model, session=conversation["id"], **options)
        except (Busy, ValueError) as error:
            gr.Warning(word("gone", language) if isinstance(error, chats.Gone) else refusal(error, language))
            yield gr.skip(), gr.skip(), question, gr.skip(), gr.skip()
            return
        self.waiting.add(place, ticket)
        try:
            conversation = self._begun(conversation, turn, number)
            yield *self._listed(conversation["id"], language)[::-1], "", gr.Button(visible=False), gr.Button(visible=True)
            for _ in growing(queue, [ticket]):
                turn["answer"] = ticket.text
                if self.waiting.has(place, ticket):
                    yield self._shown(conversation, language), gr.skip(), gr.skip(), gr.skip(), gr.skip()
        finally:
            looked_at = self.waiting.has(place, ticket)
            self.waiting.done(place, [ticket])
            turn.update(ticket.facts(), answer=ticket.text)
            ended = self._ended(conversation["id"], turn)
        if not looked_at:
            yield KEEP  # Gradio draws the last yield once more when a generator ends
        else:
            if why := failure(ticket, self.talk.config.time_limit, language) if ended else word("gone", language):
                gr.Warning(why)
            yield self._shown(ended or chats.new(self.task), language), gr.skip(), gr.skip(), gr.Button(visible=True), gr.Button(visible=False)

    def _begun(self, conversation: dict, turn: dict, number: int | None) -> dict:
        """Keep a question. Returns the conversation as it is now: another tab may have written in it."""
        def edit(found: dict) -> None:
            if number is None:
                found["turns"].append(turn)
            else:
                found["turns"][number] = turn

        if not conversation["turns"]:
            chats.save(conversation)
        return chats.change(self.task, conversation["id"], edit)

    def _ended(self, name: str, turn: dict) -> dict | None:
        """Keep what a turn has become, where it still stands; None when its conversation has been deleted meanwhile."""
        def edit(found: dict) -> None:
            for kept in found["turns"]:
                if kept.get("id") == turn["id"]:
                    kept.update(turn)

        try:
            return chats.change(self.task, name, edit)
        except chats.Gone:
            return None

    # --- ratings ---

    def _rate(self, name: str | None, language: str, data: gr.LikeData) -> tuple:
        """Keep a thumb; a thumb down asks for the right answer."""
        number = (data.index[0] if isinstance(data.index, (list, tuple)) else data.index) // 2
        rating = {True: "up", False: "down"}.get(data.liked)
        if not name or rating is None:
            return KEEP[:3]
        self._keep_rating(name, number, language, rating)
        return number, gr.Group(visible=rating == "down"), ""

    def _correct(self, name: str | None, number: int | None, correction: str, language: str) -> tuple:
        if name and number is not None and correction.strip():
            self._keep_rating(name, number, language, "down", correction.strip())
        return gr.Group(visible=False), ""

    def _keep_rating(self, name: str, number: int, language: str, rating: str, correction: str = "") -> None:
        try:
            turns = chats.change(self.task, name, lambda found: found["turns"][number].update(rating=rating))["turns"]
        except chats.Gone:
            gr.Warning(word("gone", language))
            return
        chats.rate(self.task, turns[number]["model"], chats.messages(turns[:number + 1]), turns[number]["answer"], rating, correction)
        gr.Info(word("thanks", language), duration=2)


def _place(request: gr.Request) -> tuple:
    """Where a visitor's chat waits for its answer."""
    return request.session_hash, "chat"
