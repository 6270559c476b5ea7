"""The catalogue of bases; load a base, a base with an adapter, a checkpoint of a run; merge an adapter.

Only this module loads weights. Remote code is never run.
"""

import contextlib
import hashlib
import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

from glmlab import paths, processes


@dataclass(frozen=True)
class Base:
    """One entry of the catalogue."""
    name: str
    source: str        # folder under data/models, or Hub id
    parameters: float  # billions
    nf4_gib: float     # weights in NF4 with double quantisation, the rest in 16 bit
    bf16_gib: float
    licence: str       # of the weights
    revision: str = ""  # commit of the Hub repository, where one is known; "" takes the newest


CATALOGUE = {base.name: base for base in (
    Base("glm4-tiny", "glm4-tiny", 0.006, 0.01, 0.01, "MIT (made by this course)"),
    Base("chatglm3-tiny", "chatglm3-tiny", 0.006, 0.01, 0.01, "MIT (made by this course)"),
    Base("chatglm-tiny", "chatglm-tiny", 0.007, 0.01, 0.01, "MIT (made by this course)"),
    Base("glm-4-9b-0414", "zai-org/GLM-4-9B-0414", 9.4, 6.2, 17.5, "MIT"),
    Base("glm-4-32b-0414", "zai-org/GLM-4-32B-0414", 32.6, 18.2, 60.7, "MIT"),
    Base("glm-4-9b-chat", "zai-org/glm-4-9b-chat", 9.4, 6.2, 17.5, "GLM-4 licence (registration for commercial use)"),
    Base("chatglm3-6b", "zai-org/chatglm3-6b", 6.24, 3.7, 11.6, "ChatGLM3 licence (registration for commercial use)"),
    Base("chatglm3-6b-32k", "zai-org/chatglm3-6b-32k", 6.24, 3.7, 11.6, "ChatGLM3 licence (registration for commercial use)"),
    Base("chatglm3-6b-128k", "zai-org/chatglm3-6b-128k", 6.24, 3.7, 11.6, "ChatGLM3 licence (registration for commercial use)"),
    Base("chatglm2-6b", "zai-org/chatglm2-6b", 6.24, 3.7, 11.6, "ChatGLM2 licence (registration for commercial use)"),
    Base("chatglm-6b", "zai-org/chatglm-6b", 6.17, 3.7, 11.5, "ChatGLM licence (registration for commercial use)"),
)}
GLM_TYPES = ("chatglm", "glm", "glm4")
#: What the `rope_ratio` of an original config stretches, where the generation is said; else its name decides.
ROPE_SCALING = {"chatglm2": "linear", "chatglm3": "theta", "glm4": "theta"}
CHECKPOINT_FILE = "glmlab.json"


# --- where a base is ---------------------------------------------------------------------------------------------

def base_source(name_or_folder: str | Path) -> str:
    """The folder or Hub id to load: a catalogue name, an existing folder, or any other `owner/name` on the Hub."""
    text = str(name_or_folder)
    if text in CATALOGUE:
        source = CATALOGUE[text].source
        return str(paths.models(source)) if paths.models(source).is_dir() else source
    folder = Path(text).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{paths.shown(folder)} has no config.json: a base is a folder with config.json, weights and tokenizer")
        return str(folder)
    if text.count("/") == 1 and not text.startswith((".", "/", "~")):
        return text
    raise ValueError(f"unknown base {text!r}: neither a name of the catalogue ({', '.join(CATALOGUE)}), nor an existing folder, "
                     "nor a Hub id owner/name")


def quantization_of(method: str | None) -> str:
    """How the base of a run is held: 4 bit for qlora, as it is for every other method."""
    return "nf4" if method == "qlora" else "none"


def base_sums(base: str) -> dict[str, str]:
    """sha256 of a base's config and weights (or their index) when it is a folder; empty for a Hub id."""
    folder, sums = Path(base_source(base)), {}
    for name in ("config.json", "model.safetensors.index.json", "model.safetensors"):
        if (folder / name).is_file():
            with open(folder / name, "rb") as file:
                sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def _loading(source: str, load):
    """Run `load()`; turn the many ways a base cannot be had into one message that says what to do."""
    try:
        return load()
    except OSError as error:
        if Path(source).is_dir():
            raise OSError(f"the base in {paths.shown(source)} could not be read: {error}") from error
        raise OSError(
            f"the base {source} could not be had from the Hub ({os.environ.get('HF_ENDPOINT', 'default endpoint')}): "
            f"{str(error).splitlines()[0]}\nSlow or no link: set HF_ENDPOINT to a mirror, or download the folder elsewhere "
            "and pass its path as base; HF_HUB_OFFLINE=1 uses what is already in the cache.") from error
    except Exception as error:  # safetensors raises its own class for a cut file
        if "safetensors" in type(error).__module__.lower() or "Safetensor" in type(error).__name__:
            raise OSError(f"a weight file of {paths.shown(source)} is damaged or half downloaded ({error}); fetch it again") from error
        raise


# --- loading -----------------------------------------------------------------------------------------------------

def guard_cpu_kernels(model) -> int:
    """Keep bitsandbytes from repacking 4-bit layers for its inference-only CPU kernel; returns the layers guarded.

    On CPUs with AVX512-BF16 the first forward in eval mode repacks every Linear4bit for a kernel without autograd: training
    afterwards silently loses the gradient through the base weight, or raises. Seen with bitsandbytes 0.50.2.
    """
    from bitsandbytes.nn import Linear4bit
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
    return len(layers)


def _revision(name_or_folder) -> dict:
    """The pinned revision of a catalogue entry, as an option of whatever fetches from the Hub."""
    entry = CATALOGUE.get(str(name_or_folder))
    return {"revision": entry.revision} if entry and entry.revision else {}


def _original_tokenizer(source: str, chat_format: str | None, hub: dict):
    """The tokenizer of a folder or Hub id in the original layout, None where it has no vocabulary file."""
    from transformers.utils import cached_file

    from glmlab.chatglm import vocab
    names = ("config.json", "tokenizer_config.json", "ice_text.model", "tokenizer.model")
    found = [cached_file(source, name, _raise_exceptions_for_missing_entries=False, **hub) for name in names]
    return vocab.load_tokenizer(Path(found[0]).parent, chat_format)


def load_tokenizer(name_or_folder, chat_format: str | None = None):
    """The tokenizer of a base, without its weights; None for an original ChatGLM folder without a vocabulary file.

    chat_format: chatglm, chatglm2, chatglm3 or glm4, for an original folder that does not say which it is (ChatGLM2 and 3 share a
    vocabulary file). Errors: as `load_base`.
    """
    from transformers import AutoTokenizer

    from glmlab.chatglm import glm
    source, hub = base_source(name_or_folder), _revision(name_or_folder)
    raw = _loading(source, lambda: glm.read_config(source, **hub))
    if raw.get("model_type") == "chatglm" and not (Path(source) / "tokenizer.json").is_file():
        return _loading(source, lambda: _original_tokenizer(source, chat_format, hub))
    if raw.get("model_type") == "chatglm":
        from glmlab.chatglm import v1  # noqa: F401  makes the config known: without it transformers warns of another model's files
    return _loading(source, lambda: AutoTokenizer.from_pretrained(source, trust_remote_code=False, padding_side="left", **hub))


def _model(source: str, raw: dict, chat_format: str | None, **options):
    """The weights of a folder or Hub id with this config.json, by whoever can read them. options: those of from_pretrained."""
    from transformers import AutoModelForCausalLM

    from glmlab.chatglm import glm
    if glm.is_original(raw):
        return glm.load(source, rope_scaling=ROPE_SCALING.get(chat_format), **options)
    if raw["model_type"] == "chatglm":
        from glmlab.chatglm import v1  # noqa: F401  makes the class known
    return AutoModelForCausalLM.from_pretrained(source, trust_remote_code=False, **options)


def load_base(name_or_folder, quantization: str = "nf4", dtype=None, device=None, chat_format: str | None = None):
    """Load a base and its tokenizer: `(model, tokenizer)`, model in eval mode.

    name_or_folder: catalogue name, local folder or Hub id. The original layouts of ChatGLM-6B, ChatGLM2, ChatGLM3 and GLM-4-9B-Chat are
    converted while they are read, also into 4 bit; the code that lies beside them is never run. quantization: "nf4" (with double
    quantisation) or "none". dtype: torch dtype or name of the compute and of the unquantised weights; None chooses by device.
    device: None, "cpu", "cuda"… chat_format: see `load_tokenizer`.
    Errors: ValueError for an unknown base or quantization, for a config that has no counterpart here, and for a tokenizer and weights
    that do not belong together; OSError for files that are missing or damaged.
    """
    from transformers import BitsAndBytesConfig
    from transformers.utils import logging

    from glmlab import device as devices
    from glmlab.chatglm import glm, vocab
    if quantization not in ("nf4", "none"):
        raise ValueError(f"quantization {quantization!r}: choose nf4 or none")
    source = base_source(name_or_folder)
    logging.disable_progress_bar()  # a bar over tensors says nothing and fills reports
    if source == getattr(CATALOGUE.get(str(name_or_folder)), "source", None):  # from the Hub, not from a folder of the course
        print(f"{name_or_folder}: the weights of {source} are under this licence: {CATALOGUE[str(name_or_folder)].licence}")
    device, _ = devices.pick_device(device or "auto")
    dtype, _ = devices.pick_dtype(device, dtype or "auto")
    hub = _revision(name_or_folder)
    raw = _loading(source, lambda: glm.read_config(source, **hub))
    if raw.get("model_type") not in GLM_TYPES:
        raise ValueError(f"{name_or_folder} is a {raw.get('model_type')!r} model; this course loads {', '.join(GLM_TYPES)}")
    options = {"dtype": dtype, "device_map": {"": str(device)}, **hub}
    if quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_storage=dtype if processes.sharded() else None)  # FSDP shards tensors of floating numbers only
    model = _loading(source, lambda: _model(source, raw, chat_format, **options))
    tokenizer = load_tokenizer(name_or_folder, chat_format)
    if tokenizer is not None:
        vocab.check_ids(tokenizer, model.config)
    if quantization == "nf4":
        guard_cpu_kernels(model)
    return model.eval(), tokenizer


def load_finetuned(base, adapter, quantization: str = "nf4", dtype=None, device=None, trainable: bool = False):
    """Load a base and put a PEFT adapter folder (a checkpoint of a run, or anybody's) on it: `(model, tokenizer)`."""
    from peft import PeftModel
    folder = Path(adapter)
    check_adapter(folder)
    model, tokenizer = load_base(base, quantization, dtype, device)
    with quiet_peft():
        model = _loading(str(folder), lambda: PeftModel.from_pretrained(model, str(folder), is_trainable=trainable))
    return model.eval(), tokenizer


@contextlib.contextmanager
def quiet_peft():
    """Where PEFT wraps a model: it asks transformers for an attribute by its deprecated name, a warning that no user can act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def check_out(out, *sources) -> None:
    """Make the folder that a model is to be written to, before anything is loaded.

    Errors: ValueError if it is one of the sources, a file, or holds files already; OSError where it cannot be written.
    """
    out = Path(out)
    if out.resolve() in [Path(source).resolve() for source in sources]:
        raise ValueError(f"{paths.shown(out)} is the source itself; choose another folder")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{paths.shown(out)} is a file; name a folder to write, one that does not exist yet")
    if out.is_dir() and (there := sorted(path.name for path in out.iterdir())):
        some = ", ".join(there[:3]) + ", …" * (len(there) > 3)
        raise ValueError(f"{paths.shown(out)} holds files already ({some}), which would be overwritten or mixed with the new ones; "
                         "choose another folder, or delete this one first")
    paths.write_bytes(out / "config.json", b"").unlink()


def merge(base, adapter, out, dtype=None, log=print) -> Path:
    """Merge an adapter into its base (never into 4-bit weights) and write a plain transformers folder: weights, tokenizer, chat
    template, model card.

    dtype: None takes bf16. The folder is loaded again and its logits compared with those of base and adapter. Errors: as
    `load_finetuned` and `check_out`; RuntimeError if the logits are not those.
    """
    import torch

    from glmlab import chat, model_card
    check_out(out, base_source(base), adapter)
    model, tokenizer = load_finetuned(base, adapter, quantization="none", dtype=dtype or "bf16", device="cpu")
    ids = torch.tensor([chat.prompt_ids(tokenizer, [{"role": "user", "content": "您好，请问怎么办理？"}])])
    with torch.inference_mode():
        wanted = model(input_ids=ids).logits.float()
        model.merge_and_unload().save_pretrained(out)
        for file in Path(out).glob("*.safetensors"):
            file.chmod(0o644)  # safetensors lets only the owner read
        _save_tokenizer(tokenizer, out)
        again, _ = load_base(out, "none", model.dtype, "cpu")
        off = (again(input_ids=ids).logits.float() - wanted).square().mean().sqrt().item()
    spread = wanted.std().item()
    if not off < 0.1 * spread:
        raise RuntimeError(f"the merged model in {paths.shown(Path(out))} does not compute what base and adapter compute: its logits are off by "
                           f"{off:.3g} (root mean square; their spread is {spread:.3g})")
    paths.write_text(Path(out) / "README.md", model_card.merged(out, base, adapter, off, spread, str(model.dtype).removeprefix("torch.")))
    log(f"the merged model's logits differ from those of base and adapter by {off:.2g} (root mean square; their spread is {spread:.2g})")
    return Path(out)


def _save_tokenizer(tokenizer, out) -> None:
    """The tokenizer with the chat template of its generation, for tools that know only templates."""
    from glmlab import chat
    tokenizer.chat_template = chat.format_of(tokenizer).template
    tokenizer.split_special_tokens = False  # a rendered template is one string: its markers must be found in it
    tokenizer.save_pretrained(out)


def convert(name_or_folder, out, dtype=None, chat_format: str | None = None) -> Path:
    """Write a base in an original layout as a plain transformers folder: safetensors, tokenizer.json, chat template.

    ChatGLM2, ChatGLM3 and GLM-4-9B-Chat then load anywhere with AutoModelForCausalLM; ChatGLM-6B wherever glmlab.chatglm.v1 is imported.
    dtype: None keeps the published one. Errors: as `load_base` and `check_out`; ValueError for a base that needs no
    conversion.
    """
    import torch
    from transformers.utils import logging

    from glmlab.chatglm import glm, vocab
    source, hub = base_source(name_or_folder), _revision(name_or_folder)
    raw = _loading(source, lambda: glm.read_config(source, **hub))
    if raw.get("model_type") != "chatglm":
        raise ValueError(f"{name_or_folder} is a {raw.get('model_type')!r} model, which transformers loads as it is")
    check_out(out, source)
    logging.disable_progress_bar()
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    model = _loading(source, lambda: _model(source, raw, chat_format, dtype=dtype or "auto", **hub))
    tokenizer = load_tokenizer(name_or_folder, chat_format)
    if tokenizer is not None:
        vocab.check_ids(tokenizer, model.config)
        _save_tokenizer(tokenizer, out)
    model.save_pretrained(out, save_original_format=False)
    return Path(out)


# --- checkpoints of a run ----------------------------------------------------------------------------------------

def file_record(path: Path) -> dict:
    """Size in bytes and sha256 of a file, as `glmlab.json` keeps them."""
    return {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def finished_checkpoints(run_dir) -> dict[int, Path]:
    """The finished checkpoints of a run folder, step -> folder, in order of the steps."""
    found = {}
    for folder in Path(run_dir).glob("checkpoint-*"):
        step = folder.name.removeprefix("checkpoint-")
        if step.isdigit() and (folder / CHECKPOINT_FILE).is_file():
            found[int(step)] = folder
    return dict(sorted(found.items()))


def run_folder(run: str) -> Path:
    """The folder of a run by name (data/runs/NAME) or by path; errors list the runs there are."""
    for folder in (paths.runs(run), Path(run).expanduser()):
        if (folder / "run.json").is_file():
            return folder
    homes = list(dict.fromkeys([paths.runs(), paths.data("runs")]))  # one's own and, with GLMLAB_HOME, those that ship
    there = sorted({path.parent.name for home in homes for path in home.glob("*/run.json")})
    raise FileNotFoundError(f"run {run!r} not found in {' or '.join(map(paths.shown, homes))}; there are: {', '.join(there) or 'none yet'}")


def read_run(run: str) -> dict:
    """What run.json says of a run: settings, base, data checksums, versions."""
    folder = run_folder(run)
    try:
        return json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{paths.shown(folder / 'run.json')} is damaged ({error}); train the run again under another name") from error


def find_checkpoint(run: str, step: int) -> Path:
    """The folder of a finished checkpoint; step -1 is the last one. Errors name the checkpoints there are."""
    folder = run_folder(run)
    there = finished_checkpoints(folder)
    steps = ", ".join(map(str, there)) or "none"
    if step == -1 and there:
        step = max(there)
    if step not in there:
        unfinished = (folder / f"checkpoint-{step}").is_dir()
        why = f"is unfinished (no {CHECKPOINT_FILE}: the save was interrupted)" if unfinished else "not found"
        raise FileNotFoundError(f"checkpoint {step} {why} in {paths.shown(folder)}; there are: {steps}")
    check_adapter(there[step])
    return there[step]


def check_adapter(folder: Path) -> None:
    """Refuse an adapter folder whose files are missing or differ from what `glmlab.json` recorded."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{paths.shown(folder)} has no {name}: not an adapter, or an unfinished copy; copy or train it again")
    if not (folder / CHECKPOINT_FILE).is_file():
        return  # an adapter of another tool: nothing to compare with
    try:
        recorded = json.loads((folder / CHECKPOINT_FILE).read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError) as error:
        raise OSError(f"{paths.shown(folder / CHECKPOINT_FILE)} is damaged ({error}); copy it again") from error
    for name, wanted in recorded.items():
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{paths.shown(path)} is missing; copy the whole checkpoint again, or use another one")
        if path.stat().st_size != wanted["bytes"]:
            raise OSError(f"{paths.shown(path)} is cut: {path.stat().st_size:,} bytes instead of {wanted['bytes']:,}; copy it again")
        if file_record(path)["sha256"] != wanted["sha256"]:
            raise OSError(f"{paths.shown(path)} was changed after the checkpoint was written (sha256 differs); copy it again")
