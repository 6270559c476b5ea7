"""Run folders: run.json (what the run is), log.jsonl (how it went), checkpoint-N; when a run may go on. JSON only, no tensors.

A checkpoint is finished once its glmlab.json stands, which is written last. Whatever lacks it was interrupted and is removed.
"""

import array
import errno
import hashlib
import json
import math
import shutil
import sys
import zipfile
from dataclasses import asdict
from importlib import metadata
from itertools import chain
from pathlib import Path

from glmlab import __version__, chat, models, paths, processes

RUN_FILE = "run.json"
LOG_FILE = "log.jsonl"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
RESUME_FILES = ("optimizer.*", "scheduler.pt", "trainer_state.json", "rng_state*.pth")  # what going on needs
STATE_FILES = (*RESUME_FILES, "scaler.pt")
#: Settings that may differ when a run goes on: they do not change its result, or are compared by what they stand for.
FREE_SETTINGS = {"run", "resume", "tensorboard", "keep_optimizer", "gradient_checkpointing", "pack_tokens", "compile_layers", "device",
                 "base", "dtype", "train_file", "dev_file"}
COMPARED = ("settings", "base", "dtype", "chat_format", "data", "samples")
FULL_DISK = ("No space left", "os error 28", "Disk quota", "PytorchStreamWriter", "inline_container", "unexpected pos")


# --- what a run is -----------------------------------------------------------------------------------------------

def describe(settings, model, tokenizer, samples: list[chat.Sample], dev: list[chat.Sample], source: dict) -> dict:
    """The content of run.json. source: facts of the data files, of which all must stay the same but `file`, and
    `relations`, which follow from the rows."""
    written = asdict(settings)
    for name in ("train_file", "dev_file"):
        written[name] = paths.shown(written[name]) if written[name] else ""
    if settings.base not in models.CATALOGUE and Path(settings.base).expanduser().is_dir():
        written["base"] = str(Path(settings.base).expanduser().resolve())  # found again from another working folder
    trainable, total = model.get_nb_trainable_parameters()
    record = {
        "settings": written, "base": base_facts(settings.base, model), "data": source,
        "samples": {"train": len(samples), "dev": len(dev), "sha256": _fingerprint([*samples, *dev])},
        "chat_format": chat.format_of(tokenizer).name, "dtype": str(model.dtype).removeprefix("torch."), "device": str(model.device),
        "processes": processes.count(), "sharded": processes.sharded(),
        "trainable_parameters": trainable, "all_parameters": total,
        "versions": {"python": sys.version.split()[0], "glmlab": __version__}
        | {name: _version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")},
    }
    return json.loads(json.dumps(record, ensure_ascii=False))  # as it will be read again: tuples are lists


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # LoRA without 4 bit needs no bitsandbytes
        return None


def base_name(base: str) -> str:
    """What an adapter calls its base: the Hub id, the catalogue name of a shipped base, the last part of a folder."""
    source = models.base_source(base)
    if base in models.CATALOGUE:
        return models.CATALOGUE[base].source
    return Path(source).resolve().name if Path(source).is_dir() else source


def base_facts(base: str, model) -> dict:
    """Name, Hub revision (None for a folder) and, of a folder, the sha256 of its config and of its weights or their index."""
    return {"name": base_name(base), "revision": getattr(model.config, "_commit_hash", None), "files": models.base_sums(base)}


def _fingerprint(samples: list[chat.Sample]) -> str:
    """sha256 over the encoded samples: another prompt, tokenizer, order or selection of rows gives another one."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(array.array("q", [len(sample.ids), sample.labels_from, *sample.ids, *chain(*sample.gaps)]).tobytes())
    return digest.hexdigest()


def differences(there: dict, now: dict) -> list[str]:
    """What makes two run.json two runs, one line each: `learning_rate: 0.001 there, 0.0005 now`."""
    one, two = [_flat({name: record.get(name) for name in COMPARED}) for record in (there, now)]
    found = []
    for name in dict.fromkeys([*one, *two]):
        path = name.split(".")
        free = path[-1] in FREE_SETTINGS if path[0] == "settings" else path[-1] in ("file", "relations")
        if not free and one.get(name) != two.get(name):
            found.append(f"{name.removeprefix('settings.')}: {_short(one.get(name))} there, {_short(two.get(name))} now")
    return found


def _flat(value, prefix: str = "") -> dict:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    if not isinstance(value, dict):
        return {prefix: value}
    return {name: leaf for key, inner in value.items() for name, leaf in _flat(inner, f"{prefix}.{key}" if prefix else str(key)).items()}


def _short(value) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else "nothing" if value is None else str(value)


# --- start, go on, finish ----------------------------------------------------------------------------------------

def open_run(folder: Path, record: dict, resume: bool, log=print) -> Path | None:
    """Make the run folder ready: None to train from the start, else the checkpoint to go on from (`is_last`: nothing to do).

    Errors: ValueError for a run with other settings or data, one that another number of processes began, a damaged checkpoint, or none
    that can be gone on from; FileExistsError if there is a run and resume is False. Nothing but interrupted checkpoints is ever removed.
    """
    shown = paths.shown(folder)
    if not (folder / RUN_FILE).is_file():
        if models.finished_checkpoints(folder):
            raise FileExistsError(f"{shown} holds checkpoints but no {RUN_FILE}, so nobody knows their settings; choose another run name")
        return _start(folder, record)
    there = _read_json(folder / RUN_FILE, "choose another run name, or delete the folder")
    if different := differences(there, record):
        raise ValueError(f"{shown} holds a run with other settings or data:\n  " + "\n  ".join(different)
                         + "\nchoose another run name, or delete the folder to train anew")
    if not resume:
        raise FileExistsError(f"{shown} holds this run already ({_steps(folder)}) and resume is False; set resume to True to go on, "
                              "choose another run name, or delete the folder to train anew")
    for name in remove_unfinished(folder):
        log(f"removed {paths.shown(folder / name)}: it was never finished (no {models.CHECKPOINT_FILE})")
    checkpoint = _last_usable(folder)
    if checkpoint is None:
        return _start(folder, record)
    if not is_last(checkpoint):
        _check_processes(shown, there, record)
    changed = [f"{name} {there['versions'].get(name)} -> {version}" for name, version in record["versions"].items()
               if there["versions"].get(name) != version]
    if changed and not is_last(checkpoint):
        log(f"note: the run was started with other versions, so it may not go on bit for bit: {', '.join(changed)}")
    if not is_last(checkpoint):
        cut_log(folder, int(checkpoint.name.removeprefix("checkpoint-")))
    return checkpoint


def _start(folder: Path, record: dict) -> None:
    paths.write_json(folder / RUN_FILE, record)
    (folder / LOG_FILE).unlink(missing_ok=True)


def _check_processes(shown: str, there: dict, now: dict) -> None:
    """Refuse to go on with other processes: sums would be rounded in another order, dropout drawn otherwise, shards be others."""
    one, two = ((record.get("processes", 1), record.get("sharded", False)) for record in (there, now))
    if one != two:
        began, here = (f"{count} process{'es' if count > 1 else ''}{' with FSDP' if shards else ''}" for count, shards in (one, two))
        raise ValueError(f"{shown} was begun by {began} and would go on in {here}, which is not exactly the same run; go on with {began} "
                         f"(accelerate launch --num_processes {one[0]}), choose another run name, or delete the folder to train anew")


def _last_usable(folder: Path) -> Path | None:
    """The last finished checkpoint: the end of the run, or one with everything needed to go on."""
    finished = list(models.finished_checkpoints(folder).values())
    for checkpoint in reversed(finished):
        if is_last(checkpoint) or all(list(checkpoint.glob(pattern)) for pattern in RESUME_FILES):
            _check_state(checkpoint)
            return checkpoint
    if finished:
        raise ValueError(f"no checkpoint of {paths.shown(folder)} holds the optimizer state ({_steps(folder)}), so the run cannot go on; "
                         "choose another run name, or delete the folder to train anew")
    return None


def _check_state(checkpoint: Path) -> None:
    """Refuse a checkpoint whose files were cut or changed since it was written."""
    remedy = f"delete {paths.shown(checkpoint)}; training then goes on from the checkpoint before it"
    try:
        models.check_adapter(checkpoint)
    except OSError as error:
        raise ValueError(f"{error}; or {remedy}") from error
    for path in sorted(found for pattern in ("*.pt*", "*.bin") for found in checkpoint.glob(pattern)):  # torch.save writes zip archives,
        if not zipfile.is_zipfile(path):  # whose list of contents comes last
            raise ValueError(f"{paths.shown(path)} is cut or damaged; {remedy}")


def is_last(checkpoint: Path) -> bool:
    """Whether the run ended with this checkpoint, by its number of steps or by early stopping."""
    return bool(_read_json(checkpoint / models.CHECKPOINT_FILE, "delete this checkpoint folder").get("last"))


def _read_json(path: Path, remedy: str) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{paths.shown(path)} is damaged ({error}); {remedy}") from error


def _steps(folder: Path) -> str:
    return f"finished checkpoints: {', '.join(map(str, models.finished_checkpoints(folder))) or 'none'}"


def remove_unfinished(folder: Path) -> list[str]:
    """Remove the checkpoint folders whose writing was interrupted; returns their names."""
    names = [path.name for path in sorted(folder.glob("checkpoint-*")) if path.is_dir() and not (path / models.CHECKPOINT_FILE).is_file()]
    for name in names:
        shutil.rmtree(folder / name)
    return names


def finish_checkpoint(checkpoint: Path, **facts) -> None:
    """Declare a checkpoint whole: drop the empty model card that PEFT adds, write glmlab.json with `facts` and the files' sums."""
    (checkpoint / "README.md").unlink(missing_ok=True)
    (checkpoint / ADAPTER_FILES[0]).chmod((checkpoint / ADAPTER_FILES[1]).stat().st_mode)  # safetensors lets only the owner read
    files = {name: models.file_record(checkpoint / name) for name in ADAPTER_FILES}
    paths.write_json(checkpoint / models.CHECKPOINT_FILE, {**facts, "files": files})


def finish_run(folder: Path, steps: int, keep_optimizer: bool) -> dict:
    """Write the run's result into run.json and return it; without keep_optimizer, remove the state that only resuming needs."""
    last = max(models.finished_checkpoints(folder))
    entries = read_log(folder)
    result = {"steps": last, "stopped_early": last < steps, "seconds": max((entry["seconds"] for entry in entries), default=0.0)}
    evaluated = [entry for entry in entries if entry.get("eval_loss") is not None]
    if evaluated:
        best = min(evaluated, key=lambda entry: entry["eval_loss"])
        result |= {"best_step": best["step"], "best_eval_loss": best["eval_loss"]}
    record = _read_json(folder / RUN_FILE, "choose another run name")
    if record.get("result") != result:
        paths.write_json(folder / RUN_FILE, record | {"result": result})
    if not keep_optimizer:
        for checkpoint in models.finished_checkpoints(folder).values():
            for path in [found for pattern in STATE_FILES for found in checkpoint.glob(pattern)]:
                path.unlink()
    return result


# --- the log -----------------------------------------------------------------------------------------------------

def read_log(folder: str | Path) -> list[dict]:
    """The events of log.jsonl, oldest first; [] before the first one. Errors: ValueError names the file and the damaged line."""
    path = Path(folder) / LOG_FILE
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):  # the last line may be half written: the machine went down
                raise ValueError(f"{paths.shown(path)}, line {number}: not a JSON object ({error}); delete that line") from error
    return entries


def append_log(folder: Path, entry: dict) -> None:
    """Add one event; NaN and infinity, which are not JSON, become null."""
    entry = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in entry.items()}
    with open(folder / LOG_FILE, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n")


def cut_log(folder: Path, step: int) -> None:
    """Drop what was logged after a step, because it will be computed and logged again."""
    kept = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in read_log(folder) if entry["step"] <= step]
    paths.write_text(folder / LOG_FILE, "".join(kept))


# --- when the disk is full ---------------------------------------------------------------------------------------

def disk_is_full(error: Exception) -> bool:
    """Whether an error says so; safetensors and torch have errors of their own for it, without errno."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return any(words in str(error) for words in FULL_DISK)


def disk_message(folder: Path, lost: list[str], checkpoint_bytes: int) -> str:
    """What to do after a full disk. lost: the half-written checkpoints that were removed."""
    what = ", ".join(lost) or LOG_FILE
    free = shutil.disk_usage(folder).free
    return (f"{what} could not be written: the disk of {paths.shown(folder)} is full ({free / 2**20:,.1f} MiB are free, a checkpoint takes "
            f"about {checkpoint_bytes / 2**20:,.1f} MiB). Free some space, then train again with resume=True ({_steps(folder)})")
