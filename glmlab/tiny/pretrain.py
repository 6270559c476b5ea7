"""Pre-train a tiny base from scratch: corpus -> tokenizer -> model -> folder with model card.

`python -m glmlab tiny glm4-tiny` runs it; the recipe is the same on two cores and on a GPU, only the budget differs.
"""

import json
import math
import os
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from glmlab import device as devices
from glmlab import paths
from glmlab.tiny import corpus, tokenizer as tiny_tokenizer


@dataclass(frozen=True)
class Recipe:
    """How a tiny base is made; the model card repeats it."""
    family: str = "glm4"            # glm4: Glm4ForCausalLM; chatglm3: GlmForCausalLM; chatglm: ChatGLM-6B's own class
    vocab_size: int = 8192          # ids, special tokens included
    hidden_size: int = 256
    intermediate_size: int = 512
    layers: int = 6
    heads: int = 4                  # query heads of 64
    kv_heads: int = 2
    context: int = 4096             # positions
    row: int = 2048                 # tokens a training row
    batch: int = 32                 # rows a step
    steps: int = 3800
    warmup: int = 100               # steps
    learning_rate: float = 4e-3     # peak; Muon for the matrices, AdamW for embeddings, biases and norms
    weight_decay: float = 0.05
    tokenizer_documents: int = 20000
    seed: int = 20260301
    mix: dict[str, float] = field(default_factory=lambda: corpus.MIX)  # share of the documents of each generator


RECIPES = {
    "glm4-tiny": Recipe(),
    "chatglm3-tiny": Recipe(family="chatglm3", steps=5000, mix=corpus.WIDE_MIX),
    # one matrix less in the MLP, hence the wider one; no grouped queries
    "chatglm-tiny": Recipe(family="chatglm", intermediate_size=1024, kv_heads=4, context=2048, steps=5000, mix=corpus.WIDE_MIX),
}


def new_tokenizer(recipe: Recipe):
    """The tokenizer of the recipe's family, trained on the corpus."""
    texts = tiny_tokenizer.corpus_sample(recipe.seed + 2, recipe.tokenizer_documents, recipe.mix)
    if recipe.family == "glm4":
        return tiny_tokenizer.train_tokenizer(texts, recipe.vocab_size)
    from glmlab.chatglm import tiny_vocab
    make_one = {"chatglm3": tiny_vocab.tiny_glm_tokenizer, "chatglm": tiny_vocab.tiny_v1_tokenizer}[recipe.family]
    return make_one(texts, recipe.vocab_size)


def new_model(recipe: Recipe, tokenizer):
    """A model of the recipe's family and size with random weights (embedding and head tied to stay small)."""
    import torch
    from transformers import Glm4Config, Glm4ForCausalLM, GlmConfig, GlmForCausalLM

    from glmlab import chat
    torch.manual_seed(recipe.seed)
    if recipe.family == "chatglm":
        from glmlab.chatglm.v1 import ChatGLMConfig, ChatGLMForCausalLM
        marker, start = chat.two_way(tokenizer)
        return ChatGLMForCausalLM(ChatGLMConfig(
            vocab_size=recipe.vocab_size, hidden_size=recipe.hidden_size, inner_hidden_size=recipe.intermediate_size,
            num_layers=recipe.layers, num_attention_heads=recipe.heads, max_sequence_length=recipe.context, layernorm_epsilon=1e-5,
            residual_alpha_layers=recipe.layers, pad_token_id=tokenizer.pad_token_id, bos_token_id=start, gmask_token_id=marker,
            mask_token_id=tokenizer.convert_tokens_to_ids("[MASK]"), eos_token_id=chat.end_id(tokenizer)))
    config_class, model_class = (Glm4Config, Glm4ForCausalLM) if recipe.family == "glm4" else (GlmConfig, GlmForCausalLM)
    return model_class(config_class(
        vocab_size=recipe.vocab_size, hidden_size=recipe.hidden_size, intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers, num_attention_heads=recipe.heads, num_key_value_heads=recipe.kv_heads,
        head_dim=64, max_position_embeddings=recipe.context, rms_norm_eps=1e-5, attention_bias=True,
        tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id, eos_token_id=sorted(chat.stop_ids(tokenizer)),
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    ))


def next_token_loss(model, ids):
    """Mean cross-entropy (nats a token) of ids (rows, tokens): every position but the first predicted, of a model that reads prompts
    both ways only what follows its prompts."""
    import torch.nn.functional as F
    if getattr(model.config, "gmask_token_id", None) is None:
        inputs, targets = {}, ids[:, 1:]
    else:
        inputs, targets = documents_in_rows(ids, model.config)
    hidden = model.base_model(input_ids=ids, use_cache=False, **inputs).last_hidden_state[:, :-1]
    logits = model.lm_head(hidden).float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def documents_in_rows(ids, config):
    """Rows of whole ChatGLM-6B documents -> ({"position_ids": (rows, 2, tokens), "attention_mask": bool (rows, 1, tokens, tokens), True =
    may look}, targets (rows, tokens - 1), -100 where nothing is predicted). No document sees another; padding ends a row."""
    import torch
    place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    ends = ids == config.eos_token_id
    document = ends.cumsum(1) - ends.long()  # number of the document within its row
    first = torch.full_like(ids, ids.shape[1]).scatter_reduce(1, document, place, "amin").gather(1, document)
    starts = torch.where(ids == config.bos_token_id, place, ids.shape[1])
    start = torch.full_like(ids, ids.shape[1]).scatter_reduce(1, document, starts, "amin").gather(1, document)
    start = torch.where(start == ids.shape[1], first, start)  # padding has no markers
    prompt = place < start
    positions = torch.where(prompt, place - first, (start - 1 - first).clamp(min=0))  # [gMASK] stands just before <sop>
    blocks = torch.where(prompt, 0, place - start + 1)
    related = document[:, :, None] == document[:, None]
    seen = related & (torch.ones_like(related[0]).tril_() | prompt[:, None])
    learnt = (document[:, 1:] == document[:, :-1]) & ~prompt[:, :-1] & (ids[:, 1:] != config.pad_token_id)
    targets = torch.where(learnt, ids[:, 1:], -100)
    return {"position_ids": torch.stack([positions, blocks], 1), "attention_mask": seen[:, None]}, targets


def optimizers(model, recipe: Recipe):
    """Muon for the hidden matrices (about half the steps AdamW needs at this size), AdamW for everything else."""
    import torch
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate(step: int, recipe: Recipe) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then cosine down to 2 %."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def heldout(tokenizer, recipe: Recipe, rows: int = 8) -> dict:
    """Rows of documents of another seed, one set a generator: name -> ids (rows, row)."""
    import torch
    sets = {}
    for name in recipe.mix:
        ids, _ = corpus.encode(tokenizer, recipe.seed + 1, rows * recipe.row, {name: 1.0}, _unbroken(recipe))
        sets[name] = torch.from_numpy(ids.astype("int64")).view(rows, recipe.row)
    return sets


def _unbroken(recipe: Recipe) -> int:
    """The row within which documents stay whole, as `corpus.encode` takes it."""
    return recipe.row if recipe.family == "chatglm" else 0


def batches(tokenizer, recipe: Recipe, shares: dict, workers: int):
    """One step's rows at a time, int64 (batch, row); adds to `shares` what each generator gave."""
    import torch
    per_shard = 8  # steps
    for ids, part in corpus.shards(tokenizer, recipe.seed, math.ceil(recipe.steps / per_shard), per_shard * recipe.batch * recipe.row, workers,
                                    recipe.mix, _unbroken(recipe)):
        for name, count in part.items():
            shares[name] = shares.get(name, 0) + count
        yield from torch.from_numpy(ids.astype("int64")).view(per_shard, recipe.batch, recipe.row)


def train(recipe: Recipe, tokenizer, log, compiled: bool = True, wanted_device: str = "auto", minutes: float = 0):
    """Train for `recipe.steps` steps; returns (model, record of what happened). `log` gets one line of text at a time.

    minutes: stop after so long whatever the step, to measure the speed of a machine; 0: no limit.
    """
    import torch
    device, reason = devices.pick_device(wanted_device)
    dtype, why = devices.pick_dtype(device)
    mixed = {"device_type": device.type, "dtype": torch.bfloat16, "enabled": dtype == torch.bfloat16}  # weights stay fp32
    log(f"device: {device} ({reason}); {str(dtype).removeprefix('torch.')}: {why}")
    evaluation = heldout(tokenizer, recipe)
    model = new_model(recipe, tokenizer).to(device).train()
    log(f"model: {sum(p.numel() for p in model.parameters()):,} parameters")
    steppers = optimizers(model, recipe)
    step_loss = torch.compile(next_token_loss) if compiled else next_token_loss
    at_once = recipe.batch if device.type == "cuda" else 4  # rows of one pass
    shares: dict[str, int] = {}
    started, warm, done = time.time(), time.time(), 0
    source = batches(tokenizer, recipe, shares, workers=max(1, len(os.sched_getaffinity(0)) - 1))
    for step, rows in zip(range(recipe.steps), source):
        loss = 0.0
        for part in rows.to(device, non_blocking=True).split(at_once):
            with torch.autocast(**mixed):
                share = step_loss(model, part) * (len(part) / recipe.batch)
            share.backward()
            loss = loss + share.detach()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = recipe.learning_rate * rate(step, recipe)
            stepper.step()
            stepper.zero_grad(set_to_none=True)
        done = step + 1
        if step == 2:
            warm = time.time()  # compilation is over
        if step % 100 == 0 or done == recipe.steps:
            seconds = time.time() - warm
            speed = max(1, done - 3) * recipe.batch * recipe.row / seconds
            log(f"step {done}/{recipe.steps} loss {float(loss):.3f} gradient {float(norm):.2f} {speed:,.0f} tokens/s, "
                f"{seconds * (recipe.steps - done) / max(1, done - 3) / 60:.1f} min left")
        if minutes and time.time() - started > 60 * minutes:
            break
    source.close()
    model.eval()
    tokens = done * recipe.batch * recipe.row
    record = {"recipe": asdict(recipe), "steps_done": done, "device": _device_name(device), "torch": torch.__version__, "tokens": tokens,
              "tokens_by_generator": shares, "minutes": round((time.time() - started) / 60, 1),
              "tokens_per_second": round(max(1, done - 3) * recipe.batch * recipe.row / (time.time() - warm)), "cpu_threads": torch.get_num_threads()}
    with torch.no_grad(), torch.autocast(**mixed):
        record["heldout_loss"] = {name: round(next_token_loss(model, part.to(device)).item(), 3) for name, part in evaluation.items()}
    return model, record


def _device_name(device) -> str:
    import torch
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device}, {torch.get_num_threads()} threads"


def samples(model, tokenizer) -> list[dict]:
    """What the base writes, greedily: the first words of unseen documents continued; for the model card."""
    import torch

    from glmlab import chat
    prompts = ["您好很高兴为您服务", "头痛的常见原因有", "人工智能是", "他毕业于"]
    written = []
    for prompt in prompts:
        ids = torch.tensor([[*chat.start_ids(tokenizer), *chat.text_ids(tokenizer, prompt)]], device=model.device)
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=60, do_sample=False)
        written.append({"prompt": prompt, "continuation": tokenizer.decode(out[0, ids.shape[1]:], skip_special_tokens=True)})
    return written


def make(name: str, log=print, steps: int = 0, out: Path | None = None, compiled: bool = True, minutes: float = 0) -> Path:
    """Make the tiny base `name` of RECIPES and write its folder (weights in bf16, tokenizer, training.json, README.md)."""
    import torch

    from glmlab.tiny.card import write_card
    recipe = RECIPES[name]
    if steps:
        recipe = replace(recipe, steps=steps)
    started = time.time()
    tokenizer = new_tokenizer(recipe)
    log(f"tokenizer: {len(tokenizer):,} ids in {time.time() - started:.0f} s")
    model, record = train(recipe, tokenizer, log, compiled, minutes=minutes)
    folder = Path(out) if out else paths.models(name)
    model.to("cpu").to(torch.bfloat16)
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors lets only the owner read
    tokenizer.save_pretrained(folder)
    record["parameters"] = sum(p.numel() for p in model.parameters())
    record["samples"] = samples(model.float(), tokenizer)
    record["minutes_in_all"] = round((time.time() - started) / 60, 1)
    paths.write_json(folder / "training.json", record)
    write_card(folder)
    log(f"written: {paths.shown(folder)}; held-out loss {json.dumps(record['heldout_loss'])}")
    return folder
