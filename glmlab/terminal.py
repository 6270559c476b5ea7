"""Chat in the terminal: `python -m glmlab chat TASK`. Lines come from the keyboard or from a pipe."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from glmlab import paths, serve_tasks, server
from glmlab.tasks import rows
from glmlab.worker import Busy, Ticket

PROMPT = "> "
HELP = """/clear         forget the conversation
/save FILE     write the conversation as JSON messages; what stood there stays as FILE.bak
/system TEXT   another system prompt for what follows; without TEXT the task's own again
/help          this list
/quit          leave (also Ctrl-D); Ctrl-C stops an answer"""


def chat(config: server.Config, lines=None, write: Callable[[str], None] | None = None) -> None:
    """Load what the configuration says and talk until /quit or the end of the lines.

    lines: where to read, default the keyboard (or what is piped in); write(text): where to print, without a newline added.
    Errors: as `server.load`.
    """
    write = write or _print
    talk = server.load(replace(config, slots=1, queue=1, time_limit=float("inf")))
    try:
        write(f"{talk.default}: {config.task}. /help lists the commands.\n")
        for text in talk.persona.disclaimer.values():
            write(f"{text}\n")
        Conversation(talk, write).run(_typed(write) if lines is None else lines)
    finally:
        talk.worker.close()


class Conversation:
    """What has been said, and what a line does to it."""

    def __init__(self, talk, write: Callable[[str], None]):
        self.talk, self.write, self.turns, self.system = talk, write, [], ""
        self.classify = serve_tasks.classifier(talk) if talk.persona.task == "intent" else None
        self.extract = serve_tasks.extractor(talk)

    def run(self, lines) -> None:
        """Read and answer line after line."""
        for line in lines:
            line = line.strip()
            if line.split(maxsplit=1)[:1] == ["/quit"]:
                return
            with self._told():
                if line.startswith("/"):
                    self._command(*line.split(maxsplit=1))
                elif line:
                    self._answer(line)

    @contextlib.contextmanager
    def _told(self):
        """Say what went wrong and go on; Ctrl-C ends what is being done, not the program."""
        try:
            yield
        except KeyboardInterrupt:
            self.write("\n")
        except (ValueError, RuntimeError, OSError, Busy) as error:
            self.write(f"error: {error}\n")

    def messages(self) -> list[dict]:
        """The conversation as messages, with the system prompt that was set by hand."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.turns]

    def _command(self, name: str, rest: str = "") -> None:
        if name == "/clear":
            self.write(f"forgotten: {len(self.turns) // 2} rounds\n")
            self.turns.clear()
        elif name == "/system":
            self.system = rest
            self.write("from now on with this system prompt\n" if rest else "from now on with the task's own prompt\n")
        elif name == "/save":
            if not rest:
                raise ValueError("/save needs a file name: /save talk.json")
            self._save(Path(rest).expanduser())
        elif name == "/help":
            self.write(HELP + "\n")
        else:
            self.write(f"unknown command {name}; /help lists them\n")

    def _save(self, path: Path) -> None:
        path, kept = rows.save(path, json.dumps({"messages": self.messages()}, ensure_ascii=False, indent=2) + "\n")
        self.write(f"written: {paths.shown(path)}" + (f" (what stood there: {paths.shown(kept)})" if kept else "") + "\n")

    def _answer(self, line: str) -> None:
        if self.classify and not self.system:
            self._classified(line)
        elif self.extract and not self.system:
            found = self.extract(line)
            lines = ["no triple could be read"] if found.triples is None else [f"({', '.join(triple)})" for triple in found.triples] or ["无"]
            self._told_at_once(line, lines, _times(found.ticket))
        else:
            self._stream(line)

    def _classified(self, line: str) -> None:
        started = time.perf_counter()
        found = self.classify(line)
        lines = [f"意图：{found.id}：{found.name}", *(f"  {probability:6.1%}  {number}：{name}" for number, name, probability in found.top3)]
        cut = f", too long: {found.turns_dropped} turns in the middle left out" if found.turns_dropped else ""
        self._told_at_once(line, lines, f"total {time.perf_counter() - started:.2f} s{cut}")

    def _told_at_once(self, line: str, answer: list[str], times: str) -> None:
        """Print an answer that came whole, and keep it."""
        self.turns += [{"role": "user", "content": line}, {"role": "assistant", "content": "\n".join(answer)}]
        self.write("".join(f"{part}\n" for part in answer) + f"[{times}]\n")

    def _stream(self, line: str) -> None:
        """Print the answer as it grows, then its times; what Ctrl-C stopped stays in the conversation as far as it came."""
        messages, left_out = self.talk.fitting([*self.messages(), {"role": "user", "content": line}])
        if left_out:
            self.write(f"[too long: the first {left_out} rounds are left out]\n")
        events, ticket = self.talk.stream(messages, session="terminal")
        try:
            for event in events:
                self.write(event if isinstance(event, str) else "\n")
        except KeyboardInterrupt:
            self.talk.worker.cancel(ticket)
            for event in events:  # what was written meanwhile, and the end
                self.write(event if isinstance(event, str) else " [stopped]\n")
        if ticket.text:
            self.turns += [{"role": "user", "content": line}, {"role": "assistant", "content": ticket.text}]
        if ticket.error:
            raise RuntimeError(ticket.error)
        self.write(f"[{_times(ticket)}]\n")


def _times(ticket: Ticket) -> str:
    first = "no token" if ticket.first is None else f"first token {ticket.first:.2f} s"
    return f"{first}, total {ticket.seconds:.2f} s, {ticket.tokens} tokens" + (", cut at the limit" if ticket.finish == "length" else "")


def _print(text: str) -> None:
    print(text, end="", flush=True)


def _typed(write: Callable[[str], None]) -> Iterator[str]:
    """The lines of the keyboard, with editing where the system has it, or of a pipe."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    with contextlib.suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  gives input() its arrow keys
    while True:
        try:
            yield input(PROMPT)
        except EOFError:
            return write("\n")
        except KeyboardInterrupt:
            write("\n/quit or Ctrl-D leaves\n")
