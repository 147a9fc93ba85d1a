"""Checkpoints on their way into the store and the registry; nothing is registered whose digest was not checked."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playserve.errors import BadSettingError, DataLossError, NotFoundError
from playserve_services.control.database import Database
from playserve_services.control.models import Version
from playserve_services.control.problems import StorageFullError, UploadDamagedError
from playserve_services.control.repository.aliases import set_alias
from playserve_services.control.repository.audit import Actor
from playserve_services.control.repository.policies import VersionFacts, register_version, registered_versions
from playserve_services.control.uploads import storage_errors
from playserve_trainer.checkpoint import WEIGHTS_NAME, Manifest, verify
from playserve_trainer.store import CheckpointStore

__all__ = ["Publisher", "SyncResult"]

#: What is kept of a manifest; the whole lies in the store.
_FACTS = ("family", "state_layout", "num_params", "num_params_without_embeddings", "samples_seen", "data_digest",
          "code_version", "seed", "created_at")  # fmt: skip


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What was in the store and not in the registry.

    Attributes:
        registered: Versions that are registered now, as "policy/version".
        aliases: Aliases that were taken from the store, as "policy/alias".
        failed: What could not be taken, with the reason.
    """

    registered: list[str]
    aliases: list[str]
    failed: dict[str, str]


class Publisher:
    """Puts checkpoints into the store and the registry.

    Args:
        store: The store.
        database: The registry.
        folder: For uploads while they come, and for copies out of a bucket while they are checked.
    """

    def __init__(self, store: CheckpointStore, database: Database, folder: Path) -> None:
        self._store, self._database, self._folder = store, database, folder

    def make_folder(self) -> Path:
        """Return a new folder for one upload; whoever asked for it removes it."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            return Path(tempfile.mkdtemp(dir=self._folder, prefix="upload-"))
        except OSError as error:
            raise storage_errors(error) from error

    def remove_leftovers(self) -> None:
        """Remove uploads that a killed control plane left."""
        for path in self._folder.glob("upload-*"):
            shutil.rmtree(path, ignore_errors=True)

    def publish(self, actor: Actor, policy: str, directory: Path) -> Version:
        """Publish an uploaded checkpoint as the next version, and register it.

        Raises:
            BadSettingError: The name or the manifest is not one.
            UploadDamagedError: The weights have not the digest that the manifest states.
            StorageFullError: The store is full. What it holds of the version has no manifest and is not there.
        """
        try:
            verify(directory)
        except (DataLossError, NotFoundError) as error:
            raise UploadDamagedError(_without(str(error), directory)) from error
        except BadSettingError as error:
            raise BadSettingError(_without(str(error), directory)) from error
        try:
            version = self._store.publish(policy, directory)
        except OSError as error:
            raise storage_errors(error) from error
        manifest, size = self._store.manifest(policy, version), (directory / WEIGHTS_NAME).stat().st_size
        return self._register(actor, policy, version, manifest, size)[0]

    def register(self, actor: Actor, policy: str, version: str) -> tuple[Version, bool]:
        """Register a version that is in the store, its digest checked; return it, and whether it is new.

        Raises:
            PolicyNotFoundError, VersionNotFoundError: The store has none such.
            DataLossError: It is damaged, or is not what was registered under that number.
        """
        cache = self.make_folder()
        try:
            folder = self._store.fetch(policy, version, cache)
            size = (folder / WEIGHTS_NAME).stat().st_size
            return self._register(actor, policy, version, self._store.manifest(policy, version), size)
        except OSError as error:
            raise storage_errors(error) from error
        finally:
            shutil.rmtree(cache, ignore_errors=True)

    def sync(self, actor: Actor) -> SyncResult:
        """Register what the store has and the registry has not. A damaged version is left out, and named.

        Of policies that the registry did not know at all, such as after the loss of its database, the store's aliases
        are taken, too; those of the others are the registry's own business.
        """
        with self._database.read() as session:
            known = registered_versions(session)
        result = SyncResult([], [], {})
        for entry in self._store.list():
            if (entry.policy, entry.version) in known:
                continue
            try:
                self.register(actor, entry.policy, entry.version)
                result.registered.append(f"{entry.policy}/{entry.version}")
            except (DataLossError, BadSettingError, StorageFullError) as error:
                result.failed[f"{entry.policy}/{entry.version}"] = str(error)
        new = {name.partition("/")[0] for name in result.registered} - {policy for policy, _ in known}
        for policy in sorted(new):
            self._take_aliases(actor, policy, result)
        return result

    def is_lost(self) -> bool:
        """Whether the registry has no version and the store has some: a database that was lost, or never filled."""
        with self._database.read() as session:
            if registered_versions(session):
                return False
        return bool(self._store.list())

    def _take_aliases(self, actor: Actor, policy: str, result: SyncResult) -> None:
        try:
            aliases = self._store.aliases(policy)
        except DataLossError as error:
            result.failed[f"{policy}/aliases"] = str(error)
            return
        for alias, version in sorted(aliases.items()):
            try:
                with self._database.change() as session:
                    set_alias(session, actor, policy, alias, version)
                result.aliases.append(f"{policy}/{alias}")
            except (BadSettingError, NotFoundError) as error:
                result.failed[f"{policy}/{alias}"] = str(error)

    def _register(self, actor: Actor, policy: str, version: str, manifest: Manifest, size: int) -> tuple[Version, bool]:
        facts = VersionFacts(
            policy=policy, version=version, weights_sha256=manifest.weights_sha256, size_bytes=size,
            facts=_facts(manifest),
        )  # fmt: skip
        with self._database.change() as session:
            return register_version(session, actor, facts)


def _facts(manifest: Manifest) -> Mapping[str, Any]:
    # FLOPs as text: they are larger than the integers of some JSON readers, and of PostgreSQL.
    facts: dict[str, Any] = {name: getattr(manifest, name) for name in _FACTS}
    return {**facts, "flops": str(manifest.flops), "metrics": dict(manifest.metrics)}


def _without(text: str, folder: Path) -> str:
    """Return an error's text without the name of our temporary folder."""
    return text.replace(f"{folder}/", "").replace(str(folder), "the upload")
