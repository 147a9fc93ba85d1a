"""Many environments on one stream, sync. The async twin is `playserve_client.aio.rollout`."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from playserve.errors import PlayserveError, StateError, TimeoutExceededError
from playserve.v1 import policy_service_pb2 as ps
from playserve_client.inputs import Frame
from playserve_client.results import RolloutBatch
from playserve_client.rollout_core import Executed, Ids, RolloutCore, RolloutView
from playserve_client.session_view import CLOSE_WAIT_S, ended_by, ping_interval_s
from playserve_client.streams import Stream

__all__ = ["Rollout"]


class Rollout(RolloutView):
    """One rollout. :meth:`playserve_client.PolicyClient.rollout` makes it, open; a context manager that closes it.

    A rollout whose stream is lost is over: `recv` raises, and the episodes in flight are to be played again.

    Args:
        method: The stub's Rollout method.
        core: Messages.
        metadata: Metadata of the call.
        timeout_s: Longest wait for any answer, unless the call says otherwise.
        on_close: Called once, when the rollout is closed.
    """

    def __init__(
        self,
        method: Callable[..., Any],
        core: RolloutCore,
        *,
        metadata: Any,
        timeout_s: float,
        on_close: Callable[[Rollout], None],
    ) -> None:
        self._core, self._timeout_s, self._on_close = core, timeout_s, on_close
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._last_sent = time.monotonic()
        self._listener: Callable[[], None] = lambda: None
        self._keeper = threading.Thread(target=self._keep_alive, name="playserve-ping", daemon=True)
        self._stream = Stream(method, core.open_request(), metadata, timeout_s, self._on_message, self._on_end)
        self._stream.start()
        try:
            self._wait(lambda: core.opened is not None, timeout_s, "RolloutOpen")
        except BaseException:
            self._closing.set()
            self._stream.cancel()
            self._stream.join(CLOSE_WAIT_S)
            raise
        self._keeper.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(
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
        with self._changed:
            for request in self._core.step_requests(
                env_ids, episode_ids, inputs, episode_seeds, executed, instructions
            ):
                self._stream.send(request)
            self._last_sent = time.monotonic()

    def recv(self, timeout_s: float | None = None) -> RolloutBatch:
        """Return the next answers; which rows come together is up to the server.

        Raises:
            PlayserveError: A row failed (`env_id` says which; None: a whole message was refused) and the rollout goes
                on, or the rollout has ended and every later call raises the same.
        """
        with self._changed:
            self._wait(self._core.has_next, self._timeout_s if timeout_s is None else timeout_s, "a row")
            return self._core.take()

    def listen(self, on_change: Callable[[], None]) -> None:
        """Call `on_change` in the stream's own thread whenever :meth:`take` has something new; it must not wait.

        It saves who is interested a thread that waits in :meth:`recv`, and every answer the way to it.
        """
        with self._changed:
            self._listener = on_change

    def take(self) -> RolloutBatch | None:
        """Return what :meth:`recv` would return, or raise it, without waiting; None where it would wait."""
        with self._changed:
            return self._core.take() if self._core.has_next() else None

    def ping(self, timeout_s: float | None = None) -> float:
        """Return the round trip to the server in seconds."""
        started = time.monotonic()
        with self._changed:
            before = self._core.pongs
            self._stream.send(ps.RolloutRequest(ping=ps.Ping(nonce=1)))
            limit = self._timeout_s if timeout_s is None else timeout_s
            self._wait(lambda: self._core.pongs > before, limit, "Ping")
        return time.monotonic() - started

    def close(self, reason: str = "") -> None:
        """End the rollout; wait a little for the server to agree. Never raises what the server thinks of it."""
        first = not self._closing.is_set()
        self._closing.set()
        if first:
            self._stream.send(ps.RolloutRequest(close=ps.Close(reason=reason)))
            self._stream.half_close()
        if not self._stream.join(min(CLOSE_WAIT_S, self._timeout_s)):
            self._stream.cancel()
            self._stream.join(CLOSE_WAIT_S)
        self._keeper.join(CLOSE_WAIT_S)
        if first:
            with self._changed:
                self._core.fail(StateError("it is closed"))
                self._changed.notify_all()
            self._on_close(self)

    def _wait(self, ready: Callable[[], bool], timeout_s: float, what: str) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: ready() or self._core.error is not None, timeout_s):
                raise TimeoutExceededError(f"{what} was not answered in {timeout_s:g} s")
            if not ready() and self._core.error is not None:
                raise self._core.error

    def _on_message(self, _stream: Stream, response: ps.RolloutResponse) -> None:
        with self._changed:
            if response.HasField("opened"):
                self._core.on_opened(response.opened)
            else:
                self._core.on_response(response)
            self._changed.notify_all()
            listener = self._listener
        listener()

    def _on_end(self, _stream: Stream, error: PlayserveError | None) -> None:
        with self._changed:
            self._core.fail(ended_by(error, closing=self._closing.is_set()))
            self._changed.notify_all()
            listener = self._listener
        listener()

    def _keep_alive(self) -> None:
        interval_s = ping_interval_s(self.opened)
        while not self._closing.wait(interval_s / 3) and self._core.error is None:
            with self._changed, contextlib.suppress(PlayserveError):
                if time.monotonic() - self._last_sent > interval_s * 2 / 3:
                    self._stream.send(ps.RolloutRequest(ping=ps.Ping()))
                    self._last_sent = time.monotonic()
