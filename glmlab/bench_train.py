"""Training measured side by side: the documents' setting, padded batches, TRL, and packs behind a shared prefix; one process and several."""

import functools
import statistics
import tempfile
import time

import torch

from glmlab import bench, memory, models, packing
from glmlab.bench import timed

#: Optimizer steps that are not counted, because kernels are chosen and layers compiled there, and that are.
STEPS = {"cuda": (3, 7), "cpu": (1, 5)}
PREFIX, PAD = 450, 5  # tokens that all samples share; an id that pads
PACKS, CPU_PACKS = (16_384, 8_192, 4_096, 2_048), (8_192, 4_096, 2_048)  # tokens of a pack
PREFIXES, PREFIX_STEPS = (0, 250, 500, 1000, 2000, 4000), (2, 5)          # tokens of the prompt; uncounted and counted steps of each


# --- steps and their rates ---------------------------------------------------------------------------------------

def flop_per_token(model) -> float:
    """FLOP a token costs in training with a frozen base: forward and activation gradients, 2 each a weight of the layers.

    The embedding is a lookup, the head computes at a few positions, attention is left out: a lower bound.
    """
    linear = sum(module.in_features * module.out_features for module in memory.layers(model).modules() if hasattr(module, "in_features"))
    return 4.0 * linear


def steps(model, batches: list[list[dict]], device: str) -> list[tuple[int, int, float]]:
    """Optimizer steps on batches, each a list of passes: (samples, computed tokens, seconds) of each. model: also one that DDP wraps."""
    dtype = getattr(model, "module", model).dtype
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=device == "cuda")
    model.train()

    def step(passes: list[dict]) -> None:
        for batch in passes:
            with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss = packing.loss_sum(model, batch) / batch["weights"].sum()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    found = []
    for passes in batches:
        passes = [packing.to(batch, device) for batch in passes]
        seconds, _ = timed(lambda: step(passes), device)
        found.append((sum(int(batch["sample"][-1]) + 1 for batch in passes), sum(batch["input_ids"].numel() for batch in passes), seconds))
    return found


def rates(found: list, warm_up: int) -> dict:
    """Medians of samples/s and computed tokens/s over the steps that are counted."""
    kept = found[warm_up:]
    return {"samples_per_second": statistics.median(samples / seconds for samples, _, seconds in kept),
            "tokens_per_second": statistics.median(tokens / seconds for _, tokens, seconds in kept),
            "step_seconds": statistics.median(seconds for *_, seconds in kept), "samples_a_step": statistics.mean(step[0] for step in kept),
            "steps": len(kept), "first_step_seconds": found[0][2]}


def measure(model, batches: list[list[dict]], device: str, warm_up: int | None = None) -> dict:
    """Rates of optimizer steps on batches, and the peak memory. warm_up: steps that are not counted; None: as STEPS says."""
    took, found = bench.peaks(lambda: steps(model, batches, device), device)
    return took | rates(found, STEPS[device][0] if warm_up is None else warm_up)


# --- batches -----------------------------------------------------------------------------------------------------

def padded(samples: list, rows: int, pad_id: int, count: int, width: int = 0) -> list[list[dict]]:
    """Up to `count` steps of one padded batch each; width: pad to so many tokens, 0: to the longest of the batch."""
    found = [packing.pad(samples[start : start + rows], pad_id) for start in range(0, min(count * rows, len(samples)), rows)]
    return [[widened(batch, width, pad_id) if width else batch] for batch in found]


def widened(batch: dict, width: int, pad_id: int) -> dict:
    """A padded batch with more padding."""
    more = max(0, width - batch["input_ids"].shape[1])
    pad = torch.nn.functional.pad
    return batch | {"input_ids": pad(batch["input_ids"], (0, more), value=pad_id), "attention_mask": pad(batch["attention_mask"], (0, more)),
                    "keep": pad(batch["keep"], (0, more)),
                    "position_ids": torch.arange(batch["input_ids"].shape[1] + more).expand(len(batch["input_ids"]), -1)}


def packed(samples: list, prefix: int, tokens: int, count: int) -> list[list[dict]]:
    """Up to `count` steps of one full pack each."""
    found, pack, length = [], [], prefix
    for sample in samples:
        own = len(sample.ids) - prefix
        if pack and length + own > tokens:
            found.append([packing.pack(pack, prefix)])
            pack, length = [], prefix
        if len(found) == count:
            break
        pack.append(sample)
        length += own
    return found


# --- TRL ---------------------------------------------------------------------------------------------------------

def trl_rate(model, samples: list, rows: int, liger: bool, tokens: int, device: str) -> dict:
    """The same samples through TRL's SFTTrainer, loss on the answers only; one optimizer step a batch.

    tokens: its `packing`, to sequences of so many tokens (0: padded batches of `rows`). Without FlashAttention its packed samples see
    each other, so that figure is an upper bound. Errors: ImportError where trl is not installed.
    """
    import datasets
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer
    moments = []

    class Clock(TrainerCallback):
        """The moment each step ended."""

        def on_step_end(self, *_, **__):
            if device == "cuda":
                torch.cuda.synchronize()
            moments.append(time.perf_counter())

    columns = {"input_ids": [sample.ids for sample in samples]}
    if tokens:
        columns["completion_mask"] = [[0] * sample.labels_from + [1] * (len(sample.ids) - sample.labels_from) for sample in samples]
    else:
        columns["labels"] = [sample.labels for sample in samples]
    warm_up, count = STEPS[device]
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(folder, per_device_train_batch_size=1 if tokens else rows, max_steps=warm_up + count, packing=bool(tokens),
                           max_length=tokens or None, completion_only_loss=True, use_liger_kernel=liger, bf16=device == "cuda",
                           gradient_checkpointing=False, report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
                           use_cpu=device == "cpu", optim="adamw_torch", dataset_kwargs={"skip_prepare_dataset": not tokens},
                           learning_rate=1e-5)
        trainer = SFTTrainer(model=model, args=config, train_dataset=datasets.Dataset.from_dict(columns),
                             processing_class=_plain_tokenizer(model), callbacks=[Clock()])
        per_step = len(samples) / len(trainer.train_dataset) if tokens else rows
        took, _ = bench.peaks(trainer.train, device)
    seconds = statistics.median(later - earlier for earlier, later in zip(moments[warm_up - 1:], moments[warm_up:]))
    return took | {"samples_per_second": per_step / seconds, "step_seconds": seconds, "samples_a_step": per_step, "steps": count}


def _plain_tokenizer(model):
    """A tokenizer that only knows its padding: the samples are ids already."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    names = {f"<{number}>": number for number in range(min(16, model.config.vocab_size))}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(names, "<0>")), pad_token="<5>", eos_token="<6>")


# --- settings side by side ---------------------------------------------------------------------------------------

def add_training(table: bench.Table, base: str) -> None:
    """All settings on one base, in one run. A name with a known shape gets random weights, on a GPU; a tiny base is loaded, on the CPU."""
    device = bench.device_for(base)
    samples, flop = _start(table, base, device)
    for quantization, compiled, variants in (_gpu_variants if base in bench.SHAPES else _cpu_variants)(samples):
        _add_variants(table, base, device, quantization, compiled, variants, flop)


def _start(table: bench.Table, base: str, device: str, count: int = 2600) -> tuple[list, float]:
    """Write down what is measured, on what: (samples like calls, FLOP a token)."""
    bare = bench.empty_base(base) if base in bench.SHAPES else models.load_base(base, "none", "fp32", "cpu")[0]
    samples = bench.call_like_samples(count, PREFIX)
    flop = flop_per_token(bare)
    table.about |= {"base": base, "prefix_tokens": PREFIX, "flop_per_token": flop, "uncounted_steps": STEPS[device][0],
                    "mean_tokens_a_sample": statistics.mean(len(sample.ids) for sample in samples), **bench.machine(device)}
    return samples, flop


def _with_adapter(base: str, quantization: str, device: str, compiled: bool):
    """The base with an adapter: document 004's on the real shapes."""
    if base in bench.SHAPES:
        model = bench.with_lora(bench.random_base(base, quantization, device=device))
    else:
        model = bench.with_lora(models.load_base(base, quantization, "fp32", device)[0].requires_grad_(False), 16, 32)
    if compiled:
        memory.compile_layers(model)
    return model


def _add_variants(table: bench.Table, base: str, device: str, quantization: str, compiled: bool, variants: list, flop: float) -> None:
    """Rows that are measured on one model, one after another; it is gone when this returns."""
    bench.free()
    model = functools.cache(lambda: _with_adapter(base, quantization, device, compiled))

    def measured(function) -> dict:
        row = function(model(), device)
        if "tokens_per_second" in row:
            row["share_of_limit"] = row["tokens_per_second"] * flop / (table.about["matmul_tflops"] * 1e12)
        return row

    weights = "nf4" if quantization == "nf4" else "bf16" if base in bench.SHAPES else "fp32"
    for setting, function in variants:
        table.add(setting, lambda: measured(function), base_weights=weights)


def _gpu_variants(samples: list) -> list[tuple]:
    """(quantization, compiled layers, [(setting, function of model and device)]). TRL last: Liger changes classes for good."""
    return [("nf4", True, _packs(samples, PACKS)), ("none", True, _packs(samples, PACKS[:2])),
            ("nf4", False, [("padded to the longest, batch 4", _padded(samples, 4)),
                            ("documents: batch 4 padded to 1,024, checkpointing", _padded(samples, 4, 1024, True))]),
            ("none", False, [("TRL, padded, batch 8", _trl(samples, 8))]),
            ("none", False, [("TRL, padded, batch 8, Liger", _trl(samples, 8, True))]),
            ("none", False, [("TRL, padded, batch 16, Liger", _trl(samples, 16, True))]),
            ("none", False, [("TRL, packing 4,096, Liger", _trl(samples, 0, True, 4096))])]


def _cpu_variants(samples: list) -> list[tuple]:
    return [("none", False, _packs(samples, CPU_PACKS)), ("nf4", False, _packs(samples, (4096,))),
            ("none", False, [("padded to the longest, batch 8", _padded(samples, 8))]),
            ("none", False, [("TRL, padded, batch 8", _trl(samples, 8))]),
            ("none", False, [("TRL, packing 2,048", _trl(samples, 0, False, 2048))])]


def _packs(samples: list, sizes: tuple) -> list[tuple]:
    def one(tokens: int):
        return lambda model, device: {"pack_tokens": tokens, **measure(model, packed(samples, PREFIX, tokens, sum(STEPS[device])), device)}
    return [(f"shared prefix, packs of {tokens:,}", one(tokens)) for tokens in sizes]


def _padded(samples: list, rows: int, width: int = 0, checkpointing: bool = False):
    def run(model, device: str) -> dict:
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        return measure(model, padded(samples, rows, PAD, sum(STEPS[device]), width), device)
    return run


def _trl(samples: list, rows: int, liger: bool = False, tokens: int = 0):
    return lambda model, device: trl_rate(model, samples[:600], rows, liger, tokens, device)


# --- cost of the prompt, of several processes --------------------------------------------------------------------

def add_prefixes(table: bench.Table, base: str, tokens: int = 8192) -> None:
    """Samples/s against the length of the system prompt: packs behind a shared prefix, and the same packs without sharing."""
    device = bench.device_for(base)
    table.about |= {"base": base, "pack_tokens": tokens, "uncounted_steps": PREFIX_STEPS[0], **bench.machine(device)}
    model = functools.cache(lambda: _with_adapter(base, "nf4", device, device == "cuda"))

    def measured(samples: list, shared: int) -> dict:
        return measure(model(), packed(samples, shared, tokens, sum(PREFIX_STEPS)), device, PREFIX_STEPS[0])

    for prefix in PREFIXES:
        samples = bench.call_like_samples(500, prefix)
        table.add(f"prefix {prefix}, shared", lambda: measured(samples, prefix), prefix_tokens=prefix, shared=True)
        if prefix:
            table.add(f"prefix {prefix}, not shared", lambda: measured(samples, 0), prefix_tokens=prefix, shared=False)


def add_processes(table: bench.Table, base: str, tokens: int = 8192) -> None:
    """Samples/s of one process, and of all those that `accelerate launch` started with the adapter's gradients averaged by DDP.

    Each process computes packs of its own, one an optimizer step, so that gradients are exchanged as often as can be. Errors: ValueError
    in one process.
    """
    from accelerate import Accelerator
    device = bench.device_for(base)
    accelerator = Accelerator(cpu=device == "cpu")
    count, first = accelerator.num_processes, accelerator.is_main_process
    if count < 2:
        raise ValueError("start it in several processes: accelerate launch --multi_gpu --num_processes 2 -m glmlab bench gpus --out FILE.json")
    if not first:
        table.out, table.log = None, lambda line: None
    table.about["pack_tokens"] = tokens
    samples, _ = _start(table, base, device, 1000 * count)
    model = _with_adapter(base, "nf4" if device == "cuda" else "none", device, device == "cuda")
    batches = packed(samples[accelerator.process_index :: count], PREFIX, tokens, sum(STEPS[device]))
    steps(model, batches[: STEPS[device][0]], device)  # each process chooses its kernels and compiles its layers
    accelerator.wait_for_everyone()
    if first:
        table.add("1 process", lambda: measure(model, batches, device, 1), processes=1)
    accelerator.wait_for_everyone()
    took, mine = bench.peaks(lambda: steps(accelerator.prepare(model), batches, device), device)
    found = accelerator.gather(torch.tensor(mine, dtype=torch.float64, device=accelerator.device)).view(count, len(mine), 3)
    together = [(step[:, 0].sum().item(), step[:, 1].sum().item(), step[:, 2].max().item()) for step in found.unbind(1)]
    table.add(f"{count} processes", lambda: took | rates(together, STEPS[device][0]), processes=count)
    accelerator.end_training()
