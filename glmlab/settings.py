"""The parameters cell of a notebook, read into a frozen dataclass: checked at once, every value printed.

papermill runs a notebook with its defaults when a parameter is misspelt; `read` refuses that. A field is a plain int, float,
str or bool with one line of help, because papermill shows the parameters cell as it stands (`papermill --help-notebook`).
"""

import difflib
import json
import math
import re
import sys
import types
import unicodedata
from dataclasses import dataclass, field, fields
from importlib import metadata
from pathlib import Path

from glmlab import paths

SEEN = "_glmlab_settings_read"  # left in a notebook's namespace once its parameters were accepted
IPYTHON_NAMES = {"In", "Out", "exit", "quit", "get_ipython", "open"}
VERSIONS = ("torch", "transformers", "peft", "bitsandbytes")


def option(default, text: str, **rules):
    """A field: default, help (no `=`, papermill would drop the line), rules of `_rule_problem`, and for paths `empty`.

    empty: (function of glmlab.paths, path below it) that "" stands for; {names} in it are filled from the settings.
    """
    return field(default=default, metadata={"help": text, **rules})


def _intent_file(split: str):
    return option("", f"{split} calls: CSV, JSON or JSON lines; empty: the shipped ones", empty=("data", f"intent/{split}_new.csv"))


def _base():
    return option("glm4-tiny", "base model: a name of the catalogue, a local folder, or a Hub id owner/name", filled=True)


def _max_length():
    return option(1536, "tokens of prompt and answer; longer calls lose turns from their middle", low=64)


def _form():
    return option("system", "system: prompt in the system turn; template: the old form, prompt repeated in each user turn",
                  choices=("system", "template"))


def _device():
    return option("auto", "auto, cpu, cuda, cuda:N or mps", pattern=r"auto|cpu|mps|cuda(:\d+)?")


def _dtype():
    return option("auto", "number format of the computation: auto, bf16, fp16 or fp32", choices=("auto", "bf16", "fp16", "fp32"))


def _seed():
    return option(7, "seed of everything drawn at random", low=0, high=2**32 - 1)


def _batch():
    return option(25, "calls in one forward pass; lower it when memory runs out", low=1)


@dataclass(frozen=True)
class WelcomeSettings:
    """00_welcome: one prompt, one model."""

    base: str = _base()
    prompt: str = option("您好，我想查一下这个月的话费。", "what you say to the model", filled=True)
    max_new_tokens: int = option(60, "tokens of the answer at most", low=1)
    device: str = _device()
    dtype: str = _dtype()
    seed: int = _seed()


@dataclass(frozen=True)
class DataSettings:
    """01_data: from CSV files to checked messages."""

    train_file: str = _intent_file("train")
    dev_file: str = _intent_file("dev")
    test_file: str = _intent_file("test")
    output_dir: str = option("", "folder for the messages and plots; empty: reports/intent/data", empty=("reports", "intent/data"))
    form: str = _form()
    base: str = _base()
    max_length: int = _max_length()
    seed: int = _seed()


@dataclass(frozen=True)
class TrainSettings:
    """02_train: one adapter, its checkpoints, its log."""

    run: str = option("intent-workshop", "name of the run: a folder under data/runs", filled=True)
    base: str = _base()
    train_file: str = _intent_file("train")
    dev_file: str = _intent_file("dev")
    train_samples: int = option(0, "calls to train on, drawn with the seed; 0: all", low=0)
    dev_samples: int = option(60, "calls of the evaluations during training; 0: all", low=0)
    balance: float = option(1.0, "repeat the calls of rare labels: 0 leaves the shares as they are, 1 makes all labels equally frequent",
                            low=0, high=1)
    form: str = _form()
    method: str = option("qlora", "qlora: base in 4 bit (nf4, double quantisation); lora: base in 16 or 32 bit", choices=("qlora", "lora"))
    rank: int = option(16, "rank r of the adapter matrices", low=1)
    alpha: int = option(32, "scale: the adapter's output is multiplied by alpha / rank", low=1)
    dropout: float = option(0.05, "share of the adapter's inputs zeroed in training", low=0, below=1)
    target_modules: str = option("gate_up_proj,down_proj", "linear layers that get an adapter, or all-linear",
                                 pattern=r"all-linear|[\w.]+(,[\w.]+)*")
    layers: int = option(1, "adapters in so many layers, counted from the last; 0: in all", low=0)
    learning_rate: float = option(6e-3, "highest learning rate", above=0)
    warmup_steps: int = option(20, "steps of linear rise to learning_rate", low=0)
    schedule: str = option("cosine", "learning rate after the warm-up: cosine, linear, constant_with_warmup, constant",
                           choices=("cosine", "linear", "constant_with_warmup", "constant"))
    weight_decay: float = option(0.0, "decoupled weight decay of AdamW", low=0)
    batch_size: int = option(4, "calls in one forward and backward pass", low=1)
    accumulation: int = option(1, "passes before one optimizer step; effective batch: batch_size x accumulation", low=1)
    steps: int = option(300, "optimizer steps", low=1)
    checkpoint_steps: int = option(100, "a checkpoint every so many steps", low=1)
    eval_steps: int = option(100, "an evaluation every so many steps; 0: none", low=0)
    early_stopping: int = option(0, "evaluations without improvement before training ends; 0: off", low=0)
    max_length: int = _max_length()
    share_prefix: bool = option(True, "compute the prompt that all calls share once a pass; dropout is then drawn once for it")
    gradient_checkpointing: bool = option(False, "less memory, about a third more time; the result stays the same")
    resume: bool = option(True, "go on from the last finished checkpoint of this run")
    tensorboard: bool = option(False, "write TensorBoard logs into the run folder")
    keep_optimizer: bool = option(True, "keep the optimizer state in checkpoints: needed to resume, twice the adapter's size")
    device: str = _device()
    dtype: str = _dtype()
    seed: int = _seed()

    def problems(self) -> list[str]:
        """Combinations that cannot work, each with what to do."""
        found = []
        if self.checkpoint_steps > self.steps:
            found.append(f"checkpoint_steps: {self.checkpoint_steps} is more than steps {self.steps}, so nothing would be saved; "
                         f"use at most {self.steps}")
        elif self.steps % self.checkpoint_steps:
            rest = self.steps % self.checkpoint_steps
            found.append(f"steps: {self.steps} is no multiple of checkpoint_steps {self.checkpoint_steps}, so the last {rest} steps would "
                         f"never be saved; use {self.steps - rest} or {self.steps - rest + self.checkpoint_steps} steps")
        if self.eval_steps > self.steps:
            found.append(f"eval_steps: {self.eval_steps} is more than steps {self.steps}, so nothing would be evaluated; "
                         f"use at most {self.steps}, or 0 for none")
        if self.early_stopping and not self.eval_steps:
            found.append("early_stopping: it needs evaluations; set eval_steps above 0")
        elif self.early_stopping and self.checkpoint_steps % self.eval_steps:
            found.append(f"early_stopping: every checkpoint must be evaluated to find the best one; make checkpoint_steps "
                         f"({self.checkpoint_steps}) a multiple of eval_steps ({self.eval_steps})")
        if self.warmup_steps > self.steps:
            found.append(f"warmup_steps: {self.warmup_steps} is more than steps {self.steps}, learning_rate would never be reached; "
                         "a tenth of the steps is usual")
        if self.schedule == "constant" and self.warmup_steps:
            found.append(f"schedule: constant has no warm-up, but warmup_steps is {self.warmup_steps}; "
                         "use constant_with_warmup, or 0 warmup_steps")
        return found


@dataclass(frozen=True)
class EvalSettings:
    """03_eval: one checkpoint on the test rows."""

    run: str = option("intent-reference", "run: a folder under data/runs, or a path", filled=True)
    checkpoint: int = option(5000, "step of the checkpoint; 0: the untuned base, -1: the last finished one", low=-1)
    samples: int = option(0, "calls to evaluate, drawn with the seed; 0: all", low=0)
    test_file: str = _intent_file("test")
    batch_size: int = _batch()
    mode: str = option("score", "score: choose among the labels by probability; generate: write the answer, then parse it",
                       choices=("score", "generate"))
    output_dir: str = option("", "folder of the result files; empty: reports/intent/eval/<run>-<checkpoint>",
                             empty=("reports", "intent/eval/{run}-{checkpoint}"))
    base: str = option("", "base model; empty: the one the run was trained on")
    max_length: int = _max_length()
    max_new_tokens: int = option(32, "tokens of an answer at most (mode generate)", low=1)
    quantization: str = option("auto", "base weights: auto as the run was trained, nf4 in 4 bit, none in 16 or 32 bit",
                               choices=("auto", "nf4", "none"))
    device: str = _device()
    dtype: str = _dtype()
    seed: int = _seed()


@dataclass(frozen=True)
class CompareSettings:
    """04_compare: baselines, untuned base and checkpoints on the same rows."""

    run: str = option("intent-reference", "run: a folder under data/runs, or a path", filled=True)
    dev_file: str = _intent_file("dev")
    test_file: str = _intent_file("test")
    train_file: str = _intent_file("train")
    dev_samples: int = option(300, "dev calls that choose the best checkpoint; 0: all", low=0)
    samples: int = option(0, "test calls for the report; 0: all", low=0)
    checkpoints: str = option("all", "all, or steps with commas such as 500,1000 (papermill: -r checkpoints 500)",
                              pattern=r"all|\d+(,\d+)*")
    beside: str = option("", "checkpoints of other runs on the same rows, RUN:STEP with commas (STEP -1: the last)",
                         pattern=r"|[^,:]+:-?\d+(,[^,:]+:-?\d+)*")
    batch_size: int = _batch()
    output_dir: str = option("", "folder of the comparison; empty: reports/intent/compare", empty=("reports", "intent/compare"))
    max_length: int = _max_length()
    bootstrap: int = option(2000, "resamples behind each interval and test", low=100, high=100_000)
    recompute: bool = option(False, "score again what is already in output_dir")
    device: str = _device()
    dtype: str = _dtype()
    seed: int = _seed()


@dataclass(frozen=True)
class FamilySettings:
    """41_glm_family: the generations side by side, then one fine-tune of each with the same rows and the same budget."""

    prompt: str = option("您好，我想查一下这个月的话费。", "the question that goes through all generations", filled=True)
    bases: str = option("glm4-tiny,chatglm3-tiny,chatglm-tiny", "bases to fine-tune, with commas", pattern=r"[^\s,]+(,[^\s,]+)*")
    run: str = option("family", "the runs are data/runs/RUN-BASE, one a base", filled=True)
    train_file: str = _intent_file("train")
    test_file: str = _intent_file("test")
    train_samples: int = option(1000, "calls to train on, drawn with the seed; 0: all", low=0)
    samples: int = option(150, "test calls for the comparison, drawn with the seed; 0: all", low=0)
    balance: float = option(1.0, "repeat the calls of rare labels: 0 leaves the shares as they are, 1 makes all labels equally frequent",
                            low=0, high=1)
    form: str = _form()
    method: str = option("lora", "qlora: base in 4 bit (nf4, double quantisation); lora: base in 16 or 32 bit", choices=("qlora", "lora"))
    rank: int = option(16, "rank r of the adapter matrices", low=1)
    alpha: int = option(32, "scale: the adapter's output is multiplied by alpha / rank", low=1)
    layers: int = option(1, "adapters in so many layers, counted from the last; 0: in all", low=0)
    learning_rate: float = option(3e-3, "highest learning rate", above=0)
    warmup_steps: int = option(10, "steps of linear rise to learning_rate", low=0)
    batch_size: int = option(4, "calls in one forward and backward pass", low=1)
    steps: int = option(120, "optimizer steps, the same for every base", low=1)
    checkpoint_steps: int = option(60, "a checkpoint every so many steps", low=1)
    max_length: int = _max_length()
    bootstrap: int = option(2000, "resamples behind each interval and test", low=100, high=100_000)
    output_dir: str = option("", "folder of the comparison; empty: reports/family", empty=("reports", "family"))
    device: str = _device()
    dtype: str = option("fp32", "number format of the computation: auto, bf16, fp16 or fp32", choices=("auto", "bf16", "fp16", "fp32"))
    seed: int = _seed()

    def problems(self) -> list[str]:
        """A base named twice, and what `TrainSettings` refuses."""
        names = self.bases.split(",")
        twice = sorted({name for name in names if names.count(name) > 1})
        found = [f"bases: {', '.join(twice)} more than once; name each base once"] if twice else []
        return found + self.training(names[0]).problems()

    def training(self, base: str) -> TrainSettings:
        """The settings of one base's run: all are the same but run and base. There is no evaluation on dev."""
        shared = {item.name: getattr(self, item.name) for item in fields(TrainSettings) if hasattr(self, item.name)}
        return TrainSettings(**shared | {"run": f"{self.run}-{Path(base).name}", "base": base, "target_modules": "all-linear",
                                         "eval_steps": 0, "dev_samples": 0, "keep_optimizer": False})


#: The settings of each notebook.
NOTEBOOKS = {"00_welcome": WelcomeSettings, "01_data": DataSettings, "02_train": TrainSettings, "03_eval": EvalSettings,
             "04_compare": CompareSettings, "41_glm_family": FamilySettings}


# --- reading a notebook's parameters -----------------------------------------------------------------------------

def read(cls, namespace: dict):
    """The settings of a notebook: `settings = read(EvalSettings, globals())`, right after its parameters cell.

    Unknown names are refused on the first call in a namespace only: later cells define names of their own.
    Errors: one ValueError with all problems: unknown names, wrong types, values out of range, impossible combinations.
    """
    known = {item.name: item for item in fields(cls)}
    found, values = [], {}
    if SEEN not in namespace:
        found += [_unknown(name, known) for name in _user_names(namespace) if name not in known]
    unknown = len(found)
    for name, item in known.items():
        if name in namespace:
            values[name], problem = _checked(item, namespace[name])
            found += [problem] if problem else []
    if len(found) == unknown:  # combinations make sense only when every single value does
        found += getattr(cls(**values), "problems", list)()
    if found:
        found.append(f"parameters: {', '.join(known)}")
        if unknown:
            found.append("(in an open notebook: correct the cell, then restart the kernel)")
        raise ValueError("the parameters of this notebook cannot be used:\n  " + "\n  ".join(found))
    namespace[SEEN] = True
    return cls(**values)


def _user_names(namespace: dict) -> list[str]:
    """Names bound to plain values: what a parameters cell or papermill can set. Imports and IPython's own names are not."""
    literal = (bool, int, float, str, list, tuple, dict, set, types.NoneType)
    return [name for name, value in namespace.items()
            if not name.startswith("_") and name not in IPYTHON_NAMES and isinstance(value, literal)]


def _unknown(name: str, known) -> str:
    near = (difflib.get_close_matches(name, known, n=1, cutoff=0.8)  # a slip of the pen
            or sorted((other for other in known if f"_{other}_" in f"_{name}_"), key=len)[-1:]  # other tools: max_steps, lora_alpha
            or difflib.get_close_matches(name, known, n=1, cutoff=0.6))
    return f"{name}: unknown parameter" + (f", did you mean {near[0]}?" if near else "")


def _checked(item, value) -> tuple:
    """(value, problem): an int where a float is wanted is taken; a bool is no number."""
    kind = type(value)
    if item.type is float and kind is int:
        value, kind = float(value), float
    if kind is not item.type:
        hints = {bool: "; write True or False", str: f"; with papermill use -r {item.name} {value}"}
        return value, f"{item.name}: {value!r} is {kind.__name__}, must be {item.type.__name__}{hints.get(item.type, '')}"
    problem = _rule_problem(value, item.metadata)
    return value, f"{item.name}: {value!r} {problem}" if problem else ""


def _rule_problem(value, rules) -> str:
    """What is wrong with a value under its field's rules: low ≤ value ≤ high, above < value < below, choices, pattern, filled."""
    if isinstance(value, float) and not math.isfinite(value):
        return "is not a finite number"
    if "choices" in rules and value not in rules["choices"]:
        return f"is none of {', '.join(rules['choices'])}"
    if "pattern" in rules and not re.fullmatch(rules["pattern"], value):
        return f"is not understood; {rules['help']}"
    if rules.get("filled") and not value.strip():
        return f"is empty; {rules['help']}"
    checks = (("low", "at least", lambda bound: value >= bound), ("high", "at most", lambda bound: value <= bound),
              ("above", "more than", lambda bound: value > bound), ("below", "less than", lambda bound: value < bound))
    wrong = [f"{words} {rules[name]}" for name, words, holds in checks if name in rules and not holds(rules[name])]
    return f"must be {wrong[0]}" if wrong else ""


# --- using and showing settings ----------------------------------------------------------------------------------

def path_of(settings, name: str, **known) -> Path:
    """The path behind a path field: a given one from the working folder, "" the one that the help text names.

    known: values that were resolved since, e.g. checkpoint=5000 for -1. A run given as a path counts by its last part.
    """
    value = getattr(settings, name)
    if value:
        return Path(value).expanduser().absolute()
    (where, below), = [item.metadata["empty"] for item in fields(settings) if item.name == name]
    filled = {item.name: getattr(settings, item.name) for item in fields(settings)} | known
    if "run" in filled:
        filled["run"] = Path(filled["run"]).name
    return getattr(paths, where)(*below.format(**filled).split("/"))


def parameters_cell(cls, **defaults) -> str:
    """The source of a notebook's parameters cell: one line `name: type = value  # help` a field.

    defaults: values of this notebook that differ from the class's. Errors: as `read`.
    """
    settings = read(cls, dict(defaults))
    return "\n".join(f"{item.name}: {item.type.__name__} = {_literal(getattr(settings, item.name))}  # {item.metadata['help']}"
                     for item in fields(cls))


def _literal(value) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def text_width(text: str) -> int:
    """Columns of a text in a fixed-width font: Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def pad(text: str, width: int) -> str:
    """The text filled with blanks to a width in columns."""
    return text + " " * max(0, width - text_width(text))


def show(settings) -> None:
    """Print every resolved value with its help, then device and dtype with the reasons, the versions, the seed."""
    rows = [(item.name, _shown_value(settings, item), item.metadata["help"]) for item in fields(settings)]
    wide = [min(34, max(text_width(row[column]) for row in rows)) for column in (0, 1)]
    for name, value, text in rows:
        print(f"{pad(name, wide[0])}  {pad(value, wide[1])}  {text}")
    print()
    if hasattr(settings, "device"):
        from glmlab.device import pick_device, pick_dtype  # imports torch
        device, why_device = pick_device(settings.device)
        dtype, why_dtype = pick_dtype(device, settings.dtype)
        print(f"device    {device}: {why_device}")
        print(f"dtype     {str(dtype).removeprefix('torch.')}: {why_dtype}")
    print("versions  " + ", ".join([f"python {sys.version.split()[0]}", *map(_version, VERSIONS)]))
    print(f"seed      {settings.seed}")


def _shown_value(settings, item) -> str:
    value = getattr(settings, item.name)
    if "empty" in item.metadata:
        return paths.shown(path_of(settings, item.name))
    return value or "-" if isinstance(value, str) else str(value)


def _version(name: str) -> str:
    try:
        return f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return f"{name} not installed"
