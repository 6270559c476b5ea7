"""What fits a card: the presets of notebooks/settings and the ChatGLM generations, trained, evaluated and asked at their real shapes.

A preset is measured with the allocator held to the size of its card, from the first weight on, by the code that a notebook runs:
`training.train`, `scoring`, the engine behind every chat. What does not fit ends with a memory error, as it would on the card.
"""

import math
import random
import tempfile
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch

from glmlab import bench, chat, generation, models, runs, scoring, settings, training
from glmlab.bench_eval import answers_like_labels
from glmlab.parameters import CHATGLM_LAYERS, TrainSettings
from glmlab.paths import notebooks

#: GiB that a card of this name has: of 24 GB those with error correction (A10, L4) keep 22.5, and an A100 or H100 of 80 GB has 79.6.
CARDS = {"8gb": 8.0, "12gb": 12.0, "24gb": 22.5, "80gb": 79.6}
#: GiB that tensors never get, because driver, CUDA context and kernels take them; `outside_gib` of a row is what they took there.
CONTEXT_GIB = 0.8
BASES = {"8gb": ("chatglm3-6b", "chatglm-6b"), "12gb": ("chatglm-6b",), "24gb": ("glm-4-9b-0414",), "80gb": ("glm-4-9b-0414",)}
STEPS, EVAL_ROWS, CHAT_PROMPT, CHAT_TOKENS = 3, 50, 500, 64
PASS_ROWS = 25  # calls of one scoring pass, as in 03_eval


# --- the tables --------------------------------------------------------------------------------------------------

def add_presets(table: bench.Table, presets: list[str], base: str | None = None) -> None:
    """Presets on their bases. base: only this one."""
    wanted = [(preset, name) for preset in presets for name in BASES[preset] if base in (None, name)]
    table.about |= {"context_gib": CONTEXT_GIB, **_facts()}
    for preset, name in wanted:
        _add_preset(table, preset, name)


def _add_preset(table: bench.Table, preset: str, base: str) -> None:
    cap = CARDS[preset] - CONTEXT_GIB
    table.add(f"{preset}: {base}", lambda: prove(read_preset(preset, base), cap, table.log), preset=preset, base=base, card_gib=CARDS[preset],
              cap_gib=cap)


def add_family(table: bench.Table, base: str | None = None) -> None:
    """ChatGLM-6B and ChatGLM3-6B, in the number formats and weights that the presets leave out; no cap. base: only this one."""
    table.about |= _facts()
    for name, targets in (("chatglm-6b", CHATGLM_LAYERS), ("chatglm3-6b", "all-linear")):
        for method, dtype in (("qlora", "fp16"), ("lora", "bf16"), ("lora", "fp16")):
            if base in (None, name):
                wanted = TrainSettings(base=name, method=method, dtype=dtype, rank=8, layers=0, target_modules=targets, max_length=512,
                                       learning_rate=2e-4)
                weights = "NF4, " if method == "qlora" else ""
                table.add(f"{name}: {weights}{dtype}", lambda: prove(wanted, None, table.log), base=name)


def _facts() -> dict:
    device = bench.device_for("chatglm-6b")
    there = {"device_gib": torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / 2**30} if device == "cuda" else {}
    return {"steps": STEPS, "evaluated_prompts": EVAL_ROWS, "labels": 34, "chat_prompt_tokens": CHAT_PROMPT, "chat_new_tokens": CHAT_TOKENS,
            **bench.machine(device), **there}


def read_preset(name: str, base: str = "") -> TrainSettings:
    """The settings of notebooks/settings/NAME.yaml, with another base where one is given. Errors: ValueError as `settings.read`."""
    import yaml
    values = yaml.safe_load(notebooks("settings", f"{name}.yaml").read_text(encoding="utf-8"))
    return settings.read(TrainSettings, values | ({"base": base} if base else {}))


# --- one row -----------------------------------------------------------------------------------------------------

def prove(wanted: TrainSettings, cap: float | None, log=print) -> dict:
    """Make the base of these settings with random weights, then train, evaluate and chat; seconds and peaks of each.

    cap: GiB that tensors may take; None: all. Errors: the memory error of what does not fit; RuntimeError for a loss or gradient that is
    no finite number.
    """
    device = bench.device_for(wanted.base)
    bench.free()
    with capped(cap):
        load, model = bench.peaks(lambda: _model(wanted, device), device)
        train, facts = bench.peaks(lambda: _train(wanted, model, log), device)
        evaluate, ways = bench.peaks(lambda: _evaluate(wanted, model), device)
        talk, answer = bench.peaks(lambda: _chat(wanted, model), device)
        outside = {} if device == "cpu" else {"outside_gib": _outside()}
    used = {name: asdict(wanted)[name] for name in ("method", "dtype", "rank", "target_modules", "max_length", "batch_size", "accumulation")}
    phases = {"load": load, "train": train | facts, "evaluate": evaluate | ways, "chat": talk | answer}
    return {"settings": used, "seconds": sum(phase["seconds"] for phase in phases.values()),
            "peak_gib": max(phase.get("peak_gib", 0.0) for phase in phases.values()), **outside, **phases}


def _outside() -> float:
    """GiB of the GPU that are taken, but not by torch's allocator."""
    free, total = torch.cuda.mem_get_info()
    return (total - free - torch.cuda.memory_reserved()) / 2**30


@contextmanager
def capped(cap: float | None):
    """Hold what torch's allocator takes from the GPU to so many GiB; None, or more than the card has: all of it."""
    if cap is None or not torch.cuda.is_available():
        yield
        return
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, cap * 2**30 / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def _model(wanted: TrainSettings, device: str):
    from glmlab.device import pick_dtype
    dtype, _ = pick_dtype(device, wanted.dtype)
    base = bench.random_base(wanted.base, models.quantization_of(wanted.method), dtype, device)
    return bench.with_lora(base, wanted.rank, wanted.alpha, wanted.target_modules, wanted.dropout).eval()


def _train(wanted: TrainSettings, model, log) -> dict:
    """STEPS optimizer steps, a checkpoint and an evaluation, as notebook 02 makes them, in a folder that is removed."""
    tokenizer = bench.tokenizer_of(wanted.base)
    batch, prefix = wanted.batch_size * wanted.accumulation, min(450, wanted.max_length // 2)
    samples = bench.call_like_samples(STEPS * batch, prefix, two_way=chat.two_way(tokenizer), longest=wanted.max_length)
    said: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        run = replace(wanted, run=str(Path(folder, "run")), steps=STEPS, checkpoint_steps=STEPS, eval_steps=STEPS, warmup_steps=0)
        training.train(run, model, tokenizer, samples, samples[: 2 * wanted.batch_size], {}, lambda line: (said.append(line), log(line)))
        entries = runs.read_log(run.run)
    steps = [entry for entry in entries if "loss" in entry]
    found = {"losses": [entry["loss"] for entry in steps], "gradient_norms": [entry["grad_norm"] for entry in steps],
             "dev_loss": next(entry["eval_loss"] for entry in entries if "eval_loss" in entry)}
    if not all(math.isfinite(number or math.nan) for number in (*found["losses"], found["gradient_norms"][-1], found["dev_loss"])):
        raise RuntimeError(f"a loss or gradient is no finite number: {found}")
    return {"pass": next((line for line in said if line.startswith("pack_tokens")), ""), "samples_a_step": batch, **found,
            "tokens_per_second": steps[-1]["tokens_per_second"],
            "stepped_down": [line for line in said if line.startswith("out of memory")]}


def _prompt_ids(wanted: TrainSettings) -> tuple[list[list[int]], int]:
    """(prompts with the lengths of calls, the tokens they share)."""
    tokenizer = bench.tokenizer_of(wanted.base)
    samples = bench.call_like_samples(EVAL_ROWS, min(450, wanted.max_length // 2), two_way=chat.two_way(tokenizer), longest=wanted.max_length)
    prompts = [sample.ids[: sample.labels_from] for sample in samples]
    return prompts, chat.shared_prefix(prompts, tokenizer)


def _evaluate(wanted: TrainSettings, model) -> dict:
    """The probabilities of 34 labels for EVAL_ROWS calls, PASS_ROWS in a pass as in notebook 03."""
    prompts, prefix = _prompt_ids(wanted)
    answers = answers_like_labels(model.config.vocab_size)
    more = len(scoring.label_trie(answers).fed) - prefix
    tokens = PASS_ROWS * sum(len(prompt) + more for prompt in prompts) // len(prompts)
    found = scoring.score_ids(model, prompts, answers, prefix, tokens, two_way=chat.two_way(bench.tokenizer_of(wanted.base)))
    if not abs(found.sum(1) - 1).max() < 1e-3:  # also where a probability is no number
        raise RuntimeError("the probabilities of the labels do not sum to 1")
    return {"prompts": len(prompts), "pass_tokens": tokens}


def _chat(wanted: TrainSettings, model) -> dict:
    """An answer of CHAT_TOKENS tokens to a prompt of CHAT_PROMPT, written with a cache by the engine."""
    tokenizer = bench.tokenizer_of(wanted.base)
    draw = random.Random(7)
    two_way = chat.two_way(tokenizer) or ()
    prompt = [draw.randrange(10, bench.TEXT_IDS) for _ in range(CHAT_PROMPT - len(two_way))] + list(two_way)
    answer, = generation.generate_facts(model, tokenizer, [prompt], CHAT_TOKENS)
    return {"tokens": answer.tokens, "first_token_seconds": answer.first_token_seconds,
            "tokens_per_second": (answer.tokens - 1) / max(1e-9, answer.seconds - answer.first_token_seconds)}
