"""Reading one stream: what a client sends, and how its end is told from its loss."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from playserve.errors import MalformedMessageError

__all__ = ["next_message"]

# gRPC reports the end of a lost stream a moment before it cancels the call; a half-close can wait as long.
_LOSS_S = 0.05


async def next_message(context: grpc.aio.ServicerContext[Any, Any]) -> Any | None:
    """Return the next message, or None once the client has said that it sends no more.

    A lost stream returns nothing: the call is cancelled, and the caller's task with it.

    Raises:
        MalformedMessageError: The bytes are no message.
    """
    try:
        request = await context.read()
    except DecodeError as error:
        raise MalformedMessageError(f"the bytes are no message of this method: {error}") from error
    if request is grpc.aio.EOF:
        await asyncio.sleep(_LOSS_S)
        return None
    return request
