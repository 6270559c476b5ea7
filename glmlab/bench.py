"""Speed and memory at the real models' shapes, with random weights: what a step costs does not depend on what the weights say.

`python -m glmlab bench train|eval|memory --base NAME --out FILE.json`. With the name of a tiny base the same is measured on a CPU.
"""

import gc
import random

import torch

from glmlab.chat import Sample

#: What `config.json` says of the real models (facts of their public repositories), as the classes here call it.
GLM4_9B = dict(vocab_size=151552, hidden_size=4096, intermediate_size=13696, num_hidden_layers=40, num_attention_heads=32,
               num_key_value_heads=2, head_dim=128, attention_bias=True, pad_token_id=151329, eos_token_id=[151329, 151336, 151338])
SHAPES = {
    "glm-4-9b-0414": ("Glm4", GLM4_9B | dict(rms_norm_eps=1e-5, max_position_embeddings=32768)),
    "glm-4-9b-chat": ("Glm", GLM4_9B | dict(rms_norm_eps=1.5625e-7, max_position_embeddings=131072)),
    "chatglm3-6b": ("Glm", GLM4_9B | dict(vocab_size=65024, num_hidden_layers=28, rms_norm_eps=1e-5, max_position_embeddings=8192, pad_token_id=0,
                                          eos_token_id=[2, 64795, 64797])),
    "chatglm-6b": ("ChatGLM", {}),
}


# --- a model of the real size ------------------------------------------------------------------------------------

def random_base(name: str, quantization: str, dtype=torch.bfloat16, device="cuda", seed: int = 7):
    """A base of the catalogue's shape with random weights, in NF4 with double quantisation or in 16 bit, on the device, in eval mode.

    Errors: ValueError for a name without a known shape.
    """
    if name not in SHAPES:
        raise ValueError(f"the shape of {name} is not known here; there are {', '.join(SHAPES)}")
    kind, sizes = SHAPES[name]
    torch.manual_seed(seed)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = _class(kind, sizes)
    finally:
        torch.set_default_dtype(default)
    with torch.no_grad():  # as a trained model is: small matrices, no bias, norms that scale by 1
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.02) if parameter.dim() == 2 else parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    model.requires_grad_(False)
    if quantization == "nf4":
        _quantise(model, dtype)
    return model.eval()


def _class(kind: str, sizes: dict):
    from transformers import Glm4Config, Glm4ForCausalLM, GlmConfig, GlmForCausalLM, initialization

    from glmlab.chatglm import v1
    config, made = {"Glm4": (Glm4Config, Glm4ForCausalLM), "Glm": (GlmConfig, GlmForCausalLM),
                    "ChatGLM": (v1.ChatGLMConfig, v1.ChatGLMForCausalLM)}[kind]
    with initialization.no_init_weights():
        return made(config(**sizes, attn_implementation="sdpa"))


def _quantise(model, dtype) -> None:
    """Every linear layer but the head in NF4, one after another, as `load_base` would have them."""
    import bitsandbytes as bnb
    head = model.get_output_embeddings()
    for module in list(model.modules()):
        for name, linear in module.named_children():
            if isinstance(linear, torch.nn.Linear) and linear is not head:
                four = bnb.nn.Linear4bit(linear.in_features, linear.out_features, linear.bias is not None, compute_dtype=dtype,
                                         compress_statistics=True, quant_type="nf4", device="meta")
                four.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4",
                                                compress_statistics=True).to(linear.weight.device)
                four.bias = linear.bias
                setattr(module, name, four)
                linear.weight = None
    model.is_loaded_in_4bit = model.is_quantized = True
    gc.collect()
    torch.cuda.empty_cache()


def with_lora(model, rank: int = 64, alpha: int = 16, targets=("q_proj", "k_proj", "v_proj", "o_proj"), dropout: float = 0.0):
    """The model with a fresh adapter in 32 bit (defaults: document 004's)."""
    from peft import LoraConfig, get_peft_model
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), lora_dropout=dropout, task_type="CAUSAL_LM"))


def call_like_samples(count: int, prefix: int = 450, vocabulary: int = 65000, seed: int = 7, answer: int = 14, two_way=None) -> list[Sample]:
    """Samples with the lengths of real calls: a shared prompt of `prefix` tokens, then 219 tokens on average of call and answer."""
    draw = random.Random(seed)
    shared = [draw.randrange(10, vocabulary) for _ in range(prefix)]
    found = []
    for _ in range(count):
        own = min(1000, max(30, round(draw.lognormvariate(5.18, 0.55))))  # median 178, mean 205, and the answer
        ids = [*shared, *(draw.randrange(10, vocabulary) for _ in range(own))]
        ids += list(two_way) if two_way else []
        found.append(Sample(ids + [draw.randrange(10, vocabulary) for _ in range(answer)], len(ids)))
    return found
