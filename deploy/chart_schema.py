"""Writes helm/playserve/values.schema.json: the shape of values.yaml, the bounds below, the services' own settings.

::

    python deploy/chart_schema.py            # or --check: exit 1 if the file is not what this would write

What is a setting of a service, and within which bounds, is said once: by its pydantic model. The chart takes every
setting by name but those that it works out itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic_settings import BaseSettings

CHART = Path(__file__).resolve().parents[1] / "helm" / "playserve"
Schema = dict[str, Any]

#: Settings that the chart sets by other values, or that have no meaning in a pod.
INFERENCE_OWN = {
    "store", "host", "port", "admin_port", "metrics_port", "health_port", "insecure_listen", "device", "drain_grace_s",
    "log_format", "tls_cert", "tls_key", "tls_client_ca", "keys", "registry", "registry_key_file", "registry_ca",
    "registry_cache", "replica", "advertise", "advertise_admin", "peers", "peers_dns", "peers_key_file", "peers_ca",
    "peers_name",
}  # fmt: skip
CONTROL_OWN = {
    "data", "database", "store", "host", "port", "tls_cert", "tls_key", "insecure_listen", "replica_key",
    "replica_tls_ca", "replica_tls_cert", "replica_tls_key", "job_key", "log_format", "cluster", "grids",
}  # fmt: skip

_QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?([kMGTP]i?|m)?$"}
_NAME = {"type": "string", "pattern": r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$", "maxLength": 253}
_PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
_COUNT = {"type": "integer", "minimum": 0}
_SOME = {"type": "integer", "minimum": 1}
_STRINGS = {"type": "array", "items": {"type": "string"}}
_OBJECTS = {"type": "array", "items": {"type": "object"}}
_MAP = {"type": "object", "additionalProperties": {"type": "string"}}
_ANY = {"type": "object"}
_ACCESS = ("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod")

#: By the last words of a value's path; the longest match wins.
BOUNDS: dict[str, Schema] = {
    "existingSecret": _NAME, "keySecret": _NAME, "tlsSecret": _NAME, "existingClaim": _NAME, "runtimeClassName": _NAME,
    "priorityClassName": _NAME, "storageClassName": _NAME, "modelRepositoryClaim": _NAME, "authentication": _NAME,
    "className": _NAME, "clusterDomain": _NAME, "domain": _NAME,
    "nodeSelector": _MAP, "annotations": _MAP, "labels": _MAP, "affinity": _ANY, "resources": _ANY,
    "podSecurityContext": _ANY, "containerSecurityContext": _ANY,
    "tolerations": _OBJECTS, "extraEnv": _OBJECTS, "extraVolumes": _OBJECTS, "extraVolumeMounts": _OBJECTS,
    "networkPolicy.clients": _OBJECTS, "networkPolicy.scrapers": _OBJECTS, "networkPolicy.egress": _OBJECTS,
    "pullSecrets": _STRINGS, "sourceRanges": _STRINGS, "arguments": _STRINGS,
    "accessModes": {"type": "array", "items": {"enum": list(_ACCESS)}},
    "size": _QUANTITY, "sharedMemory": _QUANTITY,
    "port": _PORT, "ports.grpc": _PORT, "ports.admin": _PORT, "ports.health": _PORT, "ports.metrics": _PORT,
    "basePort": {"type": "integer", "minimum": 1024, "maximum": 65520},
    "count": _COUNT, "replicas": _COUNT, "maxUnavailable": {"type": ["integer", "string"]},
    "minReplicas": _SOME, "maxReplicas": {"type": "integer", "minimum": 1, "maximum": 1000},
    "runs": _SOME, "shards": _SOME, "parallelism": _SOME, "processes": _SOME, "maxSkew": _SOME, "pods": _SOME,
    "periodSeconds": _SOME, "failureThreshold": _SOME, "timeoutSeconds": _SOME, "deadlineSeconds": _SOME,
    "graceSeconds": {"type": "integer", "minimum": 1, "maximum": 1700},
    "marginSeconds": {"type": "integer", "minimum": 5, "maximum": 600},
    "windowSeconds": {"type": "integer", "minimum": 1, "maximum": 1800},
    "stabilizationSeconds": {"type": "integer", "minimum": 0, "maximum": 3600},
    "targetUsed": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
    "whenUnsatisfiable": {"enum": ["DoNotSchedule", "ScheduleAnyway"]},
    "external.mode": {"enum": ["none", "loadBalancer", "gateway"]},
    "gateway.route": {"enum": ["TLSRoute", "TCPRoute"]},
    "interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m)$"},
    "digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
    "folder": {"type": "string", "pattern": r"^[A-Za-z0-9_][A-Za-z0-9_./-]*$", "not": {"pattern": r"\.\."}},
}  # fmt: skip


def build() -> Schema:
    """Return the schema."""
    from playserve_services.control.settings import ControlSettings
    from playserve_services.inference.settings import ServeSettings

    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = _shape(values, ())
    properties = schema["properties"]
    properties["inference"]["properties"]["settings"] = settings_schema(ServeSettings, INFERENCE_OWN)
    properties["control"]["properties"]["settings"] = settings_schema(ControlSettings, CONTROL_OWN)
    # Helm gives a subchart's `global` to everyone.
    properties["global"] = {"type": "object"}
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values of playserve", **schema}


def settings_schema(model: type[BaseSettings], own: set[str]) -> Schema:
    """Return what `settings:` may hold: the fields of `model` but for `own`, with their bounds.

    Raises:
        ValueError: `own` names a field that the model does not have.
    """
    whole = model.model_json_schema()
    if unknown := own - whole["properties"].keys():
        raise ValueError(f"{model.__name__} has no field {', '.join(sorted(unknown))}; chart_schema.py says it has")
    fields = {name: _field(field, whole) for name, field in whole["properties"].items() if name not in own}
    return {"type": "object", "additionalProperties": False, "properties": dict(sorted(fields.items()))}


def _field(field: Schema, whole: Schema) -> Schema:
    if "$ref" in field:
        field = {**whole["$defs"][field["$ref"].rpartition("/")[2]], **field}
    kept = {"type", "enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength"}
    if choices := field.get("anyOf"):
        # None is said by leaving the setting out.
        known = [_field(choice, whole) for choice in choices if choice.get("type") != "null"]
        return known[0] if len(known) == 1 else {"anyOf": known}
    return {key: value for key, value in sorted(field.items()) if key in kept}


def _shape(value: Any, path: tuple[str, ...]) -> Schema:
    """Return the schema of what `value` is an example of."""
    for start in range(len(path)):
        if (bound := BOUNDS.get(".".join(path[start:]))) is not None:
            return bound
    if isinstance(value, dict):
        properties = {key: _shape(below, (*path, key)) for key, below in value.items()}
        return {"type": "object", "additionalProperties": False, "properties": properties}
    if isinstance(value, list):
        raise ValueError(f"{'.'.join(path)} is a list: say in BOUNDS of what")
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string"}
    return {"type": kinds[type(value)], **({"minimum": 0} if type(value) is int else {})}


def main(arguments: list[str]) -> int:
    """Write or check the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the file is not up to date")
    check = parser.parse_args(arguments).check
    path, text = CHART / "values.schema.json", json.dumps(build(), indent=1) + "\n"
    if not check:
        path.write_text(text)
    return int(path.read_text() != text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
