"""What the chart tells its containers, run for real: control and a replica with TLS and keys, as processes here.

The names of the cluster lead to loopback, by an /etc/hosts that only these processes see, and the folders of volumes
are folders of the test. The commands, the variables and the files are the chart's; keys and certificates are made as
docs/operations.md says.
"""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import fleet
import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc

Render = Callable[[dict[str, Any]], fleet.Rendered]
POD = "games-playserve-inference-0"
REPLICAS = "games-playserve-inference-replicas.play.svc.cluster.local"
CONTROL = "games-playserve-control.play.svc.cluster.local"
#: docs/operations.md, "Certificates".
NAMES = ["games-playserve-inference.play.svc.cluster.local", f"*.{REPLICAS}", CONTROL]
_LIMIT_S = 90.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: /etc/hosts is another one for these processes"),
]


def write_certificates(folder: Path) -> None:
    """Write ca.crt, tls.crt and tls.key as the Secret of `security.tls` holds them."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    ca, server = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("Games", "playserve"))
    now = datetime.datetime.now(datetime.UTC)

    def signed(subject: x509.Name, key: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType) -> bytes:
        builder = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(ca).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(minutes=1))
            .not_valid_after(now + datetime.timedelta(days=1)).add_extension(extension, critical=True)
        )  # fmt: skip
        return builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    folder.mkdir(parents=True)
    (folder / "ca.crt").write_bytes(signed(ca, keys[0], x509.BasicConstraints(ca=True, path_length=0)))
    names = x509.SubjectAlternativeName([x509.DNSName(name) for name in NAMES])
    (folder / "tls.crt").write_bytes(signed(server, keys[1], names))
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "tls.key").write_bytes(keys[1].private_bytes(*pem))


class Node:
    """Runs containers of manifests as processes, with the volumes of pods in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        hosts = " ".join([CONTROL, f"{POD}.{REPLICAS}", *NAMES[:1]])
        (folder / "hosts").write_text(f"127.0.0.1 localhost {hosts}\n")

    def command(self, words: list[str]) -> list[str]:
        """Return a command under the other /etc/hosts."""
        script = f'mount --bind {self._folder / "hosts"} /etc/hosts; exec "$@"'
        return ["unshare", "--mount", "sh", "-ec", script, "sh", *words]

    def environment(self, workload: dict[str, Any], secrets: dict[str, str], volumes: str) -> dict[str, str]:
        """Return the variables of a workload's container, with what Kubernetes puts in."""
        put_in = {"POD_NAME": POD, "POD_INDEX": "0"}
        told = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
        for variable in workload["spec"]["template"]["spec"]["containers"][0]["env"]:
            name = variable["name"]
            if "value" not in variable:
                text = put_in.get(name) or secrets[variable["valueFrom"]["secretKeyRef"]["key"]]
            else:
                text = variable["value"].replace("$(POD_NAME)", POD).replace("$(POD_INDEX)", "0")
            for place in ("/etc/playserve", "/var/lib/playserve", "/store"):
                if text.startswith(place):
                    text = f"{self._folder / volumes}{text}"
            told[name] = text
        return {**told, "HOME": str(self._folder)}

    def run(self, words: list[str], environment: dict[str, str]) -> str:
        """Run a command to its end; its output."""
        done = subprocess.run(self.command(words), env=environment, check=True, stdout=subprocess.PIPE, text=True)
        return done.stdout.strip()

    @contextmanager
    def serving(self, workload: dict[str, Any], environment: dict[str, str]) -> Iterator[None]:
        """Run a container's command until it is ready, for the length of the block."""
        words = workload["spec"]["template"]["spec"]["containers"][0]["command"]
        with subprocess.Popen(self.command(words), env=environment, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                assert "ready" in line, line
                yield
            finally:
                process.terminate()
        assert process.returncode in (0, -signal.SIGTERM)  # uvicorn passes the signal on when it has ended


def test_control_and_a_replica_find_each_other_by_what_the_chart_tells_them(
    render: Render, tmp_path: Path, unused_tcp_port_factory: Callable[[], int], require_program: Callable[[str], None]
) -> None:
    require_program("curl")
    ports = {name: unused_tcp_port_factory() for name in ("grpc", "admin", "health", "metrics")}
    rendered = render({
        "security": {"insecureListen": False, "tls": {"existingSecret": "playserve-tls"}},
        "inference": {"ports": ports, "drain": {"graceSeconds": 1}, "settings": {"registry_poll_s": 0.2}},
        "control": {
            "enabled": True, "port": unused_tcp_port_factory(), "keys": {"existingSecret": "playserve-control-keys"},
        },
    })  # fmt: skip
    deployment, replicas = rendered.one("Deployment", "-control"), rendered.one("StatefulSet", "-inference")
    port = rendered.one("Service", "-control")["spec"]["ports"][0]["port"]
    node = Node(tmp_path)
    for pod in ("control", "replica"):
        (tmp_path / pod / "var/lib/playserve").mkdir(parents=True)
        (tmp_path / pod / "store").mkdir()
    write_certificates(tmp_path / "control/etc/playserve/tls")
    for place in ("control/etc/playserve/fleet", "replica/etc/playserve/tls", "replica/etc/playserve/control"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).symlink_to(tmp_path / "control/etc/playserve/tls")

    secrets = {"replicas": "", "jobs": "", "registry": ""}
    admin = node.run(["playserve", "control", "init-key"], node.environment(deployment, secrets, "control"))
    secrets = dict.fromkeys(secrets, admin)
    (tmp_path / "replica/etc/playserve/registry").mkdir()
    (tmp_path / "replica/etc/playserve/registry/registry").write_text(secrets["registry"])

    def asked(path: str) -> Any:
        curl = ["curl", "--silent", "--fail", "--cacert", str(tmp_path / "control/etc/playserve/tls/ca.crt")]
        url = f"https://{CONTROL}:{port}{path}"
        return json.loads(node.run([*curl, "-H", f"Authorization: Bearer {admin}", url], dict(os.environ)))

    with ExitStack() as stack:
        stack.enter_context(node.serving(deployment, node.environment(deployment, secrets, "control")))
        # The probes of control, by their paths.
        for probe in ("startupProbe", "readinessProbe"):
            path = deployment["spec"]["template"]["spec"]["containers"][0][probe]["httpGet"]["path"]
            assert asked(path)["status"] in ("alive", "ready")
        stack.enter_context(node.serving(replicas, node.environment(replicas, secrets, "replica")))
        # The replica's probes, on the plaintext port.
        container = replicas["spec"]["template"]["spec"]["containers"][0]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            check = container[probe]["grpc"]
            with grpc.insecure_channel(f"127.0.0.1:{check['port']}") as channel:
                request = health_pb2.HealthCheckRequest(service=check["service"])
                answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=10)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
        deadline = time.monotonic() + _LIMIT_S
        while not (known := asked("/v1/replicas")):
            assert time.monotonic() < deadline, "no heartbeat arrived"
        (replica,) = known
        assert replica["name"] == POD
        assert replica["address"] == f"{POD}.{REPLICAS}:{ports['grpc']}"
        assert replica["admin_address"] == f"{POD}.{REPLICAS}:{ports['admin']}"
        # Control reaches the replica's admin port by that address, with TLS and the key of the Secret.
        assert asked("/v1/sessions") == {"sessions": [], "unreachable": []}
        assert (tmp_path / "replica/var/lib/playserve/registry.json").is_file()
