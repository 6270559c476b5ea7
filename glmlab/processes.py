"""Several processes that do one job, as `accelerate launch` starts them: who this one is, what it computes, how all learn of an error.

In one process everything here does nothing: there is one process, it is the first, and the work is all its own.
"""

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain

PATIENCE = timedelta(hours=1)  # how long a process waits for another one's part of an evaluation


# --- who am I ----------------------------------------------------------------------------------------------------

def start(device: str = "auto") -> None:
    """Join the processes that were launched together, before anything is loaded: each GPU then holds one process's model.

    device: as in the settings. Errors: ValueError for one that names a GPU, of which every process has its own, and for FSDP without GPUs.
    """
    if count() > 1 or "LOCAL_RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return
    if re.fullmatch(r"mps|cuda:\d+", str(device)):
        raise ValueError(f"device {device}: several processes take a GPU each; set device to auto, cuda or cpu, and choose GPUs with "
                         "CUDA_VISIBLE_DEVICES")
    import torch
    from accelerate import PartialState
    cpu = str(device) == "cpu" or not torch.cuda.is_available()
    if cpu and _asks_for_shards():
        raise ValueError("FSDP shares the weights between GPUs, and these processes use none; launch without the FSDP settings")
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # transformers would then load empty weights, which 4 bit cannot do
    PartialState(cpu=cpu, timeout=PATIENCE)


def end() -> None:
    """Leave the other processes, once all work is done."""
    if count() > 1:
        import torch
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def count() -> int:
    """How many processes do this job."""
    torch = sys.modules.get("torch")  # who has not loaded it has joined nobody
    there = torch and torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if there else 1


def rank() -> int:
    """The number of this process, from 0."""
    import torch
    return torch.distributed.get_rank() if count() > 1 else 0


def sharded() -> bool:
    """Whether the processes were launched to share one copy of the weights (FSDP)."""
    return count() > 1 and _asks_for_shards()


def _asks_for_shards() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


# --- dividing work -----------------------------------------------------------------------------------------------

def own(total: int) -> range:
    """The places, of `total`, that are this process's: neighbours, so that the parts put together are in order."""
    return range(total * rank() // count(), total * (rank() + 1) // count())


def scaled(progress: Callable[[int], None], mine: int, total: int) -> Callable[[int], None]:
    """Progress over this process's `mine` rows, told as if over all `total` rows: the others come along about as fast."""
    return lambda done: progress(done * total // max(1, mine))


def joined(part: list) -> list:
    """The parts of all processes in their order. Every process must call this, and gets all of it."""
    return list(chain(*_told(part)))


def _told(mine) -> list:
    """What each process told the others, by its number."""
    if count() == 1:
        return [mine]
    import torch
    found = [None] * count()
    torch.distributed.all_gather_object(found, mine)
    return found


# --- one error for all -------------------------------------------------------------------------------------------

def from_first(function: Callable):
    """What `function` returns in the first process, which alone runs it; its error is every process's."""
    if count() == 1:
        return function()
    import torch
    found = [None, None]
    if rank() == 0:
        try:
            found[0] = function()
        except Exception as error:
            found[1] = error
    torch.distributed.broadcast_object_list(found)
    if found[1] is not None:
        raise on_all(found[1])
    return found[0]


def together(function: Callable):
    """What `function` returns here, if it succeeds in every process; else the error, this process's own or that of another one."""
    if count() == 1:
        return function()
    result, mine = None, None
    try:
        result = function()
    except Exception as error:
        mine = error
    told = _told(None if mine is None else str(mine) or repr(mine))
    failed = [f"process {number}: {text}" for number, text in enumerate(told) if text is not None]
    if failed:
        raise on_all(mine or RuntimeError(failed[0]))
    return result


def on_all(error: BaseException) -> BaseException:
    """Mark an error that every process raises at the same place, so that one of them says it."""
    error.on_all = True
    return error


def as_far_as(error: BaseException, other: BaseException) -> BaseException:
    """The other error, which takes the place of the first, marked as that one is."""
    return on_all(other) if getattr(error, "on_all", False) else other


def tell(error: BaseException, say: Callable[[str], None]) -> None:
    """Say the error that ends this process, once where all end with it; the others wait until it is said, because the launcher ends all
    processes as soon as one has ended."""
    if count() == 1:
        return say(str(error))
    import torch
    if getattr(error, "on_all", False):
        if rank() == 0:
            say(str(error))
        torch.distributed.barrier()
    elif isinstance(error, torch.distributed.DistError) or "gloo" in str(error):
        say(f"process {rank()} ends because another one did")
    else:
        say(f"process {rank()}: {error}")


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Ctrl-C in training: several processes remember it until all can stop at the same step; a second one ends at once.

    Gives a function that tells whether this process was asked to stop. In one process Ctrl-C stays what it is.
    """
    if count() == 1:
        yield lambda: False
        return
    asked = []

    def remember(number, frame):
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)
