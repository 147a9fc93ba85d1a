"""The policy versions that are loaded, and how a name and a version or alias lead to one of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from playserve.errors import PolicyNotFoundError, VersionNotFoundError
from playserve.specs import PolicyKind, PolicySpec
from playserve.v1 import types_pb2 as pb
from playserve_services.inference.runtime import Runtime
from playserve_services.inference.slots import SlotPool
from playserve_services.inference.timemodel import TimeModel

if TYPE_CHECKING:
    from playserve_services.registry_view import PolicyView

__all__ = ["Catalog", "LoadedPolicy", "canary_share"]

_STABLE, _CANDIDATE = "stable", "candidate"


@dataclass(slots=True, eq=False)
class LoadedPolicy:
    """One version, warm and ready to play.

    Attributes:
        runtime: Runs it.
        time_model: Of its batches.
        sessions: Sessions that play on it; it is not unloaded before there are none.
        is_world: Whether its steps bring the actions and its answers are frames.
        keeps_every_frame: True when some input may never be dropped (a world's actions).
    """

    runtime: Runtime
    time_model: TimeModel = field(default_factory=TimeModel)
    sessions: int = 0
    is_world: bool = field(init=False)
    keeps_every_frame: bool = field(init=False)

    def __post_init__(self) -> None:
        self.is_world = self.spec.kind is PolicyKind.WORLD
        self.keeps_every_frame = self.is_world or not all(s.droppable for s in self.spec.inputs)

    @property
    def spec(self) -> PolicySpec:
        """Its spec, with name and version."""
        return self.runtime.spec

    @property
    def pool(self) -> SlotPool:
        """The slots of its layout."""
        return self.runtime.pool

    def to_proto(self, aliases: Iterable[str] = ()) -> pb.PolicySpec:
        """Return the wire spec with what only the server knows."""
        message = self.spec.to_proto()
        message.state_layout = self.pool.digest
        message.state_bytes_per_session = self.pool.bytes_per_slot
        message.slots_total = self.pool.capacity
        message.slots_free = self.pool.free
        message.aliases.extend(aliases)
        return message


def version_key(version: str) -> tuple[int, int, str]:
    """Order versions: numbers by value, above anything else by text."""
    return (1, int(version), "") if version.isdecimal() else (0, 0, version)


def canary_share(policy: str, seed: int) -> float:
    """Return where in 0..1 a session falls; those under the canary's weight get the candidate.

    Of its seed alone: an evaluation that is run again meets the same versions, and a growing weight moves nobody back.
    """
    digest = hashlib.sha256(f"{policy}/{seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2.0**64


class Catalog:
    """Loaded versions by policy name and version. Event loop's thread only."""

    def __init__(self) -> None:
        self._policies: dict[str, dict[str, LoadedPolicy]] = {}
        self._aliases: dict[str, dict[str, str]] = {}
        self._views: Mapping[str, PolicyView] = {}

    def __iter__(self) -> Iterator[LoadedPolicy]:
        """Iterate by name, then by version, newest first."""
        for name in sorted(self._policies):
            versions = self._policies[name]
            yield from (versions[v] for v in sorted(versions, key=version_key, reverse=True))

    def add(self, policy: LoadedPolicy) -> None:
        """Make a version available."""
        self._policies.setdefault(policy.spec.name, {})[policy.spec.version] = policy

    def remove(self, policy: LoadedPolicy) -> None:
        """Forget a version that nobody plays on."""
        versions = self._policies.get(policy.spec.name, {})
        if versions.get(policy.spec.version) is policy:
            del versions[policy.spec.version]
        if not versions:
            self._policies.pop(policy.spec.name, None)

    def set_aliases(self, name: str, aliases: dict[str, str]) -> None:
        """Replace the aliases of a policy: alias to version."""
        self._aliases[name] = dict(aliases)

    def follow(self, views: Mapping[str, PolicyView]) -> None:
        """Take the registry's word on aliases and canaries. A policy that it knows has its aliases, and no others."""
        self._views = dict(views)

    def _aliases_by(self, name: str) -> Mapping[str, str]:
        view = self._views.get(name)
        return self._aliases.get(name, {}) if view is None else view.aliases

    def choose(self, name: str, version: str, seed: int | None) -> str:
        """Return the version that a new session with this seed is to be opened with; without a seed: no candidate.

        Where the registry has a stable version, that is what is meant when none is asked for; a share of those sessions
        gets the candidate, as soon as it is loaded: nobody waits for it, and a damaged one is nobody's.
        """
        view = self._views.get(name)
        if view is None or version not in ("", _STABLE) or _STABLE not in view.aliases:
            return version
        candidate = view.aliases.get(_CANDIDATE)
        if candidate is not None and seed is not None and candidate in self._policies.get(name, {}):
            in_canary = canary_share(name, seed) < view.canary_weight
            return candidate if in_canary else view.aliases[_STABLE]
        return view.aliases[_STABLE]

    def aliases_of(self, policy: LoadedPolicy) -> list[str]:
        """Return the aliases that point at a version."""
        pairs = self._aliases_by(policy.spec.name).items()
        return sorted(alias for alias, version in pairs if version == policy.spec.version)

    def version_of(self, name: str, version: str) -> str:
        """Return the version that an alias points at, else `version` itself."""
        return self._aliases_by(name).get(version, version)

    def versions(self, name: str) -> list[LoadedPolicy]:
        """Return the loaded versions of a policy, newest first."""
        versions = self._policies.get(name, {})
        return [versions[v] for v in sorted(versions, key=version_key, reverse=True)]

    def resolve(self, name: str, version: str = "") -> LoadedPolicy:
        """Return the version that is meant: the newest when `version` is empty.

        Raises:
            PolicyNotFoundError: No such policy is loaded.
            VersionNotFoundError: The policy has no such version or alias.
        """
        loaded = self.versions(name)
        if not loaded:
            known = ", ".join(sorted(self._policies)) or "none"
            raise PolicyNotFoundError(f"no policy {name!r} here; loaded: {known}")
        if not version:
            return loaded[0]
        wanted = self.version_of(name, version)
        for policy in loaded:
            if policy.spec.version == wanted:
                return policy
        have = ", ".join(p.spec.version for p in loaded)
        raise VersionNotFoundError(f"policy {name!r} has no version or alias {version!r}; it has {have}")
