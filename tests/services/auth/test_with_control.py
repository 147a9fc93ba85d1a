"""An inference server that follows the real control plane, each as its operator would run it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from playserve.errors import AccessDeniedError, PlayserveError, UnauthenticatedError
from playserve_client.aio import PolicyClient

httpx = pytest.importorskip("httpx", reason="the client of the control plane's REST")
pytest.importorskip("uvicorn", reason="the control plane's HTTP server")

FRAME = np.zeros((8, 8), np.uint8)
_RUN = (
    "import sys, argparse; from playserve_services.commands import control as c; p = argparse.ArgumentParser(); "
    "c.configure(p); sys.exit(c.run(p.parse_args()))"
)


@dataclass(frozen=True)
class Plane:
    url: str
    admin: str


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", _RUN, *arguments]


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Plane]:
    data = ["--data", str(tmp_path / "control")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PLAYSERVE_")}
    made = subprocess.run(
        _command("init-key", *data), env=environment, check=True, capture_output=True, text=True, timeout=100
    )
    process = subprocess.Popen(
        _command("serve", *data, "--port", "0", "--require-keys"), env=environment, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert "control ready" in line
            yield Plane(f"http://127.0.0.1:{line.split('port=')[1].strip()}", made.stdout.strip())
        finally:
            process.terminate()


def client(server: Any, key: str) -> PolicyClient:
    return PolicyClient(f"127.0.0.1:{server.port}", api_key=key, timeout_s=30.0)


async def ended(session: Any) -> PlayserveError:
    async with asyncio.timeout(30):
        while True:
            try:
                await session.step(FRAME)
            except PlayserveError as error:
                return error
            await asyncio.sleep(0.05)


async def test_keys_are_issued_and_revoked_and_a_replica_is_drained(plane: Plane, serve: Any, tmp_path: Path) -> None:
    file = tmp_path / "registry.key"
    headers = {"Authorization": f"Bearer {plane.admin}"}
    async with httpx.AsyncClient(base_url=plane.url, headers=headers, timeout=30) as rest:
        own = (
            (await rest.post("/v1/keys", json={"principal": "fleet", "scopes": ["replica"]})).raise_for_status().json()
        )
    await asyncio.to_thread(file.write_text, own["key"] + "\n")
    async with (
        httpx.AsyncClient(base_url=plane.url, headers=headers, timeout=30) as rest,
        serve(
            registry=plane.url, registry_key_file=file, registry_cache=tmp_path / "view.json", registry_poll_s=0.05,
            replica="r1", admin_port=0,
        ) as server,
    ):  # fmt: skip
        body = {"principal": "ann", "scopes": ["play"], "quota": {"sessions": 3}}
        issued = (await rest.post("/v1/keys", json=body)).raise_for_status().json()
        async with client(server, issued["key"]) as c:
            async with asyncio.timeout(30):
                while True:
                    try:
                        session = await c.play("turns")
                        break
                    except UnauthenticatedError:
                        await asyncio.sleep(0.05)
            await session.step(FRAME)
            with pytest.raises(AccessDeniedError):
                await c.rollout("turns", 1)
            (replica,) = (await rest.get("/v1/replicas")).raise_for_status().json()
            assert replica["name"] == "r1"
            assert replica["address"] == f"127.0.0.1:{server.port}"
            (await rest.delete(f"/v1/keys/{issued['kept']['id']}")).raise_for_status()
            assert (await ended(session)).reason == "ACCESS_ENDED"
        (await rest.post("/v1/replicas/r1/drain", json={})).raise_for_status()
        async with asyncio.timeout(30):
            while not server.core.draining:  # noqa: ASYNC110 - a drain knows no events
                await asyncio.sleep(0.05)
