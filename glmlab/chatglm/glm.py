"""ChatGLM2-6B, ChatGLM3-6B and chatglm-format GLM-4-9B as transformers' own GlmForCausalLM, converted while loading.

These generations compute what Glm computes; their checkpoints only name the weights otherwise and keep query, key and value in one
matrix. Config and weights are read from the folder or Hub id as published; the code that lies beside them is never run.
"""

import json
import re
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import GenerationConfig, GlmConfig, GlmForCausalLM
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming
from transformers.utils import cached_file

from glmlab import models, paths

HUB_OPTIONS = ("cache_dir", "local_files_only", "revision", "subfolder", "token")
LOAD_OPTIONS = (*HUB_OPTIONS, "attn_implementation", "max_memory", "offload_buffers", "offload_folder")
SIZES = {"padded_vocab_size": "vocab_size", "hidden_size": "hidden_size", "ffn_hidden_size": "intermediate_size",
         "num_layers": "num_hidden_layers", "num_attention_heads": "num_attention_heads", "kv_channels": "head_dim",
         "seq_length": "max_position_embeddings"}
#: Fields that Glm computes with one value only, which is also the original code's default: (that value, what any other one means).
FIXED = {
    "rmsnorm": (True, "LayerNorm in place of RMSNorm"),
    "post_layer_norm": (True, "no norm after the last layer"),
    "apply_residual_connection_post_layernorm": (False, "the residual is taken after the norm"),
    "add_bias_linear": (False, "biases in output projection and MLP, which Glm does not have"),
    "fp32_residual_connection": (False, "a float32 residual stream, which Glm does not have"),
    "hidden_dropout": (0, "dropout between the layers, which Glm does not have"),
    "quantization_bit": (0, "weights packed as ChatGLM's own integers; load the full checkpoint and quantise with BitsAndBytesConfig"),
    "pre_seq_len": (0, "a P-Tuning prefix beside the weights; load the base without it"),
}


# --- config ------------------------------------------------------------------------------------------------------

def is_original(raw_config: dict) -> bool:
    """Whether a config.json is of ChatGLM2, ChatGLM3 or chatglm-format GLM-4 (ChatGLM-6B shares the model type, but is another model)."""
    return raw_config.get("model_type") == "chatglm" and ("ffn_hidden_size" in raw_config or "padded_vocab_size" in raw_config)


def glm_config(raw: dict, rope_scaling: str | None = None) -> GlmConfig:
    """The GlmConfig of an original config.json.

    rope_scaling: what `rope_ratio` stretches. "theta" multiplies the rotary base (ChatGLM3, GLM-4), "linear" divides the positions
    (chatglm2-6b-32k; the original rounds them to half precision, this does not). The config does not say which: None takes "linear"
    if `_name_or_path` says chatglm2, else "theta"; a renamed chatglm2-6b-32k needs "linear" said.
    Errors: ValueError that lists everything Glm cannot compute and every field that is missing or wrong.
    """
    if rope_scaling not in (None, "theta", "linear"):
        raise ValueError(f"rope_scaling {rope_scaling!r}: choose theta, linear or None")
    if not is_original(raw):
        raise ValueError(f"not a config of ChatGLM2, ChatGLM3 or chatglm-format GLM-4: model_type {raw.get('model_type')!r} with fields "
                         f"{', '.join(raw) or 'none'}")
    problems = _unsupported(raw) + _wrong_fields(raw)
    if problems:
        raise ValueError("this checkpoint cannot be loaded as GlmForCausalLM:\n" + "\n".join(f"- {problem}" for problem in problems))
    return GlmConfig(
        **{name: raw[original] for original, name in SIZES.items()},
        num_key_value_heads=raw["multi_query_group_num"] if raw.get("multi_query_attention") else raw["num_attention_heads"],
        rms_norm_eps=float(raw["layernorm_epsilon"]),
        attention_bias=bool(raw.get("add_qkv_bias")),
        attention_dropout=raw.get("attention_dropout") or 0.0,
        rope_parameters=_rope_parameters(raw, rope_scaling),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings")),  # the original code ties nothing unasked: the head is stored
        pad_token_id=raw.get("pad_token_id"),
        eos_token_id=raw["eos_token_id"],
        bos_token_id=raw.get("bos_token_id"),
        use_cache=raw.get("use_cache", True),
        dtype=raw.get("dtype") or raw.get("torch_dtype"),
        architectures=["GlmForCausalLM"],
    )


def _unsupported(raw: dict) -> list[str]:
    """Why Glm cannot compute what this config asks for."""
    problems = [f"{name}={raw[name]!r}: {meaning}" for name, (value, meaning) in FIXED.items()
                if raw.get(name) is not None and raw[name] != value]
    if raw.get("vision_config"):
        problems.append("vision_config: a model of images and text; only the text models are Glm")
    return problems


def _wrong_fields(raw: dict) -> list[str]:
    """The fields that are missing, of the wrong kind, or contradict each other."""
    grouped = bool(raw.get("multi_query_attention"))
    sizes = [*SIZES, "multi_query_group_num"] if grouped else list(SIZES)
    problems = [f"{name}={raw.get(name)!r}: must be a whole number above 0" for name in sizes if not _whole(raw.get(name), 1)]
    problems += [f"{name}={value!r}: must be a number above 0"
                 for name, value in (("layernorm_epsilon", raw.get("layernorm_epsilon")), ("rope_ratio", raw.get("rope_ratio", 1)))
                 if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0]
    if problems:
        return problems
    if grouped and raw["num_attention_heads"] % raw["multi_query_group_num"]:
        problems.append(f"num_attention_heads={raw['num_attention_heads']} is no multiple of "
                        f"multi_query_group_num={raw['multi_query_group_num']}")
    vocabulary, eos, pad = raw["padded_vocab_size"], raw.get("eos_token_id"), raw.get("pad_token_id")
    stops = eos if isinstance(eos, list) and eos else [eos]
    if not all(_whole(stop, 0) and stop < vocabulary for stop in stops):
        problems.append(f"eos_token_id={eos!r}: must be an id, or a list of ids, below padded_vocab_size={vocabulary}")
    if pad is not None and not (_whole(pad, 0) and pad < vocabulary):
        problems.append(f"pad_token_id={pad!r}: must be an id below padded_vocab_size={vocabulary}")
    return problems


def _whole(value, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _rope_parameters(raw: dict, scaling: str | None) -> dict:
    ratio = raw.get("rope_ratio", 1)
    if scaling is None:
        # the last generation that the name mentions: in models/chatglm2-and-3/chatglm3-6b-32k that is ChatGLM3
        named = re.findall(r"chatglm\d|glm-?4", str(raw.get("_name_or_path", "")).lower())
        scaling = "linear" if named and named[-1] == "chatglm2" else "theta"
    half = {"partial_rotary_factor": 0.5}  # only the first half of a head turns
    if scaling == "linear" and ratio != 1:
        return {"rope_type": "linear", "factor": float(ratio), "rope_theta": 10000.0, **half}
    return {"rope_type": "default", "rope_theta": 10000.0 * ratio, **half}


# --- weights: names and rows -------------------------------------------------------------------------------------

class SplitQKV(ConversionOps):
    """The rows of one query_key_value tensor -> q_proj, k_proj, v_proj, each with memory of its own.

    With multi-query groups the rows are all of q, all of k, all of v; without, they are q, k, v of head 0, of head 1, and so on.
    """

    def __init__(self, by_head: bool):
        self.by_head = by_head

    @torch.no_grad
    def convert(self, input_dict, source_patterns, target_patterns, *, config, **kwargs):
        (fused,), = input_dict.values()
        heads, groups, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        if self.by_head:
            parts = fused.unflatten(0, (heads, 3, size)).unbind(1)  # each (heads, head size, ...)
        else:
            parts = fused.split([heads * size, groups * size, groups * size])
        return {target: part.reshape(-1, *fused.shape[1:]).clone() for target, part in zip(target_patterns, parts)}


class _GroupedForCausalLM(GlmForCausalLM):
    """Only while loading: names the conversion for checkpoints with multi-query groups. transformers takes the loss from the name's end."""
    _keys_to_ignore_on_load_unexpected = [r"rotary_pos_emb\.inv_freq"]


class _ByHeadForCausalLM(_GroupedForCausalLM):
    """Only while loading: names the conversion for checkpoints without multi-query groups."""


RENAMED = {
    "transformer.embedding.word_embeddings": "model.embed_tokens",
    "transformer.encoder.layers": "model.layers",
    "transformer.encoder.final_layernorm": "model.norm",
    "transformer.output_layer": "lm_head",
    "self_attention.dense": "self_attn.o_proj",
    "mlp.dense_h_to_4h": "mlp.gate_up_proj",
    "mlp.dense_4h_to_h": "mlp.down_proj",
}
for _loader in (_GroupedForCausalLM, _ByHeadForCausalLM):
    register_checkpoint_conversion_mapping(_loader.__name__, [
        *(WeightRenaming(re.escape(original), name) for original, name in RENAMED.items()),
        *(WeightConverter(rf"self_attention\.query_key_value\.{kind}", [f"self_attn.{part}_proj.{kind}" for part in "qkv"],
                          [SplitQKV(by_head=_loader is _ByHeadForCausalLM)]) for kind in ("weight", "bias")),
    ], overwrite=True)


def original_shapes(config: GlmConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight that an original checkpoint of this config has (buffers left out)."""
    hidden, inner = config.hidden_size, config.intermediate_size
    rows = config.num_attention_heads * config.head_dim
    fused = rows + 2 * config.num_key_value_heads * config.head_dim
    layer = {
        "input_layernorm.weight": (hidden,),
        "self_attention.query_key_value.weight": (fused, hidden),
        "self_attention.dense.weight": (hidden, rows),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.dense_h_to_4h.weight": (2 * inner, hidden),
        "mlp.dense_4h_to_h.weight": (hidden, inner),
    }
    if config.attention_bias:
        layer["self_attention.query_key_value.bias"] = (fused,)
    shapes = {f"transformer.encoder.layers.{number}.{name}": shape
              for number in range(config.num_hidden_layers) for name, shape in layer.items()}
    shapes["transformer.embedding.word_embeddings.weight"] = shapes["transformer.output_layer.weight"] = (config.vocab_size, hidden)
    shapes["transformer.encoder.final_layernorm.weight"] = (hidden,)
    return shapes


# --- files -------------------------------------------------------------------------------------------------------

def _file(source: str, name: str, hub: dict) -> Path | None:
    """A file of the folder or Hub repository, downloaded where needed; None where it does not exist."""
    found = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **hub)
    return Path(found) if found else None


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OSError(f"{paths.shown(path)} is damaged ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise OSError(f"{paths.shown(path)} is damaged (no JSON object); fetch it again")
    return content


def read_config(source: str | Path, **hub) -> dict:
    """config.json of a folder or Hub id as it stands there. hub: see `load`. Errors: OSError if missing or damaged."""
    path = _file(str(source), "config.json", hub)
    if path is None:
        raise OSError(f"{source} has no config.json: a base is a folder or Hub id with config.json and weights")
    return _read_json(path)


def _generation_config(source: str, config: GlmConfig, hub: dict) -> GenerationConfig:
    """generation_config.json if there is one; stop and pad ids from the config where it does not say."""
    ids = {"eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id}
    path = _file(source, "generation_config.json", hub)
    return GenerationConfig.from_dict(ids | (_read_json(path) if path else {}))


def _weight_files(source: str, hub: dict) -> list[Path]:
    """The weight files in the order of preference that from_pretrained has. Errors: OSError that names what is missing."""
    for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"):
        path = _file(source, name, hub)
        if path is None:
            continue
        if not name.endswith(".json"):
            return [path]
        index = _read_json(path)
        if not isinstance(index.get("weight_map"), dict) or "metadata" not in index:
            raise OSError(f"{paths.shown(path)} is damaged (no weight_map or no metadata); fetch it again")
        shards = sorted(set(index["weight_map"].values()))
        files = {shard: _file(source, shard, hub) for shard in shards}
        missing = [shard for shard, file in files.items() if file is None]
        if missing:
            raise OSError(f"{source} lacks {len(missing)} of the {len(shards)} weight files that {name} names: {', '.join(missing)}; "
                          "fetch them")
        return list(files.values())
    raise OSError(f"{source} has no weights: neither model.safetensors nor pytorch_model.bin, nor an index of shards")


def _stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of what a weight file holds, read from its head. Errors: OSError for a file that is cut or no weight file."""
    with open(path, "rb") as file:
        if file.read(20).startswith(b"version https://git"):
            raise OSError(f"{paths.shown(path)} is only a Git LFS pointer; fetch the file itself (git lfs pull)")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        # on the meta device nothing but names and shapes is read; weights_only runs no code from the file
        weights = torch.load(path, map_location="meta", weights_only=True)
        return {name: tuple(getattr(value, "shape", ())) for name, value in weights.items()}
    except Exception as error:  # safetensors, zipfile, pickle and torch each raise their own classes for a cut file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise OSError(f"{paths.shown(path)} is damaged or half downloaded ({reason}); fetch it again") from error


def check_weights(source: str, config: GlmConfig, hub: dict) -> list[Path]:
    """Compare the heads of the weight files with the config; returns the files.

    Errors: OSError for files that are missing or cut; ValueError for weights that are missing, unknown or of another shape.
    """
    files, stored, damaged = _weight_files(source, hub), {}, []
    for file in files:
        try:
            stored |= _stored_shapes(file)
        except OSError as error:
            damaged.append(str(error))
    if damaged:
        raise OSError("\n".join(damaged))
    stored.pop("transformer.rotary_pos_emb.inv_freq", None)
    wanted = original_shapes(config)
    if config.tie_word_embeddings and "transformer.output_layer.weight" not in stored:
        del wanted["transformer.output_layer.weight"]
    problems = []
    if any(name.endswith("weight_scale") for name in stored):
        problems.append("weight_scale: " + FIXED["quantization_bit"][1])
    problems += _listed("missing", sorted(wanted.keys() - stored.keys()))
    problems += _listed("not known to the config", sorted(stored.keys() - wanted.keys()))
    problems += _listed("of another shape than the config says", [f"{name} {stored[name]} instead of {wanted[name]}" for name in sorted(
        wanted.keys() & stored.keys()) if stored[name] != wanted[name]])
    if problems:
        raise ValueError(f"the weights of {source} do not fit its config.json:\n" + "\n".join(f"- {problem}" for problem in problems))
    return files


def _listed(what: str, names: list[str], most: int = 5) -> list[str]:
    if not names:
        return []
    return [f"{len(names)} {what}: {', '.join(names[:most])}" + (f" and {len(names) - most} more" if len(names) > most else "")]


# --- load, save, convert -----------------------------------------------------------------------------------------

def load(source, dtype=None, quantization_config=None, device_map=None, rope_scaling: str | None = None, **options) -> GlmForCausalLM:
    """Load a ChatGLM2, ChatGLM3 or chatglm-format GLM-4 checkpoint, weight by weight; in eval mode.

    source: folder or Hub id in the original format. dtype: torch dtype or its name; None keeps what the config says (float16 for
    ChatGLM: slow on a CPU). quantization_config: e.g. BitsAndBytesConfig; each weight is quantised as it is read, so the whole model
    never exists in full precision. rope_scaling: see `glm_config`. options: those of from_pretrained that LOAD_OPTIONS names.
    Save adapters on it with save_embedding_layers=False: PEFT compares the vocabulary with the original config.json, finds none
    that it knows, and would store embedding and head with every adapter.
    Errors: ValueError for a checkpoint that is no Glm or does not fit its config, OSError for files that are missing or damaged.
    """
    if options.pop("trust_remote_code", False):
        raise ValueError("trust_remote_code: the code beside the weights is never run; leave the option out")
    unknown = sorted(set(options) - set(LOAD_OPTIONS))
    if unknown:
        raise TypeError(f"unknown options {', '.join(unknown)}; there are {', '.join(LOAD_OPTIONS)}")
    source, hub = str(source), {name: options[name] for name in HUB_OPTIONS if name in options}
    raw = read_config(source, **hub)
    config = glm_config(raw | {"_name_or_path": raw.get("_name_or_path") or source}, rope_scaling)
    files = check_weights(source, config, hub)
    loader = _GroupedForCausalLM if raw.get("multi_query_attention") else _ByHeadForCausalLM
    model, report = loader.from_pretrained(
        source, config=config, generation_config=_generation_config(source, config, hub), dtype=dtype or "auto",
        quantization_config=quantization_config, device_map=device_map, use_safetensors=files[0].suffix == ".safetensors",
        trust_remote_code=False, output_loading_info=True, **options)
    left = {what: sorted(map(str, names)) for what, names in report.items() if names}
    if left:  # the check above should have seen it; a weight that was not loaded is random
        raise RuntimeError(f"{source} was not loaded completely: {left}")
    model.__class__ = GlmForCausalLM  # from here on an ordinary Glm, which is saved under that name
    model._weight_conversions = []    # and with its own weight names: save_pretrained would otherwise convert back
    model.config.tie_word_embeddings = model.lm_head.weight is model.model.embed_tokens.weight
    if quantization_config is not None:
        models.guard_cpu_kernels(model)
    return model


def save(model: GlmForCausalLM, folder) -> Path:
    """Write a plain `glm` folder (config, generation config, weights) that AutoModelForCausalLM loads anywhere; returns it."""
    if not isinstance(model, GlmForCausalLM):
        raise TypeError(f"{type(model).__name__} is no GlmForCausalLM; merge an adapter first (merge_and_unload)")
    model.save_pretrained(folder, save_original_format=False)
    return Path(folder)
