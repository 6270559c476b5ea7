"""How a server does under load: the same questions one after another and all at once, timed by a client of its OpenAI-compatible API."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from glmlab.reports import table


@dataclass(frozen=True)
class Timed:
    """An answer as a client saw it; sent, first and done in seconds since the burst began."""
    text: str
    tokens: int
    sent: float
    first: float  # its first piece arrived
    done: float

    @property
    def seconds(self) -> float:
        """What the client waited."""
        return self.done - self.sent


def burst(client, model: str, conversations: list[list[dict]], at_once: int, **options) -> list[Timed]:
    """Ask everything, `at_once` at a time (1: one after another), streamed; the answers in the order of the conversations.

    client: an `openai.OpenAI`. options: those of `chat.completions.create`, e.g. max_tokens. Errors: those of the client.
    """
    began = time.perf_counter()

    def ask(messages: list[dict]) -> Timed:
        sent, first, text, tokens = time.perf_counter(), None, "", 0
        for chunk in client.chat.completions.create(model=model, messages=messages, stream=True, stream_options={"include_usage": True},
                                                    **options):
            first = first or time.perf_counter()
            if chunk.choices:
                text += chunk.choices[0].delta.content or ""
            else:
                tokens = chunk.usage.completion_tokens
        return Timed(text, tokens, sent - began, first - began, time.perf_counter() - began)

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(ask, conversations))


def load_table(bursts: dict[str, list[Timed]]) -> str:
    """One line a burst: how long all took, tokens a second together, and what one client waited (median and longest)."""
    lines = []
    for name, answers in bursts.items():
        waited, whole = sorted(answer.seconds for answer in answers), max(answer.done for answer in answers)
        lines.append([name, f"{whole:.2f}", f"{sum(answer.tokens for answer in answers) / whole:.0f}", f"{waited[len(waited) // 2]:.2f}",
                      f"{waited[-1]:.2f}"])
    return table(["questions", "seconds in all", "tokens/s", "one waits (median)", "one waits (longest)"], lines)


def timelines(bursts: dict[str, list[Timed]], path=None):
    """A panel a burst, a bar an answer in the order of their first tokens: light until its first token, dark while it is written.

    Returns the matplotlib figure and, given a path, saves it.
    """
    from glmlab.figures import COLOURS, _axes, save
    most = max(map(len, bursts.values()))
    figure, axes = _axes(5 * len(bursts), 1.5 + 0.2 * most, 1, len(bursts), sharex=True, squeeze=False)
    for axis, (name, answers) in zip(axes[0], bursts.items()):
        for place, answer in enumerate(sorted(answers, key=lambda answer: answer.first)):
            axis.barh(place, answer.first - answer.sent, left=answer.sent, color="#c7d7ea", label="waits" if not place else None)
            axis.barh(place, answer.done - answer.first, left=answer.first, color=COLOURS[0], label="is written" if not place else None)
        axis.set(title=name, xlabel="seconds", ylabel="question", yticks=[], ylim=(most - 0.4, -0.6))
    axes[0, 0].set_xlim(left=0)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return save(figure, path)
