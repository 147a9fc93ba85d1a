"""Listens for clients of Open P2P on a Unix socket or a TCP port; each gets a session of its own.

Their protocol knows neither keys nor TLS: whoever reaches the socket plays. So it is the owner's alone unless its mode
says otherwise, and TCP beyond loopback has to be asked for.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
import stat
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from playserve.errors import BadSettingError, PlayserveError, ServerUnavailableError
from playserve.settings import Pace
from playserve_client.aio import PolicyClient, Session
from playserve_client.play.scene import desktop_action_of
from playserve_client.recap.connection import Connection, Limits
from playserve_client.recap.messages import Eye

__all__ = ["RecapAdapter"]

_log = logging.getLogger(__name__)
#: Bytes of frames that may wait in a stream's buffer: some ten of 192 x 192.
_BUFFER = 1 << 20


class RecapAdapter:
    """Serves clients of Open P2P; an async context manager, which ends every connection when it is left.

    Args:
        client: Of our server; whoever made it closes it.
        policy: Its name.
        version: Version or alias; empty: the newest when a client's first frame comes.
        instruction: For policies that take one: the same for every client.
        limits: What a client may do.
    """

    def __init__(
        self,
        client: PolicyClient,
        policy: str,
        *,
        version: str = "",
        instruction: str = "",
        limits: Limits | None = None,
    ) -> None:
        self._client, self._policy, self._version, self._instruction = client, policy, version, instruction
        self._limits = limits or Limits()
        self._exit = AsyncExitStack()
        self._connections: set[asyncio.Task[None]] = set()
        self._number = 0

    async def __aenter__(self) -> Self:
        """Look whether the policy can play for such clients; BadSettingError where it cannot."""
        spec = (await self._client.get_policy(self._policy, self._version)).spec
        Eye(spec)
        if desktop_action_of(spec).scroll:
            _log.warning("policy %s scrolls, and clients of Open P2P are not told", spec.name)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exit.aclose()  # nobody new comes from here on
        connections = tuple(self._connections)
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    def __len__(self) -> int:
        """Return how many clients are connected."""
        return len(self._connections)

    async def listen_unix(self, path: Path, mode: int = 0o600) -> None:
        """Listen on a Unix socket; one that nobody listens on any more is replaced.

        Args:
            path: Where.
            mode: Who may connect.

        Raises:
            BadSettingError: Something else lies there.
            ServerUnavailableError: Somebody listens there, or it cannot be made.
        """
        _clear(path)
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # With the mode from the first moment on; chmod would come too late for who is quick.
        before = os.umask(0o777 & ~mode)
        try:
            bound.bind(str(path))
        except OSError as error:
            bound.close()
            raise ServerUnavailableError(f"cannot listen on {path}: {error}") from error
        finally:
            os.umask(before)
        server = await asyncio.start_unix_server(self._connected, sock=bound, limit=_BUFFER)
        self._exit.callback(path.unlink, missing_ok=True)
        self._exit.callback(server.close)

    async def listen_tcp(self, host: str, port: int, *, insecure: bool = False) -> int:
        """Listen on a TCP port; return its number.

        Args:
            host: Address to listen on.
            port: 0: any free one.
            insecure: Also where others than this machine can reach it.

        Raises:
            BadSettingError: Others can reach it, and that was not asked for.
            ServerUnavailableError: The port is taken, or no such address is here.
        """
        if not (insecure or _is_loopback(host)):
            raise BadSettingError(
                f"host {host!r} can be reached by others, and this protocol has neither TLS nor keys; "
                "say --insecure-listen if that is meant"
            )
        try:
            server = await asyncio.start_server(self._connected, host, port, limit=_BUFFER)
        except OSError as error:
            raise ServerUnavailableError(f"cannot listen on {host}:{port}: {error}") from error
        self._exit.callback(server.close)
        bound: int = server.sockets[0].getsockname()[1]
        return bound

    # ---- connections

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of our own: of one that asyncio's streams make, Python 3.11 calls a cancellation a fault.
        self._number += 1
        name = f"{self._number}"
        if len(self._connections) >= self._limits.max_clients:
            _log.warning("recap client %s refused: %d clients are connected", name, self._limits.max_clients)
            writer.close()
            return
        task = asyncio.create_task(self._serve(reader, writer, name), name=f"recap-{name}")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> None:
        _log.info("recap client %s connected: %s", name, _peer(writer))
        connection = Connection(reader, writer, self._play, self._limits, name)
        try:
            await connection.run()
        except PlayserveError as error:
            _log.warning("recap client %s ended: %s: %s", name, error.reason or type(error).__name__, error)
        except ConnectionError as error:
            _log.info("recap client %s was lost: %s", name, error)
        except Exception:  # noqa: BLE001 - one client's fault must not end the others
            _log.exception("recap client %s ended by a fault of ours", name)
        finally:
            _log.info("recap client %s gone: %s", name, connection.tally)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def _play(self) -> Session:
        return self._client.play(self._policy, version=self._version, pace=Pace.LIVE, instruction=self._instruction)


def _peer(writer: asyncio.StreamWriter) -> str:
    peer = writer.get_extra_info("peername")
    return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "Unix socket"


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens on."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise BadSettingError(f"{path} is no socket; it is left as it is")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise ServerUnavailableError(f"somebody listens on {path} already")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
