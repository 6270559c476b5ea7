"""Templates with slots and choices: `{slot}` and `[this|that|]`, the small grammar behind the text generators."""

import random
import re
from functools import lru_cache
from pathlib import Path

MARK = re.compile(r"\{[^{}]*\}|\[[^\[\]]*\]")
FOLDER = Path(__file__).with_name("text")


def load(name: str) -> dict:
    """The phrase bank `text/<name>.yaml`: one-line strings become lists of words, block strings lists of lines."""
    import yaml
    return _lists(yaml.load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"), Loader=yaml.CSafeLoader))


def _lists(value):
    if isinstance(value, dict):
        return {str(key): _lists(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_lists(entry) for entry in value]
    return value.strip().splitlines() if "\n" in value else value.split()


@lru_cache(maxsize=None)
def pieces(template: str) -> tuple:
    """`template` cut into text (str), slots (1-tuples) and choices (lists of templates)."""
    cut, start = [], 0
    for match in MARK.finditer(template):
        cut.append(template[start : match.start()])
        inner = match.group()[1:-1]
        cut.append((inner,) if match.group()[0] == "{" else inner.split("|"))
        start = match.end()
    cut.append(template[start:])
    return tuple(piece for piece in cut if piece != "")


def expand(rng: random.Random, template: str, bound: dict, bank: dict, used: set | None = None) -> str:
    """Fill `template`: a slot takes its value in `bound`, else a random line of `bank`; a choice takes one of its sides.

    A slot that ends in a digit (`{city1}`) is drawn once from the bank without the digit (`city`) and then kept in
    `bound`, so that it stays the same through a document. Names of bound slots that were written go into `used`.
    """
    words = []
    for piece in pieces(template):
        if isinstance(piece, str):
            words.append(piece)
        elif isinstance(piece, list):
            words.append(expand(rng, pick(rng, piece), bound, bank, used))
        else:
            words.append(_slot(rng, piece[0], bound, bank, used))
    return "".join(words)


def _slot(rng, name, bound, bank, used):
    if name in bound:
        if used is not None:
            used.add(name)
        return bound[name]
    text = expand(rng, pick(rng, bank[name.rstrip("0123456789")]), bound, bank, used)
    if name[-1].isdigit():
        bound[name] = text
    return text


def pick(rng: random.Random, options):
    """One of `options`, several times faster than `rng.choice`."""
    return options[int(rng.random() * len(options))]


def several(rng: random.Random, options, count: int) -> list:
    """`count` different positions of `options` (or all of them), in their order."""
    chosen = sorted(rng.sample(range(len(options)), min(count, len(options))))
    return [options[position] for position in chosen]
