"""A real PostgreSQL that lives as long as a test: started and stopped as its operator would."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

__all__ = ["Postgres", "postgres"]


class Postgres:
    """One cluster in a folder, reached by a socket there.

    Args:
        folder: An empty folder; its owner becomes the user `postgres` where we are root, whom PostgreSQL refuses.
        binaries: Where initdb and pg_ctl lie.
    """

    def __init__(self, folder: Path, binaries: Path) -> None:
        self._folder, self._binaries = folder, binaries
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
        self._run("initdb", "-D", str(folder / "data"), "-A", "trust", "-U", "playserve", "--no-sync", "-E", "UTF8",
                  "--locale=C")  # fmt: skip

    def _run(self, *command: str) -> None:
        line = [str(self._binaries / command[0]), *command[1:]]
        if os.geteuid() == 0:
            line = ["runuser", "-u", "postgres", "--", *line]
        done = subprocess.run(line, cwd=self._folder, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, timeout=60)  # fmt: skip
        assert done.returncode == 0, done.stdout

    def start(self) -> None:
        """Start the server; returns when it answers."""
        options = f"-c listen_addresses= -c unix_socket_directories={self._folder} -c fsync=off"
        # pg_ctl's server must not hold our pipe, hence the log.
        self._run("pg_ctl", "-D", str(self._folder / "data"), "-l", str(self._folder / "log"), "-w", "-o", options,
                  "start")  # fmt: skip

    def stop(self) -> None:
        """Stop the server at once, as a crash would."""
        self._run("pg_ctl", "-D", str(self._folder / "data"), "-m", "immediate", "-w", "stop")

    def url(self, name: str) -> str:
        """Return the URL of a database."""
        return f"postgresql://playserve@/{name}?host={self._folder}"

    def new_database(self) -> str:
        """Make an empty database; return its URL."""
        import psycopg

        name = f"test_{uuid.uuid4().hex}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return self.url(name)


def _binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """Yield a running cluster; skip by name where there is none."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("missing system dependency: postgresql")
    if os.geteuid() == 0 and not shutil.which("runuser"):
        pytest.skip("missing system dependency: runuser (PostgreSQL refuses root)")
    with tempfile.TemporaryDirectory(prefix="playserve-pg-") as name:
        cluster = Postgres(Path(name), binaries)
        cluster.start()
        try:
            yield cluster
        finally:
            with contextlib.suppress(AssertionError):  # the test has stopped it
                cluster.stop()
