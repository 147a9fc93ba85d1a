"""A real server that follows the registry: its heartbeats are what the fleet's page shows."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from contract_kit.servers import serving

from playserve_client import PolicyClient

WAIT_S = 60.0


def test_what_a_server_answers_is_on_the_page(open_site: Any, browser: Any) -> None:
    site = open_site()
    control = site.url.removesuffix("/dashboard")
    flags = ("--admin-port", "0", "--registry", control, "--replica", "laptop", "--registry-poll-s", "0.2")
    key = site.key("play")  # who follows a registry asks for its keys
    with serving(["memory"], *flags) as server, PolicyClient(server.address, api_key=key) as client:
        deadline = time.monotonic() + WAIT_S
        with client.play("memory") as session:
            while site.context.history.lately(60).answered < 20:
                assert time.monotonic() < deadline, server.log()
                session.step(np.zeros((8, 8), np.uint8))
                time.sleep(0.02)
            browser.look()
            browser.open(f"{site.url}/", "document.readyState === 'complete'")
            tiles = browser.run("document.querySelector('#tiles').innerText")
            row = browser.run("document.querySelector('#replicas tbody tr').innerText")
    lately = site.context.history.lately(60)
    p99 = lately.quantile_s(0.99)
    assert p99 is not None
    assert 0 < p99 <= 2.0
    assert "Frames a second\n0\n" not in tiles
    assert row.startswith("laptop")
    assert "memory 1" in row
