"""Writes the constraints file from the environment that runs it: exact versions of everything but ourselves.

Local version parts (torch's +cpu) are cut off, so that each index may give its own build of the same version.
"""

from __future__ import annotations

import argparse
import re
from importlib.metadata import distributions
from pathlib import Path

#: Left out: us, and pip, which the Makefile pins itself.
OURS = frozenset({"playserve", "pip"})

HEADER = """\
# Exact versions of everything that `make install` installs: python3 deploy/dev/freeze.py (make constraints).
# Why some are held back: docs/decisions.md. torch comes from whichever index pip is given.
"""


def pins() -> list[str]:
    """Return "name==version" of every installed distribution, sorted by name."""
    found: dict[str, str] = {}
    for distribution in distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        if name not in OURS:
            found[name] = distribution.version.partition("+")[0]
    return [f"{name}=={version}" for name, version in sorted(found.items())]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("out", type=Path)
    parser.parse_args().out.write_text(HEADER + "\n".join(pins()) + "\n", encoding="utf-8")
