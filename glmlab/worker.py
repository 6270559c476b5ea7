"""The one thread that owns the engine: a bounded queue in front of it, tickets for whoever waits for an answer."""

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue


class Busy(Exception):
    """All places are taken, those of the queue too; come back later."""


class TooLong(ValueError):
    """A prompt that leaves no room for an answer."""

    def __init__(self, tokens: int, wanted: int, limit: int):
        """tokens: of the prompt; wanted: of the answer, at least; limit: of both."""
        super().__init__(f"the prompt takes {tokens} tokens and the answer {wanted}: together more than the {limit} this server allows; "
                         "shorten the messages")
        self.tokens, self.limit = tokens, limit


class Ticket:
    """One answer that is being written: what has come of it, and at last how it ended."""

    def __init__(self, put: Callable, deadline: float):
        """put(event) receives the pieces of the text and, as the last event, the ticket itself; it is called by the engine's thread."""
        self.put, self.deadline = put, deadline
        self.started = time.perf_counter()
        self.request = None    # the engine's, once it has it
        self.text = ""         # so far
        self.seconds = None    # seconds in all
        self.finish = ""       # "stop", "length", "time", "cancelled", "refused" or "error" once it has ended
        self.error = ""        # why, for "time", "refused" and "error"

    @property
    def first(self) -> float | None:
        """Seconds to the first token, waiting included; None before it."""
        return self.request.first - self.started if self.request and self.request.first else None

    @property
    def prompt_tokens(self) -> int:
        return self.request.prompt_tokens if self.request else 0

    @property
    def tokens(self) -> int:
        """Tokens written so far."""
        return len(self.request.tokens) if self.request else 0

    def facts(self) -> dict:
        """How it went so far: finish ("cancelled" while nothing else has ended it), seconds to the first token and in all, tokens."""
        seconds = time.perf_counter() - self.started if self.seconds is None else self.seconds
        return {"finish": self.finish or "cancelled", "first": self.first, "seconds": seconds, "tokens": self.tokens}

    def tell(self, piece: str) -> None:
        """Hand a piece of text on."""
        self.text += piece
        self.put(piece)

    def end(self, finish: str, error: str = "") -> None:
        """Say how it ended."""
        self.finish, self.error, self.seconds = finish, error, time.perf_counter() - self.started
        self.put(self)


class Worker:
    """Answers many at a time on a thread of its own; every method may be called from any thread."""

    def __init__(self, engine, slots: int, queue: int, time_limit: float):
        """slots: answers written at once, as the engine has them; queue: how many more may wait; time_limit: seconds an answer may
        take, waiting included."""
        self.engine, self.places, self.time_limit = engine, slots + queue, time_limit
        self.open = 0  # tickets that have not ended
        self._jobs, self._running, self._closed = deque(), [], False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    # --- what the others call ---

    def submit(self, ids: list[int], max_new_tokens: int, put: Callable, opening: str = "", **options) -> Ticket:
        """Queue a prompt. opening: text that stands before the answer whatever the model writes. options: those of `Engine.submit`.

        Errors: Busy when no place is free. A prompt that the engine refuses ends with finish "refused".
        """
        ticket = Ticket(put, time.monotonic() + self.time_limit)

        def start() -> None:
            try:
                ticket.request = self.engine.submit(ids, max_new_tokens, **options)
            except ValueError as error:
                return self._end(ticket, "refused", str(error))
            self._running.append(ticket)
            if opening:
                ticket.tell(opening)

        with self._wake:
            if self.open >= self.places:
                raise Busy(f"{self.open} requests are being answered or wait, which is all this server takes; try again in a moment")
            self._add(start)
            self.open += 1
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Stop writing: its slot becomes free and the ticket ends with "cancelled", unless it has ended."""
        with self._wake:
            if not self._closed:  # closing ends it too
                self._add(lambda: ticket.finish or self.engine.cancel(ticket.request))

    def call(self, function: Callable):
        """What `function()` returns, run on the engine's thread between two tokens: for other uses of the same model."""
        future = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        with self._wake:
            self._add(run)
        return future.result()

    def alive(self) -> bool:
        """Whether the thread is there to answer."""
        return self._thread.is_alive() and not self._closed

    def close(self) -> None:
        """End what is being written and the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join(timeout=30)

    # --- the thread ---

    def _add(self, job: Callable) -> None:
        """Leave a job for the thread; the caller holds the lock."""
        if self._closed:
            raise Busy("the server is shutting down")
        self._jobs.append(job)
        self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._jobs or self._running or self._closed)
                if self._closed:
                    break
                jobs, self._jobs = self._jobs, deque()
            for job in jobs:
                job()
            try:
                self.engine.step()
            except Exception as error:  # those it befell are told, the others go on
                traceback.print_exc()
                if not any(ticket.request.finish == "error" for ticket in self._running):
                    self._fail(_said(error))
            self._deliver()
        for job in self._jobs:  # nobody may wait for ever
            job()
        self._fail("the server is shutting down")

    def _deliver(self) -> None:
        now = time.monotonic()
        for ticket in list(self._running):
            if piece := ticket.request.new_text():
                ticket.tell(piece)
            if ticket.request.finish:
                self._end(ticket, ticket.request.finish, _said(ticket.request.error))
            elif now > ticket.deadline:
                self.engine.cancel(ticket.request)
                self._end(ticket, "time", f"not finished within the time limit of {self.time_limit:g} s")

    def _fail(self, why: str) -> None:
        for ticket in list(self._running):
            self.engine.cancel(ticket.request)
            self._end(ticket, "error", why)

    def _end(self, ticket: Ticket, finish: str, error: str = "") -> None:
        if ticket in self._running:
            self._running.remove(ticket)
        with self._wake:
            self.open -= 1
        ticket.end(finish, error)


def _said(error: Exception | None) -> str:
    return f"{type(error).__name__}: {error}" if error else ""


class Events:
    """What a ticket tells, for a caller that waits in a thread: iterating gives pieces of text and, last, the ticket."""

    def __init__(self):
        self._queue, self._ended = SimpleQueue(), False
        self.put = self._queue.put

    def __iter__(self):
        return self

    def __next__(self):
        """Waits for the next event; an interrupt while waiting loses none."""
        if self._ended:
            raise StopIteration
        event = self._queue.get()
        self._ended = isinstance(event, Ticket)
        return event
