"""Prompts of the intent task compared (notebook 05): what a form costs, shorter prompts, other wordings, one that depends on the call."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from glmlab.tasks import Task, intent
from glmlab.tasks.labels import GROUPS, LABELS

FORMAT = "\n输出格式：意图：编号：名称"


def listed(labels) -> str:
    """`id:name`, a line each."""
    return "\n".join(f"{label}:{intent.NAMES[label]}" for label in labels)


LIST = "意图列表：\n" + listed(range(len(LABELS)))
#: The prompt shortened step by step; the answer to learn stays the same.
SHORTER = {"whole prompt": intent.SYSTEM_PROMPT, "labels only": LIST, "ids only": "意图编号：0到33", "no prompt": ""}
#: Three ways to ask for the same, each with the whole list.
WORDINGS = {
    "expert": intent.SYSTEM_PROMPT,
    "plain": f"下面是一通客服电话的文字。请看客户打这个电话到底想要什么，在列表里选最合适的一项。\n{LIST}{FORMAT}",
    "steps": f"分三步判断客户的意图：先找出客户提出的每一件事，再去掉客户放弃的和客服推荐的，最后取有了结果的那一件。\n{LIST}{FORMAT}",
}
GROUP_ANSWERS = [f"类别：{name[:2]}" for name in GROUPS]


# --- tasks with another prompt -----------------------------------------------------------------------------------

def task(prompt: str | Callable[[intent.Call], str] = intent.SYSTEM_PROMPT) -> Task:
    """The intent task with another prompt: one for all calls, or a function of the call. Empty: no system turn."""
    def messages(call, text: str, answered: bool, form: str) -> list[dict]:
        return intent.messages(text, call.label if answered else None, form, prompt(call) if callable(prompt) else prompt)

    return replace(intent.TASK, messages=messages)


def _group_messages(call, text: str, answered: bool, form: str) -> list[dict]:
    """As the intent task asks, except that the user's turn wants the group only: the long prompt in front stays shared."""
    found = intent.messages(text, None, form)
    found[-1] = {"role": "user", "content": found[-1]["content"].removesuffix(f"对话：{text}") + f"只答类别。对话：{text}"}
    return [*found, {"role": "assistant", "content": GROUP_ANSWERS[LABELS[call.label].group]}] if answered else found


#: The second task of an adapter: 咨询, 投诉 or 办理.
GROUP_TASK = replace(intent.TASK, messages=_group_messages)


def balanced_samples(tokenizer, one: Task, calls: list, balance: float, max_length: int, form: str = "system") -> list:
    """Training samples of a task, each call encoded once, those of rare labels repeated (`intent.balanced`)."""
    from glmlab import encoding
    found, _ = encoding.samples(tokenizer, one, calls, max_length, form)
    return [found[place] for place in intent.balanced(calls, balance)]


def probabilities(model, tokenizer, one: Task, calls: list, answers: list[str], max_length: int, form: str = "system") -> np.ndarray:
    """How probable each answer is for each call: float (calls, answers)."""
    from glmlab import encoding, evaluation, scoring
    encoded = encoding.prompts(tokenizer, one, calls, encoding.room(model, max_length), form, 32)
    return scoring.score(model, tokenizer, [prompt.ids for prompt in encoded], answers, batch_tokens=evaluation.CPU_PASS_TOKENS)


# --- a prompt that depends on the call ---------------------------------------------------------------------------

def among(labels: list[int]) -> str:
    """The system prompt with a few candidates in place of the whole list, sorted by id, so that their order tells nothing."""
    return intent.SYSTEM_PROMPT.partition("意图列表：\n")[0] + "候选意图：\n" + listed(sorted(labels)) + FORMAT


def best(scores, k: int) -> list[list[int]]:
    """The k most probable labels of each row, best first."""
    return np.argsort(-np.asarray(scores), axis=1, kind="stable")[:, :k].tolist()


def with_truth(candidates: list[int], label: int) -> list[int]:
    """Candidates to train on: a truth that is missing takes the last place, or the prompt would contradict its answer."""
    return candidates if label in candidates else [*candidates[:-1], label]


def choose_among(scores, candidates: list[list[int]]) -> list[int]:
    """The most probable of each row's candidates. scores: float (rows, labels)."""
    return [max(labels, key=lambda label: row[label]) for row, labels in zip(scores, candidates, strict=True)]


def crossed(train: list, wanted: list) -> np.ndarray:
    """TF-IDF probabilities of training calls, float (wanted, 34), none from a model that saw the call: each half is judged by the other.

    wanted: calls of the same file, also such as are not in train. A model's guesses about calls that it has learned are better than
    those it will make in use.
    """
    from glmlab import baselines
    halves = train[::2], train[1::2]
    first = {call.row for call in halves[0]}
    found = np.zeros((len(wanted), len(LABELS)))
    for judge in (0, 1):
        places = [place for place, call in enumerate(wanted) if (call.row in first) == bool(judge)]
        if places:
            found[places] = baselines.label_probabilities(halves[judge], [wanted[place] for place in places])
    return found


# --- what a training step costs ----------------------------------------------------------------------------------

def step_cost(settings, calls: list, steps: int) -> dict:
    """Median seconds, computed tokens and peak memory of training steps, measured in a process of its own.

    settings: TrainSettings; form and share_prefix are what is compared. Step n takes the rows n x batch_size and following of calls.
    A process of its own, because the peak of this one would be that of the hungriest way so far. bytes: above what the loaded
    model takes. Errors: those of `training.prepare`; ValueError for too few calls.
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    if len(calls) < steps * settings.batch_size:
        raise ValueError(f"{steps} steps of {settings.batch_size} rows need {steps * settings.batch_size} calls, there are {len(calls)}")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as other:
        return other.submit(_step_cost, settings, calls, steps).result()


def _step_cost(settings, calls: list, steps: int) -> dict:
    import torch

    from glmlab import encoding, packing, training
    from glmlab.trainer import Collator
    model, tokenizer = training.prepare(settings)
    samples, _ = encoding.samples(tokenizer, task(), calls, settings.max_length, settings.form)
    collator = Collator(samples, settings.share_prefix, tokenizer)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], settings.learning_rate)
    before, seconds, tokens = peak_memory(), [], 0
    model.train()
    for step in range(steps):
        started = time.perf_counter()
        batch = packing.to(collator(samples[step * settings.batch_size : (step + 1) * settings.batch_size]), model.device)
        (packing.loss_sum(model, batch) / batch["weights"].sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        tokens += batch["input_ids"].numel()
    return {"seconds": statistics.median(seconds[1:] or seconds), "tokens": tokens / steps, "bytes": peak_memory() - before}


def peak_memory() -> int:
    """Peak memory of this process in bytes, as `device.memory_used`, but on Linux without what the process that started it had."""
    import torch

    from glmlab.device import memory_used
    status = Path("/proc/self/status")
    if torch.cuda.is_initialized() or not status.exists():
        return memory_used()
    lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))  # in KiB
