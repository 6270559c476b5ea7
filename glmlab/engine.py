"""Many answers at once on one model: when one is finished, the next request takes its place while the others go on.

Every running request is a row of one batch and has a slot of the cache, where its keys and values stand from place 0 on, whatever the
other rows hold; a mask hides what lies behind its end. A new prompt is computed behind what is known already, the shared prefix or its
session's last turn; several new ones make one pass, as segments of a token tree that do not see each other (`packing.Tree`). So every
answer is the one computed alone, up to the rounding of the kernels.
Prior art: iteration-level scheduling (Yu et al., Orca, OSDI 2022), reuse of a conversation's cache (Zheng et al., arXiv 2312.07104).
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate, takewhile

import torch
from transformers import Cache, DynamicCache

from glmlab import chat
from glmlab.generation import answer_text
from glmlab.packing import Tree, attention_mask
from glmlab.slots import SlotCache

#: Tokens of one pass over several new prompts: attention costs the square of them, and a CPU gains little from long passes.
PASS_TOKENS, CPU_PASS_TOKENS = 4096, 256


@dataclass(eq=False)
class Request:
    """One answer, as far as it is written; `Engine.submit` makes them. Times are of `time.perf_counter`, 0 before they came."""
    ids: list[int]
    max_new_tokens: int
    adapter: str | None           # None: the base without adapter
    temperature: float            # 0: greedy
    top_p: float
    session: object               # None: nothing is kept
    seed: int                     # of what a temperature draws
    tokenizer: object = field(repr=False)
    next_position: tuple[int, int] = field(repr=False)       # position and block position of the first token of the answer
    allowed: Callable[[list[int]], list[int]] | None = field(default=None, repr=False)  # ids written so far -> those that may follow
    tokens: list[int] = field(default_factory=list)          # written so far, stop id included
    finish: str = ""              # "" while it runs, then stop, length, cancelled or error
    error: Exception | None = None
    reused: int = 0               # tokens of the prompt that were known from the shared prefix or the session
    submitted: float = field(default_factory=time.perf_counter)
    started: float = 0.0          # its prompt's turn came
    first: float = 0.0            # the first token was there
    finished: float = 0.0
    told: int = field(default=0, repr=False)                 # characters that new_text gave out

    @property
    def prompt_tokens(self) -> int:
        return len(self.ids)

    @property
    def text(self) -> str:
        """The answer so far."""
        return answer_text(self.tokenizer, self.tokens)

    def new_text(self) -> str:
        """The text since the last call; all of these make up `text`. An unfinished character waits, and so do blanks at the end."""
        finished, tokens = bool(self.finish), list(self.tokens)  # in this order: the engine may run in another thread
        while tokens and not finished and str(self.tokenizer.convert_ids_to_tokens(tokens[-1])).startswith("<0x"):
            tokens.pop()  # the bytes of a rare character, which are decoded together or not at all
        text = answer_text(self.tokenizer, tokens)
        if not finished:
            text = text.rstrip("\ufffd").rstrip()
        new, self.told = text[self.told:], max(self.told, len(text))
        return new

    @property
    def context(self) -> list[int]:
        """Prompt and answer so far. The slot of a running row holds all of it but the last token."""
        return self.ids + self.tokens

    @property
    def length(self) -> int:
        return len(self.ids) + len(self.tokens)


class Engine:
    """Continuous batching. `submit` and `cancel` may be called from any thread, `step` from one at a time.

    waiting, rows: the requests in front of the slots and in them. prefilled: prompt tokens computed so far, all passes together.
    """

    def __init__(self, model, tokenizer, slots: int = 8, max_tokens: int = 0, shared: list[int] = (), sessions: int = 16):
        """slots: answers at once. max_tokens: of a prompt and its answer, 0 for what the model can. shared: first ids of the prompts,
        computed once an adapter (a prompt that begins otherwise is computed whole). sessions: conversations whose cache is kept, the
        least recently used goes first; also all of them when memory is short.

        ChatGLM-6B reads prompts both ways, so that no state of a shorter one is of use: it takes no `shared`, and a session is computed
        whole every turn. Errors: ValueError for that, and for slots below 1.
        """
        if slots < 1:
            raise ValueError(f"slots={slots}: at least one answer is written at a time")
        self.two_way = chat.two_way(tokenizer)
        if self.two_way and shared:
            raise ValueError("prompts that are read both ways share nothing; take shared from chat.shared_prefix(prompts, tokenizer)")
        self.model, self.tokenizer = model.eval(), tokenizer
        self.slots, self.limit = slots, slots  # limit: fewer while memory is short
        limits = [limit for limit in (max_tokens, getattr(model.config, "max_position_embeddings", 0)) if limit]
        self.max_tokens = min(limits, default=0)
        self.stops = chat.stop_ids(tokenizer)
        self.waiting: list[Request] = []
        self.rows: list[Request] = []  # the place in the list is the slot
        self.prefilled = 0
        self._cache = SlotCache()
        self._shared = list(shared)
        self._shared_states: dict = {}  # adapter -> keys and values of the shared ids
        self._sessions: dict = {}       # (session, adapter) -> (ids, their keys and values), least recently used first
        self._sessions_kept = 0 if self.two_way else sessions

    def submit(self, ids: list[int], max_new_tokens: int, *, adapter: str | None = None, temperature: float = 0.0, top_p: float = 1.0,
               seed: int | None = None, session=None, allowed: Callable[[list[int]], list[int]] | None = None) -> Request:
        """Ask for an answer to prompt ids as `chat.prompt_ids` makes them; `step` until its `finish` says how it ended.

        adapter: name of a PEFT adapter of the model, None for the base without one. temperature: 0 takes the most probable token, else
        it is drawn among the most probable that make up top_p, by the seed alone: neighbours do not matter. session: any key; the
        conversation's next turn computes what is new only. allowed: the ids that may follow those written so far (`constrained`).
        Errors: ValueError that names the numbers when prompt and answer are too long, and for settings that mean nothing.
        """
        if not ids or max_new_tokens < 1:
            raise ValueError(f"a request needs a prompt and room for an answer: {len(ids)} prompt tokens, max_new_tokens={max_new_tokens}")
        if self.max_tokens and len(ids) + max_new_tokens > self.max_tokens:
            raise ValueError(f"{len(ids)} prompt tokens and max_new_tokens={max_new_tokens} make {len(ids) + max_new_tokens}, more than "
                             f"the limit of {self.max_tokens}: shorten the prompt or ask for at most {max(0, self.max_tokens - len(ids))}")
        if temperature < 0 or not 0 < top_p <= 1:
            raise ValueError(f"temperature={temperature}, top_p={top_p}: temperature is at least 0, top_p above 0 and at most 1")
        known = list(getattr(self.model, "peft_config", ()))
        if adapter is not None and adapter not in known:
            raise ValueError(f"adapter {adapter!r} is not on the model; there are {', '.join(known) or 'none'}")
        seed = random.getrandbits(63) if seed is None else seed
        tree = Tree(two_way=self.two_way)
        tree.add(list(ids))  # refuses a prompt of ChatGLM-6B without its markers
        request = Request(list(ids), max_new_tokens, adapter, temperature, top_p, session, seed, self.tokenizer, tree.ends[0],
                          allowed)
        self.waiting.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """End a request, whose slot is free before the next step; nothing for one that has ended."""
        if not request.finish:
            _end(request, "cancelled")

    @torch.inference_mode()
    def step(self) -> bool:
        """Admit what waits into free slots, then write one token of every row; False when nothing is left to do.

        Out of memory: kept sessions go first, then half of the rows waits for the others (what was written stays, its states are
        computed again); a request that does not fit alone ends with "error". All slots are used again once nothing is left to do.
        Errors: any other one of the model, after the requests of that pass were ended with it.
        """
        self._sweep()
        while self.waiting and len(self.rows) < self.limit:
            pack, start, known = self._next_pack()
            error = self._memory_error(self._prefill, pack, start, known)
            if error:
                self._step_down(error, pack, len(self.rows))
            self._sweep()
        if self.rows:
            error = self._memory_error(self._one_token, self.rows)
            if error:
                self._step_down(error, self.rows, 0)
            self._sweep()
        return bool(self.rows or self.waiting)

    # --- what comes and goes -------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        """Take out what has ended, keep its session, and close the gap with the last row."""
        for request in [request for request in self.waiting if request.finish]:
            self.waiting.remove(request)
        for slot in reversed(range(len(self.rows))):
            request = self.rows[slot]
            if not request.finish:
                continue
            if request.session is not None and self._sessions_kept and request.finish != "error":
                self._keep_session(request, slot)
            last = self.rows.pop()
            if last is not request:
                self.rows[slot] = last
                self._cache.move(len(self.rows), slot, last.length - 1)
        if not self.rows and not self.waiting:
            self._cache, self.limit = SlotCache(), self.slots

    def _keep_session(self, request: Request, slot: int) -> None:
        key, ids = (request.session, request.adapter), request.context[:-1]
        self._sessions.pop(key, None)
        try:
            self._sessions[key] = ids, self._cache.get(slot, len(ids))
        except Exception as error:
            if not out_of_memory(error):
                raise
            self._sessions.clear()
        if len(self._sessions) > self._sessions_kept:
            del self._sessions[next(iter(self._sessions))]

    def _known(self, request: Request) -> tuple[int, tuple | None]:
        """How many first tokens of a request are known, and the session that knows them (None: the shared ids, if any)."""
        context = request.context
        session = self._sessions.get((request.session, request.adapter))
        if session:
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(session[0], context[:-1])))  # the last one is asked
            if same > len(self._shared):
                return same, session
        if self._shared and len(context) > len(self._shared) and context[: len(self._shared)] == self._shared:
            return len(self._shared), None
        return 0, None

    def _next_pack(self) -> tuple[list[Request], int, tuple | None]:
        """Waiting requests for one pass, the first and those that fit it: same adapter, behind the same known tokens."""
        limit = CPU_PASS_TOKENS if self.model.device.type == "cpu" else PASS_TOKENS
        first, *others = self.waiting[: self.limit - len(self.rows)]
        start, session = self._known(first)
        pack, tokens = [first], len(first.context) - start
        for request in others:
            more = request.length - start
            known = self._known(request)
            if tokens + more <= limit and request.adapter == first.adapter and known[0] == start and known[1] is session:
                pack.append(request)
                tokens += more
        return pack, start, session

    # --- passes through the model --------------------------------------------------------------------------------

    def _prefill(self, pack: list[Request], start: int, session: tuple | None) -> None:
        """Compute the prompts of a pack behind their `start` known tokens, give them slots and their first token."""
        now = time.perf_counter()
        for request in pack:
            if not request.started:
                request.started, request.reused = now, start
        states = session[1] if session else self._states_of_shared(pack[0].adapter) if start else []
        cache = DynamicCache()  # a fresh one: the pass appends to it
        for layer, (keys, values) in enumerate(states):
            cache.update(keys[:, :, :start], values[:, :, :start], layer)
        tree = Tree(start, self.two_way)
        for request in pack:
            tree.add(request.context[start:])
        stops = list(accumulate(request.length - start for request in pack))
        mask = attention_mask(tree.mask(self.model.device), self.model) if len(pack) > 1 else None
        logits = self._forward([tree.ids], tree.position_ids(), mask, cache, pack[:1], [stop - 1 for stop in stops])
        self.prefilled += len(tree.ids)
        if not self._cache.pairs:
            self._cache.pairs = [[layer.keys[:0, :, :0], layer.values[:0, :, :0]] for layer in cache.layers]
        first = len(self.rows)
        self._cache.reserve(first + len(pack), max(request.length for request in pack) + 1)
        for slot, (request, stop) in enumerate(zip(pack, stops), first):
            self._cache.put(slot, cache, start, slice(start + stop - (request.length - start), start + stop))
        tokens = self._choose(pack, logits[0])
        for request in pack:  # from here on nothing fails: a pass that does has changed nothing
            self.waiting.remove(request)
        self.rows += pack
        self._accept(pack, tokens)

    def _states_of_shared(self, adapter: str | None) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of the shared ids as an adapter sees them, computed once."""
        if adapter not in self._shared_states:
            cache = DynamicCache()
            tokens = torch.tensor([self._shared], device=self.model.device)
            self.model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1, **self._adapter_option([adapter]))
            self._shared_states[adapter] = [(layer.keys, layer.values) for layer in cache.layers]
            self.prefilled += len(self._shared)
        return self._shared_states[adapter]

    def _one_token(self, rows: list[Request]) -> None:
        """One token more of every row."""
        places = torch.tensor([request.length - 1 for request in rows], device=self.model.device)
        width = max(request.length for request in rows)
        self._cache.reserve(len(rows), width)
        self._cache.aim(places, width)
        positions = torch.tensor([_position(request, self.two_way) for request in rows])  # (rows, 1) or (rows, 2, 1)
        seen = torch.arange(width, device=places.device) <= places[:, None]
        mask = attention_mask(seen, self.model).transpose(0, 2)  # (rows, 1, 1, width)
        logits = self._forward([request.tokens[-1:] for request in rows], positions, mask, self._cache, rows, 1)
        self._accept(rows, self._choose(rows, logits[:, -1]))

    def _forward(self, ids: list[list[int]], positions: torch.Tensor, mask, cache: Cache, rows: list[Request], keep) -> torch.Tensor:
        device = self.model.device
        keep = keep if isinstance(keep, int) else torch.tensor(keep, device=device)
        return self.model(input_ids=torch.tensor(ids, device=device), position_ids=positions.to(device), attention_mask=mask,
                          past_key_values=cache, use_cache=True, logits_to_keep=keep,
                          **self._adapter_option([request.adapter for request in rows])).logits

    def _adapter_option(self, adapters: list[str | None]) -> dict:
        """How PEFT is told each row's adapter; nothing where all have the one that is active anyway."""
        if all(adapter == active_adapter(self.model) for adapter in adapters):
            return {}
        return {"adapter_names": ["__base__" if adapter is None else adapter for adapter in adapters]}

    def _choose(self, rows: list[Request], logits: torch.Tensor) -> list[int]:
        """The next token of each row; logits (rows, vocabulary)."""
        for row, request in enumerate(rows):
            if request.allowed:
                ids = torch.tensor(request.allowed(request.tokens), device=logits.device)
                logits[row] = torch.full_like(logits[row], -torch.inf).scatter(0, ids, logits[row, ids])
        tokens = logits.float().argmax(-1).tolist()
        for row, request in enumerate(rows):
            if request.temperature > 0:
                number = random.Random(f"{request.seed} {len(request.tokens)}").random()  # the same when a pass must be repeated
                tokens[row] = draw(logits[row], request.temperature, request.top_p, number)
        return tokens

    def _accept(self, rows: list[Request], tokens: list[int]) -> None:
        now = time.perf_counter()
        for request, token in zip(rows, tokens):
            if request.finish:  # cancelled during the pass
                continue
            request.tokens.append(token)
            request.first = request.first or now
            if token in self.stops:
                _end(request, "stop")
            elif len(request.tokens) == request.max_new_tokens:
                _end(request, "length")

    # --- when memory is short ------------------------------------------------------------------------------------

    def _memory_error(self, run, rows: list[Request], *args) -> Exception | None:
        """Run a pass; the error if memory did not suffice, whose tensors are free when this returns. Other errors end the rows."""
        try:
            run(rows, *args)
        except Exception as error:
            if out_of_memory(error):
                return error.with_traceback(None)
            for request in rows:
                _end(request, "error", error)
            raise
        return None

    def _step_down(self, error: Exception, rows: list[Request], others: int) -> None:
        """Let go of what is only kept to be fast; else go on with half of the rows of a pass beside the others that run; or end its only
        one."""
        keep = others + len(rows) // 2
        if self._sessions:
            self._sessions.clear()
        elif keep:
            print(f"out of memory with {others + len(rows)} prompts at once: going on with {keep}")
            self.limit = keep
            if not others:  # all of them come back, half at a time, into slots that take less memory
                self.waiting[:0], self.rows, self._cache = self.rows, [], SlotCache()
        else:
            _end(rows[0], "error", error)
            self.limit = self.slots


def _end(request: Request, finish: str, error: Exception | None = None) -> None:
    request.finished, request.error = time.perf_counter(), error
    request.finish = finish  # last: other threads wait for it


def _position(request: Request, two_way) -> list:
    """The position of the last token of a running row: [place], or the two rows of ChatGLM-6B, [[mask], [block]]."""
    position, block = request.next_position
    further = len(request.tokens) - 1
    return [[position], [block + further]] if two_way else [position + further]


def draw(logits: torch.Tensor, temperature: float, top_p: float, number: float) -> int:
    """The token of logits (vocabulary,) at which a number in [0, 1) points, among the most probable ones that together reach top_p.

    Nucleus sampling: Holtzman et al., arXiv 1904.09751.
    """
    probabilities, tokens = (logits.float() / temperature).softmax(-1).sort(descending=True, stable=True)
    reached = probabilities.cumsum(-1)
    kept = int((reached - probabilities < top_p).sum())
    place = int(torch.searchsorted(reached[:kept], number * reached[kept - 1 : kept], right=True))
    return int(tokens[min(place, kept - 1)])


def active_adapter(model) -> str | None:
    """The adapter a model computes with when it is not told another; None for a model without adapters."""
    return model.active_adapter if hasattr(model, "peft_config") else None


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory did not suffice: torch's on a GPU, its RuntimeError on a CPU, Python's own."""
    return isinstance(error, MemoryError) or isinstance(error, RuntimeError) and "memory" in str(error).lower()
