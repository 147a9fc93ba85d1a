"""How many sessions fit into memory: a session of a large policy holds as much as some models weigh."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from playserve.errors import BadSettingError
from playserve_trainer.models.policy import StateTensor

__all__ = ["SessionMemory", "free_bytes", "slot_bytes"]

_log = logging.getLogger(__name__)

_MIB = 1 << 20
# What sessions may take of the memory that is free, where nobody says how much: the rest is for newer versions of the
# weights, for computing, and, on a CPU, for whoever else is there.
_SHARE = {"cpu": 0.5}
_GPU_SHARE = 0.7
_CGROUP = Path("/sys/fs/cgroup")


def slot_bytes(layout: Mapping[str, StateTensor]) -> int:
    """Return the memory of one session of a layout, bytes."""
    return sum(torch.Size(t.shape).numel() * t.dtype.itemsize for t in layout.values())


def free_bytes(device: str | torch.device) -> int | None:
    """Return the memory that is free on a device now; None where that cannot be known."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    limit, used = _number(_CGROUP / "memory.max"), _number(_CGROUP / "memory.current")
    if limit is not None and used is not None:
        found.append(max(0, limit - used))
    return min(found) if found else None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return None


@dataclass(frozen=True, slots=True)
class SessionMemory:
    """Memory for the sessions of one state layout.

    Attributes:
        limit_bytes: Most that they may take; None: a share of what is free when the layout's first policy is loaded.
        device: Where they live.
    """

    limit_bytes: int | None = None
    device: str | torch.device = "cpu"

    def slots(self, name: str, layout: Mapping[str, StateTensor], most: int, promised: int = 0) -> int:
        """Return how many sessions of a layout there may be, and log it.

        Args:
            name: Of the policy, for people.
            layout: Memory of one session.
            most: What there may be whatever the memory.
            promised: Bytes that other layouts may take yet.

        Raises:
            BadSettingError: Not one fits.
        """
        size = slot_bytes(layout)
        if not size:
            return most
        budget, whence = self._budget(promised)
        fits = most if budget is None else min(most, budget // size - 1)  # one slot is scratch
        if fits < 1:
            raise BadSettingError(
                f"policy {name!r}: a session takes {size / _MIB:.1f} MiB, and there must be room for one more than is "
                f"played; {whence}"
            )
        _log.info(
            "policy %s: at most %d sessions of %.1f MiB each, %.1f MiB in all (%s)",
            name, fits, size / _MIB, (fits + 1) * size / _MIB, "--slots" if fits == most else whence,
        )  # fmt: skip
        return fits

    def _budget(self, promised: int) -> tuple[int | None, str]:
        """Return the bytes that may be taken, None where nothing is known, and where that number is from."""
        if self.limit_bytes is not None:
            return self.limit_bytes, f"--session-memory-mib is {self.limit_bytes // _MIB}"
        free = free_bytes(self.device)
        if free is None:
            return None, "nobody knows how much memory is free; see --session-memory-mib"
        kind = torch.device(self.device).type
        share = _SHARE.get(kind, _GPU_SHARE)
        # A GPU's pools are taken at once; the pages of a CPU's only when a session writes them.
        budget = int(share * free) - (promised if kind == "cpu" else 0)
        return budget, f"{share:.0%} of the {free // _MIB} MiB that are free; see --session-memory-mib"
