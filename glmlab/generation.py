"""Greedy answers in batches and one streamed answer, with the stop ids of the chat format."""

from collections.abc import Callable, Iterator

from glmlab import chat


def generate(model, tokenizer, prompts: list[list[int]], max_new_tokens: int = 32, batch_size: int = 25,
             progress: Callable[[int], None] = lambda done: None) -> list[str]:
    """Greedy answers to prompts of ids, in the order given; a batch that does not fit the memory is halved and run again.

    prompts: ids as `chat.prompt_ids` makes them, of any length. progress(done) is called with the number of answers so far.
    Errors: the memory error itself when even one prompt does not fit.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # like lengths together: little padding
    answers: list[str] = [""] * len(prompts)
    start, size = 0, batch_size
    while start < len(order):
        chosen = order[start : start + size]
        try:
            texts = _batch(model, tokenizer, [prompts[i] for i in chosen], max_new_tokens)
        except (MemoryError, RuntimeError) as error:
            if "memory" not in str(error).lower() and not isinstance(error, MemoryError) or len(chosen) == 1:
                raise
            size = max(1, len(chosen) // 2)
            print(f"out of memory with {len(chosen)} prompts at once: going on with {size}")
            continue
        for i, text in zip(chosen, texts):
            answers[i] = text
        start += len(chosen)
        progress(start)
    return answers


def _batch(model, tokenizer, prompts: list[list[int]], max_new_tokens: int) -> list[str]:
    import torch
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), tokenizer.pad_token_id)  # (batch, tokens), padded on the left
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt):] = torch.tensor(prompt)
        mask[row, width - len(prompt):] = 1
    with torch.inference_mode():
        out = model.generate(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), **_options(tokenizer, max_new_tokens))
    return [answer_text(tokenizer, row.tolist()) for row in out[:, width:]]


def _options(tokenizer, max_new_tokens: int) -> dict:
    return {"max_new_tokens": max_new_tokens, "do_sample": False, "eos_token_id": sorted(chat.stop_ids(tokenizer)),
            "pad_token_id": tokenizer.pad_token_id}


def answer_text(tokenizer, ids: list[int]) -> str:
    """The text of generated ids up to the first stop id, without the newline that opens every GLM-4 answer."""
    stops = chat.stop_ids(tokenizer)
    end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
    return tokenizer.decode(ids[:end], skip_special_tokens=True).strip()


def stream(model, tokenizer, messages: list[dict], max_new_tokens: int = 256) -> Iterator[str]:
    """The greedy answer to a conversation, piece by piece as it is decoded."""
    from threading import Thread

    import torch
    from transformers import TextIteratorStreamer
    ids = torch.tensor([chat.prompt_ids(tokenizer, messages)], device=model.device)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    options = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "streamer": streamer, **_options(tokenizer, max_new_tokens)}
    Thread(target=model.generate, kwargs=options, daemon=True).start()
    yield from streamer
