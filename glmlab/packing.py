"""Samples -> packs: one sequence that holds what samples share once, and lets nobody see anybody else's tokens.

A pack is a token tree. Its segments have a parent; a token sees the tokens up to itself in its own segment and all tokens of
its ancestors; positions continue from the parent. Training packs (prefix -> samples) and label tries (sample -> nodes of the
trie) are both such trees, so what is computed is exactly what the unpacked sequences compute, and gradients of every sample
flow into the shared tokens. LoRA dropout is the one difference: for shared tokens it is drawn once a pack, not once a sample.

ChatGLM-6B reads its prompt both ways and counts positions in two rows: there a segment without parent is a whole prompt, with what
follows it, nothing is shared, and the tree says which tokens are seen by the tokens before them too.
Prior art: arXiv 2410.20305, 2506.05433, 2511.00413.
"""

import torch

from glmlab import pack_attention
from glmlab.chat import IGNORED, Sample


class Tree:
    """A token tree under construction."""

    def __init__(self, start: int = 0, two_way: tuple[int, int] | None = None):
        """start: position of the first token of a segment without parent (the length of a cache that comes before).
        two_way: the ids that end a prompt which is read both ways, as `chat.two_way` gives them; None for the other generations."""
        self.start, self.two_way = start, two_way
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.blocks: list[int] = []    # the second row of positions, two_way only
        self.open: list[bool] = []     # one a token: seen by all of its segment, two_way only
        self.segments: list[int] = []  # one a token
        self.parents: list[int] = []   # one a segment, -1 for none
        self.firsts: list[int] = []    # one a segment: its first token
        self.ends: list[tuple[int, int]] = []  # one a segment: position (and block position) after its last token

    def add(self, ids: list[int], parent: int = -1) -> int:
        """Append a segment behind `parent`; returns its number. Its tokens are the next len(ids) of the sequence."""
        number = len(self.parents)
        if self.two_way:
            self._add_two_way(ids, parent)
        else:
            first = self.ends[parent][0] if parent >= 0 else self.start
            self.positions += range(first, first + len(ids))
            self.ends.append((first + len(ids), 0))
        self.firsts.append(len(self.ids))
        self.ids += ids
        self.segments += [number] * len(ids)
        self.parents.append(parent)
        return number

    def _add_two_way(self, ids: list[int], parent: int) -> None:
        prompt = 0
        if parent >= 0:
            mask, block = self.ends[parent]
        else:
            marker, start = self.two_way
            if start not in ids or marker not in ids[: ids.index(start)]:
                raise ValueError("a sequence of ChatGLM-6B needs [gMASK] and <sop> at the end of its prompt")
            prompt, mask, block = ids.index(start), ids.index(marker), 1
        own = len(ids) - prompt
        self.positions += [*range(prompt), *[mask] * own]
        self.blocks += [*[0] * prompt, *range(block, block + own)]
        self.open += [*[True] * prompt, *[False] * own]
        self.ends.append((mask, block + own))

    def position_ids(self) -> torch.Tensor:
        """int (1, tokens), or (1, 2, tokens) with two rows of positions."""
        return torch.tensor([[self.positions, self.blocks]] if self.two_way else [self.positions])

    def family(self) -> torch.Tensor:
        """Which segment sees which: bool (segments, segments), a row sees the columns of its ancestors and itself."""
        family = torch.eye(len(self.parents), dtype=torch.bool)
        for segment, parent in enumerate(self.parents):
            if parent >= 0:
                family[segment] |= family[parent]
        return family

    def pieces(self) -> list[tuple[slice, list[slice], bool]]:
        """The tree as attention without a mask, segment by segment: (its tokens, the keys they see, whether causal).

        Causal: the last token sees the last key, the one before not that one, and so on. Keys count from the start of the cache, which
        comes first; tokens from the start of the sequence. A prompt that is read both ways is a piece of its own.
        """
        stops = [*self.firsts[1:], len(self.ids)]
        seen: list[list[slice]] = []  # one a segment: the keys its descendants see
        found = []
        for first, stop, parent in zip(self.firsts, stops, self.parents):
            before = seen[parent] if parent >= 0 else [slice(0, self.start)] if self.start else []
            seen.append([*before, slice(self.start + first, self.start + stop)])
            both_ways = next((place for place in range(first, stop) if not self.open[place]), stop) if self.two_way and parent < 0 else first
            if both_ways > first:
                found.append((slice(first, both_ways), [*before, slice(self.start + first, self.start + both_ways)], False))
            if stop > both_ways:
                found.append((slice(both_ways, stop), seen[-1], True))
        return found

    def mask(self, device="cpu") -> torch.Tensor:
        """Who sees whom: bool (tokens, start + tokens); the `start` tokens of a cache are seen by all."""
        opened = torch.tensor(self.open, device=device) if self.two_way else None
        seen = token_mask(self.family().to(device), torch.tensor(self.segments, device=device), opened)
        return torch.nn.functional.pad(seen, (self.start, 0), value=True)


def token_mask(family: torch.Tensor, segments: torch.Tensor, opened: torch.Tensor | None = None) -> torch.Tensor:
    """Who sees whom in a tree: bool (tokens, tokens), on the device of its arguments, because it is large and they are small.

    family: bool (segments, segments) as `Tree.family` gives it. segments: the segment of each token, (tokens,).
    opened: bool (tokens,), the tokens of a prompt that is read both ways; None if there are none.
    """
    related = family[segments][:, segments]
    if opened is None:
        return related.tril_()
    return related & (torch.ones_like(related).tril_() | opened)


def attention_mask(seen: torch.Tensor, model) -> torch.Tensor:
    """A bool mask (tokens, keys) as the model's attention wants it: (1, 1, tokens, keys), additive in the model's dtype.

    transformers passes a 4-D mask on unchanged. eager can only add it; sdpa would turn a bool mask into an additive one in
    every layer again.
    """
    model = getattr(model, "module", model)  # the wrapper of several processes
    mask = torch.zeros(seen.shape, dtype=model.dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(model.dtype).min)[None, None]


# --- which samples together --------------------------------------------------------------------------------------

def bins(samples: list[Sample], prefix_len: int, limit: int) -> list[list[Sample]]:
    """Samples put together so that each pack of them takes at most `limit` tokens, the prefix counted once a pack.

    The longest first, each into the first pack with room (first-fit decreasing: at most 11/9 of the fewest packs possible); in a pack
    the samples keep their order. A sample longer than the limit gets a pack of its own.
    """
    own = [len(sample.ids) - prefix_len for sample in samples]
    packs: list[list[int]] = []
    room: list[int] = []
    for place in sorted(range(len(samples)), key=lambda place: -own[place]):
        fits = next((number for number, free in enumerate(room) if own[place] <= free), None)
        if fits is None:
            packs.append([])
            room.append(limit - prefix_len)
            fits = len(packs) - 1
        packs[fits].append(place)
        room[fits] -= own[place]
    return [[samples[place] for place in sorted(pack)] for pack in packs]


# --- training batches --------------------------------------------------------------------------------------------

def pack(samples: list[Sample], prefix_len: int = 0, per_sample: bool = False, two_way: tuple[int, int] | None = None) -> dict:
    """Lay samples out as one sequence of T tokens: their first `prefix_len` tokens once, then each sample's own tokens.

    prefix_len 0 is plain block-diagonal packing. two_way: as `chat.two_way` gives it, with prefix_len 0 only.
    Returns input_ids (1, T), position_ids (1, T) or (1, 2, T), segments (T,) and family (segments, segments) for `token_mask`, with
    two_way opened (T,) too; pieces: as `Tree.pieces` gives them; keep bool (1, T): the positions whose
    output predicts a label, and in their order labels (n,), sample (n,) and weights (n,): 1 a labelled token, or with per_sample 1 a
    sample, spread over its labelled tokens.
    Errors: ValueError if the samples do not share that prefix, or one has no token of its own before its labels.
    """
    if two_way and prefix_len:
        raise ValueError("prompts that are read both ways share nothing; take prefix_len from chat.shared_prefix(samples, tokenizer)")
    tree = Tree(two_way=two_way)
    prefix = samples[0].ids[:prefix_len]
    root = tree.add(prefix) if prefix_len else -1
    keep, targets = [], []
    for number, sample in enumerate(samples):
        if sample.ids[:prefix_len] != prefix or sample.labels_from <= prefix_len:
            raise ValueError(f"sample {number} of the pack does not share a prefix of {prefix_len} tokens that ends before its answer's "
                             "marker; take prefix_len from chat.shared_prefix(samples)")
        shift = len(tree.ids) - prefix_len  # index in the sequence - index in the sample
        places, answer = _answer(sample)
        keep += [shift + place for place in places]
        targets.append(answer)
        tree.add(sample.ids[prefix_len:], root)
    kept = torch.zeros(1, len(tree.ids), dtype=torch.bool)
    kept[0, keep] = True
    return {"input_ids": torch.tensor([tree.ids]), "position_ids": tree.position_ids(), "segments": torch.tensor(tree.segments),
            "family": tree.family(), **({"opened": torch.tensor(tree.open)} if two_way else {}), "pieces": tree.pieces(),
            "keep": kept, **_labels(targets, per_sample)}


def pad(samples: list[Sample], pad_id: int, per_sample: bool = False, two_way: tuple[int, int] | None = None) -> dict[str, torch.Tensor]:
    """The plain batch, without sharing: one row a sample, padded on the right; the same fields, but attention_mask (batch, T) instead
    of a tree. With two_way there are no position_ids: ChatGLM-6B finds its two rows of positions in the ids.

    `keep` (batch, T) selects row by row, which is the order of labels, sample and weights here too.
    """
    width = max(len(sample.ids) for sample in samples)
    ids = torch.full((len(samples), width), pad_id)
    seen = torch.zeros_like(ids)
    kept = torch.zeros_like(ids, dtype=torch.bool)
    for row, sample in enumerate(samples):
        ids[row, : len(sample.ids)] = torch.tensor(sample.ids)
        seen[row, : len(sample.ids)] = 1
        kept[row, _answer(sample)[0]] = True
    targets = [_answer(sample)[1] for sample in samples]
    positions = {} if two_way else {"position_ids": torch.arange(width).expand(len(samples), width)}
    return {"input_ids": ids, **positions, "attention_mask": seen, "keep": kept, **_labels(targets, per_sample)}


def labelled(sample: Sample) -> int:
    """How many tokens of a sample carry a label."""
    return len(_answer(sample)[0])


def _answer(sample: Sample) -> tuple[list[int], list[int]]:
    """The positions of a sample whose outputs predict a label, and those labels."""
    labels = sample.labels
    places = [place for place in range(sample.labels_from - 1, len(labels) - 1) if labels[place + 1] != IGNORED]
    return places, [labels[place + 1] for place in places]


def _labels(targets: list[list[int]], per_sample: bool) -> dict[str, torch.Tensor]:
    counts = torch.tensor([len(target) for target in targets])
    weights = 1 / counts if per_sample else torch.ones(len(targets))
    return {"labels": torch.tensor([token for target in targets for token in target]),
            "sample": torch.arange(len(targets)).repeat_interleave(counts), "weights": weights.repeat_interleave(counts)}


def to(batch: dict, device) -> dict:
    """The batch with its tensors on a device."""
    return {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}


def label_logits(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Run the model on a batch of `pack` or `pad`: logits (n, vocabulary) of the labelled positions, lm_head at those only."""
    mask, options = batch.get("attention_mask"), {}
    if mask is None and not (options := pack_attention.options(model, batch["pieces"])):
        mask = attention_mask(token_mask(batch["family"], batch["segments"], batch.get("opened")), model)
    return model(input_ids=batch["input_ids"], position_ids=batch.get("position_ids"), logits_to_keep=batch["keep"], use_cache=False,
                 **({"attention_mask": mask} | options)).logits


def loss_sum(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The weighted sum of the negative log-likelihoods of a batch; divide by `batch["weights"].sum()` for the mean."""
    losses = torch.nn.functional.cross_entropy(label_logits(model, batch).float(), batch["labels"], reduction="none",
                                               ignore_index=IGNORED)
    return (losses * batch["weights"]).sum()
