"""Who waits for which answers in the web page, and when a growing answer is drawn."""

import time
from collections.abc import Iterator
from queue import SimpleQueue

from glmlab.worker import Ticket, Worker

REDRAW = 0.06  # seconds between two pictures of a growing answer


class Waiting:
    """What is being written, by place: (visitor, part of the page)."""

    def __init__(self, worker: Worker):
        self.worker, self._tickets = worker, {}

    def has(self, place: tuple, ticket: Ticket | None = None) -> bool:
        """Whether anything, or this ticket, is waited for at a place."""
        tickets = self._tickets.get(place, ())
        return bool(tickets) if ticket is None else ticket in tickets

    def add(self, place: tuple, ticket: Ticket) -> None:
        """From now on it is waited for."""
        self._tickets.setdefault(place, []).append(ticket)

    def stop(self, place: tuple) -> None:
        """Write no further; what has come is still waited for."""
        for ticket in list(self._tickets.get(place, ())):
            self.worker.cancel(ticket)

    def leave(self, place: tuple) -> None:
        """Write no further, and draw nothing of it any more."""
        self.stop(place)
        self._tickets.pop(place, None)

    def done(self, place: tuple, tickets: list[Ticket]) -> None:
        """Forget tickets; one that nobody reads any more frees its slot."""
        for ticket in tickets:
            self.worker.cancel(ticket)
        left = [ticket for ticket in self._tickets.pop(place, ()) if ticket not in tickets]
        if left:
            self._tickets[place] = left


def growing(queue: SimpleQueue, tickets: list[Ticket]) -> Iterator[None]:
    """A moment to draw, again and again until all tickets have ended."""
    left, drawn = len(tickets), 0.0
    while left:
        left -= isinstance(queue.get(), Ticket)
        if time.monotonic() - drawn > REDRAW:
            drawn = time.monotonic()
            yield
