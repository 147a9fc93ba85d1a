"""Policies, versions, aliases and results over REST: published, promoted, rolled back, split, judged; each audited."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from playserve_services.control.problems import MEDIA_TYPE
from playserve_services.control.settings import ControlSettings
from playserve_trainer.store import CheckpointStore


def upload(folder: Path, **replaced: bytes) -> dict[str, Any]:
    parts = {
        "manifest": (folder / "manifest.json").read_bytes(),
        "weights": (folder / "model.safetensors").read_bytes(),
    }
    return {name: ("../../etc/passwd", data) for name, data in {**parts, **replaced}.items()}


def store_of(settings: ControlSettings) -> CheckpointStore:
    return CheckpointStore(settings.store_url)


def problem(response: Any, status: int, reason: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == MEDIA_TYPE
    value: dict[str, Any] = response.json()
    assert (value["status"], value["reason"]) == (status, reason)
    return value


async def test_an_upload_is_a_version_in_store_and_registry(plane, checkpoint) -> None:
    made = await plane.client.post("/v1/policies/breakout/versions", files=upload(checkpoint))
    assert made.status_code == 201, made.text
    assert made.headers["location"] == "/v1/policies/breakout/versions/1"
    manifest = store_of(plane.settings).manifest("breakout", "1")
    assert made.json()["weights_sha256"] == manifest.weights_sha256
    assert made.json()["size_bytes"] == (checkpoint / "model.safetensors").stat().st_size
    assert made.json()["facts"]["family"] == manifest.family
    again = await plane.client.post("/v1/policies/breakout/versions", files=upload(checkpoint))
    assert again.json()["version"] == "2"
    listed = (await plane.client.get("/v1/policies/breakout/versions")).json()
    assert [row["version"] for row in listed] == ["2", "1"]
    assert (await plane.client.get("/v1/policies/breakout/versions/1")).json() == made.json()
    audit = (await plane.client.get("/v1/audit", params={"subject": "breakout/1"})).json()
    assert [(row["action"], row["principal"]) for row in audit] == [("version.registered", "anonymous")]
    assert list((plane.settings.data / "uploads").iterdir()) == []


async def test_a_damaged_upload_is_refused_and_leaves_nothing(plane, checkpoint) -> None:
    weights = bytearray((checkpoint / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    answer = await plane.client.post("/v1/policies/p/versions", files=upload(checkpoint, weights=bytes(weights)))
    value = problem(answer, 422, "DATA_LOSS")
    assert "sha256" in value["detail"]
    assert str(plane.settings.data) not in value["detail"]
    assert store_of(plane.settings).list() == []
    assert list((plane.settings.data / "uploads").iterdir()) == []
    problem(await plane.client.get("/v1/policies/p"), 404, "POLICY_NOT_FOUND")
    metrics = (await plane.client.get("/metrics")).text
    assert 'playserve_control_published_total{outcome="DATA_LOSS"} 1.0' in metrics


@pytest.mark.parametrize("manifest", [b"", b"{}", b"[1]", b"\xff", b'{"format_version": 99}'])
async def test_a_manifest_that_is_none_is_refused(plane, checkpoint, manifest) -> None:
    answer = await plane.client.post("/v1/policies/p/versions", files=upload(checkpoint, manifest=manifest))
    assert answer.status_code == 422, answer.text
    assert answer.json()["reason"] in ("DATA_LOSS", "BAD_SETTING")


async def test_uploads_have_a_largest_size(start_plane, checkpoint) -> None:
    async with start_plane(max_upload_mb=1) as plane:
        big = upload(checkpoint, weights=b"x" * (2 << 20))
        problem(await plane.client.post("/v1/policies/p/versions", files=big), 413, "MESSAGE_TOO_LARGE")

        async def chunks():  # without a content-length
            yield b'--b\r\nContent-Disposition: form-data; name="weights"\r\n\r\n'
            for _ in range(40):
                yield b"x" * (1 << 16)

        kind = {"content-type": "multipart/form-data; boundary=b"}
        answer = await plane.client.post("/v1/policies/p/versions", content=chunks(), headers=kind)
        problem(answer, 413, "MESSAGE_TOO_LARGE")
        manifest = upload(checkpoint, manifest=b" " * (1 << 20) + b"{}" + b" " * 100, weights=b"")
        problem(await plane.client.post("/v1/policies/p/versions", files=manifest), 413, "MESSAGE_TOO_LARGE")
        assert list((plane.settings.data / "uploads").iterdir()) == []


async def test_an_upload_that_falls_silent_is_given_up(start_plane) -> None:
    import asyncio

    async def half_open():
        yield b'--b\r\nContent-Disposition: form-data; name="weights"\r\n\r\nab'
        await asyncio.Event().wait()

    kind = {"content-type": "multipart/form-data; boundary=b"}
    async with start_plane(upload_silence_s=0.05) as plane:
        answer = await plane.client.post("/v1/policies/p/versions", content=half_open(), headers=kind)
        assert "nothing came for 0.05 s" in problem(answer, 422, "MALFORMED_MESSAGE")["detail"]
        assert list((plane.settings.data / "uploads").iterdir()) == []


async def test_forms_that_are_none_are_refused(plane, checkpoint) -> None:
    url, kind = "/v1/policies/p/versions", {"content-type": "multipart/form-data; boundary=b"}
    problem(await plane.client.post(url, content=b"x"), 422, "MALFORMED_MESSAGE")
    problem(await plane.client.post(url, content=b"nonsense", headers=kind), 422, "MALFORMED_MESSAGE")
    broken = b'--b\r\nContent-Disposition: form-data; name="weights"\r\n\r\nab'
    problem(await plane.client.post(url, content=broken, headers=kind), 422, "MALFORMED_MESSAGE")
    problem(await plane.client.post(url, files={"other": b"x"}), 422, "INPUT_UNKNOWN")
    problem(await plane.client.post(url, files={"manifest": b"{}"}), 422, "INPUT_MISSING")
    twice = [("manifest", b"{}"), ("manifest", b"{}")]
    problem(await plane.client.post(url, files=twice), 422, "INPUT_UNKNOWN")


@pytest.mark.parametrize("name", ["..", ".", "%2e%2e", "a..b", "UPPER", "-x", "a%2f..%2fb", "x" * 129])
async def test_names_that_lead_elsewhere_are_refused(plane, checkpoint, name) -> None:
    answer = await plane.client.post(f"/v1/policies/{name}/versions", files=upload(checkpoint))
    assert answer.status_code in (404, 405, 422)
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert store_of(plane.settings).list() == []


async def test_what_lies_in_the_store_is_registered_once(plane, checkpoint) -> None:
    store = store_of(plane.settings)
    store.publish("p", checkpoint)
    store.publish("q", checkpoint)
    problem(await plane.client.put("/v1/policies/p/versions/7"), 404, "VERSION_NOT_FOUND")
    assert (await plane.client.put("/v1/policies/p/versions/1")).status_code == 201
    assert (await plane.client.put("/v1/policies/p/versions/1")).status_code == 200
    assert (await plane.client.post("/v1/store/sync")).json() == {"registered": ["q/1"], "aliases": [], "failed": {}}
    assert (await plane.client.post("/v1/store/sync")).json() == {"registered": [], "aliases": [], "failed": {}}


async def test_a_version_that_is_damaged_in_the_store_is_not_registered(plane, checkpoint) -> None:
    store = store_of(plane.settings)
    store.publish("p", checkpoint)
    weights = Path(plane.settings.store_url) / "p" / "1" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    problem(await plane.client.put("/v1/policies/p/versions/1"), 500, "DATA_LOSS")
    synced = (await plane.client.post("/v1/store/sync")).json()
    assert synced["registered"] == []
    assert "sha256" in synced["failed"]["p/1"]


async def test_a_full_disk_is_said_and_the_next_upload_works(plane, checkpoint, monkeypatch) -> None:
    import errno

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("playserve_services.control.uploads.CheckpointReceiver._write", full)
        answer = await plane.client.post("/v1/policies/p/versions", files=upload(checkpoint))
        problem(answer, 507, "STORAGE_FULL")
    with monkeypatch.context() as patch:
        patch.setattr("playserve_trainer.store.CheckpointStore._write_whole", full)
        answer = await plane.client.post("/v1/policies/p/versions", files=upload(checkpoint))
        problem(answer, 507, "STORAGE_FULL")
    problem(await plane.client.get("/v1/policies/p"), 404, "POLICY_NOT_FOUND")
    assert (await plane.client.post("/v1/policies/p/versions", files=upload(checkpoint))).status_code == 201
    assert list((plane.settings.data / "uploads").iterdir()) == []


async def put_alias(plane, alias: str, version: str, **more: Any):
    return await plane.client.put(f"/v1/policies/p/aliases/{alias}", json={"version": version, **more})


async def test_rollback_goes_back_step_by_step(plane) -> None:
    plane.register("p", "1", "2", "3")
    for version in ("1", "2", "2", "3"):
        assert (await put_alias(plane, "stable", version)).status_code == 200
    url = "/v1/policies/p/aliases/stable/rollback"
    answers = [(await plane.client.post(url)).json() for _ in range(2)]
    assert [(answer["before"], answer["version"]) for answer in answers] == [("3", "2"), ("2", "1")]
    problem(await plane.client.post(url), 409, "FAILED_PRECONDITION")
    assert (await put_alias(plane, "stable", "3")).json()["before"] == "1"
    assert (await plane.client.post(url)).json()["version"] == "1"
    audit = (await plane.client.get("/v1/audit", params={"subject": "p/stable"})).json()
    assert audit[0]["before"] == {"version": "3"}
    assert audit[0]["after"] == {"version": "1"}
    problem(await plane.client.post("/v1/policies/p/aliases/other/rollback"), 404, "NOT_FOUND")


async def test_an_alias_that_somebody_moved_meanwhile_stays(plane) -> None:
    plane.register("p", "1", "2")
    assert (await put_alias(plane, "stable", "1", expected="")).status_code == 200
    value = problem(await put_alias(plane, "stable", "2", expected="2"), 409, "ALIAS_MOVED")
    assert "points at 1, not at 2" in value["detail"]
    problem(await put_alias(plane, "stable", "2", expected=""), 409, "ALIAS_MOVED")
    assert (await put_alias(plane, "stable", "2", expected="1")).status_code == 200


async def test_aliases_hide_no_version_and_point_at_what_is_there(plane) -> None:
    plane.register("p", "1")
    problem(await put_alias(plane, "latest", "1"), 422, "BAD_SETTING")
    problem(await put_alias(plane, "12", "1"), 422, "BAD_SETTING")
    problem(await put_alias(plane, "stable", "9"), 404, "VERSION_NOT_FOUND")
    problem(await put_alias(plane, "stable", "0"), 422, "BAD_SETTING")


async def test_the_canary_needs_a_candidate(plane) -> None:
    plane.register("p", "1", "2")
    url = "/v1/policies/p/canary"
    problem(await plane.client.put(url, json={"weight": 0.1}), 409, "FAILED_PRECONDITION")
    await put_alias(plane, "candidate", "2")
    assert (await plane.client.put(url, json={"weight": 0.1})).json()["canary_weight"] == 0.1
    problem(await plane.client.put(url, json={"weight": 1.1}), 422, "BAD_SETTING")
    problem(await plane.client.delete("/v1/policies/p/aliases/candidate"), 409, "FAILED_PRECONDITION")
    assert (await plane.client.put(url, json={"weight": 0})).status_code == 200
    assert (await plane.client.delete("/v1/policies/p/aliases/candidate")).status_code == 204
    assert (await plane.client.get("/v1/policies/p")).json()["aliases"] == {}


async def record(plane, version: str, **body: Any):
    return await plane.client.post(f"/v1/policies/p/versions/{version}/evaluations", json={"protocol": "a", **body})


async def test_results_are_kept_with_intervals(plane) -> None:
    plane.register("p", "1")
    made = await record(plane, "1", scores=[1.0, 2.0, 3.0])
    assert made.status_code == 201, made.text
    assert (made.json()["mean"], made.json()["n"]) == (2.0, 3)
    assert made.json()["interval"] == pytest.approx([2 - 2.4841, 2 + 2.4841], abs=1e-3)
    assert (await record(plane, "1", mean=5, n=1)).json()["interval"] is None
    assert (await record(plane, "1", mean=5, se=0.5, n=30, protocol="b")).status_code == 201
    listed = (await plane.client.get("/v1/policies/p/evaluations", params={"protocol": "a"})).json()
    assert [row["mean"] for row in listed] == [5.0, 2.0]


@pytest.mark.parametrize(
    "body",
    [{}, {"scores": []}, {"scores": [1], "mean": 1}, {"mean": 1, "n": 2}, {"mean": 1, "se": 1, "n": 1}, {"se": 1},
     {"scores": [1e300]}, {"scores": [1], "protocol": ""}, {"scores": [1], "protocol": "a\nb"}, {"scores": ["x"]}],
)  # fmt: skip
async def test_results_that_are_none_are_refused(plane, body) -> None:
    plane.register("p", "1")
    problem(await record(plane, "1", **body), 422, "BAD_SETTING")


async def test_numbers_that_json_does_not_have_are_refused(plane) -> None:
    plane.register("p", "1")
    for text in ('{"protocol": "a", "scores": [NaN]}', '{"protocol": "a", "mean": Infinity, "se": 1, "n": 2}'):
        answer = await plane.client.post(
            "/v1/policies/p/versions/1/evaluations", content=text, headers={"content-type": "application/json"}
        )
        problem(answer, 422, "BAD_SETTING")


async def test_the_gate_lets_through_what_is_not_worse(plane) -> None:
    plane.register("p", "1", "2", "3")
    await put_alias(plane, "stable", "1")
    await record(plane, "1", mean=100.0, se=2.0, n=50)
    await record(plane, "2", mean=101.0, se=2.0, n=50)
    await record(plane, "3", mean=80.0, se=2.0, n=50)
    rule = {"margin": 10.0}
    refused = problem(await put_alias(plane, "stable", "3", gate=rule), 409, "GATE_REFUSED")
    assert "the difference is -20 with a margin of 10" in refused["detail"]
    assert refused["gate"]["p"] > 0.99
    assert (await plane.client.get("/v1/policies/p")).json()["aliases"] == {"stable": "1"}
    tried = (await plane.client.post("/v1/policies/p/versions/2/gate", json=rule)).json()
    assert tried["passed"]
    passed = (await put_alias(plane, "stable", "2", gate=rule)).json()
    assert passed["gate"] == tried["numbers"]
    audit = (await plane.client.get("/v1/audit", params={"action": "alias.set"})).json()
    assert audit[0]["after"]["gate"]["p"] == passed["gate"]["p"]


async def test_the_gate_compares_one_protocol_only_and_needs_something_to_compare(plane) -> None:
    plane.register("p", "1", "2")
    await record(plane, "2", mean=101.0, se=2.0, n=50)
    value = problem(await put_alias(plane, "stable", "2", gate={}), 409, "GATE_REFUSED")
    assert "points at nothing" in value["detail"]
    await put_alias(plane, "stable", "1")
    await record(plane, "1", mean=1.0, se=2.0, n=50, protocol="another")
    value = problem(await put_alias(plane, "stable", "2", gate={}), 409, "GATE_REFUSED")
    assert "1 has no stored evaluation by the protocol 'a'" in value["detail"]


async def test_errors_are_problems_whatever_went_wrong(plane, monkeypatch) -> None:
    problem(await plane.client.get("/nowhere"), 404, "NOT_FOUND")
    problem(await plane.client.patch("/v1/policies"), 405, "METHOD_NOT_ALLOWED")
    body = json.dumps({"protocol": "a", "scores": [1.0] * 2_000_000})
    kind = {"content-type": "application/json"}
    answer = await plane.client.post("/v1/policies/p/versions/1/evaluations", content=body, headers=kind)
    problem(answer, 413, "MESSAGE_TOO_LARGE")

    def broken(*args):
        raise RuntimeError("a secret of ours")

    monkeypatch.setattr("playserve_services.control.routes.policies.list_policies", broken)
    value = problem(await plane.client.get("/v1/policies"), 500, "INTERNAL")
    assert "secret" not in value["detail"]
