"""Environments by name, and users' own by module:factory."""

from __future__ import annotations

from pathlib import Path

import pytest

from playserve.errors import BadSettingError
from playserve_client.envs.registry import load_factory, make_env

USER_MODULE = """
import gymnasium

class Envs:
    @staticmethod
    def make(size=3):
        env = gymnasium.Env()
        env.size = size
        return env

def not_an_env():
    return 5

number = 5
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "playserve_user_env.py").write_text(USER_MODULE)
    (tmp_path / "playserve_user_broken.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "playserve_user_env"


def test_makes_a_family_by_name() -> None:
    env = make_env("atari", "pong", stickiness=0.25)
    assert env.unwrapped.action_names[0] == "NOOP"  # type: ignore[attr-defined]


def test_makes_a_users_environment(user_module: str) -> None:
    assert make_env(f"{user_module}:Envs.make", size=9).size == 9  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("quake", "no environment family 'quake'.*atari.*module:factory"),
        (":make", "not module:factory"),
        ("playserve_user_env:", "not module:factory"),
        ("no_such_module_at_all:make", "no module 'no_such_module_at_all'"),
        ("playserve_user_env.deeper:make", r"no module 'playserve_user_env\.deeper'"),
        ("playserve_user_env:absent", "no callable 'absent'"),
        ("playserve_user_env:number", "no callable 'number'"),
        ("playserve_user_env:not_an_env", "made a int"),
    ],
)
def test_wrong_names_say_what_was_wanted(user_module: str, path: str, message: str) -> None:
    with pytest.raises(BadSettingError, match=message):
        make_env(path)


def test_a_users_own_missing_package_is_shown_as_it_is(user_module: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        load_factory("playserve_user_broken:make")
