"""One process that talks: the loaded model with its adapters behind one engine, the web page and the API in front of it."""

import copy
import ipaddress
import os
import socket
import threading
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from glmlab import chat, models, paths
from glmlab.persona import Persona, persona
from glmlab.worker import Events, Ticket, TooLong, Worker

KEY_VARIABLE = "GLMLAB_API_KEY"


@dataclass(frozen=True)
class Config:
    """What to load and how to serve it."""
    task: str = "service"        # intent, triplets, service or medical
    base: str = ""               # catalogue name, folder or Hub id; "" takes that of the run, else the task's
    run: str = ""                # run whose adapter talks; "" takes TASK-reference where it stands, "none" only the base
    checkpoint: int = -1         # step of the run; -1 is the last one
    adapters: tuple[tuple[str, str], ...] = ()  # more adapters: (name, folder)
    quantization: str = ""       # nf4 or none; "" is what the run was trained with, none without a run
    device: str = "auto"         # auto, cpu, cuda, cuda:N or mps
    dtype: str = "auto"          # auto, bf16, fp16 or fp32
    host: str = "127.0.0.1"      # address to listen on; another than loopback needs GLMLAB_API_KEY
    port: int = 5000             # 0 takes a free one
    slots: int = 8               # answers written at once
    queue: int = 32              # requests that may wait besides; more are refused
    max_new_tokens: int = 256    # longest answer, in tokens
    max_tokens: int = 8192       # longest prompt and answer together, in tokens; fewer where the model was made for fewer
    time_limit: float = 120.0    # seconds a request may take, waiting included
    language: str = "zh"         # the page's first language: zh or en

    def __post_init__(self):
        """Errors: one ValueError with everything that is wrong."""
        least = {"slots": 1, "queue": 0, "max_new_tokens": 1, "max_tokens": 2}
        wrong = [f"{name}={getattr(self, name)}: at least {number}" for name, number in least.items() if getattr(self, name) < number]
        if self.language not in ("zh", "en"):
            wrong.append(f"language={self.language!r}: zh or en")
        if not 0 <= self.port <= 65535:
            wrong.append(f"port={self.port}: 0 to 65535")
        if self.time_limit <= 0:
            wrong.append(f"time_limit={self.time_limit}: more than 0 seconds")
        for name, _ in self.adapters:
            if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
                wrong.append(f"adapter name {name!r}: letters, digits, - and _ only")
        if not is_loopback(self.host) and not os.environ.get(KEY_VARIABLE):
            wrong.append(f"host={self.host!r} can be reached from other machines: set {KEY_VARIABLE} to a key, or listen on 127.0.0.1")
        if wrong:
            raise ValueError("; ".join(wrong))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class Talk:
    """A loaded model that answers conversations: what page, API and terminal share."""

    def __init__(self, engine, model, tokenizer, voices: dict[str, Path | None], persona: Persona, config: Config, limit: int):
        """voices: what can be asked, adapters of the model by name with their folders and the base with None; the first is the default.

        limit: tokens of a prompt and its answer.
        """
        self.model, self.voices, self.persona, self.config, self.limit = model, voices, persona, config, limit
        self.tokenizer = copy.deepcopy(tokenizer)  # the engine's thread decodes with the other one at the same time
        self.lock = threading.Lock()  # a tokenizer encodes for one thread at a time
        self.worker = Worker(engine, config.slots, config.queue, config.time_limit)

    @property
    def default(self) -> str:
        """The voice that answers where none is named."""
        return next(iter(self.voices))

    @property
    def base(self) -> str:
        """The name of the base."""
        return next(name for name, folder in self.voices.items() if folder is None)

    def ask(self, messages: list[dict], put: Callable, voice: str = "", max_new_tokens: int = 0, session: str | None = None,
            **options) -> Ticket:
        """Queue a conversation; `put` receives the answer as `Worker.submit` says.

        Without a system message the task's own prompt is used, as in training. max_new_tokens: 0 is as many as are allowed and fit.
        session: whose earlier turns the engine may still hold. options: temperature, top_p, seed.
        Errors: ValueError for messages that make no prompt, worker.TooLong, KeyError for an unknown voice, worker.Busy.
        """
        if not messages or messages[-1].get("role") != "user":
            raise ValueError("the last message must come from the user")
        voice = voice or self.default
        adapter, ids = voice if self.voices[voice] else None, self.prompt(messages)
        line = self.persona.emergency(messages[-1]["content"])
        return self.worker.submit(ids, self.room(ids, max_new_tokens), put, opening=f"{line}\n" if line else "", adapter=adapter,
                                  session=session and f"{session}/{voice}", **options)

    def room(self, ids: list[int], wanted: int = 0) -> int:
        """How many tokens the answer to a prompt may have. wanted: 0 is as many as are allowed and fit. Errors: worker.TooLong."""
        free = self.limit - len(ids)
        if free < max(1, wanted):
            raise TooLong(len(ids), max(1, wanted), self.limit)
        return wanted or min(self.config.max_new_tokens, free)

    def prompt(self, messages: list[dict]) -> list[int]:
        """The ids of a conversation, by the task's prompt where it has no system message. Errors: ValueError for what is no prompt."""
        for number, message in enumerate(messages):
            if any("\ud800" <= sign <= "\udfff" for sign in message["content"]):
                raise ValueError(f"message {number}: half of a character (a surrogate) stands alone in it; send whole UTF-8 text")
        if not any(message.get("role") == "system" for message in messages):
            messages = self.persona.messages(messages)
        with self.lock:
            return chat.prompt_ids(self.tokenizer, messages)

    def fitting(self, messages: list[dict]) -> tuple[list[dict], int]:
        """The conversation without as many of its first rounds as it takes to leave room for an answer, and how many those are."""
        opening = [message for message in messages if message["role"] == "system"]
        turns = messages[len(opening):] if self.persona.rounds else messages[-1:]
        reserve, dropped = min(self.config.max_new_tokens, self.limit // 2), 0
        while len(turns) > 2 and len(self.prompt([*opening, *turns])) + reserve > self.limit:
            turns, dropped = turns[2:], dropped + 1
        return [*opening, *turns], dropped

    def stream(self, messages: list[dict], **options) -> tuple[Events, Ticket]:
        """(events, ticket) for a caller that waits; the events are pieces of text and then the ticket. options, errors: as `ask`."""
        events = Events()
        return events, self.ask(messages, events.put, **options)

    def finished(self, messages: list[dict], **options) -> Ticket:
        """The whole answer with its times. Errors: as `ask`; RuntimeError when it could not be written."""
        events, ticket = self.stream(messages, **options)
        for _ in events:
            pass
        if ticket.error:
            raise RuntimeError(ticket.error)
        return ticket

    def answer(self, messages: list[dict], **options) -> str:
        """The text of the whole answer. Errors: as `finished`."""
        return self.finished(messages, **options).text


# --- loading -----------------------------------------------------------------------------------------------------

def load(config: Config) -> Talk:
    """Load the base and all adapters and start the engine.

    Errors: as `models.load_base`, `models.find_checkpoint`; ValueError for a run of another task and for a limit that no prompt fits.
    """
    from glmlab import encoding, predict
    from glmlab.engine import Engine
    folders, settings = _adapters(config)
    own = {"relations": predict.trained_relations(next(iter(folders.values()), None))} if config.task == "triplets" else {}
    task = persona(config.task, settings.get("form", ""), **own)
    try:
        task.messages(_asked(""))
    except ValueError as error:
        raise ValueError(f"run {settings['run']} is none of task {config.task}: {error}") from error
    base = config.base or settings.get("base", task.base)
    quantization = config.quantization or models.quantization_of(settings.get("method"))
    model, tokenizer = models.load_base(base, quantization, config.dtype, config.device)
    name = Path(base).name
    if name in folders:
        raise ValueError(f"an adapter is called {name}, as the base; give it another name")
    if folders:
        model = _with_adapters(model, folders)
    limit, shortest = encoding.room(model, config.max_tokens), len(chat.prompt_ids(tokenizer, task.messages(_asked("一"))))
    if limit <= shortest:
        raise ValueError(f"max_tokens={limit}: the shortest prompt of {config.task} takes {shortest} tokens, its answer at least one; "
                         f"allow more than {shortest}")
    engine = Engine(model, tokenizer, slots=config.slots, max_tokens=limit, shared=_shared(tokenizer, task))
    return Talk(engine, model, tokenizer, {**folders, name: None}, task, config, limit)


def _asked(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def _adapters(config: Config) -> tuple[dict[str, Path], dict]:
    """({name: folder of an adapter}, settings of the run)."""
    run = config.run
    if not run and (paths.runs(f"{config.task}-reference") / "run.json").is_file():
        run = f"{config.task}-reference"
    folders, settings = {}, {}
    if run and run != "none":
        name = models.run_folder(run).name.replace(".", "-")  # PEFT keeps adapters as modules, whose names hold no dot
        folders[name] = models.find_checkpoint(run, config.checkpoint)
        settings = models.read_run(run)["settings"]
    for name, folder in config.adapters:
        if name in folders:
            raise ValueError(f"two adapters are called {name}; give each a name of its own")
        models.check_adapter(Path(folder))
        folders[name] = Path(folder)
    return folders, settings


def _with_adapters(model, folders: dict[str, Path]):
    from peft import PeftModel
    (first, folder), *others = folders.items()
    model = PeftModel.from_pretrained(model, str(folder), adapter_name=first)
    for name, folder in others:
        model.load_adapter(str(folder), adapter_name=name)
    return model.eval()


def _shared(tokenizer, task: Persona) -> list[int]:
    """The ids all prompts of a task begin with."""
    prompts = [chat.prompt_ids(tokenizer, task.messages(_asked(text))) for text in ("一", "two")]
    return prompts[0][:chat.shared_prefix(prompts, tokenizer)]


# --- serving -----------------------------------------------------------------------------------------------------

def build(config: Config, talk: Talk | None = None, **page_options):
    """The FastAPI application: API under /v1, /health, page at /. talk: a loaded one; page_options: those of `page.build`."""
    import gradio
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from glmlab import api, page, page_words, serve_tasks
    talk = talk or load(config)
    key = os.environ.get(KEY_VARIABLE, "")
    page_options = {"classify": serve_tasks.classifier(talk), "extract": serve_tasks.extractor(talk),
                    "graph": serve_tasks.drawer(talk)} | page_options

    @asynccontextmanager
    async def lifespan(app):
        yield
        talk.worker.close()

    app = FastAPI(title="GLM Lab", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.talk = talk
    if not key:  # a page of the web cannot reach the server under a name of its own (DNS rebinding)
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "::1", "[::1]", config.host])
    api.add_routes(app, talk, key)
    return gradio.mount_gradio_app(app, page.build(talk, **page_options), path="/", auth=_login(key) if key else None, ssr_mode=False,
                                   auth_message=f"密码 / password: {KEY_VARIABLE}", footer_links=[], run_history=False,
                                   app_kwargs={"openapi_url": None}, **page_words.look())  # it would be open whatever the key


def _login(key: str) -> Callable[[str, str], bool]:
    from glmlab.api import same
    return lambda user, password: same(password.encode(), key)


def serve(config: Config) -> None:
    """Load, listen, answer until Ctrl-C. Errors: OSError when the port is taken; as `load`."""
    import uvicorn
    try:
        listener = socket.create_server((config.host, config.port), family=socket.AF_INET6 if ":" in config.host else socket.AF_INET)
    except OSError as error:
        raise OSError(f"cannot listen on {config.host}, port {config.port} ({error.strerror}); choose another one with --port") from error
    with listener:
        app = build(config)
        host = f"[{config.host}]" if ":" in config.host else config.host
        address = f"http://{host}:{listener.getsockname()[1]}"
        print(f"{', '.join(app.state.talk.voices)}: page at {address}, API at {address}/v1. Ctrl-C ends it.", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)).run(sockets=[listener])
