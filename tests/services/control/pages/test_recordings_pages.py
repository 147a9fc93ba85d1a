"""Recordings in the dashboard: replayed from one place only, checked by digest, in real Chromium."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from playserve.errors import DataLossError, NotFoundError, StateError
from playserve_client.recordings import Episode, EpisodeMeta, write_episode
from playserve_services.control.pages.replays import Replays, kind_of
from playserve_services.control.recordings import RecordingStore
from playserve_services.control.repository.audit import SYSTEM
from playserve_services.control.repository.recordings import add_recording

STEPS = 12
DONE = "document.readyState === 'complete'"


def episode_file(path: Path) -> str:
    """Write an episode whose frame number t is all of grey 10 t; return its digest."""
    meta = EpisodeMeta(env="atari", game="breakout", seed=7, steps=STEPS, score=11.0, terminated=True, truncated=False,
                       action_names=("NOOP", "FIRE"))  # fmt: skip
    frames = np.repeat(np.arange(STEPS, dtype=np.uint8) * 10, 84 * 84).reshape(STEPS, 84, 84)
    actions = (np.arange(STEPS) % 2).astype(np.int16)
    episode = Episode(meta=meta, frames=frames, executed=actions, label=actions, reward=np.zeros(STEPS, np.float32),
                      probes=np.zeros((STEPS, 1), np.uint8))  # fmt: skip
    write_episode(path, episode)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def put(root: Path, source: Path, ending: str) -> Path:
    """Put a file where the store keeps it; return its path there."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / f"{hashlib.sha256(source.read_bytes()).hexdigest()}{ending}"
    path.write_bytes(source.read_bytes())
    return path


def replays_of(root: Path, copies: Path) -> Replays:
    return Replays(RecordingStore(str(root), root / "incoming", 1 << 30), copies)


def add(context: Any, path: Path, *, form: str = "episode", name: str = "mine", principal: str = "ann") -> int:
    with context.database.change() as session:
        row = add_recording(session, SYSTEM, principal, policy="breakout", version="1", session_id="s1", url=str(path),
                            sha256=path.name.partition(".")[0], size_bytes=10, format=form, name=name)  # fmt: skip
        return row.id


def put_episode(root: Path) -> Path:
    """Put the episode into the store."""
    source = root.parent / "source.npz"
    episode_file(source)
    return put(root, source, ".npz")


def test_frames_are_replayed(open_site: Any, tmp_path: Path, browser: Any) -> None:
    site = open_site(recordings=str(tmp_path / "there"))
    number = add(site.context, put_episode(tmp_path / "there"))
    browser.look()
    browser.open(f"{site.url}/recordings", DONE)
    assert browser.run("document.querySelector('td a').textContent") == "Replay"
    browser.open(
        f"{site.url}/recordings/{number}", f"{DONE} && document.querySelector('.watch').dataset.ready === 'yes'"
    )
    grey = """(() => {
      const image = document.querySelector('[data-image]'), canvas = document.createElement('canvas');
      if (!image.complete) return -1;
      canvas.getContext('2d').drawImage(image, 0, 0);
      return canvas.getContext('2d').getImageData(1, 1, 1, 1).data[0];
    })()"""
    assert browser.run("document.querySelector('[data-action]').textContent") == "NOOP"
    browser.run("document.querySelector('#seek').focus()")
    browser.press("ArrowRight", "ArrowRight", "ArrowRight")
    assert browser.run("document.querySelector('[data-step]').textContent") == "3"
    browser.wait_for(f"{grey} === 30")
    assert browser.run("document.querySelector('[data-action]').textContent") == "FIRE"
    browser.run("document.querySelector('[data-play]').click()")
    browser.wait_for(f"document.querySelector('[data-step]').textContent === '{STEPS - 1}'")
    browser.wait_for(f"{grey} === {10 * (STEPS - 1)}")
    assert browser.problems == []


async def test_without_a_script_frames_are_looked_at_one_by_one(start_plane, tmp_path) -> None:
    async with start_plane() as plane:
        number = add(plane.context, put_episode(tmp_path / "control" / "recordings"))
        base = "http://127.0.0.1/dashboard/recordings"
        page = (await plane.client.get(f"{base}/{number}?frame=4")).text
        assert f"/recordings/{number}/frames/4.png" in page
        assert (await plane.client.get(f"{base}/{number}/frames/4.png")).content.startswith(b"\x89PNG")
        assert (await plane.client.get(f"{base}/{number}/frames/{STEPS}.png")).status_code == 404
        assert (await plane.client.get(f"{base}/{number}/video")).status_code == 404


async def test_films_come_in_pieces(start_plane, tmp_path) -> None:
    whole = tmp_path / "whole.tar"
    with tarfile.open(whole, "w") as archive:
        for name, data in (("r/annotation.proto", b"x" * 500), ("r/32x32.mp4", b"y" * 300),
                           ("r/video.mp4", bytes(range(200)))):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    async with start_plane() as plane:
        path = put(tmp_path / "control" / "recordings", whole, ".tar")
        number = add(plane.context, path, form="p2p")
        url = f"http://127.0.0.1/dashboard/recordings/{number}"
        assert "<video controls" in (await plane.client.get(url)).text
        piece = await plane.client.get(f"{url}/video", headers={"Range": "bytes=10-19"})
        assert (piece.status_code, piece.content) == (206, bytes(range(10, 20)))
        assert piece.headers["content-type"] == "video/mp4"


async def test_one_sees_ones_own(start_plane, tmp_path) -> None:
    async with start_plane(require_keys=True) as plane:
        number = add(plane.context, put_episode(tmp_path / "control" / "recordings"))
        plane.client.base_url = "http://127.0.0.1/dashboard"
        for principal, scope, status in (("bob", "play", 404), ("ann", "play", 200), ("root", "admin", 200)):
            key = plane.key(scope, principal=principal)["Authorization"].removeprefix("Bearer ")
            await plane.client.post("/sign-in", data={"key": key})
            for part in ("", "/frames/0.png"):
                assert (await plane.client.get(f"/recordings/{number}{part}")).status_code == status, principal
            shown = (await plane.client.get("/recordings")).text
            assert (f"/recordings/{number}" in shown) == (status == 200)


def test_only_what_the_store_holds_is_read(tmp_path: Path) -> None:
    outside = tmp_path / "outside.npz"
    digest = episode_file(outside)
    path = put(tmp_path / "root", outside, ".npz")
    replays = replays_of(tmp_path / "root", tmp_path / "copies")
    for url in (str(outside), outside.as_uri(), f"{path.parent}/../outside.npz", f"{path.parent}/./{path.name}",
                f"{path}?x", "http://127.0.0.1:1/a.npz", "", "simplecache::file:///etc/passwd"):  # fmt: skip
        with pytest.raises(StateError):
            replays.fetch(url, digest)
    with pytest.raises(StateError):
        replays.fetch(str(path), "0" * 64)
    assert not (tmp_path / "copies").exists()
    assert len(replays.episode(str(path), digest)) == STEPS


def test_a_recording_is_what_was_registered_or_is_not_replayed(tmp_path: Path) -> None:
    source = tmp_path / "a.npz"
    digest = episode_file(source)
    path = put(tmp_path / "root", source, ".npz")
    replays = replays_of(tmp_path / "root", tmp_path / "copies")
    path.write_bytes(b"something else")
    with pytest.raises(DataLossError, match="SHA-256"):
        replays.fetch(str(path), digest)
    assert list((tmp_path / "copies").iterdir()) == []
    path.unlink()
    with pytest.raises(NotFoundError):
        replays.fetch(str(path), digest)
    path.write_bytes(source.read_bytes())
    copy = replays.fetch(str(path), digest)
    path.unlink()
    assert replays.fetch(str(path), digest) == copy
    bad = tmp_path / "bad.npz"
    bad.write_bytes(b"no zip")
    bad = put(tmp_path / "root", bad, ".npz")
    with pytest.raises(DataLossError):
        replays.episode(str(bad), bad.name.removesuffix(".npz"))
    with pytest.raises(DataLossError):
        replays.film(str(bad), bad.name.removesuffix(".npz"))


def test_copies_do_not_grow_for_ever(tmp_path: Path) -> None:
    replays, source = replays_of(tmp_path / "root", tmp_path / "copies"), tmp_path / "data"
    for number in range(25):
        source.write_bytes(f"{number}".encode())
        path = put(tmp_path / "root", source, "")
        replays.fetch(str(path), path.name)
    copies = list((tmp_path / "copies").iterdir())
    assert len(copies) == 20
    for old in copies:
        os.utime(old, (1, 1))
    source.write_bytes(b"newest")
    path = put(tmp_path / "root", source, "")
    newest = replays.fetch(str(path), path.name)
    assert list((tmp_path / "copies").iterdir()) == [newest]


def test_kinds() -> None:
    found = [kind_of(f"s3://b/x{ending}", form) for ending, form in (
        (".npz", "episode"), (".tar", "p2p"), (".tar", "nethack-shard"), (".ttyrec.bz2", "ttyrec"), ("", "")
    )]  # fmt: skip
    assert found == ["frames", "video", "", "terminal", ""]


def test_a_game_in_a_terminal_is_replayed_in_a_sandbox(open_site: Any, tmp_path: Path, browser: Any) -> None:
    pytest.importorskip("nle")
    import nle  # noqa: F401 - its converter reads ttyrecs

    from playserve_client.envs.nethack import NetHackEnv

    root = tmp_path / "there"
    environment = NetHackEnv(ttyrec_dir=root)
    environment.reset(seed=5)
    for action in range(30):
        environment.step(action % 8)
    environment.close()
    (path,) = root.rglob("*.ttyrec3.bz2")
    site = open_site()
    stored = put(tmp_path / "control" / "recordings", path, ".ttyrec.bz2")
    number = add(site.context, stored, form="ttyrec", name=path.name)
    browser.look()
    browser.open(f"{site.url}/recordings/{number}/terminal")  # alone, as in the frame
    assert browser.run("document.querySelector('.nhr-screen').textContent").count("Dlvl:1") == 1
    assert browser.problems == []
    assert (
        browser.run("(() => { try { return document.cookie; } catch (error) { return error.name; } })()")
        == "SecurityError"
    )
    browser.open(f"{site.url}/recordings/{number}", DONE)
    assert browser.run("document.querySelector('iframe').sandbox.value") == "allow-scripts"
