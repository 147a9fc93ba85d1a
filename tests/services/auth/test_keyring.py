"""Key files and the command that writes them, and what holds a key."""

# ruff: noqa: ASYNC240 - the files are tiny

from __future__ import annotations

import argparse
import json
import logging
import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from playserve.errors import BadSettingError, DataLossError, NotFoundError, UnauthenticatedError
from playserve_services.auth.keyring import ApiKeys, KeyFile, KeyFileWatch, KeyRing
from playserve_services.auth.keys import Quota, Scope, check_key, issue_key
from playserve_services.auth.principal import Anonymous, Credentials, FirstOf
from playserve_services.commands import keys

NOW = datetime(2027, 1, 1, tzinfo=UTC)
PLAY = frozenset({Scope.PLAY})


def command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    keys.configure(parser)
    return keys.run(parser.parse_args(arguments))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def issue(path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert command("issue", "ann", "--file", str(path), *arguments) == 0
    return capsys.readouterr().out.strip()


def test_a_key_is_shown_once_and_its_file_holds_no_secret(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = os.umask(0)
    try:
        text = issue(path, capsys, "--scope", "play", "--scope", "rollout", "--sessions", "2", "--frames-per-s", "40")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    secret = text.split("_", 2)[2]
    assert secret not in path.read_text()
    (kept,) = KeyFile(path).read()
    assert check_key(text, {kept.id: kept}) is kept
    assert kept.scopes == {Scope.PLAY, Scope.ROLLOUT}
    assert kept.quota == Quota(sessions=2, frames_per_s=40)
    assert sorted(p.name for p in path.parent.iterdir()) == [".keys.json.lock", "keys.json"]


def test_keys_are_listed_without_digests_and_revoked_by_id(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = issue(path, capsys), issue(path, capsys, "--expires", "90d", "--sessions", "1")
    assert command("list", "--file", str(path), "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [item["id"] for item in listed] == [first.split("_")[1], second.split("_")[1]]
    assert listed[0]["scopes"] == ["play"]
    assert "secret_sha256" not in listed[0]
    assert command("list", "--file", str(path)) == 0
    shown = capsys.readouterr().out
    assert "sessions 1" in shown
    assert "never" in shown
    assert command("revoke", first.split("_")[1], "--file", str(path)) == 0
    assert [key.id for key in KeyFile(path).read()] == [second.split("_")[1]]


def test_revoking_an_unknown_key_changes_nothing_and_repeats_no_secret(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = issue(path, capsys)
    before = path.read_bytes()
    with pytest.raises(NotFoundError, match="nothing was revoked") as refused:
        command("revoke", text.split("_")[1], text, "--file", str(path))
    assert text.split("_", 2)[2] not in str(refused.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("when", "match"),
    [("soon", "wanted 90d"), ("2020-01-01T00:00+00:00", "is past"), ("2099-01-01", "no time zone"),
     ("99999999999d", "beyond all calendars")],
)  # fmt: skip
def test_times_that_make_no_sense_are_refused(path: Path, when: str, match: str) -> None:
    with pytest.raises(BadSettingError, match=match):
        command("issue", "ann", "--file", str(path), "--expires", when)
    with pytest.raises(BadSettingError, match="sessions"):
        command("issue", "ann", "--file", str(path), "--sessions", "-1")
    assert not path.exists()


def test_a_file_that_is_missing_or_damaged_is_named(path: Path) -> None:
    with pytest.raises(BadSettingError, match="keys issue --file"):
        KeyFile(path).read()
    path.write_text('{"keys": [{"id": "x"}]}')
    with pytest.raises(DataLossError, match=r"keys\.json is no key file"):
        KeyFile(path).read()


def test_keys_issued_at_the_same_time_are_all_kept(path: Path) -> None:
    def add() -> None:
        KeyFile(path).change(lambda kept: [*kept, issue_key("ann", PLAY)[1]], missing_ok=True)

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(KeyFile(path).read()) == 8


async def test_a_changed_file_is_taken_and_a_damaged_one_is_not(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    text, kept = issue_key("ann", PLAY)
    KeyFile(path).change(lambda _: [kept], missing_ok=True)
    ring = KeyRing()
    watch, keys_ = KeyFileWatch(KeyFile(path), ring), ApiKeys(ring)
    watch.load()
    principal = await keys_.authenticate(Credentials(bearer=text))
    assert (principal.name, principal.key_id, principal.scopes) == ("ann", kept.id, PLAY)
    path.write_text("{")
    assert watch.look(), "it failed"
    assert not watch.look(), "and is not tried again before it changes"
    assert keys_.holds(principal)
    assert "the keys stay as they were" in caplog.text
    path.unlink()
    KeyFile(path).change(lambda _: [], missing_ok=True)
    assert not watch.look()
    assert not keys_.holds(principal)
    with pytest.raises(UnauthenticatedError, match="not known here, or was revoked"):
        await keys_.authenticate(Credentials(bearer=text))
    assert text.split("_", 2)[2] not in caplog.text


async def test_a_key_holds_until_it_expires_is_replaced_or_loses_a_scope() -> None:
    now = NOW
    ring = KeyRing()
    keys_ = ApiKeys(ring, lambda: now)
    text, kept = issue_key("ann", PLAY, expires_at=NOW + timedelta(minutes=1))
    ring.replace("file", [kept])
    principal = await keys_.authenticate(Credentials(bearer=text))
    assert keys_.holds(principal)
    for other in (
        kept.model_copy(update={"principal": "bob"}),
        kept.model_copy(update={"scopes": frozenset({Scope.ADMIN})}),
    ):
        ring.replace("file", [other])
        assert not keys_.holds(principal)
    ring.replace("file", [kept])
    assert keys_.holds(principal)
    now += timedelta(minutes=1)
    assert not keys_.holds(principal)
    with pytest.raises(UnauthenticatedError, match="has expired"):
        await keys_.authenticate(Credentials(bearer=text))


def test_two_sources_of_keys_do_not_touch_each_other() -> None:
    ring = KeyRing()
    (_, first), (_, second) = issue_key("ann", PLAY), issue_key("bob", PLAY)
    ring.replace("file", [first])
    ring.replace("registry", [second])
    assert set(ring.keys) == {first.id, second.id}
    ring.replace("registry", [])
    assert set(ring.keys) == {first.id}


async def test_wrong_secrets_and_other_kinds_of_credentials_are_refused() -> None:
    ring = KeyRing()
    text, kept = issue_key("ann", PLAY)
    ring.replace("file", [kept])
    door = FirstOf([ApiKeys(ring)])
    wrong = text[:-1] + ("A" if text[-1] != "A" else "B")
    for bearer in (wrong, "psk_", text + "x", "psk_000000000000_" + "a" * 43, "hello", "a.b.c", ""):
        with pytest.raises(UnauthenticatedError) as refused:
            await door.authenticate(Credentials(bearer=bearer))
        assert not bearer or bearer not in str(refused.value)
    with pytest.raises(UnauthenticatedError, match="nothing came"):
        await door.authenticate(Credentials())
    also_anonymous = FirstOf([ApiKeys(ring), Anonymous(PLAY)])
    assert (await also_anonymous.authenticate(Credentials())).name == "anonymous"
    with pytest.raises(UnauthenticatedError):
        await also_anonymous.authenticate(Credentials(bearer=wrong))


def test_credentials_do_not_show_what_they_hold() -> None:
    text, _ = issue_key("ann", PLAY)
    assert text not in repr(Credentials(bearer=text))
