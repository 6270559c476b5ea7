"""`python -m glmlab train` and `eval`: what the training and evaluation notebooks compute, without the course around it.

The same commands behind `accelerate launch -m` run on several processes (processes.py): all read and encode the same rows, each computes
its part, the first one writes.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from glmlab import (answering, chat, comparison, encoding, evaluation, medical_reports, models, parameters, paths, processes, reports,
                    text_reports, triplet_reports)
from glmlab import settings as read_settings
from glmlab.tasks import intent, medical, service, triplets


@dataclass(frozen=True)
class Project:
    """What the commands must know of a task."""
    task: object                # the module of its rows and prompts
    training: type              # settings of its training and evaluation notebooks
    evaluation: type
    evaluate: Callable          # evaluates rows in all processes; gives the function that writes the files into a folder


# --- settings ----------------------------------------------------------------------------------------------------

def settings_of(cls, file: str | None, values: dict[str, str]):
    """The settings of a command: defaults of `cls`, over them those of a papermill settings file, over them `-p NAME VALUE`.

    Joins the other processes, where there are some: what is wrong is then said once. Errors: OSError for a file that is not there;
    ValueError with all problems, as `settings.read`, and for a file that is no table.
    """
    kinds, found, unreadable = {item.name: item.type for item in fields(cls)}, {}, None
    try:
        found = _table(file) if file else {}
    except (OSError, ValueError) as error:
        unreadable = error
    processes.start(values.get("device", found.get("device", "auto")))

    def read():
        if unreadable:
            raise unreadable
        return read_settings.read(cls, found | {name: _value(text, kinds.get(name, str)) for name, text in values.items()})

    return processes.together(read)


def _table(file: str) -> dict:
    import yaml
    try:
        found = yaml.safe_load(Path(file).expanduser().read_text(encoding="utf-8")) or {}
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{file} is no settings file: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} is no settings file: it needs one line `name: value` a parameter, as notebooks/settings/workshop.yaml has")
    return found


def _value(text: str, kind: type):
    """A word of the command line as the type that a field wants; as it stands where it is none, which `settings.read` then refuses."""
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return kind(text)
    except ValueError:
        return text


# --- train -------------------------------------------------------------------------------------------------------

def training_samples(task, settings, model, tokenizer, log=print) -> tuple[list[chat.Sample], list[chat.Sample], dict]:
    """Read, draw and encode the rows of a training: `(samples, dev, source)` as `training.train` wants them. task: a module of tasks.

    Errors: those of the task's `read_splits`, `encoding.samples`; ValueError for calls without label.
    """
    files = {split: read_settings.path_of(settings, f"{split}_file") for split in ("train", "dev")}
    splits, problems = task.read_splits(files)
    log(task.problem_table(problems))
    asked, source = task.TASK, {}
    if task is triplets:
        splits = {split: triplets.labelled(found, f"{split} sentences") for split, found in splits.items()}
        relations = triplets.relations_of([*splits["train"], *splits["dev"]])
        asked, source = triplets.task_of(relations), {"relations": list(relations)}
    wanted = {"train": settings.train_samples, "dev": settings.dev_samples}
    rows = {split: comparison.draw(found, wanted[split], settings.seed) for split, found in splits.items()}
    limit, encoded = encoding.room(model, settings.max_length), {}
    for split, found in rows.items():
        if task is intent:
            evaluation.check_labelled(found)
        encoded[split], shortened = encoding.samples(tokenizer, asked, found, limit, settings.form)
        log(f"{split}: {len(found):,} of {len(splits[split]):,} {task.TASK.what} in {paths.shown(files[split])}, {shortened:,} shortened")
    if task is intent:
        encoded["train"] = [encoded["train"][place] for place in intent.balanced(rows["train"], settings.balance)]
    source |= {split: {"file": paths.shown(path), **models.file_record(path), "rows": len(splits[split])} for split, path in files.items()}
    return encoded["train"], encoded["dev"], source


def train(task: str, file: str | None, values: dict[str, str]) -> None:
    """`python -m glmlab train TASK`. Errors: as `settings_of`, `training.prepare`, `training_samples` and `training.train`."""
    from glmlab import training
    project = PROJECTS[task]
    settings = settings_of(project.training, file, values)
    log = _first_says()
    if processes.rank() == 0:
        read_settings.show(settings)
    log(f"processes {processes.count()}" + (", which share the weights (FSDP)" if processes.sharded() else ""))
    model, tokenizer = processes.together(lambda: training.prepare(settings))
    samples, dev, source = processes.together(lambda: training_samples(project.task, settings, model, tokenizer, log))
    plan = training.summary(model, settings, len(samples))
    log(f"{plan['trainable_parameters']:,} parameters to train; {plan['effective_batch']} rows a step, "
        f"each sample {plan['epochs']:.2f} times")
    training.train(settings, model, tokenizer, samples, dev, source, log)
    processes.end()


def _first_says() -> Callable[[str], None]:
    """Print in the first process only."""
    return (lambda line: print(line, flush=True)) if processes.rank() == 0 else lambda line: None


# --- eval --------------------------------------------------------------------------------------------------------

def evaluate(task: str, file: str | None, values: dict[str, str]) -> None:
    """`python -m glmlab eval TASK`: a checkpoint on the test rows. Errors: as `settings_of`, `comparison.system`, the task's `read`."""
    project = PROJECTS[task]
    settings = settings_of(project.evaluation, file, values)
    log = _first_says()
    system, everything, model, tokenizer = processes.together(lambda: _loaded(project.task, settings, log))
    rows = comparison.draw(everything, settings.samples, settings.seed)
    folder = read_settings.path_of(settings, "output_dir", checkpoint=system.step)
    about = {"run": system.run, "checkpoint": system.step, "base": system.base, "quantization": system.quantization, "form": system.form,
             "test_file": paths.shown(read_settings.path_of(settings, "test_file")), "samples": settings.samples, "seed": settings.seed,
             "max_length": encoding.room(model, settings.max_length)}
    log(f"{system.name} on {len(rows):,} {project.task.TASK.what}, processes {processes.count()}")
    tell = evaluation.progress_lines(len(rows), project.task.TASK.what, log, lines=4)
    write = project.evaluate(settings, system, rows, everything, model, tokenizer, about, tell)
    processes.from_first(lambda: write(folder))
    processes.end()


def _loaded(task, settings, log) -> tuple:
    """(system, test rows with a truth, model, tokenizer)."""
    system = comparison.system(settings.run, settings.checkpoint, settings.base, settings.quantization)
    for note in system.notes:
        log(f"NOTE: {note}")
    rows, problems = task.read(read_settings.path_of(settings, "test_file"))
    log(task.problem_table(problems))
    if task is triplets:
        rows = triplets.labelled(rows, "test sentences")
    if task is intent:
        evaluation.check_labelled(rows)
    return system, rows, *comparison.Bench(settings.device, settings.dtype).load(system)


def _answers(task, settings, system, rows: list, model, tokenizer, tell, rule: Callable | None = None) -> answering.Answers:
    asked = triplets.task_of(triplets.of_run(system.relations)) if task is triplets else task.TASK
    return answering.answer_rows(model, tokenizer, asked, rows, system.form, settings.max_length, settings.max_new_tokens,
                                 settings.batch_size, tell, rule)


def _with_losses(task, settings, system, rows: list, model, tokenizer, tell) -> dict:
    """The fields of `answering.Answers`, `loss_sums` and `loss_tokens`."""
    found = asdict(_answers(task, settings, system, rows, model, tokenizer, tell))
    losses = answering.answer_losses(model, tokenizer, task.TASK, rows, system.form, settings.max_length)
    return found | dict(zip(("loss_sums", "loss_tokens"), losses))


def _intent(settings, system, calls, everything, model, tokenizer, about, tell) -> Callable:
    if settings.mode == "score":
        found = evaluation.score_rows(model, tokenizer, calls, settings.max_length, settings.batch_size, system.form, tell)
    else:
        found = evaluation.generate_rows(model, tokenizer, calls, settings.max_length, settings.max_new_tokens, settings.batch_size,
                                         system.form, tell)
    about = about | {"mode": settings.mode}
    return lambda folder: reports.write_result_files(folder, found, calls, about, system.name, seed=settings.seed)


def _triplets(settings, system, rows, everything, model, tokenizer, about, tell) -> Callable:
    from glmlab import constrained
    learnt = triplets.of_run(system.relations)
    relations = triplets.relations_of(rows, learnt)

    def copying(tokenizer, text: str, max_new_tokens: int):
        return constrained.Copying(tokenizer, text, max_new_tokens, learnt)

    found = _answers(triplets, settings, system, rows, model, tokenizer, tell, copying if settings.mode == "constrained" else None)
    predicted = [triplets.parse(text, relations) for text in found.texts]
    return lambda folder: triplet_reports.write_result_files(folder, rows, predicted, found.texts, found.total_seconds,
                                                             about | {"mode": settings.mode}, relations, seed=settings.seed)


def _service(settings, system, rows, everything, model, tokenizer, about, tell) -> Callable:
    train, _ = service.read(read_settings.path_of(settings, "train_file"))
    known = sorted({one.answer for one in [*train, *everything]})
    found = _with_losses(service, settings, system, rows, model, tokenizer, tell)
    kinds = ["with history" if one.history else "single question" for one in rows]
    groups = [f"{service.SCENES.get(one.scene, one.scene or '?')}, {kind}" for one, kind in zip(rows, kinds)]
    about = about | {"max_new_tokens": settings.max_new_tokens,
                     "right_answer_on": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}}

    def write(folder):
        prompts = [one.text for one in rows]
        result = text_reports.score([one.answer for one in rows], found["texts"], prompts, known, found, seed=settings.seed)
        return text_reports.write_result_files(folder, rows, prompts, found["texts"], result, about, groups)

    return write


def _medical(settings, system, rows, everything, model, tokenizer, about, tell) -> Callable:
    found = _with_losses(medical, settings, system, rows, model, tokenizer, tell)

    def write(folder):
        result = medical_reports.score(rows, found["texts"], found, seed=settings.seed)
        return text_reports.write_result_files(folder, rows, [one.text for one in rows], found["texts"], result,
                                               about | {"disclaimer": medical.DISCLAIMER}, [one.department or "-" for one in rows])

    return write


PROJECTS = {"intent": Project(intent, parameters.TrainSettings, parameters.EvalSettings, _intent),
            "triplets": Project(triplets, parameters.TripletTrainSettings, parameters.TripletEvalSettings, _triplets),
            "service": Project(service, parameters.ServiceTrainSettings, parameters.ServiceEvalSettings, _service),
            "medical": Project(medical, parameters.MedicalTrainSettings, parameters.MedicalEvalSettings, _medical)}
