"""Looks through what constraints.txt pins: licences of everything, and known vulnerabilities.

``python deploy/dev/audit.py licences`` reads the metadata of what is installed. ``python deploy/dev/audit.py
vulnerabilities`` asks pip-audit, which asks PyPI or OSV: it needs pip-audit, and a network that reaches them.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageMetadata, PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / "constraints.txt"

#: What may be used by anybody, changed or not, beside code under Apache-2.0.
PERMISSIVE = frozenset({
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "ISC", "LLVM-exception",
    "MIT", "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Unlicense", "Zlib",
})  # fmt: skip
#: Others, each with the reason why it may be there all the same. None of their code is in ours, nor in a wheel of ours.
EXCEPTIONS = {
    "ale-py": "GPL-2.0: the Atari emulator, a program of its own behind an API; extra `envs` only, never in a server",
    "frozendict": "LGPL-3.0: a dependency of vector-quantize-pytorch (by einx), used unchanged, as a library",
    "nle": "NetHack's own licence: the game, in extra `envs` only, never in a server",
    "psycopg": "LGPL-3.0: used unchanged, as a library",
    "psycopg-binary": "LGPL-3.0: used unchanged, as a library",
    "pygame-ce": "LGPL: the window of worlds, and vizdoom wants it; unchanged, as a library; extras `play` and `envs`",
    "pynput": "LGPL-3.0: used unchanged, as a library; extra `play` only",
    "python-xlib": "LGPL-2.1: used unchanged, as a library; extra `play` only",
}
#: Drivers of NVIDIA's, under its own licence, which come with torch.
_DRIVERS = re.compile(r"nvidia-.*|cuda-.*|tritonclient|triton")
#: How licences are called where they are not called by their SPDX names.
_NAMES = {
    "3-clause bsd license": "BSD-3-Clause", "apache": "Apache-2.0", "apache 2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0", "apache software license": "Apache-2.0", "bsd license": "BSD-3-Clause",
    "bsd": "BSD-3-Clause", "dfsg approved": "MIT", "isc license (iscl)": "ISC", "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0", "python software foundation license": "PSF-2.0",
    "the unlicense (unlicense)": "Unlicense",
}  # fmt: skip
_BETWEEN = r"\s+(?:AND|OR|WITH)\s+"
_BETWEEN = r"\s+(?:AND|OR|WITH)\s+"
#: Said neither by metadata nor by classifiers; read in the project's own LICENSE file.
_READ = {"vizdoom": "MIT", "atheris": "Apache-2.0"}


def pinned(path: Path = CONSTRAINTS) -> Iterator[tuple[str, str]]:
    """Yield name and version of every pin."""
    for line in path.read_text(encoding="utf-8").splitlines():
        name, equal, version = line.partition("#")[0].strip().partition("==")
        if equal:
            yield name, version


def _field(metadata: PackageMetadata, name: str) -> str:
    return metadata[name] if name in metadata else ""  # noqa: SIM401 - its type has no get


def licence_of(found: Distribution) -> frozenset[str]:
    """Return the SPDX names in what a distribution says of itself; those that are none as they are."""
    metadata = found.metadata
    expression = _field(metadata, "License-Expression")
    if expression:
        return frozenset(re.split(_BETWEEN, expression.replace("(", "").replace(")", "")))
    classified = [text.rpartition(" :: ")[2] for text in metadata.get_all("Classifier") or [] if "License ::" in text]
    said = [text for text in classified if text != "OSI Approved"] or [_field(metadata, "License").split("\n")[0]]
    parts = (part.strip() for text in said for part in re.split(_BETWEEN, text))
    return frozenset(_NAMES.get(part.lower(), part) for part in parts if part)


def licence_problems(path: Path = CONSTRAINTS) -> list[str]:
    """Return a line for every pin that is installed here and whose licence nobody has agreed to."""
    problems = []
    for name, _ in pinned(path):
        try:
            licences = licence_of(distribution(name))
        except PackageNotFoundError:
            continue  # of another platform, or of an extra that is not here
        if name in _READ:
            licences = frozenset({_READ[name]})
        if name in EXCEPTIONS or _DRIVERS.fullmatch(name):
            continue
        if not licences:
            problems.append(f"{name} says nothing of its licence")
        elif licences - PERMISSIVE:
            problems.append(f"{name} is under {', '.join(sorted(licences - PERMISSIVE))}")
    return problems


def vulnerabilities(path: Path = CONSTRAINTS) -> int:
    """Run pip-audit on the pins; return its status: 0 nothing known, 1 something, 2 it could not be asked."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(path), "--no-deps", "--disable-pip",
               "--progress-spinner", "off", "--format", "json"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        print(f"pip-audit could not be asked, so nothing is known: {done.stderr.strip()[-800:]}", file=sys.stderr)
        return 2
    found = [(item["name"], item["version"], flaw) for item in report["dependencies"] for flaw in item.get("vulns", ())]
    for name, version, flaw in found:
        print(f"{name} {version}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or 'no version yet'}")
    skipped = [item["name"] for item in report["dependencies"] if item.get("skip_reason")]
    print(f"{len(report['dependencies'])} pins, {len(found)} known vulnerabilities, not looked at: {skipped or 'none'}")
    return int(bool(found))


def main() -> int:
    """Do what was asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["licences", "vulnerabilities"])
    if parser.parse_args().what == "vulnerabilities":
        return vulnerabilities()
    problems = licence_problems()
    print("\n".join(problems) or f"{len(list(pinned()))} pins, every licence is one that was agreed to")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
