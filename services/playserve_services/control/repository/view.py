"""The view that inference servers follow, and its ETag."""

from __future__ import annotations

import hashlib

from sqlalchemy import select
from sqlalchemy.orm import Session

from playserve_services.control.models import Replica
from playserve_services.control.repository.aliases import aliases_of
from playserve_services.control.repository.audit import revision
from playserve_services.control.repository.keys import live_keys
from playserve_services.control.repository.policies import list_policies
from playserve_services.registry_view import PolicyView, RegistryView

__all__ = ["build_view", "etag_of"]


def build_view(session: Session) -> RegistryView:
    """Return the registry at one moment. Keys that have expired since the last change are left out, too."""
    aliases = aliases_of(session)
    policies = {
        row.name: PolicyView(aliases=aliases.get(row.name, {}), canary_weight=row.canary_weight)
        for row in list_policies(session)
    }
    drained = select(Replica.name).where(Replica.drain_wanted.is_(True)).order_by(Replica.name)
    return RegistryView(
        revision=revision(session),
        policies=policies,
        keys=live_keys(session),
        draining=list(session.execute(drained).scalars()),
    )


def etag_of(body: bytes) -> str:
    """Return the ETag of a view: of all that is in it, since a key expires without a new revision."""
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'
