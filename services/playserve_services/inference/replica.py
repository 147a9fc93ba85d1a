"""This server as a replica of a fleet: follows the registry, and tells it how it is."""

from __future__ import annotations

import asyncio
import re
import secrets
import socket
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from playserve.errors import BadSettingError
from playserve.specs import check_policy_name
from playserve_services.auth.keyring import KeyRing
from playserve_services.inference.convergence import Convergence
from playserve_services.inference.core import InferenceCore
from playserve_services.inference.loader import PolicyLoader
from playserve_services.inference.registry import RegistryClient, RegistryFollower, ViewCache, default_cache
from playserve_services.inference.security import SecurityMetrics
from playserve_services.inference.settings import ServeSettings
from playserve_services.registry_view import RegistryView

__all__ = ["Replica"]


class Replica:
    """See the module's docstring. Event loop's thread only.

    Args:
        settings: All settings; `registry` is set.
        core: What it tells of, and drains.
        loader: Warms the versions that the registry names.
        ring: Takes the registry's keys.
        metrics: Counted here.
        drain: Begins a drain.
    """

    def __init__(
        self,
        settings: ServeSettings,
        core: InferenceCore,
        loader: PolicyLoader,
        ring: KeyRing,
        metrics: SecurityMetrics,
        drain: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._core = core
        self._ring = ring
        self._metrics = metrics
        self._instance = secrets.token_hex(8)
        self._addresses = ("", "")
        self.name = check_policy_name(settings.replica or _tidy(socket.gethostname()))
        self._convergence = Convergence(core.catalog, loader, metrics.failed)
        self._follower = RegistryFollower(
            RegistryClient(
                url=settings.registry,
                key=_key_reader(settings.registry_key_file),
                ca=settings.registry_ca,
            ),
            ViewCache(settings.registry_cache or default_cache(settings.registry), metrics.cache_failures.inc),
            self.name,
            self._apply,
            drain,
            self._state,
            lambda reached: metrics.registry_up.set(reached),
        )
        metrics.registry_revision.set_function(lambda: self._follower.revision)
        metrics.registry_age.set_function(self._follower.age_s)

    async def start(self) -> None:
        """Take the newest view that can be had, its keys at once; aliases follow when versions are warm."""
        await self._follower.start()

    async def settle(self) -> None:
        """Warm what the view names, before the server says that it is ready."""
        await self._convergence.settle()

    def run(self, port: int, admin_port: int) -> list[asyncio.Task[None]]:
        """Begin to follow; return the tasks.

        Args:
            port: Where policies are served.
            admin_port: Where AdminService is served; 0: not.
        """
        settings = self._settings
        self._addresses = (
            settings.advertise or settings.address(port),
            settings.advertise_admin or (settings.address(admin_port) if admin_port else ""),
        )
        return [
            asyncio.create_task(self._follower.run(settings.registry_poll_s)),
            asyncio.create_task(self._convergence.run()),
        ]

    def _apply(self, view: RegistryView) -> None:
        self._ring.replace("registry", view.keys)
        self._convergence.take(view.policies)

    def _state(self) -> dict[str, Any]:
        pools = {policy.pool.digest: policy.pool for policy in self._core.catalog}
        versions: dict[str, list[str]] = {}
        for policy in self._core.catalog:
            versions.setdefault(policy.spec.name, []).append(policy.spec.version)
        total = sum(pool.capacity for pool in pools.values())
        free = sum(pool.free for pool in pools.values())
        address, admin_address = self._addresses
        return {
            "instance": self._instance,
            "server_version": version("playserve"),
            "address": address,
            "admin_address": admin_address or None,
            "slots_total": total,
            "slots_used": total - free,
            "versions": versions,
            "view_revision": max(0, self._follower.revision),
            "draining": self._core.draining,
            "figures": self._core.metrics.figures(),
        }


def _tidy(host: str) -> str:
    """Return a host's name as the registry takes names."""
    return re.sub(r"[^a-z0-9._-]", "-", host.lower()).lstrip("._-")[:128] or "replica"


def _key_reader(path: Path | None) -> Callable[[], str]:
    """Return a function that reads the key; it is in no setting, and so in no log and no list of processes."""

    def read() -> str:
        if path is None:
            return ""
        try:
            return path.read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            # The control plane will say that a key is missing; sessions have no part in it.
            return ""

    if path is not None and not path.is_file():
        raise BadSettingError(f"no file {path}, which is to hold the key for the registry")
    return read
