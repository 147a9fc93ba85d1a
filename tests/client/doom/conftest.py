"""ViZDoom's processes, started once a module: half a second each."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from playserve_client.envs.doom import DoomEnv


@pytest.fixture(scope="module")
def make_env() -> Iterator[Callable[..., DoomEnv]]:
    """Make environments that are closed at the end of the module; equal arguments give the same one."""
    made: dict[str, DoomEnv] = {}

    def make(scenario: str, **options: object) -> DoomEnv:
        key = repr((scenario, sorted(options.items())))
        if key not in made:
            made[key] = DoomEnv(scenario, **options)  # type: ignore[arg-type]
        return made[key]

    yield make
    for env in made.values():
        env.close()
