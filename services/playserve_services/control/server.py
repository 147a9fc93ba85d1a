"""Serves the application over HTTP or HTTPS until SIGTERM or SIGINT."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from playserve.errors import BadSettingError, ServerUnavailableError
from playserve_services.control.settings import ControlSettings

__all__ = ["serve"]

_GRACE_S = 10


class _Server(uvicorn.Server):
    """Says when it is ready."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets=sockets)
        if self.started:
            self._on_started()


def serve(app: FastAPI, settings: ControlSettings, started: Callable[[int], None]) -> None:
    """Serve until a signal.

    Args:
        app: The application.
        settings: Where to listen.
        started: Called with the port, once it is ready.

    Raises:
        ServerUnavailableError: The port is taken, or the application did not start (the log says why).
        BadSettingError: The certificate or its key is none.
    """
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, lifespan="on", ws="none",
        timeout_graceful_shutdown=_GRACE_S, ssl_certfile=settings.tls_cert, ssl_keyfile=settings.tls_key,
        h11_max_incomplete_event_size=64 * 1024,
    )  # fmt: skip
    try:
        config.load()
    except OSError as error:
        raise BadSettingError(f"cannot use the TLS certificate and key: {error.strerror or error}") from error
    with _bind(settings.host, settings.port) as listener:
        port: int = listener.getsockname()[1]
        server = _Server(config, lambda: started(port))
        server.run(sockets=[listener])
        if not server.started:
            raise ServerUnavailableError("the control plane did not start; its log says why")


def _bind(host: str, port: int) -> socket.socket:
    name = host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise ServerUnavailableError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    return listener
