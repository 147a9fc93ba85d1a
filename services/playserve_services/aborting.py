"""How a gRPC call ends with one of our errors: its documented status, with the details that clients read."""

from __future__ import annotations

from typing import Any

import grpc

from playserve.errors import PlayserveError, to_status

__all__ = ["abort"]


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: PlayserveError) -> None:
    """End a call with the documented status of `error`; never returns normally."""
    status = to_status(error)
    trailers = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(error.code, status.message, trailing_metadata=trailers)
