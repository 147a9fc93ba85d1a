"""Bytes of strangers: seeds and everything that ever failed, again; then a search for more, guided by coverage.

The search is Atheris', a few seconds here; longer with ``python tests/fuzz/fuzz.py TARGET --seconds N``.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from seeds import seeds
from targets import TARGETS

HERE = Path(__file__).resolve().parent
_MUTANTS = 300  # of each target
_SECONDS = 3


def _corpus(target: str) -> list[bytes]:
    return [*seeds()[target], *(path.read_bytes() for path in sorted((HERE / "corpus" / target).glob("*")))]


def test_every_target_has_seeds() -> None:
    assert set(seeds()) == set(TARGETS)
    assert all(seeds().values())


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_what_is_known(target: str) -> None:
    for data in _corpus(target):
        TARGETS[target](data)
    TARGETS[target](b"")


def _mutants(target: str) -> Iterator[bytes]:
    rng, corpus = random.Random(target), _corpus(target)
    for _ in range(_MUTANTS):
        data = bytearray(rng.choice(corpus))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data) + 1)
            kind = rng.randrange(4)
            if kind == 0 and at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                del data[at : at + rng.randint(1, 8)]
            elif kind == 2:
                data[at:at] = rng.randbytes(rng.randint(1, 4))
            else:
                other = rng.choice(corpus)
                data[at:at] = other[rng.randrange(len(other) + 1) :][:64]
        yield bytes(data)


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_what_is_nearly_known(target: str) -> None:
    for data in _mutants(target):
        try:
            TARGETS[target](data)
        except BaseException as error:
            error.add_note(f"{target}: {data.hex()}")
            raise


def _search(target: str, seconds: int, out: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(HERE / "fuzz.py"), target, "--seconds", str(seconds), "--out", str(out), "--seed", "1"],
        capture_output=True, text=True, check=False, timeout=seconds + 100, cwd=HERE.parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stderr


def test_what_a_short_search_finds(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="coverage-guided fuzzing")
    log = _search("play_request", _SECONDS, tmp_path)
    assert "stat::number_of_executed_units" in log
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("target", sorted(TARGETS))
def test_what_a_longer_search_finds(target: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="coverage-guided fuzzing")
    _search(target, 120, tmp_path)
    assert not list(tmp_path.iterdir())
