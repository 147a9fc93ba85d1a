"""The fleet: replicas, slots, and how quickly they answer; draining one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Form, Request
from starlette.responses import RedirectResponse, Response

from playserve_services.control.context import Ctx
from playserve_services.control.history import Counts, History
from playserve_services.control.pages.access import AdminViewer, CheckedAdmin, Visitor
from playserve_services.control.pages.charts import fleet_charts
from playserve_services.control.pages.rendering import render
from playserve_services.control.repository.audit import revision
from playserve_services.control.routes import fleet as rest
from playserve_services.control.schemas import DrainIn, NameInPath, ReplicaOut

__all__ = ["Standing", "router", "standing"]

router = APIRouter()

#: What the numbers beside the charts are of.
LATELY_S = 300.0


@dataclass(frozen=True, slots=True)
class Standing:
    """A replica as a row shows it.

    Attributes:
        replica: What REST says of it.
        state: One word for people.
        lately: What it answered in the last minutes.
    """

    replica: ReplicaOut
    state: str
    lately: Counts

    @property
    def used(self) -> float:
        """Share of the slots that are used."""
        return min(1.0, self.replica.slots_used / self.replica.slots_total) if self.replica.slots_total else 0.0


def standing(replica: ReplicaOut, history: History, at: int) -> Standing:
    """Return how a replica stands.

    Args:
        replica: Which.
        history: Of the fleet.
        at: Revision of the registry; a replica that follows an older one is behind.
    """
    if not replica.fresh:
        state = "silent"
    elif replica.draining or replica.drain_wanted:
        state = "draining"
    elif replica.view_revision < at:
        state = "behind"
    else:
        state = "serving"
    return Standing(replica, state, history.lately(LATELY_S, replica.name))


def _standings(context: Ctx, replicas: Sequence[ReplicaOut]) -> list[Standing]:
    with context.database.read() as session:
        at = revision(session)
    return [standing(replica, context.history, at) for replica in replicas]


@router.get("/")
def fleet_page(request: Request, context: Ctx, viewer: Visitor) -> Response:
    """Show the fleet."""
    replicas = _standings(context, rest.get_replicas(context, viewer.caller))
    fresh = [item.replica for item in replicas if item.replica.fresh]
    return render(
        request, "fleet.html", viewer, section="fleet", replicas=replicas, fresh=len(fresh),
        slots_used=sum(item.slots_used for item in fresh), slots_total=sum(item.slots_total for item in fresh),
        lately=context.history.lately(LATELY_S), lately_s=LATELY_S, charts=fleet_charts(context.history),
    )  # fmt: skip


@router.get("/replicas/{name}")
def replica_page(name: NameInPath, request: Request, context: Ctx, viewer: Visitor) -> Response:
    """Show one replica and the sessions on it."""
    (item,) = _standings(context, [rest.get_one_replica(name, context, viewer.caller)])
    found = rest.get_sessions(context, viewer.caller, replica=name, policy="")
    return render(
        request, "replica.html", viewer, section="fleet", item=item, found=found,
        charts=fleet_charts(context.history, replica=name),
    )  # fmt: skip


@router.get("/replicas/{name}/drain")
def drain_page(name: NameInPath, request: Request, context: Ctx, viewer: AdminViewer) -> Response:
    """Ask whether a replica is really to drain."""
    replica = rest.get_one_replica(name, context, viewer.caller)
    return render(request, "drain.html", viewer, section="fleet", replica=replica)


@router.post("/replicas/{name}/drain")
def send_drain(
    name: NameInPath,
    request: Request,
    context: Ctx,
    viewer: CheckedAdmin,
    grace_s: Annotated[str, Form(pattern=r"^[0-9]{0,5}$")] = "",
) -> Response:
    """Have a replica drain."""
    body = DrainIn(grace_s=float(grace_s)) if grace_s else None
    told = rest.drain_replica(name, context, viewer.caller, body).told
    return _to(request, name, "drain" if told else "drain-view")


@router.post("/replicas/{name}/undrain")
def send_undrain(name: NameInPath, request: Request, context: Ctx, viewer: CheckedAdmin) -> Response:
    """Take a drain out of the view."""
    rest.undo_drain(name, context, viewer.caller)
    return _to(request, name, "undrain")


def _to(request: Request, name: str, done: str) -> Response:
    return RedirectResponse(f"{request.scope['root_path']}/replicas/{name}?done={done}", 303)
