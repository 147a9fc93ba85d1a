"""Many environments on one stream, asyncio. The sync twin is `playserve_client.rollout`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from types import TracebackType
from typing import Any, Self

from playserve.errors import PlayserveError, StateError
from playserve.v1 import policy_service_pb2 as ps
from playserve_client.aio.streams import Signal, Stream
from playserve_client.inputs import Frame
from playserve_client.results import RolloutBatch
from playserve_client.rollout_core import Executed, Ids, RolloutCore, RolloutView
from playserve_client.routing import try_elsewhere
from playserve_client.session_view import CLOSE_WAIT_S, ended_by, ping_interval_s

__all__ = ["Rollout"]


class Rollout(RolloutView):
    """One rollout. :meth:`playserve_client.aio.PolicyClient.rollout` makes it: ``async with`` or ``await`` opens it.

    A rollout whose stream is lost is over: `recv` raises, and the episodes in flight are to be played again.

    Args:
        dial: Takes an address (None: the client's own) and gives the stub's Rollout method.
        core: Messages.
        metadata: Metadata of the call.
        timeout_s: Longest wait for any answer, unless the call says otherwise.
        on_close: Called once, when the rollout is closed.
        places: Gives the addresses at which it may be opened, best first; None among them: the client's own.
    """

    def __init__(
        self,
        dial: Callable[[str | None], Callable[..., Any]],
        core: RolloutCore,
        *,
        metadata: Any,
        timeout_s: float,
        on_close: Callable[[Rollout], None],
        places: Callable[[], Awaitable[Sequence[str | None]]],
    ) -> None:
        self._places = places
        self._dial, self._core, self._metadata = dial, core, metadata
        self._timeout_s, self._on_close = timeout_s, on_close
        self._changed = Signal()
        self._closing = asyncio.Event()
        self._listener: Callable[[], None] = lambda: None
        self._last_sent = time.monotonic()
        self._stream: Stream | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def __await__(self) -> Generator[Any, None, Self]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Self:
        if self._stream is None:
            try:
                stream = await self._open_somewhere()
            except BaseException:
                self._cancel()
                await self._finish(first=True)
                raise
            self._tasks.append(asyncio.create_task(self._keep_alive(stream), name="playserve-ping"))
        return self

    async def _open_somewhere(self) -> Stream:
        """Open at the best server that does not refuse."""
        *others, last = await self._places()
        for address in others:
            try:
                return await self._open_at(address)
            except PlayserveError as error:
                if not try_elsewhere(error, resuming=False):
                    raise
                self._cancel()
                await asyncio.wait(self._tasks)
        return await self._open_at(last)

    async def _open_at(self, address: str | None) -> Stream:
        self._core.error = None
        stream = self._stream = Stream(self._dial(address), self._metadata)
        self._tasks = [asyncio.create_task(self._run(stream), name="playserve-stream")]
        await self._wait(lambda: self._core.opened is not None, self._timeout_s, "RolloutOpen")
        return stream

    def _cancel(self) -> None:
        if self._stream is not None:
            self._stream.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def send(
        self,
        env_ids: Ids,
        episode_ids: Ids,
        inputs: Frame,
        episode_seeds: Ids | None = None,
        executed: Executed | None = None,
        instructions: Sequence[str] | None = None,
    ) -> None:
        """Send one step of n environments without waiting. Several may be in flight; a row's answers come in order.

        Args:
            env_ids: n environments, 0..num_envs-1, none twice.
            episode_ids: n episodes; a higher id than the row's last empties its memory.
            inputs: One array [n, *shape], where the policy has one required input, or such arrays by input name.
            episode_seeds: n seeds, read where an episode is new; None: derived from the rollout's seed.
            executed: What was really executed, by environment, in answer to its last row, where it was not the answer.
            instructions: n instructions, read where an episode is new; None: episodes without one.
        """
        for request in self._core.step_requests(env_ids, episode_ids, inputs, episode_seeds, executed, instructions):
            self._opened_stream().send(request)
        self._last_sent = time.monotonic()

    async def recv(self, timeout_s: float | None = None) -> RolloutBatch:
        """Return the next answers; which rows come together is up to the server.

        Raises:
            PlayserveError: A row failed (`env_id` says which; None: a whole message was refused) and the rollout goes
                on, or the rollout has ended and every later call raises the same.
        """
        await self._wait(self._core.has_next, self._timeout_s if timeout_s is None else timeout_s, "a row")
        return self._core.take()

    def listen(self, on_change: Callable[[], None]) -> None:
        """Call `on_change` in the event loop whenever :meth:`take` has something new; it must not wait."""
        self._listener = on_change

    def take(self) -> RolloutBatch | None:
        """Return what :meth:`recv` would return, or raise it, without waiting; None where it would wait."""
        return self._core.take() if self._core.has_next() else None

    async def ping(self, timeout_s: float | None = None) -> float:
        """Return the round trip to the server in seconds."""
        started, before = time.monotonic(), self._core.pongs
        self._opened_stream().send(ps.RolloutRequest(ping=ps.Ping(nonce=1)))
        limit = self._timeout_s if timeout_s is None else timeout_s
        await self._wait(lambda: self._core.pongs > before, limit, "Ping")
        return time.monotonic() - started

    async def close(self, reason: str = "") -> None:
        """End the rollout; wait a little for the server to agree. Never raises what the server thinks of it."""
        first = not self._closing.is_set()
        self._closing.set()
        if first and self._stream is not None:
            self._stream.send(ps.RolloutRequest(close=ps.Close(reason=reason)))
            self._stream.half_close()
        await self._finish(first)

    async def _finish(self, first: bool) -> None:
        self._closing.set()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=min(CLOSE_WAIT_S, self._timeout_s))
        for task in self._tasks:
            if not task.done():
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if first:
            self._core.fail(StateError("it is closed"))
            self._changed.notify()
            self._on_close(self)

    def _opened_stream(self) -> Stream:
        if self._stream is None:
            raise StateError("the rollout is not open yet")
        return self._stream

    async def _wait(self, ready: Callable[[], bool], timeout_s: float, what: str) -> None:
        await self._changed.wait(lambda: ready() or self._core.error is not None, timeout_s, what)
        if not ready() and self._core.error is not None:
            raise self._core.error

    async def _run(self, stream: Stream) -> None:
        error = await stream.run(self._core.open_request(), self._timeout_s, self._on_message)
        self._core.fail(ended_by(error, closing=self._closing.is_set()))
        self._changed.notify()
        self._listener()

    def _on_message(self, _stream: Stream, response: ps.RolloutResponse) -> None:
        if response.HasField("opened"):
            self._core.on_opened(response.opened)
        else:
            self._core.on_response(response)
        self._changed.notify()
        self._listener()

    async def _keep_alive(self, stream: Stream) -> None:
        interval_s = ping_interval_s(self.opened)
        while not self._closing.is_set() and self._core.error is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_s / 3):
                    await self._closing.wait()
            if time.monotonic() - self._last_sent > interval_s * 2 / 3:
                stream.send(ps.RolloutRequest(ping=ps.Ping()))
                self._last_sent = time.monotonic()
