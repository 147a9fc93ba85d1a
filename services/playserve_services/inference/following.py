"""Sessions that follow: newer weights of the same layout are taken between two steps."""

from __future__ import annotations

from collections.abc import Callable

from playserve_services.inference.catalog import Catalog, LoadedPolicy
from playserve_services.inference.sessions import Session, SessionState

__all__ = ["follow"]


def follow(session: Session, catalog: Catalog, embed_soon: Callable[[LoadedPolicy, str], None]) -> None:
    """Put a session that follows on the newest version, once that knows every instruction that the session needs.

    One that is moving stays on its version until it has arrived.
    """
    if not session.follow or session.state in (SessionState.ENDED, SessionState.MOVING):
        return
    newest = catalog.versions(session.policy.spec.name)
    if newest and newest[0] is not session.policy and newest[0].pool is session.policy.pool:
        for text in {session.settings.instruction, *(f.settings.instruction for s in session.slots for f in s.queue)}:
            if not newest[0].runtime.knows_instruction(text):
                embed_soon(newest[0], text)
                return
        session.policy.sessions -= 1
        session.policy = newest[0]
        session.policy.sessions += 1
