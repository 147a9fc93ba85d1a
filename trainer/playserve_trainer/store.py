"""A store of published checkpoints in one folder, on a disk or in a bucket (any fsspec URL).

::

    <root>/<policy>/<version>/                    made first, exclusively: the version's number is taken
    <root>/<policy>/<version>/.claim              the same in a bucket, which has no folders
    <root>/<policy>/<version>/model.safetensors
    <root>/<policy>/<version>/manifest.json       made last: without it the version is not there
    <root>/<policy>/aliases.json                  optional: {"alias": "version"}

Versions are integers counted from 1 and never change once they are there. What is inside a checkpoint is the business
of playserve_trainer.checkpoint.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from playserve.errors import BadSettingError, DataLossError, PlayserveError, PolicyNotFoundError, VersionNotFoundError
from playserve.specs import check_policy_name
from playserve_trainer.checkpoint import MANIFEST_NAME, WEIGHTS_NAME, Manifest, verify

__all__ = ["CheckpointStore", "Entry"]

_CLAIM_NAME = ".claim"
_ALIASES_NAME = "aliases.json"


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """One published version of a policy."""

    policy: str
    version: str


class CheckpointStore:
    """See the module's docstring. Holds no state but the file system: any number of them may share one folder."""

    def __init__(self, url: str | Path) -> None:
        """Open the store at `url`: a folder, or an fsspec URL such as ``s3://bucket/prefix``; it need not exist."""
        self.url = str(url)
        self._fs, root = fsspec.core.url_to_fs(self.url)
        self._root = root.rstrip("/")
        self._local = isinstance(self._fs, LocalFileSystem)

    def publish(self, policy: str, directory: str | Path) -> str:
        """Copy the checkpoint in `directory` into the store and return its version, the next free integer.

        Publishers to a local folder may run at once: each gets its own version. To a bucket they may where the fsspec
        driver makes mode="create" exclusive, as s3fs does from 2025.7; fsspec's own default looks first and then
        writes, so there two publishers at the same instant could take one number.

        Raises:
            BadSettingError: The name is not one.
            NotFoundError: The directory holds no checkpoint.
            DataLossError: The checkpoint is damaged; nothing is published.
        """
        check_policy_name(policy)
        manifest = verify(directory)
        version = self._claim(policy)
        folder = self._folder(policy, version)
        self._fs.put_file(str(Path(directory) / WEIGHTS_NAME), f"{folder}/{WEIGHTS_NAME}")
        data = manifest.published_as(policy, version).to_bytes()
        self._write_whole(f"{folder}/{MANIFEST_NAME}", data)
        return version

    def list(self) -> list[Entry]:
        """Return every complete version, sorted by policy, then by number; empty for a store that is not there."""
        return [Entry(policy, version) for policy in self._policies() for version in self._versions(policy)]

    def latest(self, policy: str) -> str:
        """Return the highest complete version of `policy`.

        Raises:
            PolicyNotFoundError: The store has no complete version of it.
        """
        versions = self._versions(check_policy_name(policy))
        if not versions:
            known = ", ".join(sorted({entry.policy for entry in self.list()})) or "none"
            raise PolicyNotFoundError(f"store {self.url} has no policy {policy!r}; it has: {known}")
        return versions[-1]

    def manifest(self, policy: str, version: str) -> Manifest:
        """Return the manifest of a version.

        Raises:
            PolicyNotFoundError: The store has no complete version of the policy.
            VersionNotFoundError: It has others, but not this one.
            DataLossError: The manifest is damaged.
        """
        path = f"{self._folder(policy, version)}/{MANIFEST_NAME}"
        try:
            data = self._fs.cat_file(path)
        except FileNotFoundError:
            self.latest(policy)
            raise VersionNotFoundError(
                f"policy {policy!r} has no version {version!r}; it has: {', '.join(self._versions(policy))}"
            ) from None
        return Manifest.from_bytes(data, path)

    def fetch(self, policy: str, version: str, cache_dir: str | Path) -> Path:
        """Return a local folder that holds a version, its digest checked.

        A store on a local disk answers with its own folder, which is not to be written to. Others are copied to
        ``cache_dir/<policy>/<version>``, whole or not at all, and found there the next time.

        Raises:
            PolicyNotFoundError, VersionNotFoundError, DataLossError: As :meth:`manifest`; also for damaged weights.
        """
        manifest = self.manifest(policy, version)
        folder = self._folder(policy, version)
        if self._local:
            verify(folder)
            return Path(folder)
        target = Path(cache_dir) / policy / version
        with contextlib.suppress(PlayserveError):
            if target.is_dir() and verify(target).weights_sha256 == manifest.weights_sha256:
                return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{version}.") as temporary:
            incoming = Path(temporary) / version
            incoming.mkdir()
            for name in (WEIGHTS_NAME, MANIFEST_NAME):
                self._fs.get_file(f"{folder}/{name}", str(incoming / name))
            verify(incoming)
            _move_into_place(incoming, target)
        return target

    def aliases(self, policy: str) -> dict[str, str]:
        """Return the policy's aliases: version by name."""
        path = f"{self._root}/{check_policy_name(policy)}/{_ALIASES_NAME}"
        try:
            value = json.loads(self._fs.cat_file(path))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise DataLossError(f"{path}: not JSON ({error})") from error
        if not isinstance(value, dict) or not all(isinstance(version, str) for version in value.values()):
            raise DataLossError(f"{path}: not an object of alias to version")
        return value

    def set_alias(self, policy: str, alias: str, version: str) -> None:
        """Point `alias` at a version that is there. Readers see the old aliases or the new ones, never a part.

        On a local disk setters take turns; of two that set at once in a bucket, the last one's file stands.

        Raises:
            BadSettingError: The alias is no name, or is a number or "latest", which mean versions.
            PolicyNotFoundError, VersionNotFoundError: As :meth:`manifest`.
        """
        if check_policy_name(alias).isdigit() or alias == "latest":
            raise BadSettingError(f"alias {alias!r} would hide a version: it may not be a number or 'latest'")
        self.manifest(policy, version)
        with self._alias_lock(policy):
            aliases = self.aliases(policy) | {alias: version}
            data = (json.dumps(aliases, indent=2, sort_keys=True) + "\n").encode()
            self._write_whole(f"{self._root}/{policy}/{_ALIASES_NAME}", data)

    def resolve(self, policy: str, reference: str = "") -> str:
        """Return the version that `reference` means: a version, an alias, or "latest" (also when empty).

        Raises:
            PolicyNotFoundError: The store has no complete version of the policy.
            VersionNotFoundError: It has neither a version nor an alias of that name.
        """
        latest = self.latest(policy)
        if reference in ("", "latest"):
            return latest
        versions, aliases = self._versions(policy), self.aliases(policy)
        version = aliases.get(reference, reference)
        if version not in versions:
            raise VersionNotFoundError(
                f"policy {policy!r} has no version or alias {reference!r}; it has versions {', '.join(versions)} and "
                f"aliases {', '.join(sorted(aliases)) or 'none'}"
            )
        return version

    def _folder(self, policy: str, version: str) -> str:
        if not _is_version(version):
            raise VersionNotFoundError(f"version {version!r} of {check_policy_name(policy)!r} is not a whole number")
        return f"{self._root}/{check_policy_name(policy)}/{version}"

    def _claim(self, policy: str) -> str:
        """Take the next free number; exclusive creation decides between publishers."""
        number = max((int(name) for name in self._children(policy) if _is_version(name)), default=0)
        while True:
            number += 1
            with contextlib.suppress(FileExistsError):
                self._create_exclusively(self._folder(policy, str(number)))
                return str(number)

    def _create_exclusively(self, folder: str) -> None:
        """Make a version's folder, or raise FileExistsError: of many callers, one makes it."""
        if self._local:
            # Not through fsspec, whose exclusive creation on a disk is a look and then a write.
            path = Path(folder)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
        else:
            self._fs.pipe_file(f"{folder}/{_CLAIM_NAME}", uuid.uuid4().hex.encode(), mode="create")

    def _policies(self) -> Sequence[str]:
        names = []
        for name in self._children(""):
            with contextlib.suppress(BadSettingError):
                names.append(check_policy_name(name))
        return sorted(names)

    def _versions(self, policy: str) -> Sequence[str]:
        """Return the complete versions of a policy in order of number."""
        names = [name for name in self._children(policy) if _is_version(name)]
        complete = [name for name in names if self._fs.exists(f"{self._folder(policy, name)}/{MANIFEST_NAME}")]
        return sorted(complete, key=int)

    def _children(self, path: str) -> Sequence[str]:
        self._fs.invalidate_cache()  # others publish; bucket drivers remember listings
        try:
            entries: Sequence[Mapping[str, Any]] = self._fs.ls(f"{self._root}/{path}".rstrip("/"), detail=True)
        except FileNotFoundError:
            return []
        return [entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "directory"]

    def _write_whole(self, path: str, data: bytes) -> None:
        """Write a file that readers see whole or not at all; objects in buckets appear so by themselves."""
        if not self._local:
            self._fs.pipe_file(path, data)
            return
        target = Path(path)
        temporary = target.parent / f".{target.name}.{uuid.uuid4().hex}"
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)

    @contextlib.contextmanager
    def _alias_lock(self, policy: str) -> Iterator[None]:
        if not self._local:
            yield
            return
        with (Path(self._root) / policy / f".{_ALIASES_NAME}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released with the file, also when this process dies
            yield


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdigit() and not name.startswith("0")


def _move_into_place(incoming: Path, target: Path) -> None:
    """Rename a whole folder to `target`; a damaged one that is there goes, one that another process put there stays."""
    try:
        incoming.rename(target)
    except OSError:
        try:
            verify(target)
        except PlayserveError:
            shutil.rmtree(target)
            incoming.rename(target)
