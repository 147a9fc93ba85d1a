"""Probes and metrics; none of them needs a key."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import generate_latest
from pydantic import BaseModel

from playserve_services.control.context import Ctx
from playserve_services.control.problems import RESPONSES

__all__ = ["router"]

router = APIRouter(tags=["health"], responses=RESPONSES)


class Health(BaseModel):
    """An answer to a probe."""

    status: str


@router.get("/healthz")
async def healthz() -> Health:
    """Say that this process answers."""
    return Health(status="alive")


@router.get("/readyz")
def readyz(context: Ctx) -> Health:
    """Say that the registry's database answers, or 503."""
    context.database.ping()
    return Health(status="ready")


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(context: Ctx) -> Response:
    """Return the metrics, for Prometheus."""
    return Response(generate_latest(context.metrics.registry), media_type="text/plain; version=0.0.4; charset=utf-8")
