"""The Hugging Face Trainer on batches of packing.py: collator, loss, evaluation; the log and the lines it prints."""

import time
from contextlib import nullcontext
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

    def __call__(self, samples: list[chat.Sample]) -> dict:
        if self.prefix is None:
            return packing.pad(samples, self.pad_id, two_way=self.two_way)
        return packing.pack(samples, self.prefix, two_way=self.two_way)

    def passes(self, samples: list[chat.Sample], pack_tokens: int, rows: int) -> list[list[chat.Sample]]:
        """The samples of one optimizer step, split into forward passes: packs of at most pack_tokens, or padded batches of so many rows."""
        if self.prefix is None:
            return [samples[start : start + rows] for start in range(0, len(samples), rows)]
        return packing.bins(samples, self.prefix, pack_tokens)


class PackTrainer(Trainer):
    """The Trainer on batches of packing.py: one batch is all samples of an optimizer step, computed in as many passes as it takes.

    The loss of a step is the mean over all labelled tokens of its samples, on all processes. Which samples share a pass does not
    change it.
    """

    loss_is_scaled_for_ga = True  # training_step divides by the tokens of the whole step

    def __init__(self, *args, collator: Collator, eval_collator: Collator, pack_tokens: int, rows: int, log=print, **kwargs):
        """pack_tokens: tokens of one packed pass. rows: samples of one padded pass."""
        super().__init__(*args, data_collator=lambda samples: {"samples": samples}, **kwargs)
        self.collator, self.eval_collator, self.pack_tokens, self.rows, self.said = collator, eval_collator, pack_tokens, rows, log
        self.computed = self.labelled = 0  # tokens so far in this session

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The samples of one optimizer step and their labelled tokens on all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        total = torch.as_tensor(sum(packing.labelled(sample) for batch in batches for sample in batch["samples"]), device=device)
        return batches, self.accelerator.gather(total).sum()

    def floating_point_ops(self, inputs):
        """The Trainer's estimate reads a tensor that a list of samples has not."""
        return 0

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Forward and backward passes of one optimizer step.

        When the memory does not suffice, the step begins anew with packs half as long; nothing of it is lost.
        Errors: the memory error of a sample that does not fit alone; FloatingPointError before a loss that is no number spoils the adapter.
        """
        states = [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if self.args.device.type == "cuda" else [])]
        while True:
            try:
                return self._step(model, inputs["samples"], num_items_in_batch)
            except RuntimeError as error:
                if not self._halve(inputs["samples"], error):
                    raise
            model.zero_grad()
            torch.set_rng_state(states[0])
            if len(states) > 1:
                torch.cuda.set_rng_state(states[1])
                torch.cuda.empty_cache()

    def _step(self, model, samples: list[chat.Sample], total: torch.Tensor) -> torch.Tensor:
        model.train()
        passes = self._as_many_as_others(self.collator.passes(samples, self.pack_tokens, self.rows))
        loss, computed, labelled = torch.zeros((), device=self.args.device), 0, 0
        for number, (chosen, counts) in enumerate(passes):
            batch = self._prepare_inputs(self.collator(chosen))
            with nullcontext() if number == len(passes) - 1 else self.accelerator.no_sync(model):
                with self.autocast_smart_context_manager():  # several processes each get the mean of their gradients, hence the factor
                    part = packing.loss_sum(model, batch) * counts / total * self.accelerator.num_processes
                self.accelerator.backward(part)
            loss += part.detach()
            computed, labelled = computed + batch["input_ids"].numel(), labelled + len(batch["labels"])
        if not torch.isfinite(loss):
            hint = " or use bf16 instead of fp16" if self.args.fp16 else ""
            raise FloatingPointError(f"the loss is {loss.item()} at step {self.state.global_step + 1}; lower learning_rate{hint}")
        self.computed, self.labelled = self.computed + computed, self.labelled + labelled
        return loss

    def _as_many_as_others(self, passes: list[list[chat.Sample]]) -> list[tuple[list[chat.Sample], int]]:
        """(samples, 1) a pass; every process takes equally many, because sharded weights are gathered in each. Repeated ones count 0."""
        most = int(self.accelerator.gather(torch.tensor([len(passes)], device=self.args.device)).max())
        return [(chosen, 1) for chosen in passes] + [(passes[-1], 0)] * (most - len(passes))

    def _halve(self, samples: list[chat.Sample], error: RuntimeError) -> bool:
        """After a memory error: shorter packs from now on. False for another error, or when no pass can be made shorter."""
        if not isinstance(error, torch.OutOfMemoryError) and "not enough memory" not in str(error) or self.accelerator.num_processes > 1:
            return False
        if max(map(len, self.collator.passes(samples, self.pack_tokens, self.rows))) < 2:
            return False
        before = self.pack_tokens, self.rows
        self.pack_tokens, self.rows = self.pack_tokens // 2, max(1, self.rows // 2)
        what = f"rows of a pass {before[1]} -> {self.rows}" if self.collator.prefix is None else f"pack_tokens {before[0]:,} -> {self.pack_tokens:,}"
        self.said(f"out of memory at step {self.state.global_step + 1}: {what}; the step is computed again, nothing is lost")
        return True

    def autocast_smart_context_manager(self, cache_enabled=True):
        """bf16 arithmetic for the adapter on a bf16 base (see the module's docstring)."""
        on = self.model.dtype == torch.bfloat16
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16, enabled=on, cache_enabled=cache_enabled)

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
