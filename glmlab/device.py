"""Which device and number format to compute with, and why; how much memory was used and is free."""

import os
import re
import sys
import time
from pathlib import Path

NAMES = {"bf16": "bfloat16", "bfloat16": "bfloat16", "fp16": "float16", "float16": "float16", "fp32": "float32", "float32": "float32"}
FP16_WARNING = "GLM models were published in bf16 and can overflow in fp16: watch for a loss of 0 or NaN"


def pick_device(wanted="auto"):
    """The device to compute on and the reason: `(torch.device, str)`.

    wanted: auto, cpu, cuda, cuda:N, mps or a torch.device. Errors: ValueError for a device that this machine does not have.
    """
    import torch
    wanted = str(wanted)
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device()), f"GPU found: {torch.cuda.get_device_name()}"
        if torch.backends.mps.is_available():
            return torch.device("mps"), "Apple GPU found"
        return torch.device("cpu"), f"no GPU found; {torch.get_num_threads()} threads"
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", wanted):
        raise ValueError(f"device {wanted!r} is not understood: use auto, cpu, cuda, cuda:N or mps")
    there = {"cpu": 1, "mps": int(torch.backends.mps.is_available()), "cuda": torch.cuda.device_count()}
    device = torch.device(wanted)
    if wanted == "cuda" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        device = torch.device("cuda", torch.cuda.current_device())  # of several processes each has its own
    if (device.index or 0) >= there[device.type]:
        has = ", ".join(f"{count} {kind}" for kind, count in there.items() if count)
        raise ValueError(f"device {wanted} is not on this machine (it has: {has}); use auto" + _cuda_hint(device))
    return device, "as asked for"


def _cuda_hint(device) -> str:
    import torch
    if device.type == "cuda" and not torch.backends.cuda.is_built():
        return "; this torch was built without CUDA: install the CUDA build to use an NVIDIA GPU"
    return ""


def pick_dtype(device, wanted="auto"):
    """The number format to compute in on a device and the reason: `(torch.dtype, str)`.

    wanted: auto, bf16, fp16, fp32, their long names, or a torch.dtype. Errors: ValueError for another name.
    """
    import torch
    if wanted != "auto":
        name = str(wanted).removeprefix("torch.")
        if name not in NAMES:
            raise ValueError(f"dtype {wanted!r} is not understood: use auto, bf16, fp16 or fp32")
        return getattr(torch, NAMES[name]), "as asked for" + _warning(torch.device(device), NAMES[name])
    kind = torch.device(device).type
    if kind == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "GPU with bf16 arithmetic"
        return torch.float16, f"GPU without bf16 arithmetic. {FP16_WARNING}"
    if kind == "cpu":
        unit = bf16_unit()
        if unit:
            return torch.bfloat16, f"CPU with {unit}: bf16 arithmetic"
        return torch.float32, "CPU without bf16 arithmetic (AVX512-BF16 or AMX): fp32 is faster there"
    return torch.float32, f"{kind}: fp32 is the format that works for every layer"


def _warning(device, name: str) -> str:
    if name == "float16":
        return f". {FP16_WARNING}" + ("; on a CPU it is also many times slower than fp32" if device.type == "cpu" else "")
    if name == "bfloat16" and device.type == "cpu" and not bf16_unit():
        return "; this CPU has no bf16 arithmetic: fp32 is faster"
    return ""


def bf16_unit() -> str:
    """The bf16 unit of this CPU: "AMX", "AVX512-BF16", "Arm BF16" or ""."""
    import torch
    probes = (("AMX", "_is_amx_tile_supported", "amx_bf16"), ("AVX512-BF16", "_is_avx512_bf16_supported", "avx512_bf16"),
              ("Arm BF16", "", "bf16"))
    flags = _cpu_flags()
    for unit, probe, flag in probes:
        if hasattr(torch.cpu, probe):
            if getattr(torch.cpu, probe)():
                return unit
        elif flag in flags:
            return unit
    return ""


def _cpu_flags() -> set[str]:
    """The feature words of the first core (Linux); empty elsewhere, where only torch's own probes count."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return set(line.group(1).split()) if line else set()


def memory_used() -> int:
    """Peak memory in bytes: of this process's tensors on the GPU where one is in use, else of the whole process."""
    torch = sys.modules.get("torch")  # a notebook without torch must not load it to learn its own memory
    if torch and torch.cuda.is_available() and torch.cuda.is_initialized():
        return max(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))
    try:
        import resource
    except ImportError:  # Windows has no resource module
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def cost(started: float, written: int = 0) -> str:
    """What a notebook cost so far, the line its card is made from: seconds since `started` (time.time()), peak memory, bytes written."""
    torch = sys.modules.get("torch")  # as in memory_used
    seconds = time.time() - started
    spent = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
    where = torch.cuda.get_device_name() if torch and torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return f"cost: {spent}; peak memory {memory_used() / 2**30:.1f} GiB; written {written / 1e6:.1f} MB; on {where}"


def free_memory(device="cpu") -> int:
    """Memory in bytes that is still free on a device; 0 where the system does not tell."""
    import torch
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        return int(re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE).group(1)) * 1024
    except (OSError, AttributeError):
        pages = "SC_AVPHYS_PAGES"
        return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE") if pages in getattr(os, "sysconf_names", {}) else 0
