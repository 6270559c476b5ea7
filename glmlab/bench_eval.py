"""Evaluation measured side by side: one answer at a time, batched answers, and choosing among the labels from one pass."""

import gc
import statistics

import torch

from glmlab import bench, chat, evaluation, generation, memory, models, paths, scoring
from glmlab.bench_train import machine, timed
from glmlab.tasks import intent

REFERENCE = "intent-reference"
PASS_TOKENS = 16_384  # of one scoring pass


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


def eval_table(base: str = "glm-4-9b-0414", log=print) -> dict:
    """samples/s of one-at-a-time `generate`, batched `generate` and label scoring.

    A base with a known shape gets random weights, on a GPU. For glm4-tiny the reference run is asked about test calls, on the CPU.
    """
    if base in bench.SHAPES:
        about = {"base": base, "prefix_tokens": 450, "labels": 34, "answer_tokens": 14, **machine("cuda")}
        return {"about": about, "rows": [*_eval_rows(base, "nf4", log), *_eval_rows(base, "none", log)]}
    return {"about": {"base": base, "run": REFERENCE, "labels": len(intent.ANSWERS), **machine("cpu")}, "rows": _tiny_rows(base, log)}


def _tiny_rows(base: str, log) -> list[dict]:
    model, tokenizer = models.load_finetuned(base, models.find_checkpoint(REFERENCE, -1), "none", "fp32", "cpu")
    calls = intent.read(paths.data("intent/test_new.csv"))[0][:150]
    prompts = [prompt.ids for prompt in evaluation.encode_prompts(tokenizer, [call.text for call in calls], 1536)]
    rows, prefix = [], chat.shared_prefix(prompts)
    options = dict(max_new_tokens=20, do_sample=False, pad_token_id=tokenizer.pad_token_id, eos_token_id=sorted(chat.stop_ids(tokenizer)))

    def note(label: str, count: int, seconds: list[float], **more) -> None:
        rows.append({"setting": label, "base_weights": "fp32", "samples_per_second": count / statistics.median(seconds), **more})
        log(f"{label}: {rows[-1]['samples_per_second']:.2f} samples/s")

    with torch.inference_mode():
        note("generate, one at a time", 1, [timed(lambda: model.generate(torch.tensor([ids]), **options), "cpu")[0] for ids in prompts[:8]][2:])
        batches = [_left_padded(prompts[start : start + 25], "cpu") for start in (0, 25, 50)]
        note("generate, batches of 25", 25, [timed(lambda: model.generate(**batch, **options), "cpu")[0] for batch in batches])
    started = [timed(lambda: generation.generate(model, tokenizer, prompts[:75], 20), "cpu")[0] for _ in range(2)]
    note("generate, shared prefix and continuous refill", 75, started)
    took, found = zip(*[timed(lambda: scoring.score(model, tokenizer, prompts, intent.ANSWERS, prefix, evaluation.CPU_PASS_TOKENS), "cpu") for _ in range(3)])
    alone = scoring.score(model, tokenizer, prompts[:40], intent.ANSWERS, 0, 1)
    note("label trie behind the shared prefix", len(prompts), list(took),
         same_prediction_as_unpacked=float((found[0][:40].argmax(1) == alone.argmax(1)).mean()))
    return rows


def _eval_rows(base: str, quantization: str, log) -> list[dict]:
    gc.collect()
    torch.cuda.empty_cache()
    torch._dynamo.reset()
    model = bench.random_base(base, quantization)
    prompts = [sample.ids[: sample.labels_from] for sample in bench.call_like_samples(1200, 450, 60_000)]
    answers, rows = answers_like_labels(model.config.vocab_size), []
    options = dict(max_new_tokens=14, min_new_tokens=14, do_sample=False, pad_token_id=5)

    def note(label: str, count: int, seconds: list[float]) -> None:
        rate = count / statistics.median(seconds)
        rows.append({"setting": label, "base_weights": "nf4" if quantization == "nf4" else "bf16", "samples_per_second": rate,
                     "peak_gib": torch.cuda.max_memory_allocated() / 2**30})
        log(f"{rows[-1]['base_weights']} {label}: {rate:.2f} samples/s, peak {rows[-1]['peak_gib']:.1f} GiB")
        torch.cuda.reset_peak_memory_stats()

    def scored():
        return scoring.score_ids(model, prompts[400:], answers, 450, PASS_TOKENS)

    torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        one = [timed(lambda: model.generate(torch.tensor([prompt], device="cuda"), **options), "cuda")[0] for prompt in prompts[:8]]
        note("generate, one at a time", 1, one[2:])
        for size in (25, 64):
            batches = [_left_padded(prompts[start : start + size]) for start in range(0, 4 * size, size)]
            took = [timed(lambda: model.generate(**batch, **options), "cuda")[0] for batch in batches]
            note(f"generate, batches of {size}", size, took[1:])
    scored()
    note(f"label trie behind the shared prefix, packs of {PASS_TOKENS:,}, not compiled", len(prompts) - 400, [timed(scored, "cuda")[0] for _ in range(2)])
    memory.compile_layers(model)
    scored()
    took, found = zip(*[timed(scored, "cuda") for _ in range(3)])
    note(f"label trie behind the shared prefix, packs of {PASS_TOKENS:,}", len(prompts) - 400, list(took))
    alone = scoring.score_ids(model, prompts[400:440], answers, 0, 1)
    rows[-1]["same_prediction_as_unpacked"] = float((found[0][:40].argmax(1) == alone.argmax(1)).mean())
    rows[-1]["largest_difference_of_a_probability"] = float(abs(found[0][:40] - alone).max())
    return rows


def _left_padded(prompts: list[list[int]], device: str = "cuda") -> dict:
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), 5)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt):], mask[row, width - len(prompt):] = torch.tensor(prompt), 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
