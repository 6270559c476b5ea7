"""The Hugging Face Trainer on batches of packing.py: collator, loss, evaluation; the log and the lines it prints."""

import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from glmlab import chat, packing, runs
from glmlab.device import memory_used

LINES = 30  # progress lines a run, at most


# --- batches, loss, evaluation -----------------------------------------------------------------------------------

class Collator:
    """Samples -> batch: packed behind the prefix that all of them share, or padded."""

    def __init__(self, samples: list[chat.Sample], share_prefix: bool, tokenizer):
        self.prefix = chat.shared_prefix(samples, tokenizer) if share_prefix else None
        self.pad_id, self.two_way = tokenizer.pad_token_id, chat.two_way(tokenizer)

    def __call__(self, samples: list[chat.Sample]) -> dict[str, torch.Tensor]:
        if self.prefix is None:
            return packing.pad(samples, self.pad_id, two_way=self.two_way)
        return packing.pack(samples, self.prefix, two_way=self.two_way)


class PackTrainer(Trainer):
    """The Trainer on batches of packing.py: the loss of a step is the mean over all labelled tokens of its effective batch."""

    loss_is_scaled_for_ga = True  # compute_loss divides by the tokens of the whole step

    def __init__(self, *args, eval_collator: Collator, **kwargs):
        super().__init__(*args, **kwargs)
        self.eval_collator = eval_collator
        self.computed = self.labelled = 0  # tokens so far in this session

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of one optimizer step and their labelled tokens (the Trainer's own count assumes one label a position)."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        total = torch.as_tensor(sum(batch["weights"].sum() for batch in batches), device=device)
        return batches, self.accelerator.gather(total).sum()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """This batch's part of the step's loss; several processes each get the mean of their gradients, hence the factor."""
        return packing.loss_sum(model, inputs) / num_items_in_batch * self.accelerator.num_processes

    def autocast_smart_context_manager(self, cache_enabled=True):
        """bf16 arithmetic for the adapter on a bf16 base (see the module's docstring)."""
        on = self.model.dtype == torch.bfloat16
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16, enabled=on, cache_enabled=cache_enabled)

    def compute_loss_context_manager(self):
        """Where the Trainer enters it."""
        return self.autocast_smart_context_manager()

    def training_step(self, model, inputs, num_items_in_batch=None):
        """One forward and backward pass. Errors: FloatingPointError before a loss that is no number spoils the adapter."""
        self.computed += inputs["input_ids"].numel()
        self.labelled += len(inputs["labels"])
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            hint = " or use bf16 instead of fp16" if self.args.fp16 else ""
            raise FloatingPointError(f"the loss is {loss.item()} at step {self.state.global_step + 1}; lower learning_rate{hint}")
        return loss

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """All dev samples in their order, on every process."""
        return DataLoader(self.eval_dataset, self.args.eval_batch_size, collate_fn=self.eval_collator)

    def evaluation_loop(self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"):
        """Mean loss a labelled token, and the share of samples whose every labelled token is the most likely one."""
        loss = tokens = wrong = count = 0
        self.model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]), self.autocast_smart_context_manager():  # a DataLoader draws a seed
            for batch in dataloader:
                batch = self._prepare_inputs(batch)
                logits = packing.label_logits(self.model, batch).float()
                loss += torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="sum").item()
                tokens += len(batch["labels"])
                wrong += batch["sample"][logits.argmax(-1) != batch["labels"]].unique().numel()
                count += batch["sample"][-1].item() + 1
        metrics = {f"{metric_key_prefix}_loss": loss / tokens, f"{metric_key_prefix}_accuracy": 1 - wrong / count}
        return EvalLoopOutput(None, None, metrics, count)

    def _save(self, output_dir=None, state_dict=None):
        """The adapter alone: no tokenizer, no pickled arguments, no question to the Hub about the base's vocabulary."""
        self.model.save_pretrained(output_dir, state_dict=state_dict, save_embedding_layers=False, is_main_process=self.args.should_save)


class StopAndSave(EarlyStoppingCallback):
    """Early stopping that keeps what it stopped at."""

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        super().on_evaluate(args, state, control, metrics, **kwargs)
        control.should_save |= control.should_training_stop


# --- what is said and written meanwhile --------------------------------------------------------------------------

class Reporter(TrainerCallback):
    """log.jsonl, a printed line every few steps, and glmlab.json once the Trainer has saved a checkpoint."""

    def __init__(self, folder: Path, facts: dict, log):
        """facts: what glmlab.json says besides step, metrics and files."""
        self.folder, self.facts, self.log = folder, facts, log
        self.trainer = None  # set once it exists
        self.before = max((entry["seconds"] for entry in runs.read_log(folder)), default=0.0)  # of earlier sessions

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = self.mark = time.perf_counter()
        self.first_step = state.global_step
        self.seconds, self.last = 0.0, (0.0, 0, 0)  # training time without evaluations and checkpoints; it and tokens at the last event

    def on_step_end(self, args, state, control, **kwargs):
        """Whatever is saved was logged before, so that a resumed run averages its loss over the same steps."""
        now = time.perf_counter()
        self.seconds, self.mark = self.seconds + now - self.mark, now
        control.should_log |= control.should_save or control.should_evaluate

    def on_log(self, args, state, control, logs, **kwargs):
        """Trainer's event -> ours. The Trainer's closing statistics are none."""
        if not state.is_world_process_zero or not {"loss", "eval_loss"} & logs.keys():
            return
        since = time.perf_counter() - self.started
        entry = {"step": state.global_step, "epoch": round(logs["epoch"], 4)}
        if "loss" in logs:
            now = (self.seconds, self.trainer.computed, self.trainer.labelled)
            seconds, computed, labelled = (new - old for new, old in zip(now, self.last))
            self.last = now
            entry |= {name: logs[name] for name in ("loss", "learning_rate", "grad_norm")}
            entry |= {"tokens_per_second": round(computed / seconds), "labelled_per_second": round(labelled / seconds)}
        else:
            entry |= {name: logs[name] for name in ("eval_loss", "eval_accuracy")} | {"eval_seconds": round(logs["eval_runtime"], 2)}
        entry |= {"memory_gib": round(memory_used() / 2**30, 3), "seconds": round(self.before + since, 2)}
        runs.append_log(self.folder, entry)
        left = since / (state.global_step - self.first_step) * (state.max_steps - state.global_step)
        self.log(_line(entry, state.max_steps, left))

    def on_evaluate(self, args, state, control, **kwargs):
        self.mark = time.perf_counter()

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            checkpoint = self.folder / f"checkpoint-{state.global_step}"
            if state.best_model_checkpoint:  # an absolute path that nothing here needs
                state.best_model_checkpoint = None
                state.save_to_json(str(checkpoint / "trainer_state.json"))
            metrics = {}
            for event in state.log_history:  # the later one counts
                metrics |= {name: event[name] for name in ("loss", "eval_loss", "eval_accuracy") if name in event}
            runs.finish_checkpoint(checkpoint, step=state.global_step, last=control.should_training_stop, metrics=metrics, **self.facts)
        self.mark = time.perf_counter()


def _line(entry: dict, steps: int, left: float) -> str:
    """One event for a reader."""
    at = f"step {entry['step']:>{len(str(steps))}}/{steps}"
    if "eval_loss" in entry:
        return f"{at}  dev loss {entry['eval_loss']:.4f}  answers right {entry['eval_accuracy']:.1%}  ({entry['eval_seconds']:.0f} s)"
    return (f"{at}  loss {entry['loss']:.4f}  lr {entry['learning_rate']:.1e}  {entry['tokens_per_second']:,} tokens/s, "
            f"{entry['labelled_per_second']:,} labelled  {entry['memory_gib']:.2f} GiB  {clock(left)} left")


def clock(seconds: float) -> str:
    """123.4 -> 2:03"""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def log_interval(steps: int) -> int:
    """Every how many steps to report: 1, 2, 5, 10, 20, … so that a run prints at most LINES lines."""
    return next(interval for power in range(12) for interval in (10**power, 2 * 10**power, 5 * 10**power) if steps <= LINES * interval)
