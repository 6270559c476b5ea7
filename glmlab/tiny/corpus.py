"""The text the tiny bases are pre-trained on: five generators mixed by share, encoded to rows of token ids."""

import multiprocessing
import random
from collections.abc import Iterator
from importlib import import_module

import numpy as np

#: Share of the documents drawn from each generator of this package.
MIX = {"telecom": 0.50, "service": 0.15, "medical": 0.11, "facts": 0.10, "prose": 0.14}

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


def document_ids(tokenizer, document: Document) -> list[int]:
    """Token ids of one document: `[gMASK]<sop>` text `<|endoftext|>`, or the chat format closed as in fine-tuning."""
    from glmlab import chat
    if isinstance(document, str):
        return [*chat.start_ids(tokenizer), *chat.text_ids(tokenizer, document), tokenizer.eos_token_id]
    return chat.encode_sample(tokenizer, document).ids


def encode(tokenizer, seed: int | str, tokens: int, mix: dict[str, float] = MIX) -> tuple[np.ndarray, dict[str, int]]:
    """`tokens` ids as uint16, documents back to back, and how many tokens each generator gave."""
    ids = np.empty(tokens, dtype=np.uint16)
    filled, shares = 0, dict.fromkeys(mix, 0)
    for name, document in documents(seed, mix):
        piece = document_ids(tokenizer, document)[: tokens - filled]
        ids[filled : filled + len(piece)] = piece
        filled += len(piece)
        shares[name] += len(piece)
        if filled == tokens:
            return ids, shares


# --- many processes: the same shards in the same order, however many there are -----------------------------------

def shards(tokenizer, seed: int, count: int, tokens: int, workers: int) -> Iterator[tuple[np.ndarray, dict[str, int]]]:
    """`count` results of `encode` of `tokens` ids each, made ahead by worker processes; shard i depends on seed and i only."""
    with multiprocessing.get_context("spawn").Pool(workers, _start_worker, (tokenizer,)) as pool:
        yield from pool.imap(_shard, ((f"{seed}-{number}", tokens) for number in range(count)))


def _start_worker(tokenizer):
    global _tokenizer
    _tokenizer = tokenizer


def _shard(job: tuple[str, int]):
    return encode(_tokenizer, *job)
