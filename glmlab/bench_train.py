"""Training measured side by side: the documents' setting, padded batches, TRL, and packs behind a shared prefix."""

import gc
import statistics
import sys
import time
from importlib import metadata

import torch

from glmlab import bench, memory, models, packing

WARM_UP, STEPS = 3, 8
VERSIONS = ("torch", "transformers", "peft", "bitsandbytes", "trl", "liger-kernel", "accelerate")


# --- what was measured, on what ----------------------------------------------------------------------------------

def machine(device: str) -> dict:
    """Device, its measured speed in matrix products, and the versions of what computes."""
    found = {"device": torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads",
             "matmul_tflops": round(matmul_tflops(device), 1), "python": sys.version.split()[0]}
    for name in VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def matmul_tflops(device: str) -> float:
    """TFLOP/s of a large matrix product on random data, median of ten: bf16 on a GPU, fp32 on a CPU."""
    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (2048, torch.float32)
    one, two = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    seconds = [timed(lambda: one @ two, device)[0] for _ in range(13)][3:]
    return 2 * size**3 / statistics.median(seconds) / 1e12


def timed(function, device: str):
    """(seconds, result); the device is waited for on both sides."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    result = function()
    wait()
    return time.perf_counter() - started, result


def flop_per_token(model) -> float:
    """FLOP a token costs in training with a frozen base: forward and activation gradients, 2 each a weight of the layers.

    The embedding is a lookup, the head computes at a few positions, attention is left out: a lower bound.
    """
    linear = sum(module.in_features * module.out_features for module in memory.layers(model).modules()
                 if hasattr(module, "in_features") and not hasattr(module, "base_layer"))
    return 4.0 * linear


# --- one variant -------------------------------------------------------------------------------------------------

def measure(model, batches: list[list[dict]], device: str, label: str, log=print) -> dict:
    """Optimizer steps on batches (each a list of passes): medians of samples/s and computed tokens/s, peak memory.

    The first WARM_UP steps are not counted: kernels are chosen and layers compiled there.
    """
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=device == "cuda")
    model.train()

    def step(passes: list[dict]) -> None:
        for batch in passes:
            with torch.autocast(device, dtype=torch.bfloat16, enabled=model.dtype == torch.bfloat16):
                loss = packing.loss_sum(model, batch) / batch["weights"].sum()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    rates = []
    for passes in batches:
        passes = [packing.to(batch, device) for batch in passes]
        samples = sum(int(batch["sample"][-1]) + 1 for batch in passes)
        seconds, _ = timed(lambda: step(passes), device)
        rates.append((samples / seconds, sum(batch["input_ids"].numel() for batch in passes) / seconds, seconds))
    kept = rates[WARM_UP:] or rates[-1:]
    found = {"setting": label, "samples_per_second": statistics.median(rate[0] for rate in kept),
             "tokens_per_second": statistics.median(rate[1] for rate in kept), "step_seconds": statistics.median(rate[2] for rate in kept),
             "steps": len(kept), "first_step_seconds": rates[0][2]}
    if device == "cuda":
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    log(f"{label}: {found['samples_per_second']:.2f} samples/s, {found['tokens_per_second']:,.0f} tokens/s"
        + (f", peak {found['peak_gib']:.1f} GiB" if "peak_gib" in found else ""))
    return found


def padded(samples: list, rows: int, pad_id: int, width: int = 0, steps: int = WARM_UP + STEPS) -> list[list[dict]]:
    """Steps of one padded batch each; width: pad to so many tokens, 0: to the longest of the batch."""
    found = [packing.pad(samples[start : start + rows], pad_id) for start in range(0, steps * rows, rows)]
    return [[widened(batch, width, pad_id) if width else batch] for batch in found]


def widened(batch: dict, width: int, pad_id: int) -> dict:
    """A padded batch with more padding."""
    more = max(0, width - batch["input_ids"].shape[1])
    pad = torch.nn.functional.pad
    return batch | {"input_ids": pad(batch["input_ids"], (0, more), value=pad_id), "attention_mask": pad(batch["attention_mask"], (0, more)),
                    "keep": pad(batch["keep"], (0, more)),
                    "position_ids": torch.arange(batch["input_ids"].shape[1] + more).expand(len(batch["input_ids"]), -1)}


def packed(samples: list, prefix: int, tokens: int, steps: int = WARM_UP + STEPS) -> list[list[dict]]:
    """Steps of one full pack each."""
    found, pack, length = [], [], prefix
    for sample in samples:
        own = len(sample.ids) - prefix
        if pack and length + own > tokens:
            found.append([packing.pack(pack, prefix)])
            pack, length = [], prefix
            if len(found) == steps:
                break
        pack.append(sample)
        length += own
    return found


# --- TRL ---------------------------------------------------------------------------------------------------------

def trl_rate(model, samples: list, rows: int, liger: bool, checkpointing: bool, packing_tokens: int, device: str, label: str, log=print) -> dict:
    """The same samples through TRL's SFTTrainer, loss on the answers only; one optimizer step a batch.

    packing_tokens: its `packing`, to sequences of so many tokens (0: padded batches). Without FlashAttention its packed samples see
    each other, so that figure is an upper bound. Errors: ImportError where trl is not installed.
    """
    import tempfile

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
    if packing_tokens:
        columns["completion_mask"] = [[0] * sample.labels_from + [1] * (len(sample.ids) - sample.labels_from) for sample in samples]
    else:
        columns["labels"] = [sample.labels for sample in samples]
    rowset = datasets.Dataset.from_dict(columns)
    steps = WARM_UP + STEPS
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(folder, per_device_train_batch_size=1 if packing_tokens else rows, max_steps=steps, packing=bool(packing_tokens),
                           max_length=packing_tokens or None, completion_only_loss=True, use_liger_kernel=liger, bf16=device == "cuda",
                           gradient_checkpointing=checkpointing, gradient_checkpointing_kwargs={"use_reentrant": False}, report_to="none",
                           save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=device == "cpu", optim="adamw_torch",
                           dataset_kwargs={"skip_prepare_dataset": not packing_tokens}, learning_rate=1e-5)
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        trainer = SFTTrainer(model=model, args=config, train_dataset=rowset, processing_class=_plain_tokenizer(model), callbacks=[Clock()])
        per_step = rows if not packing_tokens else len(samples) / len(trainer.train_dataset)
        trainer.train()
    seconds = statistics.median(later - earlier for earlier, later in zip(moments[WARM_UP - 1:], moments[WARM_UP:]))
    found = {"setting": label, "samples_per_second": per_step / seconds, "step_seconds": seconds, "steps": STEPS}
    if device == "cuda":
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    log(f"{label}: {found['samples_per_second']:.2f} samples/s" + (f", peak {found['peak_gib']:.1f} GiB" if "peak_gib" in found else ""))
    return found


def _plain_tokenizer(model):
    """A tokenizer that only knows its padding: the samples are ids already."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    names = {f"<{number}>": number for number in range(min(16, model.config.vocab_size))}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(names, "<0>")), pad_token="<5>", eos_token="<6>")


# --- the table ---------------------------------------------------------------------------------------------------

def train_table(base: str, log=print) -> dict:
    """All settings on one base, in one run: {"about", "rows"}. A name with a known shape gets random weights; a tiny base is loaded.

    A setting that does not fit the memory, or needs a package that is not there, is listed with the reason.
    """
    tiny = base not in bench.SHAPES
    device = "cpu" if tiny else "cuda"
    prefix, pad_id = (450, 5)
    rows: list[dict] = []
    about = {"base": base, "prefix_tokens": prefix, **machine(device)}

    def fresh(quantization: str):
        gc.collect()
        if tiny:
            model, _ = models.load_base(base, quantization, "fp32", "cpu")
            return bench.with_lora(model.requires_grad_(False), 16, 32)
        torch.cuda.empty_cache()
        return bench.with_lora(bench.random_base(base, quantization))

    def attempt(label: str, quantization: str, function) -> None:
        torch._dynamo.reset()
        try:
            model = fresh(quantization)
            rows.append({"base_weights": quantization if quantization == "nf4" else "fp32" if tiny else "bf16", **function(model, label)})
        except Exception as error:  # of another package, too: one setting must not cost the others
            rows.append({"setting": label, "not_measured": f"{type(error).__name__}: {str(error).split('. ')[0]}"})
            log(f"{label}: not measured ({rows[-1]['not_measured'][:120]})")

    model = fresh("none")
    samples = bench.call_like_samples(2600, prefix, model.config.vocab_size - 100)
    about["flop_per_token"] = flop_per_token(model)
    about["mean_tokens_a_sample"] = statistics.mean(len(sample.ids) for sample in samples)
    del model

    def plain(rows_a_batch: int, width: int, checkpointing: bool):
        def run(model, label):
            if checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            return measure(model, padded(samples, rows_a_batch, pad_id, width), device, label, log)
        return run

    def trl(rows_a_batch: int, liger: bool, checkpointing: bool, tokens: int = 0):
        return lambda model, label: trl_rate(model, samples[:600], rows_a_batch, liger, checkpointing, tokens, device, label, log)

    def ours(tokens: int, compiled: bool):
        def run(model, label):
            if compiled:
                memory.compile_layers(model)
            return measure(model, packed(samples, prefix, tokens), device, label, log)
        return run

    if tiny:
        settings = [("padded to the longest, batch 8", "none", plain(8, 0, False)), ("TRL, padded, batch 8", "none", trl(8, False, False)),
                    ("TRL, packing 2,048", "none", trl(1, False, False, 2048)),
                    ("shared prefix, packs of 4,096", "none", ours(4096, False)), ("shared prefix, packs of 4,096", "nf4", ours(4096, False))]
    else:
        settings = [("shared prefix, packs of 16,384", "nf4", ours(16384, True)), ("shared prefix, packs of 16,384", "none", ours(16384, True)),
                    ("shared prefix, packs of 4,096", "nf4", ours(4096, True)),
                    ("documents: batch 4 padded to 1,024, checkpointing", "nf4", plain(4, 1024, True)),
                    ("padded to the longest, batch 4", "nf4", plain(4, 0, False)),
                    ("TRL, padded, batch 8", "none", trl(8, False, False)), ("TRL, padded, batch 8, Liger", "none", trl(8, True, False)),
                    ("TRL, padded, batch 16, Liger", "none", trl(16, True, False)),
                    ("TRL, packing 4,096, Liger", "none", trl(1, True, False, 4096))]
    for label, quantization, function in settings:
        attempt(label, quantization, function)
    for row in rows:
        if "tokens_per_second" in row:
            row["share_of_limit"] = row["tokens_per_second"] * about["flop_per_token"] / (about["matmul_tflops"] * 1e12)
    return {"about": about, "rows": rows}


def prefix_table(base: str, tokens: int = 8192, log=print) -> dict:
    """Samples/s against the length of the system prompt: packs behind a shared prefix, and the same packs without sharing."""
    rows = []
    model = bench.with_lora(bench.random_base(base, "nf4"))
    memory.compile_layers(model)
    for prefix in (0, 250, 500, 1000, 2000, 4000):
        samples = bench.call_like_samples(700, prefix, 60_000)
        for label, shared in (("shared", prefix), ("not shared", 0)):
            if prefix or label == "shared":
                found = measure(model, packed(samples, shared, tokens, WARM_UP + 4), "cuda", f"prefix {prefix}, {label}", log)
                rows.append({"prefix_tokens": prefix, "shared": label == "shared", **found})
    return {"about": {"base": base, "pack_tokens": tokens, **machine("cuda")}, "rows": rows}
