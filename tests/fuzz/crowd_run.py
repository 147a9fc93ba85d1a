"""Lets a crowd loose on a server of its own, beside a bystander, and looks what is left of it afterwards."""

from __future__ import annotations

import asyncio
import math
import re
import time
import urllib.request
from typing import Any

import grpc
from bystander import Bystander
from contract_kit.servers import ServerProcess, serving
from crowd import Crowd

from playserve.v1 import policy_service_pb2 as ps
from playserve.v1.policy_service_pb2_grpc import PolicyServiceStub

__all__ = ["run_beside_bystander"]

_POLICIES = ("memory", "catch_up", "frames", "world", "world_desktop")
_FLAGS = ("--slots", "32", "--max-batch", "4", "--fixed-batch", "--metrics-port", "0", "--detach-window-s", "1",
          "--idle-timeout-s", "20")  # fmt: skip
_GAUGES = {
    "fds": "process_open_fds", "rss_mib": "process_resident_memory_bytes", "tasks": "playserve_tasks",
}  # fmt: skip


def _gauges(server: ServerProcess) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{server.address_of('metrics')}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    values = dict(re.findall(r"^(\w+(?:\{.*?\})?) (\S+)$", text, re.MULTILINE))
    found = {name: float(values[key]) for name, key in _GAUGES.items()}
    found["rss_mib"] = round(found["rss_mib"] / (1 << 20), 1)
    found["sessions"] = sum(float(v) for k, v in values.items() if k.startswith("playserve_sessions_open{"))
    found["slots_used"] = sum(float(v) for k, v in values.items() if k.startswith("playserve_slots_used{"))
    return found


def _settled(server: ServerProcess, before: dict[str, float]) -> dict[str, float]:
    """Return the gauges once they are back where they were; as they are after a minute."""
    deadline = time.monotonic() + 60
    while True:
        now = _gauges(server)
        back = all(now[name] <= before[name] for name in ("fds", "tasks", "sessions", "slots_used"))
        if back or time.monotonic() > deadline:
            return now
        time.sleep(0.1)


def run_beside_bystander(messages: int, lanes: int, seed: int, seconds: float = math.inf) -> dict[str, Any]:
    """Send so many messages, or as many as fit; return what came back and the gauges before and after.

    Raises:
        AssertionError: The server died, the bystander noticed something, or an error has no documented reason.
    """
    with serving(_POLICIES, *_FLAGS) as server:
        with grpc.insecure_channel(server.address) as channel:
            stub = PolicyServiceStub(channel)
            specs = list(stub.ListPolicies(ps.ListPoliciesRequest(), timeout=30).policies)
        while not (before := _gauges(server))["tasks"]:  # they are counted a few times a second
            time.sleep(0.1)
        with Bystander(server.address):
            tally = asyncio.run(Crowd(server.address, specs, messages, lanes, seed, seconds).run())
        after = _settled(server, before)
        assert server.process.poll() is None, server.log()
        assert "Traceback" not in server.log(), server.log()[-4000:]
        assert not tally.undocumented(), tally.undocumented()
        return {
            "messages": tally.sent, "answers": tally.received, "streams": tally.streams, "resumed": tally.resumed,
            "ends": dict(tally.ends.most_common()), "in_band": dict(tally.in_band.most_common()), "before": before,
            "after": after,
        }  # fmt: skip
