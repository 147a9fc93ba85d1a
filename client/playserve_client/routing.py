"""Which of several servers a session is opened on: the one with most free slots; then the next. No I/O."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import grpc

from playserve.errors import BadSettingError, PlayserveError, SessionNotFoundError, TimeoutExceededError
from playserve.v1 import types_pb2 as pb
from playserve_client.channels import stream_was_lost

__all__ = ["ASK_S", "free_slots", "ranked", "split_addresses", "try_elsewhere"]

#: Longest wait for the free slots of a server, seconds; one that does not say is tried last.
ASK_S = 2.0
_FULL = ("NO_FREE_SLOT", "DRAINING", "NOT_READY")


def split_addresses(address: str | Sequence[str]) -> tuple[str, ...]:
    """Return the servers that an address names: one, several by commas, or a list of them.

    Raises:
        BadSettingError: There is none, or one is empty.
    """
    if isinstance(address, str):
        # gRPC's own lists are one server to us: it balances by connections.
        parts = [address] if address.startswith(("ipv4:", "ipv6:")) else address.split(",")
    else:
        parts = list(address)
    targets = tuple(dict.fromkeys(part.strip() for part in parts))
    if not targets or not all(targets):
        raise BadSettingError(f"address {address!r}, wanted HOST:PORT or several of them by commas")
    return targets


def free_slots(policies: Sequence[pb.PolicySpec], policy: str, version: str) -> int:
    """Return how many more sessions a server has room for.

    Args:
        policies: What it lists, newest version first.
        policy: Name that is to be opened.
        version: Version or alias; empty: the newest.
    """
    same = [spec for spec in policies if spec.name == policy]
    if version:
        same = [spec for spec in same if spec.version == version or version in spec.aliases]
    return max((spec.slots_free for spec in same), default=0)


def ranked(free: Mapping[str, int | None], chance: random.Random) -> list[str]:
    """Return servers in the order in which they are to be tried; equal ones in any.

    Args:
        free: Free slots by server; None: it did not say.
        chance: Breaks ties, so that players who come together do not all go to the same one.
    """
    targets = list(free)
    chance.shuffle(targets)

    def key(target: str) -> int:
        slots = free[target]
        return 1 if slots is None else -slots

    return sorted(targets, key=key)


def try_elsewhere(error: PlayserveError, *, resuming: bool) -> bool:
    """Return whether another server may open what this one has refused.

    Args:
        error: How Open ended.
        resuming: Whether a session was to be resumed, which lives on one of the servers.
    """
    if error.reason:
        return error.reason in _FULL or (resuming and isinstance(error, SessionNotFoundError))
    return (
        isinstance(error, TimeoutExceededError)
        or error.code is grpc.StatusCode.DEADLINE_EXCEEDED
        or stream_was_lost(error)
    )
