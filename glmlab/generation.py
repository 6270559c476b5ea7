"""Greedy answers in batches and one streamed answer, with the stop ids of the chat format."""

import copy
from collections.abc import Callable, Iterator

from glmlab import chat


def generate(model, tokenizer, prompts: list[list[int]], max_new_tokens: int = 32, batch_size: int = 25,
             progress: Callable[[int], None] = lambda done: None,
             shorter: Callable[[int], list[int] | None] | None = None) -> list[str | None]:
    """Greedy answers to prompts of ids, in the order given; a batch that does not fit the memory is halved and run again.

    prompts: ids as `chat.prompt_ids` makes them, of any length; what they share is computed once. progress(done) is called
    with the number of answers so far. shorter(place) gives a shorter prompt for one that does not fit alone, or None to
    give it up: its answer is None then. Errors: without `shorter`, the memory error of a prompt that does not fit alone.
    """
    import torch
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))  # like lengths together: little padding
    prompts, answers = list(prompts), [""] * len(prompts)
    start, size = 0, batch_size
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            prefix = _prefix(model, tokenizer, prompts)
            while start < len(order):
                chosen = order[start : start + size]
                texts = _batch_or_none(model, tokenizer, prefix, [prompts[place] for place in chosen], max_new_tokens,
                                       raise_memory=len(chosen) == 1 and shorter is None)
                if texts is None and len(chosen) > 1:
                    size = len(chosen) // 2
                    print(f"out of memory with {len(chosen)} prompts at once: going on with {size}")
                    continue
                if texts is None:
                    prompts[chosen[0]] = shorter(chosen[0])
                    if prompts[chosen[0]] is not None:
                        continue
                    texts = [None]
                for place, text in zip(chosen, texts):
                    answers[place] = text
                start += len(chosen)
                progress(start)
    finally:
        model.train(was_training)
    return answers


def _prefix(model, tokenizer, prompts: list[list[int]]) -> tuple[list[int], object]:
    """The ids all prompts share and their cache, computed once: `(ids, cache)`; `([], None)` when sharing brings nothing."""
    import torch
    shared = chat.shared_prefix(prompts, tokenizer) if len(prompts) > 1 else 0
    if not shared:
        return [], None
    ids = prompts[0][:shared]
    return ids, model(input_ids=torch.tensor([ids], device=model.device), use_cache=True, logits_to_keep=1).past_key_values


def _batch_or_none(model, tokenizer, prefix, prompts: list[list[int]], max_new_tokens: int, raise_memory: bool) -> list[str] | None:
    """The answers of one batch, or None when the memory did not suffice; the failed pass's tensors are free then."""
    try:
        return _batch(model, tokenizer, prefix, prompts, max_new_tokens)
    except (MemoryError, RuntimeError) as error:
        if raise_memory or not (isinstance(error, MemoryError) or "memory" in str(error).lower()):
            raise
    return None


def _batch(model, tokenizer, prefix, prompts: list[list[int]], max_new_tokens: int) -> list[str]:
    import torch
    shared, cache = prefix
    start, width = len(shared), max(map(len, prompts))
    ids = torch.full((len(prompts), width), tokenizer.pad_token_id)  # (batch, tokens): shared prefix, padding, the prompt's own
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        own = width - (len(prompt) - start)
        ids[row, :start], ids[row, own:] = torch.tensor(shared), torch.tensor(prompt[start:])
        mask[row, :start] = mask[row, own:] = 1
    options = _options(tokenizer, max_new_tokens)
    if cache is not None:
        options["past_key_values"] = copy.deepcopy(cache)  # generate appends to it
        options["past_key_values"].batch_repeat_interleave(len(prompts))
    out = model.generate(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), **options)
    return [answer_text(tokenizer, row.tolist()) for row in out[:, width:]]


def _options(tokenizer, max_new_tokens: int) -> dict:
    """Settings of `model.generate`: greedy, whatever sampling or penalties the base's generation_config asks for."""
    return {"max_new_tokens": max_new_tokens, "do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
            "temperature": 1.0, "top_p": 1.0, "top_k": 50, "eos_token_id": sorted(chat.stop_ids(tokenizer)),
            "pad_token_id": tokenizer.pad_token_id}


def answer_text(tokenizer, ids: list[int]) -> str:
    """The text of generated ids up to the first stop id, without the newline that opens every GLM-4 answer."""
    stops = chat.stop_ids(tokenizer)
    end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
    return tokenizer.decode(ids[:end], skip_special_tokens=True).strip()


def stream(model, tokenizer, messages: list[dict], max_new_tokens: int = 256) -> Iterator[str]:
    """The greedy answer to a conversation, piece by piece as it is decoded. Errors of the model's thread are raised here."""
    from threading import Thread

    import torch
    from transformers import TextIteratorStreamer
    ids = torch.tensor([chat.prompt_ids(tokenizer, messages)], device=model.device)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    failed = []

    def run() -> None:
        try:
            model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), streamer=streamer, **_options(tokenizer, max_new_tokens))
        except BaseException as error:  # whatever it is: the reader below would wait for ever
            failed.append(error)
            streamer.end()

    model.eval()
    Thread(target=run, daemon=True).start()
    yield from streamer
    if failed:
        raise failed[0]
