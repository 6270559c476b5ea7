"""The two ways to compute a pack's attention without a mask, against the mask itself; which samples go together."""

import random

import pytest
import torch

from glmlab import pack_attention, packing
from glmlab.chat import Sample

SHARED = [Sample([1, 2, 3, 11, 12, 13, 91, 92], 6), Sample([1, 2, 3, 21, 22, 23, 24, 25, 94], 8), Sample([1, 2, 3, 31, 95, 96], 4)]
ENDS = (8, 9)  # [gMASK], <sop>
TWO_WAY = [Sample([4, 5, 8, 9, 91, 92], 4), Sample([4, 6, 7, 5, 8, 9, 93], 6), Sample([8, 9, 94, 95], 2)]
PACKS = {"shared": packing.pack(SHARED, 3), "nothing shared": packing.pack(SHARED), "two ways": packing.pack(TWO_WAY, two_way=ENDS)}
PIECES = PACKS["shared"]["pieces"]
each = pytest.mark.parametrize("batch", PACKS.values(), ids=PACKS)


def _seen(batch):
    return packing.token_mask(batch["family"], batch["segments"], batch.get("opened"))


@each
def test_pieces_see_what_the_mask_lets_them_see(batch):
    seen = torch.zeros_like(_seen(batch))
    for rows, keys, causal in batch["pieces"]:
        places = [place for part in keys for place in range(part.start, part.stop)]
        queries = range(rows.start, rows.stop)
        for number, row in enumerate(queries):
            last = len(places) - (len(queries) - 1 - number if causal else 0)
            assert not seen[row].any()  # each row stands in one piece
            seen[row, places[:last]] = True
    assert torch.equal(seen, _seen(batch))


@each
def test_plan_sees_what_the_mask_lets_it_see(batch):
    """What FlashAttention is told, read as its documentation says: causal is aligned at the last key."""
    seen = torch.zeros_like(_seen(batch))
    for calls in pack_attention.plan(batch["pieces"]):
        rows = torch.arange(len(seen)) if calls.rows is None else calls.rows
        assert calls.longest == calls.starts.diff().max() and calls.longest_keys == calls.key_starts.diff().max()
        for first, end, key_first, key_end in zip(calls.starts, calls.starts[1:], calls.key_starts, calls.key_starts[1:]):
            keys, queries = calls.keys[key_first:key_end], rows[first:end]
            for number, row in enumerate(queries):
                last = len(keys) - (len(queries) - 1 - number if calls.causal else 0)
                seen[row, keys[:last]] = True
    assert torch.equal(seen, _seen(batch))


@each
def test_piecewise_equals_the_masked_attention(batch):
    torch.manual_seed(0)
    tokens = len(batch["segments"])
    query, key, value = (torch.randn(1, heads, tokens, 16, dtype=torch.float64) for heads in (4, 2, 2))
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 2, True
    found, _ = pack_attention.piecewise_attention(module, query, key, value, None, scaling=0.25,
                                                  pack_pieces=batch["pieces"])
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1),
                                                              _seen(batch)[None, None], scale=0.25).transpose(1, 2)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_what_cannot_be_computed_so_is_left_to_the_mask(make_model):
    model = make_model()
    model.config._attn_implementation = "eager"
    assert pack_attention.options(model, PIECES) == {} and not pack_attention.fits_flash(model)
    assert set(pack_attention.options(make_model(), PIECES)) == {"attention_mask", "pack_pieces"}


def test_pieces_of_a_tree_behind_a_cache():
    tree = packing.Tree(start=2)
    call = tree.add([5, 6, 7])
    tree.add([8], tree.add([9, 10], call))
    seen = torch.zeros(6, 8, dtype=torch.bool)
    for rows, keys, causal in tree.pieces():
        places = [place for part in keys for place in range(part.start, part.stop)]
        for number, row in enumerate(range(rows.start, rows.stop)):
            seen[row, places[: len(places) - (rows.stop - rows.start - 1 - number)]] = causal
    assert torch.equal(seen, tree.mask())


# --- which samples together --------------------------------------------------------------------------------------

def test_bins_hold_every_sample_once_within_the_limit():
    draw = random.Random(3)
    for _ in range(50):
        prefix = draw.randrange(0, 30)
        samples = [Sample(list(range(prefix)) + [number] * draw.randrange(1, 60), prefix) for number in range(draw.randrange(1, 40))]
        limit = prefix + draw.randrange(60, 200)
        packs = packing.bins(samples, prefix, limit)
        assert sorted(map(id, sum(packs, []))) == sorted(map(id, samples))
        tokens = [prefix + sum(len(sample.ids) - prefix for sample in pack) for pack in packs]
        assert max(tokens) <= limit
        assert len(packs) <= 11 / 9 * -(-sum(t - prefix for t in tokens) // (limit - prefix)) + 6 / 9 + 1
        for pack in packs:
            assert pack == [sample for sample in samples if any(sample is other for other in pack)]


def test_a_sample_longer_than_the_limit_goes_alone():
    long, *short = [Sample([1, 2] + [number] * size, 2) for number, size in enumerate((50, 4, 5))]
    assert packing.bins([short[0], long, short[1]], 2, 20) == [[long], short]
