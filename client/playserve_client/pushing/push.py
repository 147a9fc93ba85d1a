"""Sends recordings to a control plane, and fetches them: in pieces that are taken up again, checked by digest."""

from __future__ import annotations

import hashlib
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playserve.errors import BadSettingError, DataLossError, ServerUnavailableError, StateError
from playserve.files import replacing
from playserve_client.pushing.bundle import Bundle
from playserve_client.pushing.rest import ControlRest
from playserve_client.pushing.units import Unit

__all__ = ["Facts", "Pusher", "pull"]

#: What the control plane takes as one body.
_PIECE = 4 * 1024 * 1024
_TRIES = 5
_WAIT_S = 1.0
#: Formats that are folders.
_FOLDERS = ("p2p", "nethack-shard")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is said of every recording that is sent.

    Attributes:
        policy: Which played; empty: none, or nobody knows.
        version: Of it.
        session_id: In which session.
        principal: Whose they are; empty: the caller's.
    """

    policy: str = ""
    version: str = ""
    session_id: str = ""
    principal: str = ""

    def to_json(self) -> dict[str, str]:
        """Return what goes over REST."""
        value = {"policy": self.policy, "version": self.version, "session_id": self.session_id}
        return {**value, "principal": self.principal} if self.principal else value


class Pusher:
    """Sends recordings, one after the other.

    Args:
        rest: The control plane.
        facts: What is said of each.
        on_bytes: Told how many bytes more have arrived.
        sleep: Waits some seconds, between tries.
    """

    def __init__(
        self,
        rest: ControlRest,
        facts: Facts,
        on_bytes: Callable[[int], None] = lambda count: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rest, self._facts, self._on_bytes, self._sleep = rest, facts, on_bytes, sleep

    def push(self, unit: Unit, bundle: Bundle) -> dict[str, Any]:
        """Send one recording, or what is missing of it; return what the control plane lists.

        Raises:
            ServerUnavailableError: It does not answer, however often it is asked. The same call goes on.
            DataLossError: The recording changed meanwhile.
            PlayserveError: It refuses.
        """
        sha256 = bundle.sha256()
        path = f"/v1/recordings/uploads/{sha256}"
        told = {"size_bytes": bundle.size, "name": unit.name[-300:], "format": unit.format, **self._facts.to_json()}
        counted, failures = 0, 0
        while True:
            try:
                received = int(self._rest.call("GET", path)["received"])
                self._on_bytes(received - counted)
                counted = received
                while counted < bundle.size:
                    piece = bundle.read(counted, _PIECE)
                    received = int(self._rest.call("PUT", path, query={"offset": counted}, data=piece)["received"])
                    self._on_bytes(received - counted)
                    counted, failures = received, 0
                answer: dict[str, Any] = self._rest.call("POST", path, value=told)
                return answer
            except (ServerUnavailableError, StateError):
                # Gone for a moment; or another one of several control planes, which knows nothing of what came before.
                failures += 1
                if failures >= _TRIES:
                    raise
                self._sleep(_WAIT_S * 2 ** (failures - 1))


def pull(rest: ControlRest, recording_id: int, out: Path, on_bytes: Callable[[int], None] = lambda count: None) -> Path:
    """Fetch a recording into the folder `out`, under its name; return the file or folder that is there now.

    Raises:
        BadSettingError: Something of that name is there already.
        DataLossError: What came has another digest, or is no tar of plain files.
        PlayserveError: The control plane has none such, or refuses.
    """
    listed = rest.call("GET", f"/v1/recordings/{recording_id}")
    folder = listed["format"] in _FOLDERS
    # The last part alone, without what would lead elsewhere: names are others' words.
    name = Path(str(listed["name"])).name.lstrip(".") or f"recording-{recording_id}"
    target = out / name
    if target.exists():
        raise BadSettingError(f"{target} is there already")
    out.mkdir(parents=True, exist_ok=True)
    file = out / f".{name}.tar" if folder else target
    with replacing(file) as temporary:
        digest = hashlib.sha256()
        with temporary.open("wb") as output:
            for piece in rest.download(f"/v1/recordings/{recording_id}/content"):
                output.write(piece)
                digest.update(piece)
                on_bytes(len(piece))
        if (came := digest.hexdigest()) != listed["sha256"]:
            raise DataLossError(f"recording {recording_id} came with sha256 {came}, not {listed['sha256']}")
    if folder:
        try:
            _unpack(file, target)
        finally:
            file.unlink()
    return target


def _unpack(file: Path, target: Path) -> None:
    """Unpack a tar of plain files; the folder is there whole or not at all."""
    temporary = target.with_name(f".{target.name}.new")
    try:
        with tarfile.open(file) as archive:
            archive.extractall(temporary, filter="data")  # refuses what leads out of it, links and devices
    except (tarfile.TarError, OSError) as error:
        raise DataLossError(f"{file.name} is no tar of a recording: {error}") from error
    temporary.replace(target)
