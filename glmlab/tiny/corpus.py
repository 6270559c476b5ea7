"""The text the tiny bases are pre-trained on: generators mixed by share, encoded to rows of token ids."""

import multiprocessing
import random
from collections.abc import Iterator
from importlib import import_module

import numpy as np

#: Share of the documents drawn from each generator of this package. The base of project 1 reads calls most, those of the later
#: projects names that they must copy; a call is four times as long as the other documents.
MIX = {"telecom": 0.50, "service": 0.15, "medical": 0.11, "facts": 0.10, "prose": 0.14}
WIDE_MIX = {"telecom": 0.11, "service": 0.16, "medical": 0.12, "facts": 0.08, "prose": 0.10, "reading": 0.43}

Document = str | list[dict]


def documents(seed: int | str, mix: dict[str, float] = MIX) -> Iterator[tuple[str, Document]]:
    """Endless (generator name, document) pairs; a document is plain text or a conversation of role/content messages."""
    rng = random.Random(f"choice-{seed}")
    streams = {name: import_module(f"glmlab.tiny.{name}").documents(random.Random(f"{name}-{seed}")) for name in mix}
    names, weights = list(mix), list(mix.values())
    while True:
        name = rng.choices(names, weights)[0]
        yield name, next(streams[name])


def plain_text(document: Document) -> str:
    """The words of a document without any markers, for training the tokenizer."""
    if isinstance(document, str):
        return document
    return "\n".join(message["content"] for message in document)


def document_ids(tokenizer, document: Document, as_text: bool = False) -> list[int]:
    """Token ids of one document: the start markers, the text, the end; or the chat format closed as in fine-tuning.

    as_text: a conversation is written as its prompt and answer in one text, so that a model which never predicts its prompt
    (ChatGLM-6B) learns to write such words too.
    """
    from glmlab import chat
    if isinstance(document, str):
        return [*chat.start_ids(tokenizer), *chat.text_ids(tokenizer, document), chat.end_id(tokenizer)]
    ids = chat.encode_sample(tokenizer, document).ids
    start = chat.start_ids(tokenizer)
    return [*start, *(token for token in ids if token not in start)] if as_text else ids


def encode(tokenizer, seed: int | str, tokens: int, mix: dict[str, float] = MIX, row: int = 0) -> tuple[np.ndarray, dict[str, int]]:
    """`tokens` ids as uint16, documents back to back, and how many tokens each generator gave.

    row: for a model that reads prompts both ways no document goes over the end of a row of so many tokens: rows end with padding,
    longer documents are left out, and every second conversation is written as text. 0 for the causal ones, where a document goes on in the next row.
    """
    ids = np.full(tokens, tokenizer.pad_token_id, dtype=np.uint16)
    filled, shares = 0, dict.fromkeys(mix, 0)
    for number, (name, document) in enumerate(documents(seed, mix)):
        piece = document_ids(tokenizer, document, as_text=bool(row) and number % 2 == 0)
        if row:
            if len(piece) > row:
                continue
            left = row - filled % row
            if len(piece) > left:
                filled += left
                if filled == tokens:
                    return ids, shares
        piece = piece[: tokens - filled]
        ids[filled : filled + len(piece)] = piece
        filled += len(piece)
        shares[name] += len(piece)
        if filled == tokens:
            return ids, shares


# --- many processes: the same shards in the same order, however many there are -----------------------------------

def shards(tokenizer, seed: int, count: int, tokens: int, workers: int, mix: dict[str, float] = MIX, row: int = 0) -> Iterator[tuple[np.ndarray, dict[str, int]]]:
    """`count` results of `encode` of `tokens` ids each, made ahead by worker processes; shard i depends on seed and i only."""
    with multiprocessing.get_context("spawn").Pool(workers, _start_worker, (tokenizer,)) as pool:
        yield from pool.imap(_shard, ((f"{seed}-{number}", tokens, mix, row) for number in range(count)))


def _start_worker(tokenizer):
    global _tokenizer
    _tokenizer = tokenizer


def _shard(job: tuple):
    return encode(_tokenizer, *job)
