"""A server to test against: an engine that writes what it is told, and uvicorn in a thread."""

import contextlib
import socket
import threading
import time
from pathlib import Path

import uvicorn

from glmlab import server
from glmlab.persona import Persona


class FakeRequest:
    """What an engine gives for a prompt; `written` is the answer it will write, a character a token."""

    def __init__(self, ids, max_new_tokens, options, written):
        self.ids, self.options, self.written, self.most = list(ids), options, written, max_new_tokens
        self.tokens, self.finish, self.error, self.told = [], "", None, 0
        self.submitted, self.first, self.finished = time.perf_counter(), 0.0, 0.0

    @property
    def prompt_tokens(self):
        return len(self.ids)

    @property
    def text(self):
        return self.written[: len(self.tokens)]

    def new_text(self):
        new, self.told = self.text[self.told:], len(self.text)
        return new


class FakeEngine:
    """Writes `answer(request)` while `gate` is open, a token a step and a row; `broken` is raised once by the next step."""

    def __init__(self, slots=2, answer="好的，马上处理。", pace=0.0):
        self.slots, self.answer, self.pace, self.gate = slots, answer, pace, threading.Event()
        self.gate.set()
        self.requests, self.cancelled, self.broken = [], [], None

    def submit(self, ids, max_new_tokens, **options):
        request = FakeRequest(ids, max_new_tokens, options, self.answer(options) if callable(self.answer) else self.answer)
        self.requests.append(request)
        return request

    def cancel(self, request):
        if not request.finish:
            request.finish = "cancelled"
            self.cancelled.append(request)

    def running(self):
        return [request for request in self.requests if not request.finish][: self.slots]

    def step(self):
        if not self.gate.wait(0.02):
            return True
        time.sleep(self.pace)
        if self.broken:
            error, self.broken = self.broken, None
            for request in self.running():
                request.finish, request.error = "error", error
            raise error
        for request in self.running():
            request.tokens.append(7)
            request.first = request.first or time.perf_counter()
            if len(request.tokens) >= min(len(request.written), request.most):
                request.finish = "stop" if len(request.tokens) == len(request.written) else "length"
        return bool(self.running())


def fake_talk(tokenizer, engine, persona=Persona("service", "glm4-tiny"), limit=200, **config):
    """A Talk of a fake engine with the base `tiny` and the adapter `tuned`."""
    config = server.Config(**({"slots": engine.slots, "queue": 2, "max_new_tokens": 50} | config))
    return server.Talk(engine, None, tokenizer, {"tuned": Path("somewhere"), "tiny": None}, persona, config, limit)


@contextlib.contextmanager
def serving(talk, **page_options):
    """The address of a running server of `talk`."""
    app = server.build(talk.config, talk, **page_options)
    listener = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not running.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join(20)
        listener.close()


def until(condition, seconds=10.0):
    """Wait for a condition; fails when it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
