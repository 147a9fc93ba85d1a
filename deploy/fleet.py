"""Renders the chart with Helm's own engine and validates every manifest, without a cluster and without a helm binary.

::

    python deploy/fleet.py -f helm/playserve/ci/one-gpu.yaml --set inference.replicas=2 --out manifests.yaml

Values are checked by the chart's schema, and linted; built-in kinds are validated strictly against the schemas of the
newest Kubernetes minor versions, custom resources against their published schemas (tests/helm/schemas). A kind without
a schema is an error: nothing passes unseen.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import helm_python
import jsonschema  # type: ignore[import-untyped]
import kubernetes_validate.utils  # type: ignore[import-untyped]
import referencing
import yaml

__all__ = ["CHART", "Rendered", "merged", "newest_versions", "render", "validate"]

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "helm" / "playserve"
SCHEMAS = ROOT / "tests" / "helm" / "schemas"
_SET = "kubernetes-json-schema/v{}.0-local-strict"
_WARNING = 2  # of Helm's linter: 1 is information, 3 an error
Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """What a chart became.

    Attributes:
        manifests: Every object, in the order of the templates.
        notes: What Helm tells after an installation.
    """

    manifests: Sequence[Manifest] = field(default_factory=tuple)
    notes: str = ""

    def of(self, kind: str, suffix: str = "") -> list[Manifest]:
        """Return the objects of a kind whose names end in `suffix`."""
        return [m for m in self.manifests if m["kind"] == kind and m["metadata"]["name"].endswith(suffix)]

    def one(self, kind: str, suffix: str = "") -> Manifest:
        """Return the only object of a kind whose name ends in `suffix`."""
        (found,) = self.of(kind, suffix)
        return found


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `over` on top of it, map by map, as Helm does with several files."""
    result = dict(base)
    for key, value in over.items():
        mine = result.get(key)
        result[key] = merged(mine, value) if isinstance(mine, Mapping) and isinstance(value, Mapping) else value
    return result


def render(values: Mapping[str, Any], *, chart: Path = CHART, name: str = "games", namespace: str = "play") -> Rendered:
    """Check the values, lint and render.

    Raises:
        helm_python.HelmError: The values do not fit the schema, or the chart refuses them.
        ValueError: The linter has a warning or an error.
    """
    with helm_python.Chart.load(chart) as loaded:
        loaded.validate_schema(dict(values))
        texts = loaded.render(dict(values), name=name, namespace=namespace)
    report = helm_python.lint(chart, dict(values), strict=True, namespace=namespace)
    if problems := [message for message in report["messages"] if message["severity"] >= _WARNING]:
        raise ValueError("; ".join(f"{problem['path']}: {problem['error']}" for problem in problems))
    manifests = [
        manifest
        for path, text in sorted(texts.items())
        if not path.endswith("NOTES.txt")
        for manifest in yaml.safe_load_all(text)
        if manifest
    ]
    notes = next((text for path, text in texts.items() if path.endswith("NOTES.txt")), "")
    return Rendered(manifests=manifests, notes=notes)


def newest_versions(count: int = 3) -> list[str]:
    """Return the newest Kubernetes minor versions whose schemas are here, such as 1.37."""
    found = {tuple(map(int, version.split(".")[:2])) for version in kubernetes_validate.utils.all_versions()}
    return [f"{major}.{minor}" for major, minor in sorted(found)[-count:]]


def validate(manifests: Sequence[Manifest], versions: Sequence[str] | None = None) -> list[str]:
    """Return what is wrong with the manifests, a line each; none: they are valid in every version."""
    problems: list[str] = []
    for manifest in manifests:
        where = f"{manifest['kind']}/{manifest['metadata']['name']}"
        problems += [f"{where}: {problem}" for problem in _problems(manifest, versions or newest_versions())]
    return problems


def _problems(manifest: Manifest, versions: Sequence[str]) -> Iterator[str]:
    group = manifest["apiVersion"].rpartition("/")[0]
    if ("." in group and not group.endswith(".k8s.io")) or group == "gateway.networking.k8s.io":
        yield from _custom_problems(manifest, versions)
        return
    for version in versions:
        try:
            validator = _builtin_validator(manifest["apiVersion"], manifest["kind"], version)
        except FileNotFoundError:
            yield f"Kubernetes {version} has no schema of {manifest['apiVersion']} {manifest['kind']}"
            continue
        for error in validator.iter_errors(manifest):
            yield f"Kubernetes {version}: {'.'.join(map(str, error.path))}: {error.message}"


@functools.cache
def _definitions(version: str) -> referencing.Resource[Any]:
    contents = kubernetes_validate.utils.schema_contents(f"{_SET.format(version)}/_definitions.json", version)
    return referencing.Resource.from_contents(contents)


@functools.cache
def _builtin_validator(api_version: str, kind: str, version: str) -> jsonschema.Draft202012Validator:
    """Return the strict validator of a built-in kind.

    The schemas are those of kubernetes-validate. Its own `validate` reads all definitions of a version, megabytes of
    JSON, for every manifest: here they are read once.

    Raises:
        FileNotFoundError: This version of Kubernetes has no such kind.
    """
    short = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    path = f"{_SET.format(version)}/{kind.lower()}-{short}.json"
    schema = kubernetes_validate.utils.schema_contents(path, version)
    registry = _definitions(version) @ (referencing.Resource.from_contents(schema) @ referencing.Registry())
    return jsonschema.Draft202012Validator(schema, registry=registry)


def _custom_problems(manifest: Manifest, versions: Sequence[str]) -> Iterator[str]:
    schema = custom_schema(manifest["apiVersion"], manifest["kind"])
    if schema is None:
        yield f"no schema of {manifest['apiVersion']} {manifest['kind']} in {SCHEMAS.relative_to(ROOT)}"
        return
    for error in jsonschema.Draft202012Validator(schema).iter_errors(manifest):
        yield f"{'.'.join(map(str, error.path))}: {error.message}"
    # Its metadata are those of every object: a ConfigMap's schema has no more than them.
    bare = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": manifest["metadata"]}
    yield from _problems(bare, versions)


@functools.cache
def custom_schema(api_version: str, kind: str) -> dict[str, Any] | None:
    """Return the schema of a custom resource, strict: what it does not name is refused. None: there is none."""
    group, _, version = api_version.partition("/")
    path = SCHEMAS / f"{kind.lower()}.{group}.{version}.json"
    return _strict(json.loads(path.read_text())) if path.is_file() else None


def _strict(schema: Any) -> Any:
    """The API server drops fields that a schema does not name without a word: here they are errors."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    open_ = strict.get("additionalProperties") or strict.get("x-kubernetes-preserve-unknown-fields")
    if (
        isinstance(strict.get("properties"), dict)
        and strict["properties"]
        and strict.get("type") == "object"
        and not open_
    ):
        strict["additionalProperties"] = False
    return strict


def main(arguments: Sequence[str]) -> int:
    """Render, validate, write; 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-f", "--values", action="append", default=[], type=Path, help="a file of values (repeatable)")
    parser.add_argument("--set", action="append", default=[], help="one more value, KEY=VALUE, as Helm reads it")
    parser.add_argument("--name", default="games", help="of the release (default games)")
    parser.add_argument("--namespace", default="play", help="(default play)")
    parser.add_argument("--out", type=Path, help="file for the manifests (default: they are only checked)")
    args = parser.parse_args(arguments)
    values: dict[str, Any] = {}
    for path in args.values:
        values = merged(values, yaml.safe_load(path.read_text()) or {})
    for expression in args.set:
        values = merged(values, helm_python.parse_set_string(expression))
    try:
        rendered = render(values, name=args.name, namespace=args.namespace)
    except (helm_python.HelmError, ValueError) as error:
        sys.stderr.write(f"refused: {error}\n")
        return 1
    problems = validate(rendered.manifests)
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    if args.out:
        args.out.write_text(yaml.safe_dump_all(rendered.manifests, sort_keys=False))
    versions = ", ".join(newest_versions())
    sys.stdout.write(f"{len(rendered.manifests)} manifests, {len(problems)} problems (Kubernetes {versions})\n")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
