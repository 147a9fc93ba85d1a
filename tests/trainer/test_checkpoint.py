import ast
import dataclasses
import hashlib
import json
import pickle  # noqa: TID251 - to prove that nothing here reads one
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import playserve_trainer
from playserve.errors import BadSettingError, DataLossError, NotFoundError, StateError
from playserve_trainer.checkpoint import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    WEIGHTS_NAME,
    Manifest,
    is_complete,
    load,
    read_manifest,
    save,
    verify,
)
from playserve_trainer.models.policy import Policy
from playserve_trainer.models.registry import build

CONFIGS = {
    "atari": {"game": "breakout", "num_actions": 4, "width": 2},
    "tiny_recurrent": {"hidden": 8, "num_actions": 3},
}


@pytest.fixture(params=sorted(CONFIGS))
def policy(request: pytest.FixtureRequest) -> Policy:
    torch.manual_seed(0)
    return build(request.param, CONFIGS[request.param])


@pytest.fixture
def saved(tmp_path: Path, policy: Policy) -> Path:
    save(tmp_path / "checkpoint", policy, Manifest.describe(policy))
    return tmp_path / "checkpoint"


def edit_manifest(directory: Path, **changes: object) -> None:
    path = directory / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def replace_weights(directory: Path, data: bytes) -> None:
    """Put other bytes in, under a manifest whose digest agrees."""
    (directory / WEIGHTS_NAME).write_bytes(data)
    edit_manifest(directory, weights_sha256=hashlib.sha256(data).hexdigest())


def test_a_policy_comes_back_bit_for_bit(tmp_path: Path, policy: Policy) -> None:
    described = Manifest.describe(
        policy, samples_seen=1_000, flops=12_345, data_digest="d1", code_version="abc", seed=7, metrics={"loss": 0.5}
    )
    written = save(tmp_path / "a" / "b", policy, described)
    loaded, manifest = load(tmp_path / "a" / "b")
    assert manifest == written == dataclasses.replace(described, weights_sha256=written.weights_sha256)
    assert type(loaded) is type(policy)
    assert not loaded.training
    wanted = policy.state_dict()
    assert list(loaded.state_dict()) == list(wanted)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in loaded.state_dict().items())
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == [MANIFEST_NAME, WEIGHTS_NAME]


def test_the_manifest_says_what_the_policy_is(policy: Policy) -> None:
    manifest = Manifest.describe(policy, samples_seen=10)
    assert manifest.policy_spec() == policy.spec()
    assert manifest.state_layout == policy.layout()
    assert manifest.num_params == policy.num_params()
    embedding = 4 * 8 if manifest.family == "tiny_recurrent" else 0
    assert manifest.num_params_without_embeddings == policy.num_params() - embedding
    assert manifest.flops_6nd == 6 * policy.num_params() * 10
    assert manifest.created_at.endswith("+00:00")
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


def test_channels_last_weights_are_saved_in_their_usual_order(tmp_path: Path) -> None:
    policy = build("atari", CONFIGS["atari"])
    wanted = policy.conv2.weight.detach().clone()
    save(tmp_path, policy.to(memory_format=torch.channels_last), Manifest.describe(policy))
    assert torch.equal(load(tmp_path)[0].conv2.weight, wanted)


def test_load_casts_on_request_and_else_keeps_the_saved_dtype(tmp_path: Path, policy: Policy, saved: Path) -> None:
    assert {p.dtype for p in load(saved, dtype=torch.bfloat16)[0].parameters()} == {torch.bfloat16}
    save(tmp_path / "half", policy.to(torch.bfloat16), Manifest.describe(policy))
    assert {p.dtype for p in load(tmp_path / "half")[0].parameters()} == {torch.bfloat16}


def test_load_leaves_the_callers_random_stream_alone(saved: Path) -> None:
    before = torch.get_rng_state()
    load(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_damaged_weights_are_named_with_both_digests(saved: Path) -> None:
    path = saved / WEIGHTS_NAME
    wanted = read_manifest(saved).weights_sha256
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    got = hashlib.sha256(data).hexdigest()
    for check in (load, verify):
        with pytest.raises(DataLossError) as caught:
            check(saved)
        assert all(part in str(caught.value) for part in (str(path), got, wanted))


def test_truncated_or_absent_weights_are_data_loss(saved: Path) -> None:
    path = saved / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataLossError, match=WEIGHTS_NAME):
        load(saved)
    path.unlink()
    assert not is_complete(saved)
    with pytest.raises(DataLossError, match="is not there"):
        load(saved)


def test_a_folder_without_a_manifest_is_no_checkpoint(saved: Path) -> None:
    (saved / MANIFEST_NAME).unlink()
    assert not is_complete(saved)
    with pytest.raises(NotFoundError, match=MANIFEST_NAME):
        load(saved)


@pytest.mark.parametrize("text", ["{", "[]", "\x00\x01"])
def test_a_manifest_that_is_no_object_is_data_loss(saved: Path, text: str) -> None:
    (saved / MANIFEST_NAME).write_text(text)
    with pytest.raises(DataLossError, match=MANIFEST_NAME):
        load(saved)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"colour": 1}, "colour"),
        ({"samples_seen": "many"}, "samples_seen"),
        ({"metrics": {"loss": "low"}}, "metrics.loss"),
        ({"format_version": FORMAT_VERSION + 1}, "format_version 2"),
        ({"family": "p3p"}, "p3p"),
        ({"config": {"hidden": 8, "wings": 2}}, "wings"),
    ],
)
def test_a_manifest_with_strange_contents_is_refused_by_name(
    saved: Path, changes: dict[str, object], named: str
) -> None:
    edit_manifest(saved, **changes)
    with pytest.raises(BadSettingError, match=named):
        load(saved)


def test_a_result_that_is_not_finite_is_refused(policy: Policy) -> None:
    with pytest.raises(BadSettingError, match=r"\['loss'\] are not finite"):
        Manifest.describe(policy, metrics={"loss": float("nan"), "accuracy": 0.1})


def test_another_state_layout_is_refused(saved: Path) -> None:
    edit_manifest(saved, state_layout="0123456789abcdef")
    with pytest.raises(DataLossError, match="0123456789abcdef"):
        load(saved)


def test_tensors_of_other_names_or_shapes_are_refused(saved: Path, tmp_path: Path) -> None:
    tensors = load_file(saved / WEIGHTS_NAME)
    scratch = tmp_path / "other"
    save_file(tensors | {"head.bias": torch.zeros(99)}, scratch)
    replace_weights(saved, scratch.read_bytes())
    with pytest.raises(DataLossError, match=r"'head.bias' has shape \[99\]"):
        load(saved)
    tensors.pop("head.bias")
    save_file(tensors | {"tail.bias": torch.zeros(1)}, scratch)
    replace_weights(saved, scratch.read_bytes())
    with pytest.raises(DataLossError, match=r"\['tail.bias'\].*\['head.bias'\]"):
        load(saved)


class Bomb:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_a_pickle_under_a_right_digest_is_refused_and_not_run(saved: Path, tmp_path: Path) -> None:
    trace = tmp_path / "it ran"
    replace_weights(saved, pickle.dumps(Bomb(trace)))
    with pytest.raises(DataLossError, match="not a safetensors file"):
        load(saved)
    torch.save({"head": Bomb(trace)}, tmp_path / "weights.pt")
    replace_weights(saved, (tmp_path / "weights.pt").read_bytes())
    with pytest.raises(DataLossError, match="not a safetensors file"):
        load(saved)
    assert not trace.exists()


def test_no_code_of_the_leaves_unpickles() -> None:
    root = Path(playserve_trainer.__file__).parent
    for path in [root / "checkpoint.py", root / "store.py", *root.glob("models/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not modules & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}, path
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in {("torch", "load"), ("np", "load"), ("numpy", "load")}, path
            if isinstance(node, ast.Name):
                assert node.id not in {"eval", "exec"}, path


def test_a_checkpoint_is_not_overwritten_unless_asked(saved: Path, policy: Policy) -> None:
    before = (saved / WEIGHTS_NAME).read_bytes()
    with torch.no_grad():
        next(policy.parameters()).add_(1)
    with pytest.raises(StateError, match="holds a checkpoint already"):
        save(saved, policy, Manifest.describe(policy))
    assert (saved / WEIGHTS_NAME).read_bytes() == before
    save(saved, policy, Manifest.describe(policy), overwrite=True)
    assert torch.equal(next(load(saved)[0].parameters()), next(policy.parameters()))


@pytest.mark.parametrize("blocked", [WEIGHTS_NAME, MANIFEST_NAME])
def test_a_save_that_fails_leaves_no_checkpoint_and_no_litter(tmp_path: Path, policy: Policy, blocked: str) -> None:
    (tmp_path / blocked / "in the way").mkdir(parents=True)  # a rename onto a full folder fails
    with pytest.raises((OSError, StateError)):
        save(tmp_path, policy, Manifest.describe(policy))
    assert not is_complete(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_published_as_changes_only_name_and_version(policy: Policy) -> None:
    manifest = Manifest.describe(policy)
    published = manifest.published_as("breakout-small", "3")
    assert (published.policy_spec().name, published.policy_spec().version) == ("breakout-small", "3")
    assert dataclasses.replace(published, spec=manifest.spec) == manifest
    assert dataclasses.replace(published.policy_spec(), name="", version="") == policy.spec()
