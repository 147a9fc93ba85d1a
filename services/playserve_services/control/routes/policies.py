"""Policies and versions: list, show, upload, register, and bring the registry up to what the store has."""

from __future__ import annotations

import shutil

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from playserve.errors import MalformedMessageError, MessageTooLargeError, PlayserveError
from playserve.specs import check_policy_name
from playserve_services.control.context import Admin, Anybody, Ctx, MayPublish
from playserve_services.control.models import PolicyRow
from playserve_services.control.problems import RESPONSES
from playserve_services.control.repository.aliases import aliases_of
from playserve_services.control.repository.policies import get_policy, get_version, list_policies, list_versions
from playserve_services.control.schemas import NameInPath, PolicyOut, SyncOut, VersionInPath, VersionOut
from playserve_services.control.uploads import CheckpointReceiver, receive

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["policies"], responses=RESPONSES)

_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["manifest", "weights"],
                    "properties": {
                        "manifest": {"type": "string", "format": "binary", "description": "manifest.json"},
                        "weights": {"type": "string", "format": "binary", "description": "model.safetensors"},
                    },
                }
            }
        },
    }
}


def _policy(row: PolicyRow, aliases: dict[str, dict[str, str]]) -> PolicyOut:
    return PolicyOut(
        name=row.name, aliases=aliases.get(row.name, {}), canary_weight=row.canary_weight, created_at=row.created_at
    )


@router.get("/policies")
def get_policies(context: Ctx, caller: Anybody) -> list[PolicyOut]:
    """Return every policy, with its aliases and canary weight."""
    with context.database.read() as session:
        aliases = aliases_of(session)
        return [_policy(row, aliases) for row in list_policies(session)]


@router.get("/policies/{policy}")
def get_one_policy(policy: NameInPath, context: Ctx, caller: Anybody) -> PolicyOut:
    """Return one policy."""
    with context.database.read() as session:
        return _policy(get_policy(session, policy), aliases_of(session, policy))


@router.get("/policies/{policy}/versions")
def get_versions(policy: NameInPath, context: Ctx, caller: Anybody) -> list[VersionOut]:
    """Return the versions of a policy, newest first."""
    with context.database.read() as session:
        return [VersionOut.model_validate(row) for row in list_versions(session, policy)]


@router.get("/policies/{policy}/versions/{version}")
def get_one_version(policy: NameInPath, version: VersionInPath, context: Ctx, caller: Anybody) -> VersionOut:
    """Return one version."""
    with context.database.read() as session:
        return VersionOut.model_validate(get_version(session, policy, version))


@router.post("/policies/{policy}/versions", status_code=201, openapi_extra=_UPLOAD)
async def publish_version(
    policy: NameInPath, request: Request, response: Response, context: Ctx, caller: MayPublish
) -> VersionOut:
    """Upload a checkpoint: it becomes the policy's next version, in the store and in the registry."""
    outcome = "failed"
    try:
        made = await _publish(policy, request, context, caller)
        outcome = "published"
    except PlayserveError as error:
        outcome = error.reason or error.code.name
        raise
    except ClientDisconnect as error:
        outcome = "broken_off"
        raise MalformedMessageError("the upload broke off") from error
    finally:
        context.metrics.published.labels(outcome).inc()
    response.headers["Location"] = f"/v1/policies/{policy}/versions/{made.version}"
    return made


async def _publish(policy: str, request: Request, context: Ctx, caller: MayPublish) -> VersionOut:
    check_policy_name(policy)
    limit, length = context.settings.max_upload_bytes, request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise MessageTooLargeError(f"the upload has {length} bytes; at most {limit} are taken")
    publisher = context.publisher
    folder = await run_in_threadpool(publisher.make_folder)
    try:
        receiver = CheckpointReceiver(request.headers.get("content-type", ""), folder, limit)
        await receive(aiter(request.stream()), receiver, context.settings.upload_silence_s)
        row = await run_in_threadpool(publisher.publish, caller.actor, policy, folder)
        return VersionOut.model_validate(row)
    finally:
        await run_in_threadpool(shutil.rmtree, folder, ignore_errors=True)


@router.put("/policies/{policy}/versions/{version}", responses={201: {"model": VersionOut}})
def register_version(
    policy: NameInPath, version: VersionInPath, response: Response, context: Ctx, caller: MayPublish
) -> VersionOut:
    """Register a version that is in the store already; its digest is checked."""
    row, new = context.publisher.register(caller.actor, check_policy_name(policy), version)
    response.status_code = 201 if new else 200
    return VersionOut.model_validate(row)


@router.post("/store/sync")
def sync_store(context: Ctx, caller: Admin) -> SyncOut:
    """Register every version that the store has and the registry has not; of unknown policies with their aliases."""
    return SyncOut.model_validate(context.publisher.sync(caller.actor))
