"""How much one forward and backward pass may hold: chosen from the free memory, with the reason. Compiled layers."""

import heapq

import torch

from glmlab import packing, processes
from glmlab.device import free_memory

#: Longer packs bring nothing: on a GPU the prompt is by then a few percent of a pack, a CPU is busy with far fewer tokens.
MOST_TOKENS, CPU_TOKENS = 16_384, 4_096
SPARE = 0.9  # share of the free memory that is planned with; fragments take some, and compiled layers differ a little
COMPILE_STEPS = 50  # compiling takes about a minute


def choose_pass(model, collator, samples: list, wanted: int, checkpointing: bool, effective_batch: int) -> tuple[int, bool, str]:
    """(tokens of one packed pass, gradient checkpointing, why). wanted: the user's number, 0 lets this function choose.

    On a GPU the longest sample is computed forwards and backwards and the peak memory gives the bytes a token. Checkpointing is
    switched on where the longest sample would not fit otherwise. Errors: MemoryError if it does not fit with checkpointing either.
    """
    if collator.prefix is None:
        return 0, checkpointing, "packs are off (share_prefix False)"
    if wanted:
        return wanted, checkpointing, "as asked for"
    if model.device.type != "cuda":
        return CPU_TOKENS, checkpointing, "a CPU gains nothing from longer packs"
    step = heapq.nlargest(effective_batch, samples, key=lambda sample: len(sample.ids))
    longest = len(step[0].ids)
    most = min(MOST_TOKENS, collator.prefix + sum(len(sample.ids) - collator.prefix for sample in step))
    free = SPARE * usable(model.device) - 8 * sum(p.numel() for p in model.parameters() if p.requires_grad)  # Adam's two moments
    for on in (False, True)[checkpointing:]:
        per_token = _bytes_per_token(model, collator(step[:1]), on)
        if per_token is None or free / per_token < longest:
            continue
        tokens = int(min(most, free / per_token))
        why = (f"{free / 2**30:.1f} GiB may be used, {per_token / 2**20:.2f} MiB a token" + (" with checkpointing" if on else "")
               + (f", and more than {MOST_TOKENS:,} tokens gain nothing" if tokens == MOST_TOKENS else
                  ", all samples of a step fit" if tokens == most else ""))
        return tokens, on, why + (", without which the longest sample would not fit" if on and not checkpointing else "")
    raise MemoryError(f"the longest sample ({longest:,} tokens) does not fit in the {free / 2**30:.1f} GiB that may be used, even with "
                      "gradient checkpointing; lower max_length, or use method qlora")


def choose_for_all(*choice) -> tuple[int, bool, str]:
    """`choose_pass(*choice)` in every process; all take what the one with the least memory chose."""
    found = processes.joined([processes.together(lambda: choose_pass(*choice))])
    return min(found, key=lambda one: (not one[1], one[0]))


def usable(device) -> int:
    """Bytes of a GPU that this process may still take: what is free, or less where its share is limited."""
    total = torch.cuda.get_device_properties(device).total_memory
    limit = torch.cuda.get_per_process_memory_fraction(device) * total
    return int(min(free_memory(device), limit - torch.cuda.memory_allocated(device)))


def _bytes_per_token(model, batch: dict, checkpointing: bool) -> float | None:
    """Peak memory of a forward and backward pass over the batch, divided by its tokens; None if it does not fit."""
    was_training, device = model.training, model.device
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=model.dtype == torch.bfloat16):
            loss = packing.loss_sum(model, packing.to(batch, device))
        loss.backward()
        return (torch.cuda.max_memory_allocated(device) - before) / batch["input_ids"].numel()
    except torch.OutOfMemoryError:
        return None
    finally:
        model.zero_grad()
        if checkpointing:
            model.gradient_checkpointing_disable()
        model.train(was_training)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


# --- compiled layers ---------------------------------------------------------------------------------------------

def layers(model) -> torch.nn.ModuleList:
    """The transformer layers of a base, with or without an adapter."""
    return next(module for module in model.modules()
                if isinstance(module, torch.nn.ModuleList) and len(module) == model.config.num_hidden_layers)


def compile_layers(model) -> None:
    """Compile each layer by itself: all share one compiled code, for any number of tokens, after the first few packs.

    A whole-model graph would be compiled anew for each way the adapter, the head and the mask are used.
    """
    torch._dynamo.config.allow_unspec_int_on_nn_module = True  # the number of a layer is data, not another program
    for layer in layers(model):
        layer.compile()


def release_layers(model) -> bool:
    """Undo `compile_layers`; whether there was anything to undo."""
    compiled = [layer for layer in layers(model) if layer._compiled_call_impl is not None]
    for layer in compiled:
        layer._compiled_call_impl = None
    return bool(compiled)
