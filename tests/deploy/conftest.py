"""Tests of what deploy/ holds beside its tools for developers."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "deploy" / "grafana"), str(ROOT / "deploy" / "images")]
