"""The cache of a batch whose rows come and go: a slot a row, each as long as it is."""

import torch
from transformers import Cache, DynamicCache

#: The slots grow by this many tokens at a time.
BLOCK = 128


class SlotCache(Cache):
    """The keys and values of the running rows: two tensors (slots, heads, capacity, head size) a layer.

    A step writes one token a row, each at the place of its own that `aim` was told, and reads up to the farthest.
    """

    def __init__(self):
        super().__init__(layers=[])
        self.pairs: list[list[torch.Tensor]] = []

    def reserve(self, rows: int, tokens: int) -> None:
        """Make room for so many rows and tokens, zeros where nothing stands: a masked NaN would still be one."""
        for pair in self.pairs:
            for which, states in enumerate(pair):
                slots, heads, capacity, size = states.shape
                if rows > slots or tokens > capacity:
                    pair[which] = states.new_zeros(max(rows, slots), heads, max(-(-tokens // BLOCK) * BLOCK, capacity), size)
                    pair[which][:slots, :, :capacity] = states

    def put(self, slot: int, computed: DynamicCache, start: int, own: slice) -> None:
        """Fill a slot from the cache of a pass (1, heads, tokens, size): its first `start` tokens and the row's own."""
        for pair, layer in zip(self.pairs, computed.layers):
            for states, new in zip(pair, (layer.keys, layer.values)):
                states[slot, :, :start] = new[0, :, :start]
                states[slot, :, start : start + own.stop - own.start] = new[0, :, own]

    def get(self, slot: int, length: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """A copy of a slot's first tokens, (1, heads, length, size) each."""
        return [tuple(states[slot : slot + 1, :, :length].clone() for states in pair) for pair in self.pairs]

    def move(self, source: int, target: int, length: int) -> None:
        for pair in self.pairs:
            for states in pair:
                states[target, :, :length] = states[source, :, :length]

    def aim(self, places: torch.Tensor, width: int) -> None:
        """Where the next step's token of each row goes, int (rows,), and how many places the rows read."""
        self.places, self.width, self.aimed = places, width, torch.arange(len(places), device=places.device)

    def update(self, key_states, value_states, layer_idx: int, *args, **kwargs):
        for states, new in zip(self.pairs[layer_idx], (key_states, value_states)):
            states[self.aimed, :, self.places] = new[:, :, 0]
        return tuple(states[: len(self.places), :, : self.width] for states in self.pairs[layer_idx])
