"""How inference is run: probes, the drain, scaling, addresses, policies."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import fleet
import helm_python
import pytest

Render = Callable[[dict[str, Any]], fleet.Rendered]
SCENARIOS = ["laptop-cpu", "one-gpu", "gpu-fleet-triton", "air-gapped", "mutual-tls"]


def inference(rendered: fleet.Rendered) -> tuple[dict[str, Any], dict[str, Any]]:
    pod = rendered.one("StatefulSet", "-inference")["spec"]["template"]["spec"]
    return pod, pod["containers"][0]


def variables(container: dict[str, Any]) -> dict[str, str]:
    return {variable["name"]: variable.get("value", "") for variable in container["env"]}


# -- probes and the drain ---------------------------------------------------------------------------------------------


def test_probes_are_grpc_on_the_plaintext_port_by_the_names_that_the_server_has(every: fleet.Rendered) -> None:
    _, container = inference(every)
    port = int(variables(container)["PLAYSERVE_HEALTH_PORT"])
    wanted = {"startupProbe": "readiness", "readinessProbe": "readiness", "livenessProbe": "liveness"}
    for probe, service in wanted.items():
        assert container[probe]["grpc"] == {"port": port, "service": service}
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 300  # policies are loaded and warmed up


def test_a_pod_has_longer_to_end_than_a_drain_takes(every: fleet.Rendered) -> None:
    pod, container = inference(every)
    grace_s = float(variables(container)["PLAYSERVE_DRAIN_GRACE_S"])
    hook_s = int(re.search(r"sleep\((\d+)\)", container["lifecycle"]["preStop"]["exec"]["command"][2])[1])  # type: ignore[index]
    assert grace_s < hook_s < pod["terminationGracePeriodSeconds"]


def test_a_drain_hands_sessions_to_the_other_replicas_by_their_service(every: fleet.Rendered) -> None:
    _, container = inference(every)
    told = variables(container)
    [headless] = [service for service in every.of("Service") if service["metadata"]["name"].endswith("-replicas")]
    assert told["PLAYSERVE_ADVERTISE"], "a player who is sent on needs a name to dial"
    if "PLAYSERVE_PEERS_DNS" not in told:
        assert "PLAYSERVE_KEYS" in told or "PLAYSERVE_REGISTRY" in told, "only missing keys keep them apart"
        return
    name, _, port = told["PLAYSERVE_PEERS_DNS"].partition(":")
    assert name.startswith(f"{headless['metadata']['name']}.")
    assert int(port) == int(told["PLAYSERVE_PORT"])
    if "PLAYSERVE_TLS_CERT" in told:  # one that the wildcard of the replicas' certificate holds
        assert told["PLAYSERVE_PEERS_NAME"] == f"peer.{name}"
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert ("PLAYSERVE_PEERS_KEY_FILE" in told) == ("/etc/playserve/peers" in mounts)


def test_replicas_show_each_other_the_key_that_they_want_of_each_other(render: Render) -> None:
    keyed = {"security": {"insecureListen": True, "keys": {"existingSecret": "file"}}}
    _, container = inference(render(keyed))
    assert "PLAYSERVE_PEERS_DNS" not in variables(container)
    pod, container = inference(render({**keyed, "inference": {"handoff": {"existingSecret": "peers"}}}))
    assert variables(container)["PLAYSERVE_PEERS_KEY_FILE"] == "/etc/playserve/peers/peers"
    [volume] = [volume for volume in pod["volumes"] if volume["name"] == "peers"]
    assert volume["secret"]["secretName"] == "peers"
    _, container = inference(
        render({"security": {"insecureListen": True}, "inference": {"handoff": {"enabled": False}}})
    )
    assert "PLAYSERVE_PEERS_DNS" not in variables(container)


def test_the_drain_runs_in_the_hook_and_ends_with_the_server(scenario: Callable[[str], fleet.Rendered]) -> None:
    """The hook's own command, against a process that drains as the server does: exits by itself after a while."""
    _, container = inference(scenario("laptop-cpu"))
    python, flag, script = container["lifecycle"]["preStop"]["exec"]["command"]
    assert (python, flag) == ("python3", "-c")
    draining = (
        "import signal, sys, time\n"
        "def drain(*_):\n time.sleep(0.2); print('drained', flush=True); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, drain); print('ready', flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", draining], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        here = script.replace("os.kill(1,", f"os.kill({server.pid},")
        assert here != script
        with subprocess.Popen([sys.executable, "-c", here]) as hook:
            assert server.stdout.readline() == "drained\n"
            assert server.wait() == 0
            assert hook.poll() is None  # in a pod it goes with PID 1; till then no second SIGTERM ends sessions at once
            hook.kill()


# -- scaling ----------------------------------------------------------------------------------------------------------


def test_the_autoscaler_takes_one_replica_a_window_and_a_window_holds_a_drain(
    scenario: Callable[[str], fleet.Rendered],
) -> None:
    rendered = scenario("gpu-fleet-triton")
    pod, _ = inference(rendered)
    spec = rendered.one("ScaledObject")["spec"]
    down = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    assert down["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 330}]
    assert down["policies"][0]["periodSeconds"] >= pod["terminationGracePeriodSeconds"]
    assert down["stabilizationWindowSeconds"] == 600
    # Without Prometheus the replicas stay as they are.
    assert "fallback" not in spec
    # Replicas are the autoscaler's: an upgrade must not set them back.
    assert "replicas" not in rendered.one("StatefulSet", "-inference")["spec"]


def test_the_autoscaler_counts_replicas_worth_of_used_slots(render: Render) -> None:
    rendered = render({"autoscaling": {"enabled": True, "targetUsed": 0.5}})
    (trigger,) = rendered.one("ScaledObject")["spec"]["triggers"]
    selector = '{namespace="play",service="games-playserve-inference-replicas"}'
    assert trigger["metadata"]["query"] == (
        f"max(sum by (policy, layout) (playserve_slots_used{selector}) / "
        f"avg by (policy, layout) (playserve_slots_total{selector}))"
    )
    assert trigger["metadata"]["threshold"] == "0.5"
    assert trigger["metricType"] == "AverageValue"


def test_replicas_are_disrupted_one_by_one_and_spread_over_nodes(every: fleet.Rendered) -> None:
    pod, _ = inference(every)
    assert every.one("PodDisruptionBudget", "-inference")["spec"]["maxUnavailable"] == 1
    (constraint,) = pod["topologySpreadConstraints"]
    assert constraint["topologyKey"] == "kubernetes.io/hostname"


def test_a_gpu_is_asked_for_with_what_its_nodes_want(scenario: Callable[[str], fleet.Rendered]) -> None:
    pod, container = inference(scenario("one-gpu"))
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["resources"]["limits"]["memory"] == "16Gi"
    assert variables(container)["PLAYSERVE_DEVICE"] == "cuda"
    assert pod["runtimeClassName"] == "nvidia"
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


def test_numbers_reach_the_server_without_an_exponent(render: Render) -> None:
    _, container = inference(
        render({"inference": {"settings": {"slots": 3_000_000, "poll_s": 0.5, "fixed_batch": True}}})
    )
    told = variables(container)
    assert (told["PLAYSERVE_SLOTS"], told["PLAYSERVE_POLL_S"], told["PLAYSERVE_FIXED_BATCH"]) == (
        "3000000",
        "0.5",
        "true",
    )


# -- addresses --------------------------------------------------------------------------------------------------------


def test_a_draining_replica_keeps_its_name_but_gets_no_new_sessions(every: fleet.Rendered) -> None:
    headless = every.one("Service", "-inference-replicas")["spec"]
    assert headless["clusterIP"] == "None"
    assert headless["publishNotReadyAddresses"] is True
    assert every.one("StatefulSet", "-inference")["spec"]["serviceName"] == "games-playserve-inference-replicas"
    assert "publishNotReadyAddresses" not in every.one("Service", "-inference")["spec"]


def test_each_replica_that_there_may_be_has_an_address_of_its_own(scenario: Callable[[str], fleet.Rendered]) -> None:
    rendered = scenario("gpu-fleet-triton")
    routes = rendered.of("TLSRoute")
    assert [route["spec"]["hostnames"] for route in routes] == [
        [f"games-playserve-inference-{i}.play.example.com"] for i in range(6)
    ]
    for i, route in enumerate(routes):
        (backend,) = route["spec"]["rules"][0]["backendRefs"]
        service = rendered.one("Service", f"-inference-{i}")
        assert backend == {"name": service["metadata"]["name"], "port": service["spec"]["ports"][0]["port"]}
        assert service["spec"]["selector"]["statefulset.kubernetes.io/pod-name"] == f"games-playserve-inference-{i}"
        assert service["spec"]["publishNotReadyAddresses"] is True  # sessions are resumed while it drains
    (listener,) = rendered.one("Gateway")["spec"]["listeners"]
    assert listener["tls"] == {"mode": "Passthrough"}
    _, container = inference(rendered)
    assert variables(container)["PLAYSERVE_ADVERTISE"] == "$(POD_NAME).play.example.com:443"


def test_tcp_routes_have_a_port_for_each_replica(scenario: Callable[[str], fleet.Rendered]) -> None:
    routes = scenario("mutual-tls").of("TCPRoute")
    assert [route["spec"]["parentRefs"] for route in routes] == [
        [{"name": "edge", "namespace": "gateways", "sectionName": f"replica-{i}"}] for i in range(3)
    ]


def test_load_balancers_are_one_for_each_replica_and_keep_the_clients_address(render: Render) -> None:
    rendered = render({
        "inference": {"replicas": 2}, "external": {"mode": "loadBalancer", "domain": "play.example.com"},
        "control": {"enabled": True, "tls": {"existingSecret": "control-tls"}},
    })  # fmt: skip
    for i in range(2):
        service = rendered.one("Service", f"-inference-{i}")
        assert service["spec"]["type"] == "LoadBalancer"
        assert service["spec"]["externalTrafficPolicy"] == "Local"
        name = f"games-playserve-inference-{i}.play.example.com"
        assert service["metadata"]["annotations"] == {"external-dns.alpha.kubernetes.io/hostname": name}
    _, container = inference(rendered)
    assert variables(container)["PLAYSERVE_ADVERTISE"] == "$(POD_NAME).play.example.com:443"


# -- who may reach what -----------------------------------------------------------------------------------------------


def test_the_admin_port_is_open_to_control_alone(every: fleet.Rendered) -> None:
    rules = every.one("NetworkPolicy", "-inference")["spec"]["ingress"]
    (admin,) = [rule for rule in rules if rule["ports"] == [{"port": "admin", "protocol": "TCP"}]]
    (peer,) = admin["from"]
    assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "control"


def test_what_may_leave_a_pod_is_listed(scenario: Callable[[str], fleet.Rendered]) -> None:
    def open_to_all(rendered: fleet.Rendered) -> list[int]:
        rules = rendered.one("NetworkPolicy", "-inference")["spec"]["egress"]
        return [port["port"] for rule in rules if "to" not in rule for port in rule["ports"]]

    assert open_to_all(scenario("laptop-cpu")) == [53, 53]
    assert open_to_all(scenario("air-gapped")) == [53, 53, 443, 9000]  # S3 at the endpoint of the values


def test_mutual_tls_names_the_authority_of_clients(scenario: Callable[[str], fleet.Rendered]) -> None:
    _, container = inference(scenario("mutual-tls"))
    told = variables(container)
    assert told["PLAYSERVE_TLS_CLIENT_CA"] == "/etc/playserve/tls/ca.crt"
    assert "PLAYSERVE_INSECURE_LISTEN" not in told
    (shards, _) = scenario("mutual-tls").of("Job")
    command = shards["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[-4:] == ["--tls-cert", "/etc/playserve/tls/tls.crt", "--tls-key", "/etc/playserve/tls/tls.key"]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"security": {"insecureListen": False}}, "without TLS and keys"),
        ({"security": {"insecureListen": False, "tls": {"existingSecret": "tls"}}}, "without TLS and keys"),
        ({"store": {"volume": {"existingClaim": ""}}}, "there is no store"),
        ({"security": {"tls": {"mutual": True}}}, "without a certificate"),
        ({"autoscaling": {"enabled": True, "minReplicas": 5}}, "more than maxReplicas, 4"),
        (
            {"autoscaling": {"enabled": True}, "inference": {"drain": {"graceSeconds": 1700, "marginSeconds": 200}}},
            "1900",
        ),
        ({"external": {"mode": "gateway"}}, "TLSRoute, which needs TLS"),
        ({"external": {"mode": "gateway", "gateway": {"route": "TCPRoute", "basePort": 50055}}}, "not 50055"),
        ({"control": {"enabled": True}}, "by https alone"),
        ({"control": {"enabled": True, "replicas": 2, "tls": {"existingSecret": "tls"}}}, "SQLite takes one"),
        (
            {"control": {"enabled": True, "tls": {"existingSecret": "tls"}, "jobs": {"enabled": True}}},
            "control.jobs.existingClaim",
        ),
        ({"triton": {"enabled": True}}, "modelRepositoryClaim"),
        ({"triton": {"enabled": True, "compute": True, "replicas": 2, "modelRepositoryClaim": "m"}}, "not 2"),
        ({"jobs": {"grid": {"enabled": True, "existingClaim": "a", "processes": 2, "gpu": {"count": 1}}}}, "takes one"),
        ({"jobs": {"evaluation": {"enabled": True}}}, "existingClaim and jobs.evaluation.arguments"),
        ({"inference": {"settings": {"slotz": 1}}}, "slotz"),
        ({"inference": {"settings": {"slots": 0}}}, "slots"),
        ({"inference": {"settings": {"host": "::"}}}, "host"),  # the chart's own
        ({"inference": {"ports": {"grpc": 0}}}, "grpc"),
        ({"jobs": {"grid": {"folder": "../elsewhere"}}}, "folder"),
    ],
)
def test_values_that_do_not_go_together_are_refused_with_the_reason(
    render: Render, values: dict[str, Any], told: str
) -> None:
    with pytest.raises(helm_python.HelmError, match=re.escape(told)):
        render(values)


# -- the drain, for real ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a PID namespace, in which the server is PID 1 as in a pod")
def test_the_hook_drains_the_real_server_as_pid_1(
    scenario: Callable[[str], fleet.Rendered], tmp_path: Any, unused_tcp_port: int
) -> None:
    """The pod's command line, environment and hook; the hook ends because the server, PID 1, is gone."""
    _, container = inference(scenario("laptop-cpu"))
    _, _, script = container["lifecycle"]["preStop"]["exec"]["command"]
    told = {**variables(container), "PLAYSERVE_STORE": str(tmp_path), "PLAYSERVE_HOST": "127.0.0.1"}
    told |= {"PLAYSERVE_PORT": str(unused_tcp_port), "PATH": f"{os.path.dirname(sys.executable)}:/usr/bin:/bin"}
    for name in ("ADMIN", "METRICS", "HEALTH"):
        told[f"PLAYSERVE_{name}_PORT"] = "0"
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *container["command"]]
    with subprocess.Popen(command, env=told, stdout=subprocess.PIPE, text=True) as unshare:
        assert unshare.stdout is not None
        assert unshare.stdout.readline().startswith("playserve ready")
        with open(f"/proc/{unshare.pid}/task/{unshare.pid}/children") as children:
            server = int(children.read().split()[0])
        hook = subprocess.run(
            ["nsenter", "--target", str(server), "--pid", "--mount", sys.executable, "-c", script], check=False
        )
        assert unshare.wait() == 0  # it drained: nobody killed it
        # Gone with PID 1, by SIGKILL, before its own end.
        assert hook.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
