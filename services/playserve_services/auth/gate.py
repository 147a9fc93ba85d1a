"""The gate of a gRPC server: every call is authenticated once, when it begins, before any of it is served."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc

from playserve.errors import AccessDeniedError, AccessEndedError, PlayserveError
from playserve_services.aborting import abort
from playserve_services.auth.keys import Scope
from playserve_services.auth.principal import Authenticator, Credentials, Principal
from playserve_services.auth.quotas import Account, Accounts

__all__ = ["Caller", "Gate", "credentials_of"]

Context = grpc.aio.ServicerContext[Any, Any]
_BEARER = "bearer "
#: Seconds that a caller who may not pass has for the message that tells what was wanted.
_FIRST_MESSAGE_S = 2.0
_MAX_BEARER = 16 * 1024


@dataclass(frozen=True, slots=True, eq=False)
class Caller:
    """Whoever made one call, as long as it lasts.

    Attributes:
        principal: Who that is.
        accounts: Where its use is counted.
        authenticator: Says whether the key is still good.
    """

    principal: Principal
    accounts: Accounts
    authenticator: Authenticator

    @property
    def name(self) -> str:
        """The principal's name."""
        return self.principal.name

    @property
    def account(self) -> Account:
        """What the key uses."""
        return self.accounts.of(self.principal)

    def holds(self) -> bool:
        """Whether the key is still good."""
        return self.authenticator.holds(self.principal)

    def check(self) -> None:
        """Raise AccessEndedError if the key is no longer good."""
        if not self.holds():
            raise self.ended()

    def ended(self) -> AccessEndedError:
        """Return the error that ends what the caller still has here."""
        return AccessEndedError(f"the {self.principal.method} {self.principal.key_id} was revoked, or has expired")


def credentials_of(context: Context) -> Credentials:
    """Return what a call brought: the bearer of its metadata, the certificate of its connection."""
    bearer = None
    for key, value in context.invocation_metadata() or ():
        if key == "authorization":
            text = value if isinstance(value, str) else ""
            good = bearer is None and text.lower().startswith(_BEARER) and len(text) <= _MAX_BEARER
            bearer = text[len(_BEARER) :].strip() if good else ""
    auth = context.auth_context() or {}
    certificate = next(iter(auth.get("x509_pem_cert", ())), None)
    subject = next(iter(auth.get("x509_common_name", ())), b"")
    return Credentials(bearer=bearer, certificate=certificate, subject=subject.decode("utf-8", "replace"))


class Gate(grpc.aio.ServerInterceptor):
    """Lets calls pass whose caller may make them; knows who is inside.

    Args:
        authenticator: Finds out who calls.
        accounts: What each key uses.
        scopes: Scope that a service, or one method of it ("package.Service/Method"), wants; None: any caller. A service
            that is not named wants any caller.
        exempt: Services that anybody may call.
        on_refused: Told the reason of each call that may not pass.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        accounts: Accounts,
        scopes: Mapping[str, Scope | None],
        exempt: frozenset[str],
        on_refused: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._authenticator = authenticator
        self._accounts = accounts
        self._scopes = dict(scopes)
        self._exempt = exempt
        self._on_refused = on_refused
        self._caller: ContextVar[Caller] = ContextVar("caller")
        self._inside: dict[asyncio.Task[Any], tuple[Caller, Context]] = {}
        self._ending: set[asyncio.Task[Any]] = set()

    def caller(self) -> Caller:
        """Return who made the call that is being served now."""
        return self._caller.get()

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Put the check before a method's handler."""
        handler: grpc.RpcMethodHandler[Any, Any] | None = await continuation(handler_call_details)
        method = str(handler_call_details.method).lstrip("/")
        service = method.partition("/")[0]
        if handler is None or service in self._exempt:
            return handler
        return self._guarded(handler, method, self._scopes.get(method, self._scopes.get(service)))

    async def _enter(self, context: Context, method: str, scope: Scope | None, streams: bool) -> None:
        """Let the call pass, or end it. `streams`: the client sends a stream."""
        try:
            principal = await self._authenticator.authenticate(credentials_of(context))
            if scope is not None and not principal.may(scope):
                raise AccessDeniedError(f"{method} needs the scope {scope.value!r}, which {principal.key_id} has not")
        except PlayserveError as error:
            self._on_refused(error.reason or error.code.name)
            if streams:
                # To grpc's asyncio client, a call that ends under its first write is "Internal error from Core".
                with contextlib.suppress(Exception):
                    await asyncio.wait_for(context.read(), _FIRST_MESSAGE_S)
            await abort(context, error)
            raise
        self._accounts.renew(principal)
        caller = Caller(principal, self._accounts, self._authenticator)
        self._caller.set(caller)
        task = asyncio.current_task()
        if task is not None:
            self._inside[task] = caller, context
            task.add_done_callback(self._left)

    def _left(self, task: asyncio.Task[Any]) -> None:
        self._inside.pop(task, None)
        self._ending.discard(task)

    async def sweep(self) -> None:
        """End the calls whose key is no longer good; called every second or so.

        Whoever serves a call has until the next sweep to end it in a better way.
        """
        for task, (caller, context) in list(self._inside.items()):
            if caller.holds():
                continue
            if task not in self._ending:
                self._ending.add(task)
                continue
            with contextlib.suppress(Exception):  # gRPC's own AbortError, or a call that ended meanwhile
                await abort(context, caller.ended())
            task.cancel()
        self._accounts.forget_idle()

    def _guarded(self, handler: Any, method: str, scope: Scope | None) -> grpc.RpcMethodHandler[Any, Any]:
        kind = ("stream" if handler.request_streaming else "unary", "stream" if handler.response_streaming else "unary")
        name = "_".join(kind)
        inner = getattr(handler, name)

        async def call(request: Any, context: Context) -> Any:
            await self._enter(context, method, scope, handler.request_streaming)
            return await inner(request, context)

        async def generate(request: Any, context: Context) -> Any:
            await self._enter(context, method, scope, handler.request_streaming)
            async for response in inner(request, context):
                yield response

        make = getattr(grpc, f"{name}_rpc_method_handler")
        guarded: grpc.RpcMethodHandler[Any, Any] = make(
            generate if inspect.isasyncgenfunction(inner) else call,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        return guarded
