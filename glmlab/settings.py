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
from dataclasses import field, fields
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
        raise ValueError("the parameters cannot be used:\n  " + "\n  ".join(found))
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
