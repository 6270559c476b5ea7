"""Rows of a task that is answered in free text -> answers, and how probable the right answers are."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from glmlab import encoding, processes
from glmlab.tasks import Task


@dataclass
class Answers:
    """What a model wrote, row by row in the order of the rows."""
    texts: list[str]                 # "" where nothing could be written
    stopped: list[bool]              # ended with a stop id, not at max_new_tokens
    tokens: list[int]                # written, stop id included
    first_token: list[float]         # seconds from the start of its row's work to its first token
    seconds: list[float]             # and to its last one
    cut: list[int]                   # how much of the row was left out because it was too long
    total_seconds: float             # all rows, encoding included


def answer_rows(model, tokenizer, task: Task, rows: list, form: str, max_length: int, max_new_tokens: int, batch_size: int = 25,
                progress: Callable[[int], None] = lambda done: None, rule: Callable | None = None) -> Answers:
    """Greedy answers to all rows, batch_size at a time. Errors: as `encoding.prompts`; a batch too large for the memory is halved.

    Several processes each answer their part of the rows, and all get all answers.
    rule(tokenizer, text of a row as the model reads it, max_new_tokens): what its answer may be, such as `constrained.Copying`; None for
    free answers.
    """
    from glmlab import generation
    started = time.perf_counter()
    encoded = encoding.prompts(tokenizer, task, rows, encoding.room(model, max_length), form, max_new_tokens)
    own = processes.own(len(rows))
    allowed = rule and [rule(tokenizer, encoded[place].text, max_new_tokens) for place in own]
    found = processes.joined(generation.generate_facts(model, tokenizer, [encoded[place].ids for place in own], max_new_tokens, batch_size,
                                                       processes.scaled(progress, len(own), len(rows)), allowed=allowed))
    return Answers(*([getattr(answer, name) for answer in found] for name in ("text", "stopped", "tokens", "first_token_seconds", "seconds")),
                   cut=[prompt.cut for prompt in encoded], total_seconds=time.perf_counter() - started)


def answer_losses(model, tokenizer, task: Task, rows: list, form: str, max_length: int, batch_size: int = 8,
                  progress: Callable[[int], None] = lambda done: None) -> tuple[list[float], list[int]]:
    """How badly the model expects the right answers: summed negative log-likelihood (nats) and labelled tokens of every row.

    Whole answers with their stop id, teacher-forced. Several processes each take some of the batches, and all get all numbers.
    Errors: as `encoding.samples`.
    """
    import torch

    from glmlab import chat, packing
    samples, _ = encoding.samples(tokenizer, task, rows, encoding.room(model, max_length), form)
    prefix, two_way = chat.shared_prefix(samples, tokenizer), chat.two_way(tokenizer)
    sums, counts = [], []
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for number in processes.own(-(-len(samples) // batch_size)):
            start = number * batch_size
            batch = packing.to(packing.pack(samples[start : start + batch_size], prefix, two_way=two_way), model.device)
            losses = torch.nn.functional.cross_entropy(packing.label_logits(model, batch).float(), batch["labels"], reduction="none")
            rows_here = int(batch["sample"][-1]) + 1
            sums += torch.zeros(rows_here, device=losses.device).index_add_(0, batch["sample"], losses).tolist()
            counts += batch["sample"].bincount(minlength=rows_here).tolist()
            progress(start + rows_here)
    model.train(was_training)
    return processes.joined(sums), processes.joined(counts)


def perplexity(sums: list[float], counts: list[int]) -> float:
    """Held-out perplexity of the answers: exp of the mean negative log-likelihood a token."""
    return math.exp(sum(sums) / sum(counts))
