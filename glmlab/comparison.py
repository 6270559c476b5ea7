"""Several systems on the same rows: checkpoints and untuned bases, one after another on one base in memory.

What was scored is kept beside the comparison (`reports.remembered`), so that a second run computes only what changed.
"""

import functools
import gc
import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from glmlab import __version__, models, predict
from glmlab.tasks import Task, intent

base_sums = functools.cache(models.base_sums)  # asked once for every system, and 18 GB take a while to read


@dataclass(frozen=True)
class System:
    """A model to evaluate: a checkpoint of a run, or the untuned base of that run (step 0)."""
    name: str                    # how tables and figures call it
    run: str                     # the last part of the run's folder
    step: int
    folder: Path | None          # the checkpoint; None for the untuned base
    base: str                    # catalogue name, folder or Hub id
    quantization: str            # nf4 or none
    form: str                    # system or template: the prompt the run was trained with
    notes: tuple[str, ...] = ()  # what is unusual about it and must be said
    relations: tuple[str, ...] = ()  # names of the relations that a run of project 2 was trained on; () where it does not say


# --- which systems -----------------------------------------------------------------------------------------------

def system(run: str, step: int, base: str = "", quantization: str = "auto") -> System:
    """A checkpoint of a run (step -1: the last finished one, 0: the untuned base), with what it needs to be loaded.

    base, quantization: other ones than the run was trained with. Errors: those of `models.read_run` and `find_checkpoint`,
    which name the runs and the checkpoints there are.
    """
    record, label = models.read_run(run), models.run_folder(run).name
    trained = record["settings"]
    folder = models.find_checkpoint(run, step) if step else None
    if folder is not None:
        step = int(folder.name.removeprefix("checkpoint-"))
    used = base or trained["base"]
    if quantization == "auto":
        quantization = models.quantization_of(trained["method"])
    name = f"{label} {step}" if folder else f"untuned {Path(used).name}"
    notes = base_notes(used, record["base"]) if folder else ()
    return System(name, label, step, folder, used, quantization, predict.trained_form(folder) if folder else trained["form"], notes,
                  tuple(record.get("data", {}).get("relations", ())))


def systems(run: str, checkpoints: str = "all", beside: str = "") -> tuple[list[System], list[System]]:
    """The untuned base and the checkpoints of a run, in order of the steps, and the checkpoints of other runs beside them.

    checkpoints: all, or steps with commas. beside: RUN:STEP with commas; one that is there already is left out.
    Errors: as `system`, and for a run without any finished checkpoint.
    """
    last = system(run, -1)
    steps = list(models.finished_checkpoints(last.folder.parent)) if checkpoints == "all" else sorted({int(s) for s in checkpoints.split(",")})
    own = [system(run, 0), *(system(run, step) for step in steps if step)]
    found = {_key(one): one for one in own}
    for item in filter(None, beside.split(",")):
        other = system(*_run_and_step(item))
        found.setdefault(_key(other), other)
    return own, _named_apart(list(found.values()))[len(own):]


def _run_and_step(item: str) -> tuple[str, int]:
    name, step = item.rsplit(":", 1)
    return name.strip(), int(step)


def _named_apart(found: list[System]) -> list[System]:
    """The systems, those whose name stands before them already with an addition: tables and files go by the name."""
    names: set[str] = set()
    for place, one in enumerate(found):
        tries = [one.name, f"{one.name} {one.quantization}", *(f"{one.name} ({number})" for number in range(2, len(found) + 2))]
        found[place] = replace(one, name=next(name for name in tries if name not in names))
        names.add(found[place].name)
    return found


def _key(one: System) -> tuple:
    """What makes two systems the same one."""
    return one.folder and one.folder.resolve(), one.base, one.quantization


def base_notes(base: str, recorded: dict) -> tuple[str, ...]:
    """What to say when a base is not the one that a run was trained on; recorded: "base" of its run.json.

    Only files on this disk can be compared; a Hub id is taken at its word.
    """
    here = base_sums(base)
    different = [name for name, sha256 in recorded.get("files", {}).items() if here.get(name, sha256) != sha256]
    if not different:
        return ()
    return (f"the base {base} is not the one this run was trained on ({', '.join(different)} differ from what run.json recorded): "
            "an adapter fits its own base only, so expect poor answers",)


def limits(base: str, shipped_rows: bool, what: str = "calls", real: str = "how GLM-4-9B does on real calls") -> str:
    """What the numbers of this base and these rows do not show, for the place where they are printed; "" when nothing limits them."""
    tiny = base in models.CATALOGUE and models.CATALOGUE[base].parameters < 0.1
    facts = [f"{base} has a few million parameters" if tiny else "", f"the {what} were made for the course" if shipped_rows else ""]
    if not any(facts):
        return ""
    return (f"What these numbers do not show: {' and '.join(filter(None, facts))}. They say which of several systems is better on these "
            f"rows; they say nothing about {real}, and they cannot be set beside results on other rows.")


# --- which rows --------------------------------------------------------------------------------------------------

def draw(calls: list, count: int, seed: int) -> list:
    """`count` calls drawn with the seed, in the order of the file; all of them for 0 or when there are no more."""
    if not 0 < count < len(calls):
        return calls
    return [calls[place] for place in sorted(random.Random(seed).sample(range(len(calls)), count))]


# --- one base in memory ------------------------------------------------------------------------------------------

class Bench:
    """One base in memory and at most one adapter on it; what was there before is taken off first."""

    def __init__(self, device: str = "auto", dtype: str = "auto"):
        self.device, self.dtype = device, dtype  # as asked for, "auto" included
        self._base = self._model = self._tokenizer = None

    def load(self, wanted: System):
        """`(model, tokenizer)` of a system, model in eval mode. The model of the call before must no longer be used.

        A base is loaded only when it is another one (or in another quantization) than that in memory.
        """
        from peft import PeftModel
        if isinstance(self._model, PeftModel):
            self._model = self._model.unload()  # the base again, without a trace of the adapter
        if self._base != (wanted.base, wanted.quantization):
            self._base = self._model = self._tokenizer = None
            gc.collect()  # two bases at a time would not fit everywhere
            self._model, self._tokenizer = models.load_base(wanted.base, wanted.quantization, self.dtype, self.device)
            self._base = (wanted.base, wanted.quantization)
        if wanted.folder is not None:
            models.check_adapter(wanted.folder)
            try:
                with models.quiet_peft():
                    self._model = PeftModel.from_pretrained(self._model, str(wanted.folder)).eval()
            except (RuntimeError, ValueError) as error:  # other sizes, or layers that this base has not
                raise ValueError(f"the adapter of {wanted.name} does not fit the base {wanted.base}: {error}") from error
        return self._model, self._tokenizer


# --- scored, or remembered ---------------------------------------------------------------------------------------

def scored(wanted: System, calls: list, bench: Bench, folder, split: str, max_length: int = 1536, batch_size: int = 25,
           recompute: bool = False, log: Callable[[str], None] = print) -> dict:
    """Labels and probabilities a system gives to calls: {"predicted": […], "confidence": […], "seconds"}, row by row.

    Taken from folder/predictions when it was scored before on the same rows with the same weights and settings.
    """
    from glmlab import evaluation, reports

    def compute() -> dict:
        log(f"{wanted.name} on {len(calls):,} {split} calls")
        model, tokenizer = bench.load(wanted)
        found = evaluation.score_rows(model, tokenizer, calls, max_length, batch_size, wanted.form,
                                      evaluation.progress_lines(len(calls), log=log, lines=2))
        return {"predicted": found.predicted, "confidence": [round(value, 4) for value in found.confidence()], "seconds": found.seconds}

    asked = {"prompt": [intent.messages("", None, wanted.form), intent.ANSWERS], "max_length": max_length}
    return reports.remembered(folder, f"{split} {wanted.name}", about(wanted, calls, bench, asked), compute, recompute, log)


def answered(wanted: System, task: Task, rows: list, bench: Bench, folder, split: str, max_length: int, max_new_tokens: int,
             batch_size: int = 25, form: str = "", losses: bool = True, recompute: bool = False,
             log: Callable[[str], None] = print, rule: Callable | None = None) -> dict:
    """What a system writes to rows, as the fields of `answering.Answers`; with losses also `loss_sums` and `loss_tokens` of the right
    answers, row by row. form: another prompt than the run was trained with. rule: see `answering.answer_rows`.

    Taken from folder/predictions when it was computed before on the same rows with the same weights and settings.
    """
    from glmlab import answering, evaluation, reports
    form = form or wanted.form

    def compute() -> dict:
        log(f"{name.removeprefix(split + ' ')} on {len(rows):,} {split} {task.what}")
        model, tokenizer = bench.load(wanted)
        found = asdict(answering.answer_rows(model, tokenizer, task, rows, form, max_length, max_new_tokens, batch_size,
                                             evaluation.progress_lines(len(rows), task.what, log, lines=2), rule))
        if losses:
            found["loss_sums"], found["loss_tokens"] = answering.answer_losses(model, tokenizer, task, rows, form, max_length)
        return found

    asked = {"prompt": task.messages(rows[0], "", False, form), "max_length": max_length, "max_new_tokens": max_new_tokens, "losses": losses}
    asked |= {"rule": rule.__name__} if rule else {}
    name = " ".join([split, wanted.name, *([form] if form != wanted.form else []), *([rule.__name__] if rule else [])])
    return reports.remembered(folder, name, about(wanted, rows, bench, asked), compute, recompute, log)


def about(wanted: System, rows: list, bench: Bench, asked: dict) -> dict:
    """All that decides what a system answers: its weights, the rows, the arithmetic, and what was `asked` (prompt, limits)."""
    adapter = None if wanted.folder is None else models.file_record(wanted.folder / "adapter_model.safetensors")["sha256"]
    return {"adapter": adapter, "base": wanted.base, "base_files": base_sums(wanted.base), "quantization": wanted.quantization,
            **asked, "prompt": _sum(asked["prompt"]), "device": bench.device, "dtype": bench.dtype, "rows": rows_sum(rows),
            "glmlab": __version__}


def rows_sum(rows: list) -> str:
    """sha256 over all fields of rows."""
    return _sum([asdict(row) for row in rows])


def _sum(content) -> str:
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode("utf-8")).hexdigest()
