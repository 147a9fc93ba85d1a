"""A drain hands the sessions of this server to its peers, so that no game ends with it."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence

from playserve.errors import (
    NoFreeSlotError,
    NotReadyError,
    PlayserveError,
    ServerUnavailableError,
    SessionClosedError,
)
from playserve_services.inference.core import InferenceCore
from playserve_services.inference.handoff.giving import Given, Giver
from playserve_services.inference.handoff.metrics import HandoffMetrics
from playserve_services.inference.handoff.peers import Peer, Peers, Place, fitting
from playserve_services.inference.sessions import Session, SessionState

__all__ = ["Evacuation"]

_log = logging.getLogger(__name__)
#: Sessions that found no peer try again so often: one may come up, or have slots again.
_ROUND_S = 0.5
#: Each may have stood still for a moment: after so many a game is left in peace.
_MOST_FAILURES = 3


class Evacuation:
    """Gives the sessions of a draining server away. Event loop's thread only.

    Args:
        core: Owns the sessions.
        peers: Who may take them.
        metrics: Counted here.
        at_once: Sessions that are on their way at a time.
    """

    def __init__(self, core: InferenceCore, peers: Peers, metrics: HandoffMetrics, at_once: int) -> None:
        self._core = core
        self._peers = peers
        self._metrics = metrics
        self._at_once = at_once
        self._giver = Giver(core)
        self._told: set[str] = set()
        self._failures: Counter[str] = Counter()

    async def run(self) -> None:
        """Give away what can be given, for ever: what finds no place now may find one later."""
        while True:
            sessions = [
                s for s in self._core.sessions() if movable(s) and self._failures[s.session_id] < _MOST_FAILURES
            ]
            if sessions:
                try:
                    await self._round(sessions)
                except Exception:  # noqa: BLE001 - whatever a peer does, games go on
                    _log.exception("a round of handing sessions over failed")
            await asyncio.sleep(_ROUND_S)

    async def _round(self, sessions: Sequence[Session]) -> None:
        peers = await self._peers.look()
        if not peers:
            return
        turn = asyncio.Semaphore(self._at_once)

        async def move(session: Session) -> bool:
            async with turn:
                return await self._move(session, peers)

        tasks = [asyncio.create_task(move(session)) for session in sessions]
        try:
            done = await asyncio.gather(*tasks, return_exceptions=True)
        finally:  # the grace is over: what is on its way stays
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for session, outcome in zip(sessions, done, strict=True):
            if isinstance(outcome, BaseException):  # a bug of ours costs one session its move, and not its game
                self._failures[session.session_id] += 1
                _log.error("session %s could not be handed over", session.session_id, exc_info=outcome)
        moved = sum(outcome is True for outcome in done)
        if moved:
            _log.info("handed over %d of %d sessions; %d are left here", moved, len(sessions), len(self._core))

    async def _move(self, session: Session, peers: Sequence[Peer]) -> bool:
        """Give one session to the first peer that takes it; return whether one did."""
        spec = session.policy.spec
        place: Place = (spec.name, spec.version, session.policy.pool.digest)
        tried: set[str] = set()
        while movable(session):
            peer = next((p for p in fitting(peers, place) if p.address not in tried), None)
            if peer is None:
                self._stays(session, "no peer has the version, its layout and a free slot")
                return False
            tried.add(peer.address)
            if place in peer.free:
                peer.free[place] -= 1
            try:
                given = await self._giver.give(session, peer)
            except SessionClosedError:
                return False  # it ended by itself
            except PlayserveError as error:
                self._metrics.failed.labels(spec.name, error.reason or error.code.name).inc()
                self._stays(session, f"{peer.address}: {error}")
                if isinstance(error, ServerUnavailableError) and not isinstance(error, NotReadyError):
                    peer.shut = True  # it drains, too, or has gone
                elif not isinstance(error, ServerUnavailableError | NoFreeSlotError):
                    self._failures[session.session_id] += 1
            else:
                self._count(session, given)
                return True
        return False

    def _count(self, session: Session, given: Given) -> None:
        name = session.policy.spec.name
        self._metrics.given.labels(name).inc()
        self._metrics.pause.observe(given.pause_s)
        self._metrics.sent.inc(given.bytes_sent)
        _log.info(
            "session %s of %s lives at %s now: %d bytes, it stood still for %.1f ms",
            session.session_id, name, given.home.address, given.bytes_sent, given.pause_s * 1e3,
        )  # fmt: skip

    def _stays(self, session: Session, why: str) -> None:
        if session.session_id not in self._told:  # once a session, not once a round
            self._told.add(session.session_id)
            _log.warning("session %s stays here for now: %s", session.session_id, why)


def movable(session: Session) -> bool:
    """Return whether a session can go: a game whose player can be told where it lives, and nobody is ending it."""
    if session.rollout:  # it cannot be resumed; its episodes are played again from their seeds
        return False
    told = session.state is SessionState.OPEN and session.on_moved is not None
    return told or session.state is SessionState.DETACHED
