"""Answers that cannot be wrong in form: heads and tails copied from the sentence, relations from the list, then the stop id.

What may be written next is decided byte by byte, so that it holds for every tokenizer, also where a token is a part of a character;
a token is allowed when its bytes are. Which of the allowed ones is written, the model decides.
Prior art: decoding along a grammar (Geng et al., arXiv 2305.13971), along a tree of names (De Cao et al., GENRE, arXiv 2010.00904).
"""

import functools
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from glmlab import chat
from glmlab.tasks.triplets import NONE, RELATIONS, Relation, Triple, normal, normalise, parse

#: Bytes that no UTF-8 text holds.
_NEVER = {0xC0, 0xC1, *range(0xF5, 0x100)}
_ONE, _OTHER = "甲", "乙"  # any name, to ask the parser about another one
_NO_BEGINNING = ",、。;:!?)]】》"
_PLAIN = re.compile("[A-Za-z0-9\u4e00-\u9fff]+")


# --- tokens as bytes ---------------------------------------------------------------------------------------------

class Tokens(NamedTuple):
    """The tokens of a vocabulary that are text."""
    by_id: dict[int, bytes]
    texts: list[bytes]           # sorted, each once
    ids: list[tuple[int, ...]]   # of each text; "(" may have a token of its own and one for its byte


@functools.lru_cache(maxsize=2)
def tokens(tokenizer) -> Tokens:
    """The bytes that each token of a tokenizer stands for; special tokens stand for none.

    Errors: ValueError for a vocabulary that cannot write every byte: then some names could not be copied.
    """
    vocabulary, special = tokenizer.get_vocab(), set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    piece = _bytes(tokenizer)
    by_id = {number: piece(text) for text, number in vocabulary.items() if number not in special}
    texts: dict[bytes, tuple[int, ...]] = {}
    for number in sorted(by_id):
        if by_id[number]:
            texts[by_id[number]] = (*texts.get(by_id[number], ()), number)
    missing = [byte for byte in range(256) if bytes([byte]) not in texts and byte not in _NEVER]
    if missing:
        raise ValueError(f"the tokenizer has no token for {len(missing)} of the 256 bytes, so that not every text can be copied: "
                         "decode freely with this base")
    order = sorted(texts)
    return Tokens(by_id, order, [texts[text] for text in order])


def written(tokenizer, text: str) -> bytes:
    """A text as a tokenizer writes it, without blanks at its ends: ChatGLM-6B has half-width punctuation where the text is full-width."""
    found = tokens(tokenizer).by_id
    return b"".join(found.get(number, b"") for number in chat.text_ids(tokenizer, text)).strip()


def _bytes(tokenizer):
    """The function token -> bytes of a tokenizer: byte-level BPE writes a letter a byte, SentencePiece ▁ for a blank and <0x0A> for a byte."""
    from tokenizers import decoders
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    from glmlab.chatglm.vocab import SPACE, V1_SYMBOLS
    if isinstance(tokenizer.backend_tokenizer.decoder, decoders.ByteLevel):
        byte = {letter: number for number, letter in bytes_to_unicode().items()}
        return lambda token: bytes(byte[letter] for letter in token)
    symbols = {symbol: text.encode() for text, symbol in V1_SYMBOLS.items()} if chat.format_of(tokenizer).name == "chatglm" else {}

    def piece(token: str) -> bytes:
        if re.fullmatch("<0x[0-9A-F]{2}>", token):
            return bytes([int(token[3:5], 16)])
        return symbols.get(token) or token.replace(SPACE, " ").encode()
    return piece


def _balanced(name: str) -> bool:
    depth = 0
    for character in name:
        depth += (character == "(") - (character == ")")
        if depth < 0:
            return False
    return depth == 0


# --- what may come next ------------------------------------------------------------------------------------------

class State(NamedTuple):
    """One reading of what was written so far."""
    rest: bytes                       # must come before anything else
    then: str                         # what follows: a name, another triple or the stop id ("more"), the stop id alone ("stop")
    span: tuple[int, int] | None      # the bytes of the sentence that a name has copied so far
    before: tuple[str, ...]           # of the triple: (), or (head, relation)
    done: tuple[Triple, ...]          # whole triples


class Copying:
    """What may be written next of the answer to one sentence: `allowed(ids so far)` -> ids. For `Engine.submit` and `answer_rows`.

    The answer is `无`, or lines `(head, relation, tail)`, each once. Head and tail are two different names of the sentence, the relation
    is one of the list. No name is what the parser would not read back as it stands (one half of a pair of brackets), or what begins
    with a comma or the like. The stop id comes within max_new_tokens: towards the end only what can still be closed is allowed.
    """

    def __init__(self, tokenizer, text: str, max_new_tokens: int, relations: Mapping[str, Relation] = RELATIONS):
        """Errors: as `tokens`, and ValueError for a max_new_tokens too small for one triple."""
        self._tokens, self._room = tokens(tokenizer), max_new_tokens
        self._plain = normalise(text)
        self._text = written(tokenizer, text)  # what can be copied
        self._relations = {written(tokenizer, name): name for name in relations}
        self._first = next(iter(relations))
        self._known: dict[tuple[int, int], bool] = {}
        self._starts = [place for place, byte in enumerate(self._text) if byte & 0xC0 != 0x80]  # where characters begin
        *opening, self._stop = chat.answer_ids(tokenizer, "(")
        opening = b"".join(self._tokens.by_id[number] for number in opening)[:-1]  # what stands between the prompt and an answer
        single = {normalise(self._text[a:b].decode()) for a, b in zip(self._starts, [*self._starts[1:], len(self._text)]) if self._is_name(a, b)}
        self._most = len(single) - 1  # with fewer triples there is a new one to write whatever its head, which is no tail of its own
        begin = [State(opening + NONE.encode(), "stop", None, (), ())]
        begin += [State(opening + b"(", "name", None, (), ())] if self._most > 0 else []
        if max_new_tokens < max(map(self._least, begin)):
            raise ValueError(f"max_new_tokens={max_new_tokens} is too little for one triple: take at least {max(map(self._least, begin))}")
        self._trace: list[tuple[int | None, set[State]]] = [(None, set(begin))]  # (token, readings after it)

    def __call__(self, ids: list[int]) -> list[int]:
        """The ids that may follow the ids written so far. Errors: ValueError for what could not have been written under these rules."""
        same = next((place for place, ((token, _), wanted) in enumerate(zip(self._trace[1:], ids)) if token != wanted),
                    min(len(self._trace) - 1, len(ids)))
        del self._trace[same + 1:]
        for place, token in enumerate(ids[same:], same):
            states = self._trace[-1][1]
            for byte in self._tokens.by_id.get(token, b"\xff"):  # a special token: no text goes on with it
                states = {after for state in states for value, after in self._moves(state) if value == byte}
            if not states:
                raise ValueError(f"token {place} of the answer, id {token}, was not among the allowed ones")
            self._trace.append((token, states))
        states, left = self._trace[-1][1], self._room - len(ids)
        found = [self._stop] if any(not state.rest and state.then in ("more", "stop") for state in states) else []
        return found + self._next(states, left - 1, 0, 0, len(self._tokens.texts))

    def _next(self, states: set[State], left: int, depth: int, low: int, high: int) -> list[int]:
        """The tokens among the texts low..high, which share their first `depth` bytes, that lead from the states of there to one that
        can be ended with `left` tokens more."""
        texts, found = self._tokens.texts, []
        if depth and len(texts[low]) == depth:
            if any((least := self._least(state)) is not None and least <= left for state in states):
                found += self._tokens.ids[low]
            low += 1
        if low == high:
            return found
        following: dict[int, set[State]] = {}
        for state in states:
            for byte, after in self._moves(state):
                following.setdefault(byte, set()).add(after)
        prefix = texts[low][:depth]
        for byte, after in following.items():
            first = bisect_left(texts, prefix + bytes([byte]), low, high)
            last = high if byte == 255 else bisect_left(texts, prefix + bytes([byte + 1]), first, high)
            if first < last:
                found += self._next(after, left, depth + 1, first, last)
        return found

    def _moves(self, state: State) -> Iterator[tuple[int, State]]:
        """Every (byte, state after it)."""
        if state.rest:
            yield state.rest[0], state._replace(rest=state.rest[1:])
        elif state.then == "more" and len(state.done) < self._most:
            yield ord("\n"), State(b"(", "name", None, (), state.done)
        elif state.then == "name" and state.span is None:
            for start in self._starts:
                yield self._text[start], state._replace(span=(start, start + 1))
        elif state.then == "name":
            start, stop = state.span
            if stop < len(self._text):
                yield self._text[stop], state._replace(span=(start, stop + 1))
            for closed in self._closed(state):
                yield from self._moves(closed)

    def _closed(self, state: State) -> list[State]:
        """The states behind the end of a name; none where it may not end."""
        if not self._may_end(state, state.span[1]):
            return []
        name = self._text[slice(*state.span)].decode()
        if state.before:
            return [State(b")", "more", None, (), (*state.done, self._triple(state, name)))]
        return [State(b", " + text + b", ", "name", None, (name, relation), state.done) for text, relation in self._relations.items()]

    def _may_end(self, state: State, stop: int) -> bool:
        """Whether the name of a state may end at a place of the sentence: it can be read back; a tail is not the head, its triple new."""
        start = state.span[0]
        if not self._is_name(start, stop):
            return False
        if not state.before:
            return True
        triple = self._triple(state, self._text[start:stop].decode())
        return triple.head != triple.tail and triple not in state.done

    @staticmethod
    def _triple(state: State, tail: str) -> Triple:
        return normal((*state.before, tail))

    def _is_name(self, start: int, stop: int) -> bool:
        if (start, stop) not in self._known:
            whole = stop == len(self._text) or self._text[stop] & 0xC0 != 0x80  # no part of a character
            self._known[start, stop] = whole and self._reads(self._text[start:stop].decode())
        return self._known[start, stop]

    def _reads(self, name: str) -> bool:
        """Whether the parser gives a name back, as head and as tail, and the sentence has it."""
        plain = normalise(name)
        if name != name.strip() or not plain or plain[0] in _NO_BEGINNING or plain not in self._plain or not _balanced(plain):
            return False
        known = dict.fromkeys(self._relations.values())
        return bool(_PLAIN.fullmatch(name)) or all(
            parse(f"({', '.join(triple)})", known) == [normal(triple)]
            for triple in (Triple(name, self._first, _ONE), Triple(_OTHER, self._first, name)))

    def _least(self, state: State) -> int | None:
        """So many tokens surely suffice from a state to the stop id, a byte a token; None where a name begun can end nowhere."""
        if state.then != "name":
            return len(state.rest) + 1
        behind = 2 if state.before else min(map(len, self._relations)) + 10  # ")" and stop; ", relation, ", a character, ")", stop
        if state.span is None:
            return len(state.rest) + 4 + behind
        start, stop = state.span
        end = next((place for place in range(stop, len(self._text) + 1) if self._may_end(state, place)), None)
        return None if end is None else end - stop + behind
