"""Choose among known answers without decoding: the probability of every label from one forward pass a pack.

The answers form a trie of ids. Where it does not branch, the next token is forced and says nothing; where it branches, the
model's softmax over the allowed children decides. The probability of a label is the product of the decisions on its path, so
the labels of a row sum to 1. The tokens all prompts share are computed once and kept as a cache; calls are packed behind
it without padding, each with the part of the trie that is needed to reach every branching, as branches of a token tree.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from glmlab import chat, pack_attention
from glmlab.packing import Tree, attention_mask


@dataclass(frozen=True)
class Trie:
    """The trie of the answers, cut down to what scoring needs; node 0 is the end of the prompt."""
    fed: list[tuple[int, int]]      # (token, parent node) of nodes 1, 2, …: what must be fed to reach every branching, parents first
    branchings: list[int]           # the branching nodes, ascending
    edges: list[tuple[int, int]]    # (index in branchings, token): the choices, grouped by branching
    paths: np.ndarray               # float (labels, edges): 1 where the label's path takes the edge

    def lead(self) -> int:
        """How many of the first fed tokens follow one another before anything branches."""
        parents = [parent for _, parent in self.fed]
        return next((count for count, parent in enumerate(parents) if parent != count or count in self.branchings), len(parents))


def label_trie(answers: list[list[int]]) -> Trie:
    """The trie of encoded answers. Errors: ValueError for fewer than two, or two that are the same."""
    if len(answers) < 2 or len({tuple(ids) for ids in answers}) < len(answers):
        raise ValueError(f"scoring needs at least two different answers; got {len(answers)}")
    children: dict[tuple, list[int]] = {}  # path -> the tokens that may follow
    for ids in answers:
        for depth, token in enumerate(ids):
            following = children.setdefault(tuple(ids[:depth]), [])
            if token not in following:
                following.append(token)
    branching = {path for path, tokens in children.items() if len(tokens) > 1}
    needed = {path[:depth] for path in branching for depth in range(len(path) + 1)} | {()}
    order = sorted(needed, key=lambda path: (len(path), path))  # parents first, the prompt's end at 0
    number = {path: node for node, path in enumerate(order)}
    choices = [(path, token) for path in order if path in branching for token in children[path]]
    branchings = [number[path] for path in order if path in branching]
    return Trie(
        fed=[(path[-1], number[path[:-1]]) for path in order[1:]], branchings=branchings,
        edges=[(branchings.index(number[path]), token) for path, token in choices],
        paths=np.array([[tuple(ids[: len(path) + 1]) == (*path, token) for path, token in choices] for ids in answers], dtype=float))


def score(model, tokenizer, prompts: list[list[int]], answers: list[str], prefix_len: int | None = None,
          batch_tokens: int = 1024, progress: Callable[[int], None] = lambda done: None) -> np.ndarray:
    """Probabilities of the answers for every prompt: float (prompts, answers), each row sums to 1.

    prompts: ids as `chat.prompt_ids` makes them. prefix_len: tokens all prompts share; None finds out. batch_tokens: tokens of
    one forward pass behind the shared prefix, which bounds the memory (a longer prompt gets a pass of its own; a pack that
    does not fit the memory is halved). progress(done) is called with the number of prompts so far, once a pack.
    Errors: ValueError for a prompt that does not share the prefix; the memory error itself when one prompt does not fit.
    """
    if prefix_len is None:
        prefix_len = chat.shared_prefix(prompts, tokenizer)
    return score_ids(model, prompts, [chat.answer_ids(tokenizer, answer) for answer in answers], prefix_len, batch_tokens, progress,
                     chat.two_way(tokenizer))


def score_ids(model, prompts: list[list[int]], answers: list[list[int]], prefix_len: int, batch_tokens: int = 1024,
              progress: Callable[[int], None] = lambda done: None, two_way: tuple[int, int] | None = None) -> np.ndarray:
    """`score` for answers that are ids. two_way: as `chat.two_way` gives it."""
    trie = label_trie(answers)
    for number, prompt in enumerate(prompts):
        if prompt[:prefix_len] != prompts[0][:prefix_len] or len(prompt) <= prefix_len:
            raise ValueError(f"prompt {number} does not share a prefix of {prefix_len} tokens that ends before its last token")
    rows = np.zeros((len(prompts), len(answers)))
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            prefix = _prefix_states(model, prompts[0][:prefix_len]) if prompts else []
            for group in _groups([len(p) - prefix_len + len(trie.fed) for p in prompts], batch_tokens):
                rows[group] = _score_or_halve(model, prefix, prefix_len, [prompts[i][prefix_len:] for i in group], trie, two_way)
                progress(group[-1] + 1)
    finally:
        model.train(was_training)
    return rows


def _groups(lengths: list[int], limit: int) -> Iterator[list[int]]:
    """Consecutive indices whose lengths sum up to at most `limit` (at least one index a group)."""
    group, total = [], 0
    for index, length in enumerate(lengths):
        if group and total + length > limit:
            yield group
            group, total = [], 0
        group.append(index)
        total += length
    if group:
        yield group


def _prefix_states(model, ids: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of the shared tokens, one pair a layer."""
    if not ids:
        return []
    tokens = torch.tensor([ids], device=model.device)
    with torch.compiler.set_stance("force_eager"):  # with a cache each compiled layer would be another program
        cache = model(input_ids=tokens, use_cache=True, logits_to_keep=1).past_key_values
    return [(layer.keys, layer.values) for layer in cache.layers]


def _score_or_halve(model, prefix, prefix_len: int, suffixes: list[list[int]], trie: Trie, two_way=None) -> np.ndarray:
    try:
        return _score_pack(model, prefix, prefix_len, suffixes, trie, two_way)
    except (MemoryError, RuntimeError) as error:
        if len(suffixes) == 1 or not (isinstance(error, MemoryError) or "memory" in str(error).lower()):
            raise
    half = len(suffixes) // 2  # outside of the handler: the failed pass's tensors are free now
    return np.concatenate([_score_or_halve(model, prefix, prefix_len, part, trie, two_way) for part in (suffixes[:half], suffixes[half:])])


def _score_pack(model, prefix, prefix_len: int, suffixes: list[list[int]], trie: Trie, two_way=None) -> np.ndarray:
    """Posterior over the labels, float (suffixes, labels), for prompts without their shared prefix."""
    from transformers import DynamicCache
    tree, lead = Tree(prefix_len, two_way), trie.lead()
    forced = [token for token, _ in trie.fed[:lead]]
    keep = []
    for suffix in suffixes:
        segments = [tree.add(suffix + forced)] * (lead + 1)
        last = list(range(len(tree.ids) - 1 - lead, len(tree.ids)))  # index of the token whose output follows each node
        for token, parent in trie.fed[lead:]:
            segments.append(tree.add([token], segments[parent]))
            last.append(len(tree.ids) - 1)
        keep += [last[node] for node in trie.branchings]
    device = model.device
    options = pack_attention.options(model, tree.pieces()) or {"attention_mask": attention_mask(tree.mask(device), model)}
    if "pack_plan" in options and prefix:
        options["pack_prefix"] = torch.stack([torch.stack(states) for states in prefix])
    elif prefix:
        options |= {"past_key_values": DynamicCache(), "use_cache": True}  # a fresh one each time: the forward pass appends to it
        for layer, (keys, values) in enumerate(prefix):
            options["past_key_values"].update(keys, values, layer)
    logits = model(input_ids=torch.tensor([tree.ids], device=device), position_ids=tree.position_ids().to(device),
                   logits_to_keep=torch.tensor(keep, device=device), **{"use_cache": False} | options).logits
    return posterior(logits.view(len(suffixes), len(trie.branchings), -1), trie)


def posterior(logits: torch.Tensor, trie: Trie) -> np.ndarray:
    """Logits (rows, branchings, vocabulary) at the branchings -> probabilities of the labels, float (rows, labels)."""
    at, tokens = torch.tensor(trie.edges, device=logits.device).T
    chosen = logits[:, at, tokens].double()  # (rows, edges)
    for branching in range(len(trie.branchings)):
        chosen[:, at == branching] = chosen[:, at == branching].log_softmax(-1)
    return np.exp(chosen.cpu().numpy() @ trie.paths.T)
