r"""Every error that playserve raises on purpose, with its gRPC code and its documented reason.

::

    PlayserveError
    ├── InvalidRequestError      INVALID_ARGUMENT     the message is wrong; sending it again will fail again
    │   ├── MalformedMessageError    MALFORMED_MESSAGE
    │   ├── InputMissingError        INPUT_MISSING
    │   ├── InputUnknownError        INPUT_UNKNOWN
    │   ├── DTypeMismatchError       DTYPE_MISMATCH
    │   ├── ShapeMismatchError       SHAPE_MISMATCH
    │   ├── SizeMismatchError        SIZE_MISMATCH
    │   ├── DecodeError              DECODE_FAILED
    │   ├── FrameTooLargeError       FRAME_TOO_LARGE
    │   ├── OutOfBoundsError         OUT_OF_BOUNDS
    │   ├── BadActionError           BAD_ACTION
    │   ├── BadSettingError          BAD_SETTING
    │   └── BadRowError              BAD_ROW
    ├── StateError               FAILED_PRECONDITION  right message, wrong moment
    │   ├── NotOpenError             NOT_OPEN
    │   ├── AlreadyOpenError         ALREADY_OPEN
    │   ├── CodecNotNegotiatedError  CODEC_NOT_NEGOTIATED
    │   ├── RateMismatchError        RATE_MISMATCH
    │   ├── SeqNotIncreasingError    SEQ_NOT_INCREASING
    │   ├── EpisodeReusedError       EPISODE_REUSED
    │   ├── ExecutedUnknownError     EXECUTED_UNKNOWN
    │   └── LayoutMismatchError      LAYOUT_MISMATCH
    ├── NotFoundError            NOT_FOUND
    │   ├── PolicyNotFoundError      POLICY_NOT_FOUND
    │   ├── VersionNotFoundError     VERSION_NOT_FOUND
    │   └── SessionNotFoundError     SESSION_NOT_FOUND
    ├── ExhaustedError           RESOURCE_EXHAUSTED   try again later
    │   ├── NoFreeSlotError          NO_FREE_SLOT
    │   ├── QueueFullError           QUEUE_FULL
    │   ├── QuotaExceededError       QUOTA_EXCEEDED
    │   └── MessageTooLargeError     MESSAGE_TOO_LARGE
    ├── SessionEndedError        ABORTED              this session is over; open another
    │   ├── SessionExpiredError      SESSION_EXPIRED
    │   ├── SessionClosedError       SESSION_ENDED
    │   └── SupersededError          SUPERSEDED
    ├── ServerUnavailableError   UNAVAILABLE          try another server, or later
    │   ├── DrainingError            DRAINING
    │   └── NotReadyError            NOT_READY
    ├── AccessError              PERMISSION_DENIED
    │   ├── AccessDeniedError        PERMISSION_DENIED
    │   ├── UnauthenticatedError     UNAUTHENTICATED      (code UNAUTHENTICATED)
    │   └── AccessEndedError         ACCESS_ENDED         (code UNAUTHENTICATED)
    ├── UnsupportedError         UNIMPLEMENTED
    │   └── NotImplementedHereError  NOT_IMPLEMENTED
    ├── TimeoutExceededError     DEADLINE_EXCEEDED    (client side; no reason on the wire)
    ├── CancelledError           CANCELLED            (client side; no reason on the wire)
    └── ServerFault              INTERNAL             the server is broken, not the caller
        ├── StepFailedError          STEP_FAILED
        ├── EngineFailedError        ENGINE_FAILED
        └── DataLossError            DATA_LOSS            (code DATA_LOSS)

Domain code raises these; servicers turn them into ``google.rpc.Status`` with :func:`to_status`, clients turn that
back with :func:`from_status` and gRPC's own errors with :func:`from_rpc_error`.
"""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import duration_pb2
from google.protobuf.message import DecodeError as ProtobufError
from google.rpc import error_details_pb2, status_pb2

__all__ = [
    "DOMAIN", "REASONS", "AccessDeniedError", "AccessEndedError", "AccessError", "AlreadyOpenError", "BadActionError",
    "BadRowError", "BadSettingError", "CancelledError", "CodecNotNegotiatedError", "DTypeMismatchError",
    "DataLossError", "DecodeError", "DrainingError", "EngineFailedError", "EpisodeReusedError", "ExecutedUnknownError",
    "ExhaustedError", "FrameTooLargeError", "InputMissingError", "InputUnknownError", "InvalidRequestError",
    "LayoutMismatchError", "MalformedMessageError", "MessageTooLargeError", "NoFreeSlotError", "NotFoundError",
    "NotImplementedHereError", "NotOpenError", "NotReadyError", "OutOfBoundsError", "PlayserveError",
    "PolicyNotFoundError", "QueueFullError", "QuotaExceededError", "RateMismatchError", "SeqNotIncreasingError",
    "ServerFault", "ServerUnavailableError", "SessionClosedError", "SessionEndedError", "SessionExpiredError",
    "SessionNotFoundError", "ShapeMismatchError", "SizeMismatchError", "StateError", "StepFailedError",
    "SupersededError", "TimeoutExceededError", "UnauthenticatedError", "UnsupportedError", "VersionNotFoundError",
    "from_rpc_error", "from_status", "to_status",
]  # fmt: skip

#: ErrorInfo.domain of every playserve error.
DOMAIN = "playserve.v1"


class PlayserveError(Exception):
    """Base of every error that playserve raises on purpose.

    Attributes:
        code: gRPC status code.
        reason: ErrorInfo.reason on the wire; empty for errors that never travel.
        retry_after_s: Seconds after which trying again makes sense, or None.
        seq: The step that failed, where the error is of one step of a session.
        env_id: The environment that failed, where the error is of one row of a rollout.
    """

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    reason: str = ""
    seq: int | None = None
    env_id: int | None = None

    def __init__(self, message: str = "", *, retry_after_s: float | None = None) -> None:
        super().__init__(message or self.reason or type(self).__name__)
        self.retry_after_s = retry_after_s


class InvalidRequestError(PlayserveError):
    """The message itself is wrong."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class MalformedMessageError(InvalidRequestError):
    """The message has no known content, or its bytes are not a message."""

    reason = "MALFORMED_MESSAGE"


class InputMissingError(InvalidRequestError):
    """A required input tensor is absent."""

    reason = "INPUT_MISSING"


class InputUnknownError(InvalidRequestError):
    """An input tensor has a name that the policy does not know, or came twice."""

    reason = "INPUT_UNKNOWN"


class DTypeMismatchError(InvalidRequestError):
    """A tensor has another element type than the spec's."""

    reason = "DTYPE_MISMATCH"


class ShapeMismatchError(InvalidRequestError):
    """A tensor has another shape than the spec's."""

    reason = "SHAPE_MISMATCH"


class SizeMismatchError(InvalidRequestError):
    """A tensor's bytes are more or fewer than its shape and dtype need."""

    reason = "SIZE_MISMATCH"


class DecodeError(InvalidRequestError):
    """Packed bytes could not be unpacked."""

    reason = "DECODE_FAILED"


class FrameTooLargeError(InvalidRequestError):
    """A tensor claims more than the server will unpack."""

    reason = "FRAME_TOO_LARGE"


class OutOfBoundsError(InvalidRequestError):
    """A tensor holds a value outside the spec's bounds."""

    reason = "OUT_OF_BOUNDS"


class BadActionError(InvalidRequestError):
    """An action does not fit the action spec."""

    reason = "BAD_ACTION"


class BadSettingError(InvalidRequestError):
    """A setting of Open, RolloutOpen or Configure is outside its range."""

    reason = "BAD_SETTING"


class BadRowError(InvalidRequestError):
    """A rollout row names an environment that is not there, or twice, or its columns differ in length."""

    reason = "BAD_ROW"


class StateError(PlayserveError):
    """The message is right, the moment is wrong."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class NotOpenError(StateError):
    """Something came before Open."""

    reason = "NOT_OPEN"


class AlreadyOpenError(StateError):
    """Open came twice."""

    reason = "ALREADY_OPEN"


class CodecNotNegotiatedError(StateError):
    """A tensor is packed in a way that Opened did not allow."""

    reason = "CODEC_NOT_NEGOTIATED"


class RateMismatchError(StateError):
    """The client's rate is not the policy's."""

    reason = "RATE_MISMATCH"


class SeqNotIncreasingError(StateError):
    """A step's seq is not higher than the last one's, and it is not a repeat of the last answered step."""

    reason = "SEQ_NOT_INCREASING"


class EpisodeReusedError(StateError):
    """An episode id is lower than the current one."""

    reason = "EPISODE_REUSED"


class ExecutedUnknownError(StateError):
    """An Executed names a step that never was, or whose successor is already in the memory."""

    reason = "EXECUTED_UNKNOWN"


class LayoutMismatchError(StateError):
    """An exported state has another layout than the policy's."""

    reason = "LAYOUT_MISMATCH"


class NotFoundError(PlayserveError):
    """A name that nothing here has."""

    code = grpc.StatusCode.NOT_FOUND


class PolicyNotFoundError(NotFoundError):
    """No policy of that name."""

    reason = "POLICY_NOT_FOUND"


class VersionNotFoundError(NotFoundError):
    """The policy has no such version or alias."""

    reason = "VERSION_NOT_FOUND"


class SessionNotFoundError(NotFoundError):
    """No session for that token or id; it may have expired."""

    reason = "SESSION_NOT_FOUND"


class ExhaustedError(PlayserveError):
    """A limit is reached for now."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class NoFreeSlotError(ExhaustedError):
    """Every slot is taken."""

    reason = "NO_FREE_SLOT"


class QueueFullError(ExhaustedError):
    """Too many steps wait unanswered."""

    reason = "QUEUE_FULL"


class QuotaExceededError(ExhaustedError):
    """The caller's key may not have more of this at once, or a second."""

    reason = "QUOTA_EXCEEDED"


class MessageTooLargeError(ExhaustedError):
    """A message is larger than the receiver accepts (raised by gRPC itself, so without ErrorInfo)."""

    reason = "MESSAGE_TOO_LARGE"


class SessionEndedError(PlayserveError):
    """The session is over."""

    code = grpc.StatusCode.ABORTED


class SessionExpiredError(SessionEndedError):
    """Nothing was heard from the session for the idle timeout."""

    reason = "SESSION_EXPIRED"


class SessionClosedError(SessionEndedError):
    """An operator or a drain ended the session."""

    reason = "SESSION_ENDED"


class SupersededError(SessionEndedError):
    """The session was resumed on another stream."""

    reason = "SUPERSEDED"


class ServerUnavailableError(PlayserveError):
    """This server cannot take the call now."""

    code = grpc.StatusCode.UNAVAILABLE


class DrainingError(ServerUnavailableError):
    """The server takes no new sessions."""

    reason = "DRAINING"


class NotReadyError(ServerUnavailableError):
    """The policy is still loading or warming up."""

    reason = "NOT_READY"


class AccessError(PlayserveError):
    """The caller may not do that."""

    code = grpc.StatusCode.PERMISSION_DENIED


class AccessDeniedError(AccessError):
    """The session, or the method, belongs to somebody else."""

    reason = "PERMISSION_DENIED"


class UnauthenticatedError(AccessError):
    """The caller has no valid key."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class AccessEndedError(AccessError):
    """The caller's key was revoked, or it expired, while its session ran."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "ACCESS_ENDED"


class UnsupportedError(PlayserveError):
    """The contract has it, this server does not."""

    code = grpc.StatusCode.UNIMPLEMENTED


class NotImplementedHereError(UnsupportedError):
    """The contract has it, this server does not."""

    reason = "NOT_IMPLEMENTED"


class TimeoutExceededError(PlayserveError):
    """No answer came in time."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class CancelledError(PlayserveError):
    """The call was cancelled on this side."""

    code = grpc.StatusCode.CANCELLED


class ServerFault(PlayserveError):  # noqa: N818 - the field says "fault" for the server's own errors
    """The server is broken, not the caller."""

    code = grpc.StatusCode.INTERNAL


class StepFailedError(ServerFault):
    """One step could not be computed; the session's memory is as it was before."""

    reason = "STEP_FAILED"


class EngineFailedError(ServerFault):
    """The engine failed in a way that loses this session's memory."""

    reason = "ENGINE_FAILED"


class DataLossError(ServerFault):
    """Bytes from a store are damaged: a digest differs."""

    code = grpc.StatusCode.DATA_LOSS
    reason = "DATA_LOSS"


def _leaves(cls: type[PlayserveError]) -> list[type[PlayserveError]]:
    subclasses = cls.__subclasses__()
    return [cls] if not subclasses else [leaf for sub in subclasses for leaf in _leaves(sub)]


#: Every documented reason and its exception.
REASONS: dict[str, type[PlayserveError]] = {leaf.reason: leaf for leaf in _leaves(PlayserveError) if leaf.reason}

# For a status without a known reason (an older server, a proxy, gRPC itself).
_BY_CODE: dict[grpc.StatusCode, type[PlayserveError]] = {
    grpc.StatusCode.CANCELLED: CancelledError,
    grpc.StatusCode.UNKNOWN: ServerFault,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.DEADLINE_EXCEEDED: TimeoutExceededError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: StateError,
    grpc.StatusCode.PERMISSION_DENIED: AccessDeniedError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ExhaustedError,
    grpc.StatusCode.FAILED_PRECONDITION: StateError,
    grpc.StatusCode.ABORTED: SessionEndedError,
    grpc.StatusCode.OUT_OF_RANGE: OutOfBoundsError,
    grpc.StatusCode.UNIMPLEMENTED: UnsupportedError,
    grpc.StatusCode.INTERNAL: ServerFault,
    grpc.StatusCode.UNAVAILABLE: ServerUnavailableError,
    grpc.StatusCode.DATA_LOSS: DataLossError,
}
_CODE_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


_MAX_TEXT = 400


def to_status(error: PlayserveError) -> status_pb2.Status:
    """Return the ``google.rpc.Status`` of `error`, with ErrorInfo and, where it is known, RetryInfo."""
    text = str(error)
    if len(text) > _MAX_TEXT:  # it may quote what came, and trailers of more than 8 KiB cost the caller the answer
        text = f"{text[: _MAX_TEXT - 20]} ... {len(text)} characters"
    status = status_pb2.Status(code=error.code.value[0], message=text)
    if error.reason:
        status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def from_status(status: status_pb2.Status) -> PlayserveError:
    """Return the exception for `status`: by its documented reason, else by its code."""
    reason, retry_after_s = "", None
    for detail in status.details:
        try:
            if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                info = error_details_pb2.ErrorInfo()
                detail.Unpack(info)
                reason = info.reason if info.domain == DOMAIN else reason
            elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
                retry = error_details_pb2.RetryInfo()
                detail.Unpack(retry)
                retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
        except (ProtobufError, ValueError):  # a damaged detail must not hide the error that it came with
            continue
    code = _CODE_BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN)
    cls = REASONS.get(reason) or _BY_CODE.get(code, PlayserveError)
    return cls(status.message, retry_after_s=retry_after_s)


def from_rpc_error(error: grpc.RpcError) -> PlayserveError:
    """Return the exception for an error of gRPC, sync or aio: by the Status in its trailers, else by its code."""
    code: grpc.StatusCode = error.code()
    details: str = error.details() or ""
    trailers: Any = error.trailing_metadata()  # pairs; the stubs and the two APIs disagree on the type
    for key, value in trailers or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            try:
                return from_status(status_pb2.Status.FromString(value))
            except Exception:  # noqa: BLE001, S112 - a damaged trailer must not hide the error it came with
                continue
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        return MessageTooLargeError(details)
    if code is grpc.StatusCode.OK:  # pragma: no cover - gRPC never raises it
        code = grpc.StatusCode.UNKNOWN
    return from_status(status_pb2.Status(code=code.value[0], message=details))
