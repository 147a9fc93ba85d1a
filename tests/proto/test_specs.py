"""Specs survive the wire and the manifest, and refuse what cannot be."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from playserve import specs
from playserve.errors import BadSettingError
from playserve.settings import Sampling, SamplingMode
from playserve.specs import (
    DTYPES,
    Codec,
    DesktopActionSpec,
    DiscreteActionSpec,
    GapMode,
    GapRule,
    ImageFormat,
    Merge,
    MouseDecode,
    PolicyKind,
    PolicySpec,
    TensorSpec,
)
from playserve.v1 import types_pb2 as pb

names = st.from_regex(r"[a-z0-9][a-z0-9_]{0,12}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
bounds = st.none() | st.floats(allow_nan=False)
# float fields of the wire have 32 bits
floats32 = st.floats(0, 1e6, width=32)

tensors = st.builds(
    TensorSpec,
    name=names,
    dtype=st.sampled_from(sorted(DTYPES)),
    shape=st.lists(st.just(-1) | st.integers(1, 2**31 - 1), max_size=4).map(tuple),
    image_format=st.sampled_from(ImageFormat),
    resize_id=texts,
    codecs=st.lists(st.sampled_from(Codec), unique=True).map(tuple),
    minimum=bounds,
    maximum=bounds,
    droppable=st.booleans(),
    merge=st.sampled_from(Merge),
    optional=st.booleans(),
)
unnamed = st.integers(1, 2**31 - 1).map(lambda n: DiscreteActionSpec(n=n))
named = st.lists(texts, min_size=1, max_size=5).map(lambda found: DiscreteActionSpec(n=len(found), names=tuple(found)))
desktop = st.builds(
    DesktopActionSpec,
    keys=st.lists(texts, max_size=4).map(tuple),
    buttons=st.lists(st.integers(0, 4), max_size=4).map(tuple),
    max_mouse_px=floats32,
    scroll=st.booleans(),
    mouse_decode=st.sampled_from(MouseDecode),
)
unique_tensors = st.lists(tensors, max_size=3, unique_by=lambda spec: spec.name).map(tuple)
policies = st.builds(
    PolicySpec,
    name=names,
    family=names,
    inputs=unique_tensors,
    action=unnamed | named | desktop,
    version=texts,
    kind=st.sampled_from(PolicyKind),
    outputs=unique_tensors,
    rate_hz=floats32,
    context_frames=st.integers(0, 2**31 - 1),
    chunk_length=st.integers(0, 2**31 - 1),
    gap_rule=st.builds(GapRule, mode=st.sampled_from(GapMode), catch_up_frames=st.integers(1, 2**31 - 1)),
    takes_instruction=st.booleans(),
    uses_executed_actions=st.booleans(),
    environment=st.dictionaries(texts, texts, max_size=3),
)


@given(tensors)
def test_tensor_specs_survive_the_wire(spec: TensorSpec) -> None:
    assert TensorSpec.from_proto(pb.TensorSpec.FromString(spec.to_proto().SerializeToString())) == spec


@settings(max_examples=50)
@given(policies)
def test_policy_specs_survive_the_wire(spec: PolicySpec) -> None:
    assert PolicySpec.from_proto(pb.PolicySpec.FromString(spec.to_proto().SerializeToString())) == spec


@settings(max_examples=50)
@given(policies)
def test_policy_specs_survive_the_manifest(spec: PolicySpec) -> None:
    assert PolicySpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_what_only_the_server_knows_does_not_disturb() -> None:
    spec = PolicySpec(name="a", family="f", inputs=(), action=DiscreteActionSpec(n=2))
    message = spec.to_proto()
    message.slots_total, message.slots_free, message.state_layout = 64, 3, "abc"
    message.aliases.append("latest")
    assert PolicySpec.from_proto(message) == spec


def test_a_newer_servers_mouse_decode_means_its_default() -> None:
    message = PolicySpec(name="p", family="f", inputs=(), action=DesktopActionSpec(keys=("KeyW",))).to_proto()
    message.action.desktop.mouse_decode = 99  # type: ignore[assignment]
    action = PolicySpec.from_proto(message).action
    assert isinstance(action, DesktopActionSpec)
    assert action.mouse_decode is MouseDecode.DEFAULT


@pytest.mark.parametrize("mode", SamplingMode)
@pytest.mark.parametrize("decode", MouseDecode)
def test_sampling_survives_the_wire(mode: SamplingMode, decode: MouseDecode) -> None:
    sampling = Sampling(mode=mode, mouse_decode=decode)
    assert Sampling.from_proto(sampling.to_proto()) == sampling


def test_an_unknown_mouse_decode_is_refused() -> None:
    with pytest.raises(BadSettingError, match="mouse decode 99, wanted one of DEFAULT, MEAN"):
        Sampling.from_proto(pb.Sampling(mouse_decode=99))  # type: ignore[arg-type]


def test_an_unset_gap_rule_and_merge_mean_their_defaults() -> None:
    assert TensorSpec.from_proto(pb.TensorSpec(name="x", dtype=pb.DTYPE_UINT8)).merge is Merge.LATEST
    message = pb.PolicySpec(name="a", family="f", kind=pb.POLICY_KIND_AGENT)
    message.action.discrete.n = 2
    assert PolicySpec.from_proto(message).gap_rule == GapRule()


def test_every_wire_dtype_has_a_numpy_type() -> None:
    wire = {value for name, value in pb.DType.items() if name != "DTYPE_UNSPECIFIED"}
    assert set(DTYPES.values()) == wire
    for name in DTYPES:
        spec = TensorSpec(name="x", dtype=name, shape=(2,))
        assert spec.numpy_dtype.newbyteorder("=") == np.dtype(name)
    assert np.array([1.5], TensorSpec(name="x", dtype="float32", shape=(1,)).numpy_dtype).tobytes() == struct.pack(
        "<f", 1.5
    )


@pytest.mark.parametrize("shape", [(0,), (3, 0), (-2,), (84, -3)])
def test_a_shape_needs_positive_or_open_dimensions(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="neither positive nor -1"):
        TensorSpec(name="x", dtype="uint8", shape=shape)


def test_a_dtype_that_the_wire_lacks_is_named() -> None:
    with pytest.raises(ValueError, match=r"float64.*uint8"):
        TensorSpec(name="x", dtype="float64", shape=())
    with pytest.raises(ValueError, match="DType 99"):
        TensorSpec.from_proto(pb.TensorSpec(name="x", dtype=99))


def test_impossible_specs_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 action"):
        DiscreteActionSpec(n=0)
    with pytest.raises(ValueError, match="1 names for 2 actions"):
        DiscreteActionSpec(n=2, names=("NOOP",))
    with pytest.raises(ValueError, match="catch_up_frames"):
        GapRule(catch_up_frames=0)
    twice = TensorSpec(name="frame", dtype="uint8", shape=(1,))
    with pytest.raises(ValueError, match="repeat"):
        PolicySpec(name="a", family="f", inputs=(twice, twice), action=DiscreteActionSpec(n=2))


def test_a_manifest_with_a_key_that_we_do_not_know_is_refused() -> None:
    value = PolicySpec(name="a", family="f", inputs=(), action=DiscreteActionSpec(n=2)).to_json()
    with pytest.raises(json_format.ParseError, match="surprise"):
        PolicySpec.from_json({**value, "surprise": 1})


@pytest.mark.parametrize("name", ["a", "breakout", "atari.breakout-v2_x", "0", "a" * 128])
def test_good_policy_names(name: str) -> None:
    assert specs.check_policy_name(name) == name


@pytest.mark.parametrize("name", ["", "A", "a/b", "../a", "a..b", ".a", "-a", "a b", "a\n", "a" * 129, "é", "a\x00"])
def test_bad_policy_names(name: str) -> None:
    with pytest.raises(BadSettingError, match="1 to 128"):
        specs.check_policy_name(name)
