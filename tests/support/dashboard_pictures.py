"""Makes docs/images/dashboard-*.png: ``python tests/support/dashboard_pictures.py``, from the repository's root.

The pages are real, and so are the inference server, the game (Freeway) and the session that is watched. The policy is
untrained, and the fleet's numbers, of which nobody waits an hour for a picture, are made up.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from chromium import Browser
from contract_kit.servers import ServerProcess, serving
from dashboard_site import Site, fill_hour, serving_site

from playserve.settings import Consent
from playserve_client import PolicyClient
from playserve_services.control.context import Context
from playserve_services.control.repository.aliases import set_alias, set_canary_weight
from playserve_services.control.repository.audit import SYSTEM, revision
from playserve_services.control.repository.evaluations import record_evaluation, summary_of_scores
from playserve_services.control.repository.policies import VersionFacts, register_version
from playserve_services.control.repository.replicas import Beat, heartbeat

OUT = Path("docs/images")
DONE = "document.readyState === 'complete'"
REPLICAS = {
    "gpu-0": ("gpu-0.example:50051", 64, 41),
    "gpu-1": ("gpu-1.example:50051", 64, 38),
    "gpu-2": ("gpu-2.example:50051", 64, 7),
}


def fill(context: Context, server: ServerProcess) -> None:
    """Register policies, replicas and results."""
    random = np.random.default_rng(6)
    with context.database.change() as session:
        for version, mean in (("1", 21.0), ("2", 24.5), ("3", 26.0), ("4", 27.2)):
            digest = hashlib.sha256(version.encode()).hexdigest()
            facts = VersionFacts(policy="breakout", version=version, weights_sha256=digest, size_bytes=4_812_000,
                                 facts={"family": "atari", "num_params": 1_203_000})  # fmt: skip
            register_version(session, SYSTEM, facts)
            scores = [float(score) for score in random.normal(mean, 8, 100).round()]
            measured = summary_of_scores(
                "Breakout, sampled, stickiness 0.25: 100 episodes", scores, "playserve rollout"
            )
            record_evaluation(session, SYSTEM, "breakout", version, measured)
        for alias, version in (("stable", "2"), ("stable", "3"), ("candidate", "4")):
            set_alias(session, SYSTEM, "breakout", alias, version)
        set_canary_weight(session, SYSTEM, "breakout", 0.1)
        for name, (address, total, used) in REPLICAS.items():
            beat = Beat(
                instance="one",
                address=address,
                admin_address="",
                server_version="0.1.0",
                slots_total=total,
                slots_used=used,
                versions={"breakout": ["3", "4"]},
                view_revision=revision(session),
                draining=name == "gpu-2",
            )
            heartbeat(session, SYSTEM, name, beat)
        beat = Beat(
            instance="one",
            address=server.address,
            admin_address=server.address_of("admin"),
            view_revision=revision(session),
            server_version="0.1.0",
            slots_total=16,
            slots_used=1,
            versions={"atari": ["0"]},
            draining=False,
        )
        heartbeat(session, SYSTEM, "laptop", beat)
    fill_hour(context, {"gpu-0": 800.0, "gpu-1": 760.0, "gpu-2": 140.0})


@contextlib.contextmanager
def playing(server: ServerProcess) -> Iterator[str]:
    """Play Freeway until the context ends; yield the id of the session, which may be watched."""
    from playserve_client.envs.atari import AtariEnv

    stop, opened, ids = threading.Event(), threading.Event(), []

    def play() -> None:
        environment: Any = AtariEnv("freeway")
        with PolicyClient(server.address) as client, client.play("atari", consent=Consent(watch=True)) as session:
            ids.append(session.session_id)
            opened.set()
            observation, _ = environment.reset(seed=1)
            while not stop.wait(0.03):
                observation, *_ = environment.step(session.step(observation))

    thread = threading.Thread(target=play, daemon=True)
    thread.start()
    assert opened.wait(60)
    try:
        yield ids[0]
    finally:
        stop.set()
        thread.join(30)


def pictures(site: Site, browser: Browser, session_id: str) -> None:
    """Save each page, dark and light."""
    drawn = "Number(document.querySelector('.watch').dataset.drawn) > 30"
    acts = "document.querySelectorAll('[data-overlay] polygon').length > 0"
    pages = (("fleet", "/", DONE, 1060), ("policy", "/policies/breakout", DONE, 1240),
             ("watch", f"/sessions/laptop/{session_id}", f"{drawn} && {acts}", 800))  # fmt: skip
    for name, path, ready, height in pages:
        for scheme in ("light", "dark"):
            browser.look(scheme, 1280, height)
            browser.open(f"{site.url}{path}", ready)
            assert not browser.problems, browser.problems
            browser.screenshot(OUT / f"dashboard-{name}-{scheme}.png", 1280, height)


def main() -> None:
    """Make them all."""
    program = shutil.which("chromium")
    if program is None:
        sys.exit("there is no chromium")
    with tempfile.TemporaryDirectory() as name, serving(["atari"], "--admin-port", "0") as server:
        folder = Path(name)
        with serving_site(data=folder / "control", replica_timeout_s=3600) as site, playing(server) as session_id:
            fill(site.context, server)
            browser = Browser(program, folder / "chromium")
            try:
                pictures(site, browser, session_id)
            finally:
                browser.close()


if __name__ == "__main__":
    main()
