"""Errors as RFC 9457 ``application/problem+json``: one document for every status, with our reason's name in it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import grpc
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from playserve.errors import DataLossError, MessageTooLargeError, PlayserveError
from playserve_services.control.gate import GateRefusedError
from playserve_services.validation import in_words

__all__ = [
    "MEDIA_TYPE",
    "RESPONSES",
    "Problem",
    "StorageFullError",
    "UploadDamagedError",
    "install",
    "problem_of",
    "status_of",
]

_log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_MAX_TEXT = 1000

_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 422,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
# Reasons of what the framework itself refuses.
_REASONS = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED", 413: "MESSAGE_TOO_LARGE", 415: "MALFORMED_MESSAGE"}


class StorageFullError(PlayserveError):
    """The disk, or the bucket's quota, is full."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "STORAGE_FULL"


class UploadDamagedError(DataLossError):
    """What was sent is damaged: the sender's business, not the store's."""


class Problem(BaseModel):
    """What went wrong."""

    model_config = ConfigDict(extra="allow")

    type: str = "about:blank"
    title: str = Field(description="The status in words.")
    status: int
    detail: str = Field(description="What came, and what was wanted.")
    reason: str = Field(description="Name for programs, as on the gRPC wire (docs/protocol.md).")


#: For FastAPI's `responses`: every error is a problem.
RESPONSES: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "A problem (RFC 9457).",
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
}


def problem_of(
    status: int, detail: str, reason: str, headers: Mapping[str, str] | None = None, **more: Any
) -> JSONResponse:
    """Return a problem as a response."""
    text = detail if len(detail) <= _MAX_TEXT else f"{detail[: _MAX_TEXT - 20]} ... {len(detail)} characters"
    problem = Problem(title=HTTPStatus(status).phrase, status=status, detail=text, reason=reason, **more)
    return JSONResponse(problem.model_dump(), status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Have the application answer every error with a problem."""
    app.add_exception_handler(PlayserveError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _framework)
    app.add_exception_handler(Exception, _fault)


def status_of(error: PlayserveError) -> int:
    """Return the HTTP status of an error."""
    if isinstance(error, UploadDamagedError):
        return 422
    if isinstance(error, MessageTooLargeError):
        return 413
    if isinstance(error, StorageFullError):
        return 507
    return _STATUS.get(error.code, 500)


async def _ours(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, PlayserveError)  # noqa: S101 - what it is registered for
    status = status_of(error)
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status >= 500:
        _log.warning("%s %s: %s", request.method, request.url.path, error)
    result = error.result if isinstance(error, GateRefusedError) else None
    more = {} if result is None else {"gate": result.to_json()}
    return problem_of(status, str(error), error.reason or error.code.name, headers, **more)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - what it is registered for
    return problem_of(422, in_words(error.errors()), "BAD_SETTING")


async def _framework(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
    reason = _REASONS.get(error.status_code, "MALFORMED_MESSAGE" if error.status_code < 500 else "INTERNAL")
    return problem_of(error.status_code, str(error.detail), reason, error.headers)


async def _fault(request: Request, error: Exception) -> JSONResponse:
    # Starlette raises it again for the server's log; the caller is told nothing of our inside.
    return problem_of(500, "this server failed; its log says how", "INTERNAL")
