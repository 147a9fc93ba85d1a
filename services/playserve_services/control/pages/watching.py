"""A watched session as server-sent events: the replica is dialled, and the browser gets what it can follow.

The newest event stands: a slow browser misses some, and neither the replica nor its player waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from starlette.concurrency import run_in_threadpool

from playserve.errors import PlayserveError, PolicyNotFoundError, from_rpc_error
from playserve.specs import PolicySpec
from playserve.v1 import admin_service_pb2 as ad
from playserve.v1.admin_service_pb2_grpc import AdminServiceStub
from playserve_client.channels import ClientSettings
from playserve_services.control.fleet import Fleet
from playserve_services.control.models import Replica
from playserve_services.control.pages.pictures import Picture

__all__ = ["events"]

#: Pictures a second at most.
_RATE_HZ = 15.0
_STATUS_TIMEOUT_S = 5.0
#: A comment is sent after so long without an event: proxies end what is silent, and a browser that left is noticed.
_SILENCE_S = 10.0
#: Whether the viewer may still watch is asked so often: who signs out, or whose key is revoked, sees no more.
_CHECK_S = 5.0


class _Newest:
    """Holds the newest event of a stream until it is read."""

    def __init__(self) -> None:
        self._event: ad.WatchSessionResponse | None = None
        self._end: BaseException | None = None
        self._over = False
        self._woken = asyncio.Event()

    async def fill(self, call: Any) -> None:
        """Read a stream to its end."""
        try:
            async for event in call:
                self._event = event
                self._woken.set()
        except grpc.RpcError as error:
            self._end = error
        finally:
            self._over = True
            self._woken.set()

    async def take(self) -> ad.WatchSessionResponse | None:
        """Return the newest event, None at the end; raises what ended the stream otherwise."""
        while self._event is None:
            if self._end is not None:
                raise self._end
            if self._over:
                return None
            self._woken.clear()
            await self._woken.wait()
        event, self._event = self._event, None
        return event


async def events(
    fleet: Fleet, replica: Replica, session_id: str, policy: str, allowed: Callable[[], Awaitable[bool]]
) -> AsyncIterator[str]:
    """Yield server-sent events: `step` with what was seen and done, `over` with why there is no more.

    Args:
        fleet: Knows how to dial.
        replica: Where the session is.
        session_id: Which.
        policy: Which it plays.
        allowed: Whether the viewer may still watch.
    """
    try:
        checked = time.monotonic()
        async for text in _events(fleet.settings_for(replica), session_id, policy):
            yield text
            if time.monotonic() - checked > _CHECK_S:
                checked = time.monotonic()
                if not await allowed():
                    yield _text("over", {"why": "You are not signed in any more."})
                    return
        yield _text("over", {"why": "The session is over."})
    except grpc.RpcError as error:
        typed = from_rpc_error(error)
        why = str(typed) if typed.reason else f"replica {replica.name}: {typed.code.name}"
        yield _text("over", {"why": why})
    except PlayserveError as error:
        yield _text("over", {"why": str(error)})


async def _events(settings: ClientSettings, session_id: str, policy: str) -> AsyncIterator[str]:
    async with settings.aio_channel() as channel:
        stub: Any = AdminServiceStub(channel)
        metadata = settings.metadata()
        status = await stub.GetStatus(ad.GetStatusRequest(), timeout=_STATUS_TIMEOUT_S, metadata=metadata)
        picture = Picture(_spec(status, policy))
        call = stub.WatchSession(ad.WatchSessionRequest(session_id=session_id), metadata=metadata)
        newest = _Newest()
        reader = asyncio.create_task(newest.fill(call))
        try:
            yield ": watching\n\n"
            while True:
                try:
                    event = await asyncio.wait_for(newest.take(), _SILENCE_S)
                except TimeoutError:
                    yield ": still here\n\n"
                    continue
                if event is None:
                    return
                yield _text("step", await run_in_threadpool(picture.event, event))
                await asyncio.sleep(1 / _RATE_HZ)
        finally:
            call.cancel()
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader


def _spec(status: ad.GetStatusResponse, policy: str) -> PolicySpec:
    for message in status.policies:
        if message.name == policy:
            return PolicySpec.from_proto(message)
    raise PolicyNotFoundError(f"the replica does not serve {policy!r} any more")


def _text(name: str, value: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(value, separators=(',', ':'))}\n\n"
