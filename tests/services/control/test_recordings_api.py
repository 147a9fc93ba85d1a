"""Recordings over REST: uploaded in pieces, checked, listed, downloaded, removed; one's own only."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from playserve.errors import ExhaustedError
from playserve_services.control.recordings import RecordingStore

DATA = bytes(range(256)) * 40
DIGEST = hashlib.sha256(DATA).hexdigest()
TOLD = {"size_bytes": len(DATA), "name": "a/episode-1.npz", "format": "episode"}


async def put(plane: Any, data: bytes, offset: int = 0, digest: str = DIGEST, **more: Any) -> Any:
    return await plane.client.put(
        f"/v1/recordings/uploads/{digest}", params={"offset": offset}, content=data, **more,
    )  # fmt: skip


async def finish(plane: Any, digest: str = DIGEST, headers: Any = None, **changes: Any) -> Any:
    return await plane.client.post(f"/v1/recordings/uploads/{digest}", json={**TOLD, **changes}, headers=headers)


async def test_an_upload_in_pieces_is_listed_and_comes_back(plane) -> None:
    assert (await put(plane, DATA[:100])).json() == {"sha256": DIGEST, "received": 100}
    early = await finish(plane)
    assert (early.status_code, early.json()["reason"]) == (409, "UPLOAD_OFFSET")
    assert (await plane.client.get(f"/v1/recordings/uploads/{DIGEST}")).json()["received"] == 100
    again = await put(plane, DATA[:100])
    assert (again.status_code, again.json()["reason"]) == (409, "UPLOAD_OFFSET")
    assert "100 bytes have come" in again.json()["detail"]
    assert (await put(plane, DATA[100:], 100)).json()["received"] == len(DATA)
    made = await finish(plane)
    assert made.status_code == 201, made.text
    shown = made.json()
    assert (shown["name"], shown["format"], shown["stored"], shown["principal"]) == (
        "a/episode-1.npz", "episode", True, "anonymous",
    )  # fmt: skip
    assert (await plane.client.get("/v1/recordings")).json() == [shown]
    got = await plane.client.get(f"/v1/recordings/{shown['id']}/content")
    assert got.content == DATA
    assert got.headers["content-length"] == str(len(DATA))
    assert got.headers["etag"] == f'"{DIGEST}"'
    # The whole again, as a client that lost the answer would: nothing twice.
    assert (await finish(plane)).status_code == 200
    assert len((await plane.client.get("/v1/recordings")).json()) == 1
    assert not list((plane.settings.data / "recordings-incoming").glob("*/*"))


async def test_another_digest_is_refused_and_forgotten(plane) -> None:
    await put(plane, b"x" * len(DATA))
    refused = await finish(plane)
    assert (refused.status_code, refused.json()["reason"]) == (422, "DATA_LOSS")
    assert (await plane.client.get("/v1/recordings")).json() == []
    assert (await plane.client.get(f"/v1/recordings/uploads/{DIGEST}")).json()["received"] == 0


async def test_limits_are_checked_as_bytes_arrive(start_plane) -> None:
    async with start_plane(max_recording_mb=1) as plane:
        large = await put(plane, b"x" * 1024, offset=1024 * 1024)
        assert (large.status_code, large.json()["reason"]) == (413, "MESSAGE_TOO_LARGE")
        piece = await put(plane, b"x" * (4 * 1024 * 1024 + 1))
        assert piece.status_code == 413


@pytest.mark.parametrize("digest", ["..%2F..%2Fetc%2Fpasswd", "A" * 64, "a" * 63, "a" * 65])
async def test_what_is_no_digest_names_nothing(plane, digest) -> None:
    assert (await put(plane, b"x", digest=digest)).status_code in (404, 422)
    assert not (plane.settings.data / "recordings-incoming").exists()


@pytest.mark.parametrize(
    "changes", [{"name": "a\nb"}, {"format": "exe"}, {"policy": "../x"}, {"size_bytes": -1}, {"unknown": 1}]
)
async def test_what_is_said_of_a_recording_is_checked(plane, changes) -> None:
    await put(plane, DATA)
    assert (await finish(plane, **changes)).status_code == 422


async def test_recordings_are_ones_own(start_plane) -> None:
    async with start_plane(require_keys=True) as plane:
        ann, bob, admin = plane.key("play", principal="ann"), plane.key("play", principal="bob"), plane.key("admin")
        await put(plane, DATA, headers=ann)
        # What one has sent is no start for another's upload of the same, nor a way to have it.
        mine = await plane.client.get(f"/v1/recordings/uploads/{DIGEST}", headers=bob)
        assert mine.json()["received"] == 0
        assert (await finish(plane, headers=bob)).status_code == 409
        identity = (await finish(plane, headers=ann)).json()["id"]
        assert (await finish(plane, headers=bob)).status_code == 409
        claim = {**TOLD, "policy": "p", "version": "1", "session_id": "s", "sha256": DIGEST,
                 "url": plane.context.recordings.url_of(DIGEST, ".npz")}  # fmt: skip
        assert (await plane.client.post("/v1/recordings", json=claim, headers=bob)).status_code == 403
        url = f"/v1/recordings/{identity}"
        for path in (url, f"{url}/content"):
            statuses = [(await plane.client.get(path, headers=key)).status_code for key in (ann, bob, admin)]
            assert statuses == [200, 404, 200]
        assert (await plane.client.delete(url, headers=bob)).status_code == 404
        await put(plane, DATA, headers=bob)
        other = (await finish(plane, headers=bob)).json()["id"]
        # The bytes go with the last recording of them.
        assert (await plane.client.delete(url, headers=ann)).status_code == 204
        assert (await plane.client.get(f"/v1/recordings/{other}/content", headers=bob)).content == DATA
        assert (await plane.client.delete(f"/v1/recordings/{other}", headers=bob)).status_code == 204
        assert not list((plane.settings.data / "recordings").iterdir())
        assert (await finish(plane, headers=ann, principal="bob")).status_code == 403


async def test_what_lies_elsewhere_cannot_be_had_here(plane) -> None:
    body = {"policy": "p", "version": "1", "session_id": "s", "url": "s3://b/x", "sha256": "a" * 64, "size_bytes": 7}
    made = (await plane.client.post("/v1/recordings", json=body)).json()
    assert made["stored"] is False
    assert (await plane.client.get(f"/v1/recordings/{made['id']}/content")).status_code == 409


async def test_any_fsspec_url_holds_them(start_plane) -> None:
    import fsspec

    async with start_plane(recordings="memory://bucket/recordings") as plane:
        await put(plane, DATA)
        made = (await finish(plane)).json()
        assert made["url"] == f"memory://bucket/recordings/{DIGEST}.npz"
        assert fsspec.filesystem("memory").cat_file(f"/bucket/recordings/{DIGEST}.npz") == DATA
        assert (await plane.client.get(f"/v1/recordings/{made['id']}/content")).content == DATA


def test_too_many_unfinished_uploads_are_refused_until_they_are_stale(tmp_path: Path) -> None:
    store = RecordingStore(str(tmp_path / "whole"), tmp_path / "parts", 1000)
    digests = [hashlib.sha256(bytes([i])).hexdigest() for i in range(17)]
    for digest in digests[:16]:
        store.append("ann", digest, 0, b"x")
    with pytest.raises(ExhaustedError, match="16 uploads"):
        store.append("ann", digests[16], 0, b"x")
    store.append("ann", digests[0], 1, b"y")  # one that has begun goes on
    store.append("bob", digests[16], 0, b"x")
    for part in (tmp_path / "parts").glob("*/*.part"):
        os.utime(part, (0, 0))
    assert store.append("ann", digests[16], 0, b"x") == 1
    assert store.received("ann", digests[0]) == 0
