"""Evaluation measured side by side: one answer at a time, batched answers, and choosing among the labels from one pass."""

import statistics

import torch

from glmlab import bench, chat, evaluation, generation, memory, models, paths, scoring
from glmlab.tasks import intent

REFERENCE = "intent-reference"
PREFIX, ANSWER, PAD = 450, 14, 5  # tokens that all prompts share, of an answer; an id that pads
PASS_TOKENS = 16_384              # of one scoring pass
SCORED = 400                      # samples scored at a time


def answers_like_labels(vocabulary: int) -> list[list[int]]:
    """34 answers of 14 tokens that begin alike, branch at a number of one or two digits, and end with a stop id: 意图：12：…"""
    head, stop = [vocabulary - 20, vocabulary - 21, vocabulary - 22], vocabulary - 2
    digits = [vocabulary - 40 + digit for digit in range(10)]
    found = []
    for label in range(34):
        number = [digits[int(digit)] for digit in str(label)]
        name = [vocabulary - 100 - label * 9 - place for place in range(14 - len(head) - len(number) - 2)]
        found.append([*head, *number, vocabulary - 23, *name, stop])
    return found


def add_evaluation(table: bench.Table, base: str) -> None:
    """samples/s of one-at-a-time `generate`, batched `generate` and label scoring.

    A base with a known shape gets random weights, on a GPU. For glm4-tiny the reference run is asked about test calls, on the CPU.
    """
    device = bench.device_for(base)
    if base in bench.SHAPES:
        table.about |= {"base": base, "prefix_tokens": PREFIX, "labels": 34, "answer_tokens": ANSWER, "scored_samples": SCORED,
                        **bench.machine(device)}
        for quantization in ("nf4", "none"):
            bench.free()
            _add_rows(table, bench.random_base(base, quantization, device=device), bench.tokenizer_of(base),
                      "nf4" if quantization == "nf4" else "bf16", device)
    else:
        table.about |= {"base": base, "run": REFERENCE, "labels": len(intent.ANSWERS), **bench.machine(device)}
        _add_tiny_rows(table, base)


def _rate(function, inputs: list, samples: int, device: str, warm_up: int = 1) -> dict:
    """Samples/s (median) of `function(input)` over inputs of so many samples each; the first ones are not counted. Peak memory."""
    took, seconds = bench.peaks(lambda: [bench.timed(lambda: function(one), device)[0] for one in inputs], device)
    return took | {"samples_per_second": samples / statistics.median(seconds[warm_up:]), "repeats": len(inputs) - warm_up}


def _add_rows(table: bench.Table, model, tokenizer, weights: str, device: str) -> None:
    prompts = [sample.ids[: sample.labels_from] for sample in bench.call_like_samples(SCORED + 320, PREFIX)]
    asked, scored = prompts[SCORED:], prompts[:SCORED]
    answers = answers_like_labels(model.config.vocab_size)
    options = dict(max_new_tokens=ANSWER, min_new_tokens=ANSWER, do_sample=False, pad_token_id=PAD)

    def written(batch: dict):
        with torch.inference_mode():
            return model.generate(**batch, **options)

    def choose(chosen: list):
        return scoring.score_ids(model, chosen, answers, PREFIX, PASS_TOKENS)

    def same_as_alone() -> dict:
        together, alone = choose(scored[:40]), scoring.score_ids(model, scored[:40], answers, 0, 1)
        return {"same_prediction_as_unpacked": float((together.argmax(1) == alone.argmax(1)).mean()),
                "largest_difference_of_a_probability": float(abs(together - alone).max())}

    for size, count in ((1, 6), (25, 4), (64, 3)):
        batches = [_left_padded(asked[start : start + size], device) for start in range(0, count * size, size)]
        table.add("generate, one at a time" if size == 1 else f"generate, batches of {size}", lambda: _rate(written, batches, size, device),
                  base_weights=weights)
    table.add("generate, shared prefix and continuous refill, 64 at once",
              lambda: _rate(lambda chosen: generation.generate(model, tokenizer, chosen, ANSWER, 64), [asked[:64], asked[:128]], 128, device),
              base_weights=weights)
    packs = f"label trie behind the shared prefix, packs of {PASS_TOKENS:,}"
    table.add(f"{packs}, not compiled", lambda: _rate(choose, [scored[:100], scored, scored], SCORED, device), base_weights=weights)
    memory.compile_layers(model)
    table.add(packs, lambda: _rate(choose, [scored] * 4, SCORED, device) | same_as_alone(), base_weights=weights)


def _add_tiny_rows(table: bench.Table, base: str) -> None:
    model, tokenizer = models.load_finetuned(base, models.find_checkpoint(REFERENCE, -1), "none", "fp32", "cpu")
    calls = intent.read(paths.data("intent/test_new.csv"))[0][:150]
    prompts = [prompt.ids for prompt in evaluation.encode_prompts(tokenizer, [call.text for call in calls], 1536)]
    prefix = chat.shared_prefix(prompts)
    options = dict(max_new_tokens=20, do_sample=False, pad_token_id=tokenizer.pad_token_id, eos_token_id=sorted(chat.stop_ids(tokenizer)))

    def written(batch: dict):
        with torch.inference_mode():
            return model.generate(**batch, **options)

    def choose(chosen: list):
        return scoring.score(model, tokenizer, chosen, intent.ANSWERS, prefix, evaluation.CPU_PASS_TOKENS)

    def same_as_alone() -> dict:
        alone = scoring.score(model, tokenizer, prompts[:40], intent.ANSWERS, 0, 1)
        return {"same_prediction_as_unpacked": float((choose(prompts[:40]).argmax(1) == alone.argmax(1)).mean())}

    for size, count in ((1, 8), (25, 4)):
        batches = [_left_padded(prompts[start : start + size], "cpu") for start in range(0, count * size, size)]
        table.add("generate, one at a time" if size == 1 else f"generate, batches of {size}", lambda: _rate(written, batches, size, "cpu"))
    table.add("generate, shared prefix and continuous refill",
              lambda: _rate(lambda chosen: generation.generate(model, tokenizer, chosen, 20), [prompts[:75]] * 3, 75, "cpu"))
    table.add("label trie behind the shared prefix", lambda: _rate(choose, [prompts] * 4, len(prompts), "cpu") | same_as_alone())


def _left_padded(prompts: list[list[int]], device: str) -> dict:
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), PAD)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt):], mask[row, width - len(prompt):] = torch.tensor(prompt), 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
