"""Says what an upgrade of the chart would do to what runs: every change that Kubernetes refuses, and every disruption.

::

    helm get manifest games > old-manifests.yaml                 # or: python deploy/fleet.py -f old.yaml --out ...
    python deploy/fleet.py -f new.yaml --out new-manifests.yaml
    python deploy/upgrade_check.py old-manifests.yaml new-manifests.yaml

Exit status: 0 nothing to be told, or restarts only; 1 something that Kubernetes refuses, or that loses what is kept.
"""

from __future__ import annotations

import argparse
import enum
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

__all__ = ["Difference", "Severity", "compare"]

Manifest = Mapping[str, Any]


class Severity(enum.StrEnum):
    """How bad a difference is."""

    REFUSED = "refused"
    """The API server rejects the upgrade: the object must be deleted first."""
    LOSS = "loss"
    """Data, or an address that players know, goes away."""
    OUTAGE = "outage"
    """The component is away for a while."""
    RESTART = "restart"
    """Pods are replaced one by one, and drain."""


@dataclass(frozen=True, slots=True, order=True)
class Difference:
    """One thing that an upgrade does.

    Attributes:
        severity: How bad it is.
        where: Kind and name of the object.
        what: The field and its values, or what happens.
    """

    severity: Severity
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.severity:8} {self.where}: {self.what}"


#: Fields that the API server refuses to change, by kind.
IMMUTABLE: dict[str, tuple[str, ...]] = {
    "StatefulSet": ("spec.selector", "spec.serviceName", "spec.podManagementPolicy", "spec.volumeClaimTemplates"),
    "Deployment": ("spec.selector",),
    "Job": ("spec.selector", "spec.template", "spec.completions", "spec.completionMode", "spec.podFailurePolicy"),
    "Service": ("spec.clusterIP",),
    "PersistentVolumeClaim": (
        "spec.accessModes", "spec.storageClassName", "spec.volumeName", "spec.volumeMode", "spec.selector",
        "spec.dataSource",
    ),
    "RoleBinding": ("roleRef",),
    "ClusterRoleBinding": ("roleRef",),
    "Secret": ("type",),
}  # fmt: skip
_KEPT = {"PersistentVolumeClaim"}
_ADDRESSES = {"Service", "Gateway", "TCPRoute", "TLSRoute"}
_POLICY = "helm.sh/resource-policy"


def compare(old: Sequence[Manifest], new: Sequence[Manifest]) -> list[Difference]:
    """Return what the upgrade does beyond adding objects, the worst first."""
    before, after = {_key(m): m for m in old}, {_key(m): m for m in new}
    found: list[Difference] = []
    for key, manifest in before.items():
        found += _changed(manifest, after[key]) if key in after else _gone(manifest)
    order = list(Severity)
    return sorted(found, key=lambda difference: (order.index(difference.severity), difference.where, difference.what))


def _key(manifest: Manifest) -> tuple[str, str, str]:
    # Not the version of its API: an object keeps its identity through one.
    group = manifest["apiVersion"].rpartition("/")[0]
    return f"{group}/{manifest['kind']}", manifest["metadata"].get("namespace", ""), manifest["metadata"]["name"]


def _where(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def _gone(manifest: Manifest) -> Iterator[Difference]:
    kind, where = manifest["kind"], _where(manifest)
    if manifest["metadata"].get("annotations", {}).get(_POLICY) == "keep":
        return
    if kind in _KEPT:
        yield Difference(Severity.LOSS, where, "is deleted, with its data")
    elif kind in _ADDRESSES:
        yield Difference(Severity.LOSS, where, "is deleted: whoever dials it finds nobody")
    elif kind == "StatefulSet":
        yield Difference(Severity.OUTAGE, where, "is deleted: its sessions end after their drain")
    elif kind == "Deployment":
        yield Difference(Severity.OUTAGE, where, "is deleted")
    elif kind == "Job":
        yield Difference(Severity.RESTART, where, "is deleted; what it has done is on its volume")


def _changed(old: Manifest, new: Manifest) -> Iterator[Difference]:
    kind, where = old["kind"], _where(old)
    for path in IMMUTABLE.get(kind, ()):
        before, after = _at(old, path), _at(new, path)
        if before != after:
            yield Difference(Severity.REFUSED, where, f"{path} cannot change: {_short(before)} -> {_short(after)}")
    if kind in _MORE:
        yield from _MORE[kind](old, new)


def _workload(old: Manifest, new: Manifest) -> Iterator[Difference]:
    where = _where(old)
    if _at(old, "spec.template") != _at(new, "spec.template"):
        changes = "; ".join(_differences(_at(old, "spec.template"), _at(new, "spec.template"), ""))
        if _at(new, "spec.strategy.type") == "Recreate":
            yield Difference(Severity.OUTAGE, where, f"stops, then starts anew: {changes}")
        else:
            yield Difference(Severity.RESTART, where, f"its pods are replaced one by one: {changes}")
    before, after = _at(old, "spec.replicas"), _at(new, "spec.replicas")
    if before is None and after is not None:
        yield Difference(
            Severity.OUTAGE, where, f"spec.replicas is set to {after}, whatever an autoscaler had made of it"
        )
    elif before is not None and after is None:
        # Helm removes the field, Kubernetes defaults it: one replica, until the autoscaler has looked.
        yield Difference(
            Severity.OUTAGE, where, f"spec.replicas goes from {before} to the default, 1, until it is scaled"
        )
    elif before is not None and after < before:
        yield Difference(
            Severity.RESTART, where, f"spec.replicas goes from {before} to {after}: the last ones drain and go"
        )


def _claim(old: Manifest, new: Manifest) -> Iterator[Difference]:
    before, after = (_bytes(_at(m, "spec.resources.requests.storage")) for m in (old, new))
    if after < before:
        yield Difference(Severity.REFUSED, _where(old), "a volume cannot shrink")


def _service(old: Manifest, new: Manifest) -> Iterator[Difference]:
    where = _where(old)
    kinds = [_at(m, "spec.type") or "ClusterIP" for m in (old, new)]
    if kinds[0] != kinds[1]:
        yield Difference(Severity.LOSS, where, f"spec.type goes from {kinds[0]} to {kinds[1]}: its address changes")
    ports = [{port["port"] for port in _at(m, "spec.ports") or []} for m in (old, new)]
    if lost := ports[0] - ports[1]:
        yield Difference(Severity.LOSS, where, f"no longer listens on {', '.join(map(str, sorted(lost)))}")
    if _at(old, "spec.selector") != _at(new, "spec.selector"):
        yield Difference(Severity.OUTAGE, where, "selects other pods")


def _route(old: Manifest, new: Manifest) -> Iterator[Difference]:
    if lost := set(_at(old, "spec.hostnames") or []) - set(_at(new, "spec.hostnames") or []):
        yield Difference(Severity.LOSS, _where(old), f"no longer answers to {', '.join(sorted(lost))}")
    if _at(old, "spec.parentRefs") != _at(new, "spec.parentRefs"):
        yield Difference(Severity.LOSS, _where(old), "hangs on another gateway or listener: its address changes")


_MORE: dict[str, Callable[[Manifest, Manifest], Iterator[Difference]]] = {
    "StatefulSet": _workload,
    "Deployment": _workload,
    "PersistentVolumeClaim": _claim,
    "Service": _service,
    "TCPRoute": _route,
    "TLSRoute": _route,
}
_UNITS: dict[str, int] = {unit: 1024**i for i, unit in enumerate(("", "Ki", "Mi", "Gi", "Ti", "Pi"))}
_UNITS |= {unit: 1000**i for i, unit in enumerate(("k", "M", "G", "T", "P"), 1)}


def _bytes(quantity: str) -> float:
    digits = quantity.rstrip("kKMGTPi")
    return float(digits) * _UNITS[quantity[len(digits) :]]


def _at(manifest: Any, path: str) -> Any:
    for name in path.split("."):
        manifest = manifest.get(name) if isinstance(manifest, Mapping) else None
    return manifest


def _differences(old: Any, new: Any, path: str) -> Iterator[str]:
    """Yield each leaf that differs. Lists of named things are compared by name."""
    old, new = _by_name(old), _by_name(new)
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    else:
        yield f"{path}: {_short(old)} -> {_short(new)}"


def _by_name(value: Any) -> Any:
    if isinstance(value, list) and value and all(isinstance(item, Mapping) and "name" in item for item in value):
        return {item["name"]: item for item in value}
    return value


def _short(value: Any, most: int = 60) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def main(arguments: Sequence[str]) -> int:
    """Print the differences; 1 if one is worse than an outage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="manifests of what runs")
    parser.add_argument("new", type=Path, help="manifests of the upgrade")
    parser.add_argument("--json", action="store_true", help="for programs")
    args = parser.parse_args(arguments)
    old, new = ([m for m in yaml.safe_load_all(path.read_text()) if m] for path in (args.old, args.new))
    found = compare(old, new)
    if args.json:
        rows = [{"severity": d.severity, "object": d.where, "what": d.what} for d in found]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    else:
        for difference in found:
            sys.stdout.write(f"{difference}\n")
        sys.stdout.write(f"{len(found)} differences that are felt\n")
    return int(any(d.severity in (Severity.REFUSED, Severity.LOSS) for d in found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
