"""QLoRA and LoRA on the Hugging Face Trainer: encoded samples in, a run folder with checkpoints and a log out.

The Trainer does what it is good at: schedule, optimizer, checkpoints, random state, resume, early stopping. Ours are the batches,
the loss over them and what is reported (trainer.py), and the run folder (runs.py).

Number formats. The base stays in the format it was loaded in: NF4 with 16-bit norms and embeddings, or 16 or 32 bit; nothing is
copied to 32 bit (peft's prepare_model_for_kbit_training would, which costs 2.5 GB on the 9B model for embeddings that are
frozen). The adapter, its gradients and Adam's moments are 32 bit. On a bf16 base forward and backward run under
torch.autocast(bf16), so the adapter's matrices are multiplied in bf16 as the base's are; without it every layer would copy
its input to 32 bit. On an fp16 base (GPUs without bf16) the Trainer adds loss scaling. An fp32 base runs as it is.

Exactness. A run is a function of settings, base and samples: the adapter is drawn anew with the seed at its start, evaluation
draws nothing, and k steps, an interruption and n - k steps give what n steps give, bit for bit on one CPU.

Several processes (`accelerate launch`; DDP, or FSDP, which shards the weights): each step is the same samples as in one process, and its
gradient is equal up to rounding, except that each process draws LoRA dropout for itself. Only the first process touches the run folder.
A run goes on with as many processes as it was begun with.
"""

from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from transformers import PrinterCallback, TrainingArguments

from glmlab import chat, memory, models, paths, processes, runs
from glmlab.runs import read_log  # noqa: F401  part of this module's interface
from glmlab.trainer import Collator, PackTrainer, Reporter, StopAndSave, clock, log_interval


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C, or the stop button of a notebook, during training. The message says how to go on."""


# --- the model ---------------------------------------------------------------------------------------------------

def prepare(settings):
    """Load the base with a fresh adapter on it: `(model, tokenizer)`. settings: TrainSettings. Of several processes each loads its own.

    Errors: ValueError for target modules the base does not have (it lists those there are), or fp16 on a CPU; those of load_base.
    """
    from peft import LoraConfig, get_peft_model
    processes.start(settings.device)
    model, tokenizer = models.load_base(settings.base, models.quantization_of(settings.method), settings.dtype, settings.device)
    if model.dtype == torch.float16 and model.device.type != "cuda":
        raise ValueError("dtype fp16 trains on NVIDIA GPUs only, where the loss is scaled against underflow; use fp32 or bf16 here")
    model.requires_grad_(False)
    adapter = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, task_type="CAUSAL_LM",
                         target_modules=_targets(model, settings), layers_to_transform=_layers(model, settings))
    with models.quiet_peft():
        model = get_peft_model(model, adapter)
    adapter.base_model_name_or_path = runs.base_name(settings.base)  # not the folder of this machine
    _draw_adapter(model, settings.seed)
    return model.eval(), tokenizer


def _targets(model, settings) -> list[str]:
    """The layers that get an adapter. lm_head is none: its adapter would cost a matrix as high as the vocabulary."""
    head = model.get_output_embeddings()
    there = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module is not head]
    last = sorted({name.rsplit(".", 1)[-1] for name in there})
    if settings.target_modules == "all-linear":
        return last
    wanted = settings.target_modules.split(",")
    missing = [target for target in wanted if not any(f".{name}".endswith(f".{target}") for name in there)]
    if missing:
        raise ValueError(f"target_modules: {settings.base} has no linear layer {', '.join(missing)} to put an adapter on; "
                         f"it has {', '.join(last)} (or all-linear)")
    return wanted


def _layers(model, settings) -> list[int] | None:
    """The last `settings.layers` layers, None for all. Errors: ValueError if the base has fewer."""
    count = model.config.num_hidden_layers
    if settings.layers > count:
        raise ValueError(f"layers: {settings.base} has {count} layers, not {settings.layers}; 0 takes all")
    return list(range(count - settings.layers, count)) if settings.layers else None


def _draw_adapter(model, seed: int) -> None:
    """Initialise the adapter with the seed, whatever it went through before: a run that starts is always the same run."""
    from peft.tuners.lora import LoraLayer
    transformers.set_seed(seed)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.reset_lora_parameters("default", True)


def summary(model, settings, n_samples: int) -> dict:
    """What will be trained: parameters, effective batch (calls an optimizer step), epochs (times each sample is seen)."""
    trainable, total = model.get_nb_trainable_parameters()
    batch = settings.batch_size * settings.accumulation
    return {"trainable_parameters": trainable, "all_parameters": total, "share": trainable / total,
            "effective_batch": batch, "epochs": settings.steps * batch / n_samples}


# --- one run -----------------------------------------------------------------------------------------------------

def train(settings, model, tokenizer, samples: list[chat.Sample], dev: list[chat.Sample], source: dict, log=print) -> Path:
    """Train the adapter of `prepare(settings)` and return the run folder; afterwards the model holds the last checkpoint.

    samples, dev: encoded, with answers. source: facts of the data for run.json, e.g. {"train": {"file", "sha256", "rows"}}.
    A run that was interrupted goes on from its last finished checkpoint, a finished one is loaded. Of several processes all call this;
    a model that was sharded (FSDP) stays so.
    Errors: ValueError for samples without labels, fewer of them a step than processes, and a run folder that holds another run;
    FileExistsError for one that exists when resume is False; TrainingInterrupted; OSError for a full disk; MemoryError;
    FloatingPointError for a loss that is no number.
    """
    log = log if processes.rank() == 0 else lambda line: None
    processes.together(lambda: _check(settings, samples, dev))
    folder = paths.runs(settings.run)
    record = processes.from_first(lambda: runs.describe(settings, model, tokenizer, samples, dev, source))
    checkpoint = processes.from_first(lambda: runs.open_run(folder, record, settings.resume, log))
    if checkpoint and runs.is_last(checkpoint):
        log(f"run {settings.run} is finished: {paths.shown(checkpoint)} is loaded")
        model.load_adapter(str(checkpoint), "default", is_trainable=True)
    else:
        if checkpoint:
            log(f"run {settings.run} goes on from {paths.shown(checkpoint)}")
        else:
            _draw_adapter(model, settings.seed)
        if checkpoint and processes.sharded():
            model.load_adapter(str(checkpoint), "default", is_trainable=True)
        with _undisturbed(model), processes.interrupts() as asked_to_stop:
            trainer = _trainer(settings, model, tokenizer, samples, dev, folder, record, log, asked_to_stop)
            if _compiles(settings, model, trainer.args.activation_checkpointing):
                memory.compile_layers(model)
            _run(trainer, settings, folder, checkpoint)
    result = processes.from_first(lambda: runs.finish_run(folder, settings.steps, settings.keep_optimizer))
    best = f", best dev loss {result['best_eval_loss']:.4f} at step {result['best_step']}" if "best_step" in result else ""
    log(f"run {settings.run}: {result['steps']} steps in {clock(result['seconds'])}{best}; {paths.shown(folder)}")
    return folder


def _compiles(settings, model, checkpointing: bool) -> bool:
    """Whether layers are compiled: on a GPU, where the minute is earned back. Not sharded ones, which would not see that their weights are
    gathered, nor checkpointed ones, which torch 2.11 fails to compile for any number of tokens and which hold more memory then."""
    return (settings.compile_layers and model.device.type == "cuda" and settings.steps >= memory.COMPILE_STEPS
            and not processes.sharded() and not checkpointing)


@contextmanager
def _undisturbed(model):
    """Give the model and transformers back as they were; the model in eval mode."""
    verbosity, use_cache = transformers.logging.get_verbosity(), model.config.use_cache
    transformers.logging.set_verbosity_error()  # it warns of early stopping that does not load the best model: as wanted
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        model.config.use_cache = use_cache
        memory.release_layers(model)
        model.zero_grad()
        model.eval()


def _check(settings, samples, dev) -> None:
    for name, given in (("training", samples), ("dev", dev)):
        empty = [number for number, sample in enumerate(given) if sample.labels_from >= len(sample.ids)]
        if empty:
            raise ValueError(f"{name} sample {empty[0]} has no answer to learn; encode it with chat.encode_sample")
    if not samples:
        raise ValueError("there are no training samples; look at train_file and train_samples")
    batch = settings.batch_size * settings.accumulation
    if batch < processes.count():
        raise ValueError(f"batch_size x accumulation is {batch}, fewer rows a step than the {processes.count()} processes; raise one of "
                         "them, or launch fewer processes")
    if settings.eval_steps and not dev:
        raise ValueError(f"eval_steps is {settings.eval_steps} but there are no dev samples; set eval_steps to 0, or give a dev_file")


def _trainer(settings, model, tokenizer, samples, dev, folder: Path, record: dict, log, asked_to_stop=lambda: False) -> PackTrainer:
    facts = {"base": record["base"]["name"], "chat_format": record["chat_format"], "dtype": record["dtype"],
             **{name: getattr(settings, name) for name in ("method", "form", "max_length")},
             **{name: record["data"][name] for name in ("relations",) if name in record["data"]}}
    reporter = Reporter(folder, facts, log)
    callbacks = [StopAndSave(settings.early_stopping)] if settings.early_stopping else []
    if settings.tensorboard and processes.rank() == 0:
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations import TensorBoardCallback
        callbacks.append(TensorBoardCallback(SummaryWriter(str(folder / "tensorboard"))))
    collator = Collator(samples, settings.share_prefix, tokenizer)
    pack_tokens, checkpointing, why = memory.choose_for_all(model, collator, samples, settings.pack_tokens, settings.gradient_checkpointing,
                                                            settings.batch_size * settings.accumulation)
    if pack_tokens:
        log(f"pack_tokens {pack_tokens:,}: {why}")
    trainer = PackTrainer(
        model=model, args=_arguments(settings, model, folder, checkpointing), train_dataset=samples, eval_dataset=dev,
        callbacks=[*callbacks, reporter], collator=collator, eval_collator=Collator(dev, settings.share_prefix, tokenizer),
        pack_tokens=pack_tokens, rows=settings.batch_size, log=log, asked_to_stop=asked_to_stop)
    trainer.remove_callback(PrinterCallback)
    reporter.trainer = trainer
    return trainer


def _arguments(settings, model, folder: Path, checkpointing: bool) -> TrainingArguments:
    """Our settings in the Trainer's words."""
    evaluates, stops_early = settings.eval_steps > 0, settings.early_stopping > 0
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=settings.steps, per_device_train_batch_size=settings.batch_size * settings.accumulation,
        per_device_eval_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate, lr_scheduler_type=settings.schedule, warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay, seed=settings.seed, data_seed=settings.seed,
        activation_checkpointing=checkpointing, activation_checkpointing_kwargs={"use_reentrant": False},
        logging_steps=log_interval(settings.steps), logging_first_step=True, logging_nan_inf_filter=False, log_level="error",
        disable_tqdm=True, report_to="none", remove_unused_columns=False,
        save_steps=settings.checkpoint_steps, eval_strategy="steps" if evaluates else "no", eval_steps=settings.eval_steps or None,
        metric_for_best_model="eval_loss" if stops_early else None, greater_is_better=False if stops_early else None,
        restore_callback_states_from_checkpoint=True, use_cpu=model.device.type == "cpu", dataloader_pin_memory=model.device.type == "cuda",
        fp16=model.dtype == torch.float16, ddp_find_unused_parameters=False)
    if model.device.type == "cuda" and arguments.device != model.device:
        raise ValueError(f"the model is on {model.device}, but training uses {arguments.device}, the first GPU this process sees; "
                         f"set CUDA_VISIBLE_DEVICES={model.device.index or 0} before Python starts, and device to cuda")
    arguments._n_gpu = min(arguments.n_gpu, 1)  # never torch's DataParallel, which would split a pack; several GPUs: accelerate launch
    return arguments


def _run(trainer: PackTrainer, settings, folder: Path, checkpoint: Path | None) -> None:
    """Train; whatever ends it early leaves whole checkpoints only, and says what to do."""
    model = trainer.model
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except KeyboardInterrupt as error:
        _cleaned(folder)
        raise processes.as_far_as(error, TrainingInterrupted(_interrupted(trainer.state.global_step, settings, folder))) from None
    except Exception as error:
        lost = _cleaned(folder)
        if runs.disk_is_full(error):
            size = 12 * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)  # adapter, two moments
            raise OSError(runs.disk_message(folder, lost, size)) from error
        if isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error):
            raise MemoryError(f"out of memory: set batch_size lower than {settings.batch_size} and accumulation higher by the same factor, or "
                              "pack_tokens lower (the result is the same), or gradient_checkpointing to True") from error
        raise
    finally:
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # the wrapper that loss scaling puts around forward


def _cleaned(folder: Path) -> list[str]:
    """What the first process removes after the end of a training that came too early."""
    return runs.remove_unfinished(folder) if processes.rank() == 0 else []


def _interrupted(step: int, settings, folder: Path) -> str:
    finished = models.finished_checkpoints(folder)
    if not finished:
        return (f"training was stopped at step {step} of {settings.steps}, before its first checkpoint (checkpoint_steps is "
                f"{settings.checkpoint_steps}); train again and it starts anew")
    last = paths.shown(finished[max(finished)])
    return (f"training was stopped at step {step} of {settings.steps}. The last finished checkpoint is {last}; train again with "
            "resume=True and it goes on from there as if it had never stopped")
