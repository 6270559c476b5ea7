"""Speed and memory at the real models' shapes, with random weights: what a step costs does not depend on what the weights say.

`python -m glmlab bench WHAT --out FILE.json`. With the name of a tiny base, training and evaluation are measured on a CPU.
"""

import gc
import random
import statistics
import sys
import time
from importlib import metadata
from pathlib import Path

import torch

from glmlab import models, paths
from glmlab.chat import Sample

#: What `config.json` says of the real models (facts of their public repositories), as the classes here call it.
GLM4_9B = dict(vocab_size=151552, hidden_size=4096, intermediate_size=13696, num_hidden_layers=40, num_attention_heads=32,
               num_key_value_heads=2, head_dim=128, attention_bias=True, pad_token_id=151329, eos_token_id=[151329, 151336, 151338])
#: Name -> class, chat format, config.
SHAPES = {
    "glm-4-9b-0414": ("Glm4", "glm4", GLM4_9B | dict(rms_norm_eps=1e-5, max_position_embeddings=32768)),
    "glm-4-9b-chat": ("Glm", "glm4", GLM4_9B | dict(rms_norm_eps=1.5625e-7, max_position_embeddings=131072)),
    "chatglm3-6b": ("Glm", "chatglm3", GLM4_9B | dict(vocab_size=65024, num_hidden_layers=28, rms_norm_eps=1e-5, max_position_embeddings=8192,
                                                      pad_token_id=0, eos_token_id=[2, 64795, 64797])),
    "chatglm-6b": ("ChatGLM", "chatglm", dict(pad_token_id=3)),
}
#: The special tokens of their vocabularies, the one for padding first.
MARKERS = {
    "glm4": {"<|endoftext|>": 151329, "[gMASK]": 151331, "<sop>": 151333, "<|system|>": 151335, "<|user|>": 151336, "<|assistant|>": 151337,
             "<|observation|>": 151338},
    "chatglm3": {"<unk>": 0, "</s>": 2, "[gMASK]": 64790, "sop": 64792, "<|system|>": 64794, "<|user|>": 64795, "<|assistant|>": 64796,
                 "<|observation|>": 64797},
    "chatglm": {"<pad>": 3, "[gMASK]": 130001, "<sop>": 130004, "<eop>": 130005},
}
TEXT_IDS = 4000  # ids below are text in all of them, and in those of the tiny bases
VERSIONS = ("torch", "transformers", "peft", "bitsandbytes", "trl", "liger-kernel", "accelerate")


# --- what was measured, on what ----------------------------------------------------------------------------------

UNITS = {"samples_per_second": "{:.2f} samples/s", "tokens_per_second": "{:,.0f} tokens/s", "peak_gib": "peak {:.1f} GiB", "seconds": "{:.0f} s",
         "not_measured": "not measured: {}"}


class Table:
    """What one run measures: facts and rows, written to a file after each row, so that what ends a run early loses nothing."""

    def __init__(self, out, about: dict, log=print):
        """out: a JSON file, None for none. Errors: OSError before anything is measured where it cannot be written."""
        self.out, self.about, self.rows, self.log = out and Path(out), about, [], log
        if self.out:
            check_out(self.out)

    def add(self, setting: str, measured, **facts) -> dict:
        """Append the row `{"setting", **facts, **measured()}`, or the reason why there is none; the others are measured all the same."""
        try:
            row = {"setting": setting, **facts, **measured()}
        except Exception as error:  # of another package, too: one setting must not cost the others
            row = {"setting": setting, **facts, "not_measured": f"{type(error).__name__}: {str(error).split('. ')[0]}"}
        self.rows.append(row)
        self.log(f"{setting}: " + ", ".join(unit.format(row[name]) for name, unit in UNITS.items() if name in row))
        if self.out:
            paths.write_json(self.out, {"about": self.about, "rows": self.rows})
        return row


def check_out(out: Path) -> None:
    """Refuse a file that could not be written in the end, without touching what is in it. Errors: OSError with the reason."""
    if out.is_dir():
        raise IsADirectoryError(f"{paths.shown(out)} is a folder; give the name of a JSON file")
    paths.write_text(out.with_name(f".{out.name}.probe"), "").unlink(missing_ok=True)  # another process may have


def device_for(base: str) -> str:
    """cuda for a base with a known shape, cpu for another. Errors: ValueError if there is no GPU to measure on."""
    if base not in SHAPES:
        return "cpu"
    if not torch.cuda.is_available():
        raise ValueError(f"the shape of {base} is measured on an NVIDIA GPU, and there is none; on a CPU take a tiny base, such as glm4-tiny")
    return "cuda"


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


def peaks(function, device: str) -> tuple[dict, object]:
    """({"seconds", "peak_gib", "reserved_gib", "memory_errors"}, result): tensors at most, what the allocator took for them, and how often
    that did not suffice, so that the function went on with less at once. On a GPU only."""
    if device != "cuda":
        seconds, result = timed(function, device)
        return {"seconds": seconds}, result
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    errors = torch.cuda.memory_stats().get("num_ooms", 0)
    seconds, result = timed(function, device)
    return {"seconds": seconds, "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
            "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
            "memory_errors": torch.cuda.memory_stats().get("num_ooms", 0) - errors}, result


def free() -> None:
    """Give back the memory of what is no longer used, and forget compiled layers."""
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()


# --- a model of the real size ------------------------------------------------------------------------------------

def random_base(name: str, quantization: str, dtype=torch.bfloat16, device="cuda", seed: int = 7):
    """A base of the catalogue's shape with random weights, in NF4 with double quantisation or in 16 bit, on the device, in eval mode.

    Matrices are quantised one after another: beside what is finished there is one in 16 bit at most.
    Errors: ValueError for a name without a known shape.
    """
    model = empty_base(name, dtype)
    quantizer = _prepare_nf4(model, dtype, device) if quantization == "nf4" else None
    model.tie_weights()
    torch.manual_seed(seed)
    drawn = {parameter: _drawn(parameter, name, dtype, device) for name, parameter in model.named_parameters()}  # tied ones once
    for module in model.modules():
        for name, parameter in module._parameters.items():
            module._parameters[name] = None if parameter is None else drawn[parameter]
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
    if quantizer:
        quantizer.postprocess_model(model)
        models.guard_cpu_kernels(model)
    return model.requires_grad_(False).eval()


def empty_base(name: str, dtype=torch.bfloat16):
    """A base of the catalogue's shape without weights, on the meta device. Errors: ValueError for a name without a known shape."""
    from accelerate import init_empty_weights
    from transformers import Glm4Config, Glm4ForCausalLM, GlmConfig, GlmForCausalLM, initialization

    from glmlab.chatglm import v1
    if name not in SHAPES:
        raise ValueError(f"the shape of {name} is not known here; there are {', '.join(SHAPES)}")
    kind, _, sizes = SHAPES[name]
    config, made = {"Glm4": (Glm4Config, Glm4ForCausalLM), "Glm": (GlmConfig, GlmForCausalLM),
                    "ChatGLM": (v1.ChatGLMConfig, v1.ChatGLMForCausalLM)}[kind]
    with initialization.no_init_weights(), init_empty_weights():
        return made(config(**sizes, dtype=dtype, attn_implementation="sdpa"))


def _prepare_nf4(model, dtype, device):
    """Put 4-bit layers where `load_base` would have them; the quantizer that was asked."""
    from transformers import BitsAndBytesConfig
    from transformers.quantizers import AutoHfQuantizer
    quantizer = AutoHfQuantizer.from_config(BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                                               bnb_4bit_compute_dtype=dtype), pre_quantized=False)
    quantizer.preprocess_model(model=model, device_map={"": device})
    model.hf_quantizer = quantizer
    return quantizer


def _drawn(parameter: torch.nn.Parameter, name: str, dtype, device) -> torch.nn.Parameter:
    """As in a trained model: small matrices, no bias, norms that scale by 1. A parameter of a 4-bit layer is quantised."""
    values = torch.empty(parameter.shape, dtype=dtype, device=device)
    values = values.normal_(std=0.02) if values.dim() == 2 else values.fill_(0.0 if name.endswith("bias") else 1.0)
    if type(parameter) is torch.nn.Parameter:
        return torch.nn.Parameter(values, requires_grad=False)
    return type(parameter)(values, requires_grad=False, **vars(parameter)).to(device)


def with_lora(model, rank: int = 64, alpha: int = 16, targets: str = "q_proj,k_proj,v_proj,o_proj", dropout: float = 0.0):
    """The model with a fresh adapter in 32 bit (defaults: document 004's). targets: names with commas, or all-linear."""
    from peft import LoraConfig, get_peft_model
    modules = targets if targets == "all-linear" else targets.split(",")
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, target_modules=modules, lora_dropout=dropout, task_type="CAUSAL_LM"))


def tokenizer_of(base: str):
    """A tokenizer that knows the special tokens of a base with a known shape, and no text."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    chat_format = SHAPES[base][1]
    markers = MARKERS[chat_format]
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(markers, next(iter(markers)))), pad_token=next(iter(markers)),
                                   chat_format=chat_format)
    made.add_special_tokens({"additional_special_tokens": list(markers)})
    return made


def call_like_samples(count: int, prefix: int = 450, vocabulary: int = 0, seed: int = 7, answer: int = 14, two_way=None,
                      longest: int = 0) -> list[Sample]:
    """Samples with the lengths of real calls: a shared prompt of `prefix` tokens, then 219 tokens on average of call and answer.

    vocabulary: ids are below it; 0: TEXT_IDS. two_way: as `chat.two_way` gives it. longest: every eighth sample has so many tokens, none
    has more; 0: as calls are.
    """
    draw, vocabulary = random.Random(seed), vocabulary or TEXT_IDS
    shared = [draw.randrange(10, vocabulary) for _ in range(prefix)]
    most = longest - prefix - answer - len(two_way or ())
    found = []
    for number in range(count):
        own = min(1000, max(30, round(draw.lognormvariate(5.18, 0.55))))  # median 178, mean 205, and the answer
        if longest:
            own = most if number % 8 == 0 else min(own, most)
        ids = [*shared, *(draw.randrange(10, vocabulary) for _ in range(own))]
        ids += list(two_way) if two_way else []
        found.append(Sample(ids + [draw.randrange(10, vocabulary) for _ in range(answer)], len(ids)))
    return found
