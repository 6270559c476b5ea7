"""What test_launch.py computes in one process and in two, test_gpu.py on one GPU and on two: `python tests/two_processes.py cpu|gpu OUT`
behind a launcher, or `run(OUT, PARTS)`.

Everything in one start, because starting takes longer than what is measured. Each part leaves its findings in OUT.
"""

import gc
import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path

from glmlab import chat, figures, launch, processes, trainer, training
from glmlab.__main__ import main
from glmlab.parameters import TrainSettings

import torch

OUT = Path()
SYSTEM = {"role": "system", "content": "你是电信客服质检员。输入是一通电话，输出它的意图。"}
TURNS = ["您好请讲", "我想查一下话费", "帮我把套餐取消吧", "怎么多扣了二十块钱", "好的先生", "流量包", "我不用了"]
ANSWERS = ["意图：6：咨询（含查询）账户信息", "意图：1：办理取消", "意图：10", "意图：7"]
CHATGLM = {"base": "chatglm-tiny", "target_modules": "query_key_value,dense_4h_to_h"}
RUNS = {"glm4-packed": {"pack_tokens": 90}, "glm4-padded": {"share_prefix": False, "batch_size": 2, "accumulation": 2},
        "glm4-4bit": {"method": "qlora"}, "chatglm-packed": CHATGLM, "chatglm-padded": CHATGLM | {"share_prefix": False}}
SHARDED = ("glm4-4bit", "glm4-packed")
EVERYWHERE = {"device": "auto", "layers": 0, "target_modules": "all-linear"}
GPU_RUNS = {"gpu-float32": EVERYWHERE, "gpu-4bit": EVERYWHERE | {"method": "qlora", "dtype": "bf16"}}


def settings(run: str, **changes) -> TrainSettings:
    """Three steps in float32, of four, one and four samples."""
    short = dict(run=run, base="glm4-tiny", method="lora", rank=4, alpha=8, dropout=0.0, learning_rate=1e-5, warmup_steps=0, steps=3,
                 checkpoint_steps=3, eval_steps=3, batch_size=4, dtype="fp32", device="cpu", layers=1, target_modules="gate_up_proj,down_proj")
    return TrainSettings(**short | changes)


def samples(tokenizer, count: int) -> list[chat.Sample]:
    """Samples of unequal length."""
    def one(number: int) -> chat.Sample:
        call = " ".join(TURNS[(number * step) % 7] for step in range(1, 3 + number % 4))
        return chat.encode_sample(tokenizer, [SYSTEM, {"role": "user", "content": f"对话：{call} {number}"},
                                              {"role": "assistant", "content": ANSWERS[number % 4]}])
    return [one(number) for number in range(count)]


def train(chosen: TrainSettings) -> Path:
    """Five samples, so that the last step of an epoch has one, and five for dev, of which a batch of four leaves one."""
    model, tokenizer = training.prepare(chosen)
    found = samples(tokenizer, 10)
    return training.train(chosen, model, tokenizer, found[:5], found[5:], {}, log=lambda line: None)


@contextmanager
def replaced(place, name: str, other):
    before = getattr(place, name)
    setattr(place, name, other)
    try:
        yield before
    finally:
        setattr(place, name, before)


def whole(weight: torch.Tensor) -> torch.Tensor:
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight.clone()


# --- training ----------------------------------------------------------------------------------------------------

def gradients(names=tuple(RUNS)) -> None:
    """The gradient of every optimizer step of every run, before it is clipped, and the samples of the steps."""
    for run in names:
        steps, seen = [], []

        def keep(self, model):
            steps.append({name: whole(weight.grad) for name, weight in self.model.named_parameters() if weight.requires_grad})
            return clip(self, model)

        def remember(self, model, inputs, total):
            seen.append([sample.ids for sample in inputs["samples"]])
            return step(self, model, inputs, total)

        with replaced(trainer.PackTrainer, "training_step", remember) as step, replaced(trainer.PackTrainer, "_clip_grad_norm", keep) as clip:
            train(settings(run, **(RUNS | GPU_RUNS)[run]))
        if processes.rank() == 0:
            torch.save({"gradients": steps, "samples": seen}, OUT / f"{run}.pt")


def goes_on(**more) -> None:
    """With dropout: in one piece, and interrupted in the last process and gone on with."""
    def stop(self, *rest):
        if self.state.global_step == 2 and processes.rank() == processes.count() - 1:
            self.asked_to_stop = lambda: True
        return step(self, *rest)

    dropped = {"dropout": 0.3, "steps": 4, "checkpoint_steps": 2, "eval_steps": 0} | more
    train(settings("whole", **dropped))
    (OUT / f"seed-{processes.rank()}").write_text(str(torch.initial_seed()))
    with replaced(trainer.PackTrainer, "_step", stop) as step:
        caught("interrupted", lambda: train(settings("interrupted", **dropped)))
    train(settings("interrupted", **dropped))


def stops_early() -> None:
    """A learning rate with which dev gets worse at once."""
    train(settings("early", learning_rate=0.1, steps=8, checkpoint_steps=1, eval_steps=1, early_stopping=1))


def sharded() -> None:
    """FSDP on CPUs, which accelerate offers for GPUs only: it is told that these are others."""
    from accelerate import PartialState
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType
    make = AcceleratorState.__init__

    def as_on_gpus(self, *args, **kwargs):
        if PartialState._shared_state.get("distributed_type") == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_XPU
        make(self, *args, **kwargs)

    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
                   "FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
    with replaced(AcceleratorState, "__init__", as_on_gpus):
        gradients(SHARDED)
        goes_on()


def on_gpus() -> None:
    gradients(GPU_RUNS)
    goes_on(**GPU_RUNS["gpu-4bit"])


# --- errors ------------------------------------------------------------------------------------------------------

def errors() -> None:
    """What goes wrong in one process goes wrong in all, before one of them waits for ever."""
    last = processes.rank() == processes.count() - 1

    def infinite(model, batch):
        return loss(model, batch) * (float("nan") if last else 1)

    with replaced(trainer.packing, "loss_sum", infinite) as loss:
        caught("not-finite", lambda: train(settings("not-finite")))
    caught("other-settings", lambda: train(settings("glm4-packed", rank=8)))
    caught("few-rows", lambda: train(settings("few-rows", batch_size=1)))
    caught("first-process", lambda: processes.from_first(lambda: {}["no such key"]))
    caught("last-process", lambda: processes.together(lambda: [] if not last else {}["no such key"]))


def caught(name: str, function) -> None:
    """Note what each process raises and what it says."""
    try:
        function()
    except BaseException as error:
        said = []
        processes.tell(error, said.append)
        (OUT / f"{name}-{processes.rank()}.json").write_text(json.dumps([type(error).__name__, str(error), said]))


# --- commands ----------------------------------------------------------------------------------------------------

def commands() -> None:
    """`train` and `eval`, the latter for a few rows of every task, without the picture that takes most of the time."""
    cpu = {"device": "cpu", "dtype": "fp32"}
    with replaced(processes, "end", lambda: None), replaced(figures, "confusion_matrix", lambda *args: None):
        launch.train("service", None, cpu | {"run": "command", "steps": "1", "checkpoint_steps": "1", "eval_steps": "0", "warmup_steps": "0",
                                             "train_samples": "6", "dev_samples": "2", "rank": "2"})
        for name, task, more in (("intent", "intent", {"samples": "20", "batch_size": "3"}),
                                 ("written", "intent", {"samples": "3", "mode": "generate"}),
                                 ("triplets", "triplets", {"samples": "3", "max_new_tokens": "24", "mode": "constrained"}),
                                 ("service", "service", {"samples": "1", "max_new_tokens": "12"}),
                                 ("medical", "medical", {"samples": "9", "max_new_tokens": "6"})):
            launch.evaluate(task, None, cpu | {"checkpoint": "-1", "output_dir": str(OUT / "eval" / name)} | more)


def run(out: Path, parts) -> None:
    global OUT
    OUT = out
    out.mkdir(parents=True, exist_ok=True)
    os.environ["GLMLAB_HOME"] = str(out)
    gc.collect()
    gc.freeze()  # accelerate collects garbage at the start of every training: 0.4 s over the imported libraries, unless they are frozen
    for part in parts:
        part()
    gc.unfreeze()


if __name__ == "__main__":
    where, out = sys.argv[1], Path(sys.argv[2])
    processes.start("cpu" if where == "cpu" else "auto")
    if where == "gpu":
        run(out, [on_gpus])
        processes.end()
    else:
        run(out, [gradients, goes_on, stops_early, errors, commands])
        run(out / "sharded", [sharded])
        (OUT / f"done-{processes.rank()}").touch()
        sys.exit(main(["train", "intent", "-p", "steps", "5", "-p", "device", "cpu"]))  # ends as a command with wrong settings ends
