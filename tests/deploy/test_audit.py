"""Licences of what is pinned: all agreed to, and no reason for one that is no longer there."""

from __future__ import annotations

import subprocess
import sys
from email.message import Message
from pathlib import Path
from typing import Any

import audit
import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_every_pin_has_a_licence_that_was_agreed_to() -> None:
    assert audit.licence_problems() == []


def test_every_exception_is_pinned() -> None:
    assert audit.EXCEPTIONS.keys() - dict(audit.pinned()).keys() - {"pynput", "python-xlib", "psycopg",
                                                                    "psycopg-binary"} == set()  # fmt: skip


class _Distribution:
    def __init__(self, **headers: str) -> None:
        self.metadata: Any = Message()
        for name, value in headers.items():
            self.metadata[name.replace("_", "-")] = value


@pytest.mark.parametrize(("headers", "found"), [
    ({"License_Expression": "(Apache-2.0 OR MIT) AND Zlib"}, {"Apache-2.0", "MIT", "Zlib"}),
    ({"Classifier": "License :: OSI Approved :: BSD License"}, {"BSD-3-Clause"}),
    ({"License": "MIT License\nmore of it"}, {"MIT"}),
    ({"License": "Mine, all mine"}, {"Mine, all mine"}),
    ({}, set()),
])  # fmt: skip
def test_licences_are_read_wherever_they_are_said(headers: dict[str, str], found: set[str]) -> None:
    assert audit.licence_of(_Distribution(**headers)) == found  # type: ignore[arg-type]


def test_what_could_not_be_asked_is_no_good_news() -> None:
    program = "import sys; sys.modules['pip_audit'] = None; import audit; sys.exit(audit.vulnerabilities())"
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=False,
                          env={"PYTHONPATH": str(ROOT / "deploy" / "dev")}, timeout=60)  # fmt: skip
    assert done.returncode == 2
    assert "nothing is known" in done.stderr
