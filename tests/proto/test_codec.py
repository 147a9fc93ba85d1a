"""Tensors and actions over the wire: they come back as they were, and whatever is wrong is a typed error."""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from playserve import codec
from playserve.codec import (
    Decoder,
    DesktopAction,
    action_from_proto,
    action_to_proto,
    available_codecs,
    decode_output,
    encode,
    negotiate,
)
from playserve.errors import (
    BadActionError,
    CodecNotNegotiatedError,
    DecodeError,
    DTypeMismatchError,
    FrameTooLargeError,
    InputMissingError,
    InputUnknownError,
    OutOfBoundsError,
    PlayserveError,
    ShapeMismatchError,
    SizeMismatchError,
)
from playserve.specs import DTYPES, Codec, DesktopActionSpec, DiscreteActionSpec, TensorSpec
from playserve.v1 import types_pb2 as pb

ALL = tuple(Codec)
LOSSLESS = (Codec.RAW, Codec.LZ4)


def spec(dtype="uint8", shape=(4, 6, 3), **kwargs):
    return TensorSpec(name="x", dtype=dtype, shape=shape, codecs=ALL, **kwargs)


def frame(shape=(4, 6, 3)):
    return np.arange(math.prod(shape), dtype=np.uint8).reshape(shape)


@st.composite
def arrays(draw):
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, max_side=5))
    return draw(hnp.arrays(np.dtype(dtype), shape))


@given(arrays(), st.sampled_from(LOSSLESS), st.booleans())
def test_every_dtype_and_shape_comes_back(array, packing, fortran):
    tensor_spec = TensorSpec(name="x", dtype=array.dtype.name, shape=array.shape, codecs=ALL)
    sent = encode(np.asfortranarray(array) if fortran and array.ndim else array, "x", packing)
    for specs in ([tensor_spec], [TensorSpec(name="x", dtype=array.dtype.name, shape=(-1,) * array.ndim, codecs=ALL)]):
        back = Decoder(specs, ALL).decode_step([pb.Tensor.FromString(sent.SerializeToString())])["x"]
        assert back.dtype == array.dtype
        assert back.shape == array.shape
        assert back.tobytes() == array.tobytes()
        assert not back.flags.writeable


@given(arrays(), st.sampled_from(LOSSLESS), st.integers(1, 4))
def test_rows_come_back(array, packing, n):
    rows = np.stack([array] * n)
    decoder = Decoder([TensorSpec(name="x", dtype=array.dtype.name, shape=array.shape, codecs=ALL)], ALL)
    back = decoder.decode_rows([encode(rows, "x", packing)], n)["x"]
    assert back.shape == rows.shape
    assert back.tobytes() == rows.tobytes()
    assert not back.flags.writeable


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([(3,), (1,), ()]))
def test_jpeg_keeps_the_shape_and_nearly_the_values(height, width, channels):
    ramp = np.linspace(0, 255, height * width).reshape(height, width)
    image = np.broadcast_to(ramp.reshape(height, width, *([1] * len(channels))), (height, width, *channels))
    image = image.astype(np.uint8)
    tensor_spec = spec(shape=image.shape)
    back = Decoder([tensor_spec], ALL).decode_step([encode(image, "x", Codec.JPEG, quality=98)])["x"]
    assert back.shape == image.shape
    assert not back.flags.writeable
    assert np.abs(back.astype(int) - image).mean() < 6


def test_other_byte_orders_are_sent_as_little_endian():
    array = np.array([1, -2, 3], dtype=">i4")
    back = Decoder([spec("int32", (3,))]).decode_step([encode(array, "x")])["x"]
    assert back.tolist() == [1, -2, 3]
    with pytest.raises(DTypeMismatchError, match="complex128"):
        encode(np.zeros(3, complex), "x")


def raw(data=b"", *, name="x", dtype=pb.DTYPE_UINT8, shape=(4, 6, 3), packing=pb.CODEC_RAW):
    return pb.Tensor(name=name, dtype=dtype, shape=shape, codec=packing, data=data)


@pytest.mark.parametrize(
    ("tensors", "error", "match"),
    [
        ([raw(name="y")], InputUnknownError, r"'y' is unknown; the policy takes \['x'\]"),
        ([encode(frame(), "x"), encode(frame(), "x")], InputUnknownError, "twice"),
        ([raw(packing=7)], CodecNotNegotiatedError, "Codec 7"),
        ([raw(packing=0)], CodecNotNegotiatedError, "Codec 0"),
        ([raw(dtype=pb.DTYPE_INT8)], DTypeMismatchError, "int8, wanted uint8"),
        ([raw(dtype=99)], DTypeMismatchError, "99"),
        ([raw(dtype=0)], DTypeMismatchError, "DType 0, wanted uint8"),
        ([raw(shape=(4, 6))], ShapeMismatchError, r"\[4, 6\], wanted \[4, 6, 3\]"),
        ([raw(shape=(4, -6, 3))], ShapeMismatchError, "-6"),
        ([raw(shape=[1] * 100_000)], ShapeMismatchError, "100000 dimensions"),
        ([raw(b"1234")], SizeMismatchError, "4 bytes, wanted 72"),
        ([raw(bytes(73))], SizeMismatchError, "73 bytes, wanted 72"),
        ([raw(b"junk", packing=pb.CODEC_LZ4)], DecodeError, "LZ4"),
        ([raw(b"", packing=pb.CODEC_LZ4)], SizeMismatchError, "LZ4"),
        ([raw(b"junk", packing=pb.CODEC_JPEG)], DecodeError, "JPEG"),
        ([], InputMissingError, "'x' is missing"),
    ],
)
def test_what_is_wrong_is_named(tensors, error, match):
    with pytest.raises(error, match=match):
        Decoder([spec()], ALL).decode_step(tensors)


def test_a_codec_must_be_negotiated_and_the_input_must_take_it():
    packed = encode(frame(), "x", Codec.LZ4)
    with pytest.raises(CodecNotNegotiatedError, match="packed as LZ4; allowed here: RAW"):
        Decoder([spec()], ()).decode_step([packed])
    with pytest.raises(CodecNotNegotiatedError, match="allowed here: RAW"):
        Decoder([TensorSpec(name="x", dtype="uint8", shape=(4, 6, 3))], ALL).decode_step([packed])
    assert negotiate([pb.CODEC_JPEG, 77], [spec()]) == (Codec.RAW, Codec.JPEG)
    assert negotiate(ALL, [TensorSpec(name="x", dtype="uint8", shape=(1,))]) == (Codec.RAW,)
    assert set(available_codecs()) == set(ALL)


def test_rows_are_never_jpeg():
    with pytest.raises(CodecNotNegotiatedError):
        Decoder([spec()], ALL).decode_rows([raw(b"x", shape=(1, 4, 6, 3), packing=pb.CODEC_JPEG)], 1)
    with pytest.raises(ShapeMismatchError, match=r"wanted \[2, 4, 6, 3\]"):
        Decoder([spec()], ALL).decode_rows([encode(frame()[None], "x")], 2)


def peak(call):
    """Return the largest memory that Python and numpy took during a call, bytes."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("packing", [pb.CODEC_RAW, pb.CODEC_LZ4, pb.CODEC_JPEG])
def test_a_claim_of_2_gb_is_refused_without_memory_for_it(packing):
    decoder = Decoder([spec(shape=(-1, -1, 3))], ALL)

    def claim():
        with pytest.raises(FrameTooLargeError, match="2099997918 bytes"):
            decoder.decode_step([raw(b"tiny", shape=(26457, 26458, 3), packing=packing)])
        with pytest.raises(FrameTooLargeError):
            decoder.decode_step([raw(b"tiny", shape=(2**31 - 1, 2**31 - 1, 3), packing=packing)])

    assert peak(claim) < 1_000_000


def test_a_decompression_bomb_is_refused():
    import lz4.block

    bomb = lz4.block.compress(bytes(64_000_000), store_size=False)
    decoder = Decoder([spec()], ALL)

    def explode():
        with pytest.raises(DecodeError, match="or one of more"):
            decoder.decode_step([raw(bomb, packing=pb.CODEC_LZ4)])

    assert peak(explode) < 2_000_000
    # A claim that no block of this size can hold takes no memory either.
    wide = Decoder([spec(shape=(-1, -1, 3))], ALL)

    def claim():
        with pytest.raises(SizeMismatchError, match="cannot hold"):
            wide.decode_step([raw(b"\x00" * 10, shape=(4000, 4000, 3), packing=pb.CODEC_LZ4)])

    assert peak(claim) < 1_000_000


def test_the_inputs_of_one_message_share_the_limit():
    specs = [TensorSpec(name=name, dtype="uint8", shape=(-1,)) for name in "ab"]
    decoder = Decoder(specs, ALL, max_bytes=100)
    ok = [encode(np.zeros(50, np.uint8), name) for name in "ab"]
    assert set(decoder.decode_step(ok)) == {"a", "b"}
    with pytest.raises(FrameTooLargeError, match="of which 40 are left"):
        decoder.decode_step([encode(np.zeros(60, np.uint8), "a"), ok[1]])


def jpeg_header(height, width, marker=0xC0):
    sof = (
        bytes([8]) + height.to_bytes(2, "big") + width.to_bytes(2, "big") + b"\x03\x01\x11\x00\x02\x11\x01\x03\x11\x01"
    )
    return b"\xff\xd8\xff" + bytes([marker]) + (len(sof) + 2).to_bytes(2, "big") + sof


def test_a_jpeg_header_of_a_huge_image_is_refused_before_decoding():
    # 100,000 does not fit a JPEG's 16 bits; the largest that does is as good.
    closed, open_ = Decoder([spec()], ALL), Decoder([spec(shape=(-1, -1, 3))], ALL)

    def claim():
        for decoder in (closed, open_):
            with pytest.raises(FrameTooLargeError, match="65535 x 65535"):
                decoder.decode_step([raw(jpeg_header(65535, 65535), packing=pb.CODEC_JPEG)])
        with pytest.raises(FrameTooLargeError):
            open_.decode_step([raw(jpeg_header(4, 6), shape=(100_000, 100_000, 3), packing=pb.CODEC_JPEG)])

    assert peak(claim) < 1_000_000


def test_jpegs_that_lie_are_refused():
    decoder = Decoder([spec()], ALL)
    good = encode(frame(), "x", Codec.JPEG)
    with pytest.raises(SizeMismatchError, match="a JPEG of 5 x 6, its shape says 4 x 6"):
        decoder.decode_step([raw(encode(frame((5, 6, 3)), "x", Codec.JPEG).data, packing=pb.CODEC_JPEG)])
    with pytest.raises(DecodeError):
        decoder.decode_step([raw(good.data[: len(good.data) // 2], packing=pb.CODEC_JPEG)])
    with pytest.raises(DecodeError, match="baseline"):
        decoder.decode_step([raw(jpeg_header(4, 6, marker=0xC2), packing=pb.CODEC_JPEG)])
    with pytest.raises(DecodeError, match="scans"):
        decoder.decode_step([raw(good.data + b"\xff\xda" * 1000, packing=pb.CODEC_JPEG)])
    with pytest.raises(ShapeMismatchError, match="JPEG takes uint8"):
        encode(np.zeros((4, 4, 4), np.uint8), "x", Codec.JPEG)
    stack = Decoder([spec(shape=(4, 4, 4))], ALL)
    with pytest.raises(ShapeMismatchError, match="JPEG cannot hold"):
        stack.decode_step([raw(good.data, shape=(4, 4, 4), packing=pb.CODEC_JPEG)])


@settings(max_examples=300)
@given(
    data=st.binary(max_size=200),
    packing=st.integers(0, 5),
    dtype=st.integers(0, 10),
    shape=st.lists(st.integers(-2, 2**31 - 1), max_size=5) | st.just([4, 6, 3]),
    prefix=st.sampled_from([b"", b"\xff\xd8\xff", jpeg_header(4, 6)]),
    rows=st.integers(0, 3),
)
def test_random_bytes_raise_nothing_but_playserve_errors(data, packing, dtype, shape, prefix, rows):
    tensor = raw(prefix + data, dtype=dtype, shape=shape, packing=packing)
    for decoder in (Decoder([spec()], ALL), Decoder([spec(shape=(-1, -1, 3))], ALL)):
        for call in (lambda d=decoder: d.decode_step([tensor]), lambda d=decoder: d.decode_rows([tensor], rows)):
            with contextlib.suppress(PlayserveError):
                call()


@settings(max_examples=200)
@given(st.data())
def test_damaged_jpegs_raise_nothing_but_playserve_errors(data):
    good = bytearray(encode(frame(), "x", Codec.JPEG).data)
    for _ in range(data.draw(st.integers(1, 8))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = Decoder([spec()], ALL).decode_step([raw(bytes(good), packing=pb.CODEC_JPEG)])["x"]
        assert image.shape == (4, 6, 3)
    except PlayserveError:
        pass


def test_bounds_are_checked_where_the_dtype_does_not_imply_them():
    bounded = Decoder([spec("float32", (2,), minimum=-1, maximum=1)])
    assert bounded.decode_step([encode(np.float32([-1, 1]), "x")])["x"].tolist() == [-1, 1]
    for bad in ([0, 1.5], [-1.5, 0], [0, math.nan], [math.inf, 0]):
        with pytest.raises(OutOfBoundsError, match="'x'"):
            bounded.decode_step([encode(np.float32(bad), "x")])
    with pytest.raises(OutOfBoundsError, match="byte 2"):
        Decoder([spec("bool", (2,))]).decode_step([raw(b"\x01\x02", dtype=pb.DTYPE_BOOL, shape=(2,))])
    rows = Decoder([spec("uint8", (2,), minimum=0, maximum=9)])
    with pytest.raises(OutOfBoundsError, match="10, wanted 9"):
        rows.decode_rows([encode(np.uint8([[1, 2], [10, 0]]), "x")], 2)


def test_optional_inputs_are_zero_where_they_are_left_out():
    specs = [spec(), TensorSpec(name="extra", dtype="float32", shape=(2, -1), optional=True)]
    decoder = Decoder(specs, ALL)
    step = decoder.decode_step([encode(frame(), "x")])
    assert step["extra"].tolist() == [[0], [0]]
    rows = decoder.decode_rows([encode(frame()[None], "x")], 1)
    assert rows["extra"].shape == (1, 2, 1)
    with pytest.raises(InputMissingError, match=r"'x' is missing; came: \['extra'\]"):
        decoder.decode_step([encode(np.zeros((2, 1), np.float32), "extra")])


def test_outputs_are_believed_but_for_their_size():
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    assert (decode_output(encode(array, "frame")) == array).all()
    with pytest.raises(SizeMismatchError):
        decode_output(raw(b"123"))
    with pytest.raises(DecodeError):
        decode_output(raw(b"123", dtype=99))
    with pytest.raises(SizeMismatchError):
        decode_output(raw(b"", shape=(-1, 0)))


DISCRETE = DiscreteActionSpec(n=4)
DESKTOP = DesktopActionSpec(keys=("KeyW", "Space"), buttons=(0, 2), max_mouse_px=40.0, scroll=True)


@given(st.integers(0, 3))
def test_discrete_actions_come_back(index):
    for given_ in (index, np.int64(index)):
        assert action_from_proto(action_to_proto(given_, DISCRETE), DISCRETE) == index


@given(
    st.builds(
        DesktopAction,
        keys=st.frozensets(st.sampled_from(DESKTOP.keys)),
        buttons=st.frozensets(st.sampled_from(DESKTOP.buttons)),
        mouse_dx_px=st.floats(-40, 40, width=32),
        mouse_dy_px=st.floats(-40, 40, width=32),
        scroll=st.floats(-9, 9, width=32),
    )
)
def test_desktop_actions_come_back(action):
    assert action_from_proto(action_to_proto(action, DESKTOP), DESKTOP) == action


@pytest.mark.parametrize(
    ("action", "action_spec", "match"),
    [
        (4, DISCRETE, r"action 4, wanted an index 0\.\.3"),
        (-1, DISCRETE, "-1"),
        (True, DISCRETE, "True"),
        (1.0, DISCRETE, "1.0"),
        (DesktopAction(), DISCRETE, "DesktopAction"),
        (0, DESKTOP, "wanted a DesktopAction"),
        (DesktopAction(keys=frozenset({"KeyZ"})), DESKTOP, "KeyZ"),
        (DesktopAction(buttons=frozenset({1})), DESKTOP, "buttons"),
        (DesktopAction(mouse_dx_px=math.nan), DESKTOP, "nan"),
        (DesktopAction(mouse_dy_px=-41), DESKTOP, "at most 40"),
        (DesktopAction(scroll=math.inf), DESKTOP, "scroll"),
        (DesktopAction(scroll=1), DesktopActionSpec(keys=()), "does not scroll"),
    ],
)
def test_actions_that_do_not_fit_are_refused(action, action_spec, match):
    with pytest.raises(BadActionError, match=match):
        action_to_proto(action, action_spec)


def test_wire_actions_that_do_not_fit_are_refused():
    for message, action_spec in [
        (pb.Action(), DISCRETE),
        (pb.Action(index=4), DISCRETE),
        (pb.Action(index=-1), DISCRETE),
        (pb.Action(desktop=pb.DesktopAction()), DISCRETE),
        (pb.Action(), DESKTOP),
        (pb.Action(index=1), DESKTOP),
        (pb.Action(desktop=pb.DesktopAction(mouse_dx_px=math.nan)), DESKTOP),
        (pb.Action(desktop=pb.DesktopAction(keys=["KeyZ"])), DESKTOP),
    ]:
        with pytest.raises(BadActionError):
            action_from_proto(message, action_spec)


def test_without_lz4_and_simplejpeg_raw_works_and_the_others_say_what_is_missing():
    program = """
import sys
sys.modules["lz4"] = sys.modules["lz4.block"] = sys.modules["simplejpeg"] = None
import numpy as np
from playserve.codec import available_codecs, encode, Codec
from playserve.errors import CodecNotNegotiatedError
assert available_codecs() == (Codec.RAW,), available_codecs()
frame = np.zeros((4, 4, 3), np.uint8)
encode(frame, "x")
for codec in (Codec.LZ4, Codec.JPEG):
    try:
        encode(frame, "x", codec)
    except CodecNotNegotiatedError as error:
        assert "pip install 'playserve[play]'" in str(error), error
    else:
        raise AssertionError(codec)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert codec.DEFAULT_MAX_BYTES == 64 * 1024 * 1024
