"""How a run computes: precision, threads, autocast."""

from __future__ import annotations

import contextlib
import os

import torch

__all__ = ["has_fast_bf16", "resolve_precision", "set_threads", "synchronize"]


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether the hardware computes in bfloat16: tensor cores, AMX, AVX-512 BF16.

    Other CPUs emulate it, ten times slower than float32.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return bool(able.get("amx_bf16") or able.get("avx512_bf16"))
    return False


def resolve_precision(name: str, device: torch.device) -> str:
    """Return "fp32" or "bf16"; "auto" is bf16 where :func:`has_fast_bf16`."""
    if name == "auto":
        return "bf16" if has_fast_bf16(device) else "fp32"
    return name


def set_threads(threads: int, processes: int = 1) -> int:
    """Set torch's CPU threads of this process; return their number.

    Args:
        threads: How many; 0: one for each core that the process may use.
        processes: Processes of the run, which share the cores of each machine.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes)) if processes > 1 else 1
    threads = threads or max(1, len(os.sched_getaffinity(0)) // here)
    torch.set_num_threads(threads)
    return threads


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Return the context of a forward pass."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
