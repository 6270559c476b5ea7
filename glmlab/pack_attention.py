"""Attention of a pack without computing anything that is masked: on a GPU by FlashAttention, on a CPU by one sdpa a piece.

A pack holds a prefix once and the samples that share it one behind the other (`packing.Tree`). A sample's tokens see the prefix and
themselves: that is ordinary causal attention of a short query over a longer key, prefix and own tokens together. FlashAttention's
variable-length form takes all samples in one call; the prefix's keys and values are gathered once a sample, which is cheap where
query heads share few key heads, and their gradients are summed in 32 bit. ChatGLM-6B reads prompts both ways: there a sample is two
such queries, its prompt without a causal mask, and its answer with one.
"""

from dataclasses import dataclass, replace

import torch

PIECEWISE, VARLEN = "sdpa_piecewise", "flash_varlen"  # the names under which transformers finds the functions below


# --- which queries over which keys -------------------------------------------------------------------------------

@dataclass(frozen=True)
class Queries:
    """One variable-length call: where its queries and keys stand in the pack, and where each query begins."""
    rows: torch.Tensor | None  # int (queries,): places in the pack; None: all of them in order
    keys: torch.Tensor         # int (keys,): places of the keys, those of one query behind those of the other
    starts: torch.Tensor       # int32 (n + 1,): the first row of each
    key_starts: torch.Tensor   # int32 (n + 1,): the first key of each
    longest: int               # most rows of one
    longest_keys: int
    causal: bool               # the last row of each sees its last key, the one before not that key, and so on

    def to(self, device) -> "Queries":
        """The same with its tensors on a device."""
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in vars(self).items() if torch.is_tensor(value)})


def plan(pieces: list[tuple[slice, list[slice], bool]]) -> list[Queries]:
    """The variable-length calls that compute a tree, from `packing.Tree.pieces`."""
    total = sum(rows.stop - rows.start for rows, *_ in pieces)
    return [_queries([(rows, keys) for rows, keys, is_causal in pieces if is_causal == causal], causal, total)
            for causal in (False, True) if any(is_causal == causal for *_, is_causal in pieces)]


def _queries(found: list[tuple[slice, list[slice]]], causal: bool, total: int) -> Queries:
    rows = torch.cat([torch.arange(part.start, part.stop) for part, _ in found])
    sizes = [part.stop - part.start for part, _ in found]
    key_sizes = [sum(part.stop - part.start for part in keys) for _, keys in found]
    keys = torch.cat([torch.arange(part.start, part.stop) for _, parts in found for part in parts])
    starts, key_starts = (torch.tensor([0, *counts]).cumsum(0).to(torch.int32) for counts in (sizes, key_sizes))
    return Queries(None if len(rows) == total else rows, keys, starts, key_starts, max(sizes), max(key_sizes), causal)


# --- on a GPU ----------------------------------------------------------------------------------------------------

def fits_flash(model) -> bool:
    """Whether FlashAttention can compute this model's packs here: 16-bit arithmetic on an NVIDIA GPU from Ampere on, heads up to 256."""
    model = getattr(model, "module", model)  # the wrapper of several processes
    config = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return (model.device.type == "cuda" and model.dtype in (torch.bfloat16, torch.float16) and head <= 256 and head % 8 == 0
            and torch.cuda.get_device_capability(model.device) >= (8, 0))


@torch.library.custom_op("glmlab::varlen_attention", mutates_args=())
def _varlen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, keys: torch.Tensor, starts: torch.Tensor, key_starts: torch.Tensor,
            longest: int, longest_keys: int, causal: bool, scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """query (rows, heads, head), key and value (tokens, key heads, head) -> output (rows, heads, head), log-sum-exp, random state."""
    out, lse, seed, offset, _ = torch.ops.aten._flash_attention_forward(
        query, key[keys], value[keys], starts, key_starts, longest, longest_keys, 0.0, causal, False, scale=scale)
    return out, lse, seed, offset


@_varlen.register_fake
def _(query, key, value, keys, starts, key_starts, longest, longest_keys, causal, scale):
    state = query.new_empty((2,), dtype=torch.uint64)
    return torch.empty_like(query), query.new_empty((query.shape[1], query.shape[0]), dtype=torch.float32), state, query.new_empty((), dtype=torch.uint64)


@torch.library.custom_op("glmlab::varlen_attention_backward", mutates_args=())
def _varlen_backward(grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, keys: torch.Tensor, starts: torch.Tensor,
                     key_starts: torch.Tensor, longest: int, longest_keys: int, causal: bool, scale: float, out: torch.Tensor,
                     lse: torch.Tensor, seed: torch.Tensor, offset: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    grad_query, grad_key, grad_value = torch.ops.aten._flash_attention_backward(
        grad.contiguous(), query, key[keys], value[keys], out, lse, starts, key_starts, longest, longest_keys, 0.0, causal, seed, offset,
        scale=scale)
    sums = [torch.zeros(states.shape, dtype=torch.float32, device=states.device).index_add_(0, keys, part.float()).to(states.dtype)
            for states, part in ((key, grad_key), (value, grad_value))]
    return grad_query, *sums


@_varlen_backward.register_fake
def _(grad, query, key, value, keys, starts, key_starts, longest, longest_keys, causal, scale, out, lse, seed, offset):
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _keep(ctx, inputs, output):
    query, key, value, keys, starts, key_starts, ctx.longest, ctx.longest_keys, ctx.causal, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, keys, starts, key_starts, *output)


def _gradients(ctx, grad, *_):
    query, key, value, keys, starts, key_starts, *kept = ctx.saved_tensors
    return *_varlen_backward(grad, query, key, value, keys, starts, key_starts, ctx.longest, ctx.longest_keys, ctx.causal, ctx.scale, *kept), \
        *[None] * 7


_varlen.register_autograd(_gradients, setup_context=_keep)


def varlen_attention(module, query, key, value, attention_mask, scaling=None, pack_plan=None, pack_prefix=None, **options):
    """sdpa, but of a pack everything in one FlashAttention call (two for ChatGLM-6B). pack_plan: as `plan` gives it, on the GPU.

    pack_prefix: keys and values of tokens before the pack, (layers, 2, 1, key heads, tokens, head size). It is no cache of transformers
    because updating one makes a compiled layer another program in each layer.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    if pack_plan is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    if pack_prefix is not None:
        key, value = (torch.cat([before, states], dim=2) for before, states in zip(pack_prefix[module.layer_idx], (key, value)))
    query, key, value = (states[0].transpose(0, 1).contiguous() for states in (query, key, value))  # (tokens, heads, head)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = None
    for part in pack_plan:
        rows = query if part.rows is None else query[part.rows]
        found = _varlen(rows, key, value, part.keys, part.starts, part.key_starts, part.longest, part.longest_keys, part.causal, scale)[0]
        if part.rows is None:
            return found[None], None
        out = (torch.zeros_like(query) if out is None else out).index_copy(0, part.rows, found)
    return out[None], None  # (1, tokens, heads, head)


# --- on a CPU ----------------------------------------------------------------------------------------------------

def piecewise_attention(module, query, key, value, attention_mask, pack_pieces=None, **options):
    """sdpa, but of a pack each piece by itself. pack_pieces: as `packing.Tree.pieces` gives them, None for an ordinary batch.

    One masked sdpa over a pack costs the square of its length, most of it thrown away; on a CPU that is most of a training step.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward as sdpa
    if pack_pieces is None:
        return sdpa(module, query, key, value, attention_mask, **options)
    found = []
    for rows, parts, causal in pack_pieces:
        keys, values = (torch.cat([states[:, :, part] for part in parts], dim=2) for states in (key, value))
        count, total = rows.stop - rows.start, keys.shape[2]
        seen = torch.ones(count, total, dtype=torch.bool, device=query.device)
        seen = (seen.tril_(total - count) if causal else seen)[None, None]
        found.append(sdpa(module, query[:, :, rows], keys, values, seen, **options)[0])
    return torch.cat(found, dim=1), None  # (1, tokens, heads, head size)


# --- in transformers ---------------------------------------------------------------------------------------------

def options(model, pieces: list) -> dict:
    """What a model must be called with to compute a tree by one of the functions above; {} where only a masked sdpa can.

    pieces: as `packing.Tree.pieces` gives them. The 4-D mask keeps transformers from making one; nobody reads it.
    """
    device = getattr(model, "device", None) or next(model.parameters()).device
    if device.type == "cpu" and _use(model, PIECEWISE, piecewise_attention):
        found = {"pack_pieces": pieces}
    elif fits_flash(model) and _use(model, VARLEN, varlen_attention):
        found = {"pack_plan": [calls.to(device) for calls in plan(pieces)]}
    else:
        return {}
    return found | {"attention_mask": torch.zeros(1, 1, 1, 1, device=device)}


def _use(model, name: str, function) -> bool:
    """Let an sdpa model compute packs by this function; False for another attention. Without packs it stays the sdpa it was."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask
    config = getattr(model, "module", model).config
    if config._attn_implementation == "sdpa":
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, sdpa_mask)
        config._attn_implementation = name
    return config._attn_implementation == name
