"""The Hugging Face Trainer on batches of packing.py: collator, loss, evaluation; the log and the lines it prints.

On several processes each reads all samples of an optimizer step and computes its part of them, so that a step is the same samples,
weighted alike, whatever the number of processes; only rounding and what dropout draws differ.
"""

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from glmlab import chat, memory, packing, processes, runs
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


def deal(samples: list[chat.Sample], count: int) -> list[list[chat.Sample]]:
    """The samples of a step for each of `count` processes: the longest first, each to the process with the fewest tokens so far."""
    shares: list[list[int]] = [[] for _ in range(count)]
    tokens = [0] * count
    for place in sorted(range(len(samples)), key=lambda place: -len(samples[place].ids)):
        process = tokens.index(min(tokens))
        shares[process].append(place)
        tokens[process] += len(samples[place].ids)
    return [[samples[place] for place in sorted(share)] for share in shares]


class PackTrainer(Trainer):
    """The Trainer on batches of packing.py: one batch is all samples of an optimizer step, computed in as many passes as it takes.

    The loss of a step is the mean over all labelled tokens of its samples, on all processes. Which samples share a pass does not
    change it.
    """

    loss_is_scaled_for_ga = True  # training_step divides by the tokens of the whole step

    def __init__(self, *args, collator: Collator, eval_collator: Collator, pack_tokens: int, rows: int, log=print,
                 asked_to_stop: Callable[[], bool] = lambda: False, **kwargs):
        """pack_tokens: tokens of one packed pass. rows: samples of one padded pass. Both are the same on all processes.
        asked_to_stop: tells whether this process was interrupted; then all of them stop after the same step."""
        super().__init__(*args, data_collator=lambda samples: {"samples": samples}, **kwargs)
        self.collator, self.eval_collator, self.pack_tokens, self.rows, self.said = collator, eval_collator, pack_tokens, rows, log
        self.asked_to_stop = asked_to_stop
        self.bf16 = self.model.dtype == torch.bfloat16  # asked now: a sharded model has no simple answer
        self.computed = self.labelled = 0  # tokens so far in this session, of all processes
        if self.is_fsdp_enabled:
            self._check_sharding(self.accelerator.state.fsdp_plugin)

    def get_train_dataloader(self) -> DataLoader:
        """The steps of one process on every process, in its order; `_passes` divides each step."""
        loader = super().get_train_dataloader()
        if self.accelerator.num_processes > 1:  # accelerate would give each process other steps, and fill up the last with repeated rows
            shard = loader.batch_sampler
            shard.num_processes, shard.process_index, shard.even_batches = 1, 0, False
        return loader

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The samples of one optimizer step and their labelled tokens."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, sum(packing.labelled(sample) for batch in batches for sample in batch["samples"])

    def floating_point_ops(self, inputs):
        """The Trainer's estimate reads a tensor that a list of samples has not."""
        return 0

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Forward and backward passes of one optimizer step.

        When the memory does not suffice, the step begins anew with packs half as long, and when the layers cannot be compiled, with plain
        ones; nothing of it is lost.
        Errors: the memory error of a sample that does not fit alone; FloatingPointError before a loss that is no number spoils the adapter.
        """
        states = [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if self.args.device.type == "cuda" else [])]
        while True:
            try:
                return self._step(model, inputs["samples"], num_items_in_batch)
            except RuntimeError as error:
                if not self._release(error) and not self._halve(inputs["samples"], error):
                    raise
            model.zero_grad()
            torch.set_rng_state(states[0])
            if len(states) > 1:
                torch.cuda.set_rng_state(states[1])
                torch.cuda.empty_cache()

    def _step(self, model, samples: list[chat.Sample], total: int) -> torch.Tensor:
        model.train()
        passes, count = self._passes(samples), self.accelerator.num_processes
        loss, computed = torch.zeros((), device=self.args.device), 0
        for number, (chosen, weight) in enumerate(passes):
            batch = self._prepare_inputs(self.collator(chosen))
            with nullcontext() if number == len(passes) - 1 else self.accelerator.no_sync(model):
                with self.autocast_smart_context_manager():  # several processes each get the mean of their gradients, hence the factor
                    part = packing.loss_sum(model, batch) * weight / total * count
                self.accelerator.backward(part)
            loss += part.detach()
            computed += batch["input_ids"].numel()
        facts = torch.stack([loss, *torch.tensor([computed, self.asked_to_stop()], device=loss.device, dtype=loss.dtype)])
        facts = self.accelerator.reduce(facts, "sum")  # what one process knows, all must know: they fail and stop together
        loss, (_, computed, stop) = facts[0] / count, facts.tolist()
        if not torch.isfinite(loss):
            hint = " or use bf16 instead of fp16" if self.args.fp16 else ""
            raise processes.on_all(FloatingPointError(f"the loss is {loss.item()} at step {self.state.global_step + 1}; lower "
                                                      f"learning_rate{hint}"))
        if stop:
            raise processes.on_all(KeyboardInterrupt())
        self.computed, self.labelled = self.computed + int(computed), self.labelled + total
        return loss

    def _passes(self, samples: list[chat.Sample]) -> list[tuple[list[chat.Sample], int]]:
        """(samples, 1) of each pass of this process over its share of a step.

        Every process takes equally many, because weights or gradients are exchanged in each; one that has no more repeats samples that
        count 0.
        """
        found = [self.collator.passes(share, self.pack_tokens, self.rows) for share in deal(samples, self.accelerator.num_processes)]
        mine = found[self.accelerator.process_index]
        return [(chosen, 1) for chosen in mine] + [(mine[-1] if mine else samples[:1], 0)] * (max(map(len, found)) - len(mine))

    def _release(self, error: RuntimeError) -> bool:
        """After an error of the compiler: plain layers from now on. False for another error."""
        from torch._dynamo.exc import TorchDynamoException
        if not isinstance(error, TorchDynamoException) or not memory.release_layers(self.model):
            return False
        self.said(f"layers are not compiled from step {self.state.global_step + 1} on: {type(error).__name__}: {str(error).splitlines()[0]}")
        return True

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
        return torch.autocast(self.args.device.type, dtype=torch.bfloat16, enabled=self.bf16, cache_enabled=cache_enabled)

    # --- evaluation ----------------------------------------------------------------------------------------------

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """All dev samples in their order, on every process."""
        return DataLoader(self.eval_dataset, self.args.eval_batch_size, collate_fn=lambda samples: samples)

    def evaluation_loop(self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"):
        """Mean loss a labelled token, and the share of samples whose every labelled token is the most likely one.

        The batches are dealt to the processes and added up in their order: the same numbers as in one process. One that has no more
        repeats the last batch, because sharded weights are gathered in each.
        """
        count, mine = self.accelerator.num_processes, []
        self.model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]), self.autocast_smart_context_manager():  # a DataLoader draws a seed
            batches = list(dataloader)
            for number in range(self.accelerator.process_index, -(-len(batches) // count) * count, count):
                found = self._evaluated(batches[min(number, len(batches) - 1)])
                mine += [(number, *found)] if number < len(batches) else []
        _, losses, tokens, wrong, rows = zip(*sorted(processes.joined(mine)))
        metrics = {f"{metric_key_prefix}_loss": sum(losses) / sum(tokens), f"{metric_key_prefix}_accuracy": 1 - sum(wrong) / sum(rows)}
        return EvalLoopOutput(None, None, metrics, sum(rows))

    def _evaluated(self, samples: list[chat.Sample]) -> tuple[float, int, int, int]:
        """Summed loss, labelled tokens, samples with a wrong token, samples."""
        batch = self._prepare_inputs(self.eval_collator(samples))
        logits = packing.label_logits(self.model, batch).float()
        loss = torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="sum").item()
        wrong = batch["sample"][logits.argmax(-1) != batch["labels"]].unique().numel()
        return loss, len(batch["labels"]), wrong, len(samples)

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def save_model(self, output_dir=None, _internal_call=False):
        """The adapter alone: no tokenizer, no pickled arguments, no question to the Hub about the base's vocabulary."""
        state = None
        if self.is_fsdp_enabled:  # all processes give their shards, one after another
            state = {name: weight.full_tensor().cpu() for name, weight in self.model.named_parameters() if weight.requires_grad}
        if self.args.should_save:
            self.model.save_pretrained(output_dir, state_dict=state, save_embedding_layers=False)

    def _check_sharding(self, plugin) -> None:
        if plugin.fsdp_version != 2:
            raise processes.on_all(ValueError(f"fsdp_version is {plugin.fsdp_version}; set it to 2, which shards a 4-bit base and a 32-bit "
                                              "adapter side by side, as in notebooks/settings/accelerate/fsdp.yaml"))
        plugin.set_state_dict_type("FULL_STATE_DICT")  # one optimizer file, as without shards

    def _save_optimizer_and_scheduler(self, output_dir):
        """Of a sharded run the optimizer's shards in one file; the Trainer would write the base beside it."""
        if not self.is_fsdp_enabled:
            return super()._save_optimizer_and_scheduler(output_dir)
        from accelerate.utils import save_fsdp_optimizer
        save_fsdp_optimizer(self.accelerator.state.fsdp_plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, "scheduler.pt"))

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """A sharded model got its adapter before it was sharded (`training.train`)."""
        if not self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)


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
        if args.process_index:  # each process drops other inputs of the adapter; a resumed run then takes up its saved random state
            torch.manual_seed(args.seed + args.process_index)
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
        self.trainer.accelerator.wait_for_everyone()  # every process has a file in the checkpoint
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
