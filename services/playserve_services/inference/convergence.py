"""From the registry's view to what new sessions get: aliases and canaries count once their versions are warm.

Until then, and where a version cannot be loaded, the alias stays where it was; what is warm already counts at once, so
that nobody waits with a rollback for a large version to load. Sessions that play notice nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from playserve_services.inference.catalog import Catalog
from playserve_services.inference.loader import PolicyLoader
from playserve_services.registry_view import PolicyView

__all__ = ["Convergence"]

_log = logging.getLogger(__name__)
# To try again reads a whole checkpoint: soon at first, for a store that was away for a moment, and then seldom.
_AGAIN_S, _SELDOM_S = 10.0, 600.0

_Version = tuple[str, str]  # policy, version


class Convergence:
    """See the module's docstring. Event loop's thread only.

    Args:
        catalog: Told what counts.
        loader: Warms versions.
        on_failed: Told the name of a policy whenever one of its versions could not be had.
    """

    def __init__(
        self, catalog: Catalog, loader: PolicyLoader, on_failed: Callable[[str], None] = lambda policy: None
    ) -> None:
        self._catalog = catalog
        self._loader = loader
        self._on_failed = on_failed
        self._wanted: Mapping[str, PolicyView] = {}
        self._in_force: dict[str, PolicyView] = {}
        self._told: set[_Version] = set()
        self._changed = asyncio.Event()

    def take(self, policies: Mapping[str, PolicyView]) -> None:
        """Take what the newest view says; :meth:`run` makes it so."""
        self._wanted = dict(policies)
        self._changed.set()

    async def settle(self) -> None:
        """Warm what is missing, each version once, and let the view count as far as that went."""
        for policy, version in sorted(self._apply()):
            await self._try(policy, version)
        self._apply()

    async def run(self) -> None:
        """Converge for ever."""
        warming: dict[_Version, asyncio.Task[None]] = {}
        self._changed.set()
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                missing = self._apply()
                for key in [key for key, task in warming.items() if task.done()]:
                    del warming[key]
                for key in missing - warming.keys():
                    warming[key] = asyncio.create_task(self._warm(*key))
        finally:
            for task in warming.values():
                task.cancel()

    def _apply(self) -> set[_Version]:
        """Let the view count as far as its versions are warm; return those that are not."""
        missing: set[_Version] = set()
        in_force = {}
        for name, view in self._wanted.items():
            warm = {policy.spec.version for policy in self._catalog.versions(name)}
            before = self._in_force.get(name, PolicyView()).aliases
            aliases = {}
            for alias, version in view.aliases.items():
                if version in warm:
                    aliases[alias] = version
                    continue
                missing.add((name, version))
                if alias in before:
                    aliases[alias] = before[alias]
            in_force[name] = PolicyView(aliases=aliases, canary_weight=view.canary_weight)
        self._in_force = in_force
        self._catalog.follow(in_force)
        return missing

    async def _warm(self, policy: str, version: str) -> None:
        """Try until that version is warm, or nobody wants it any more."""
        wait_s = _AGAIN_S
        while version in self._wanted.get(policy, PolicyView()).aliases.values():
            if await self._try(policy, version):
                break
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _SELDOM_S)
        self._changed.set()

    async def _try(self, policy: str, version: str) -> bool:
        try:
            await self._loader.acquire(policy, version)
        except Exception as error:  # noqa: BLE001 - whatever a store does, the other policies go on
            self._on_failed(policy)
            if (policy, version) not in self._told:  # once, not at each attempt
                self._told.add((policy, version))
                _log.error(
                    "policy %s version %s, which the registry names, cannot be served: %s", policy, version, error
                )
            return False
        self._told.discard((policy, version))
        return True
