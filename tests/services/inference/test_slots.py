"""Slots: nobody gets two, nothing is lost, and an exported memory is exact."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from playserve.errors import DataLossError, LayoutMismatchError, NoFreeSlotError
from playserve_services.inference.slots import SlotPool, StateBlob
from playserve_trainer.models.policy import StateTensor

LAYOUT = {
    "h": StateTensor((2, 3), torch.float32),
    "n": StateTensor((), torch.int64),
    "k": StateTensor((4,), torch.bfloat16),
}


def pool(capacity: int = 3, digest: str = "d") -> SlotPool:
    return SlotPool(digest, LAYOUT, capacity)


def test_slots_run_out_whole_requests_only() -> None:
    p = pool(3)
    p.allocate(2)
    with pytest.raises(NoFreeSlotError, match=r"2 slots wanted, 1 of 3"):
        p.allocate(2)
    assert p.free == 1
    assert p.bytes_per_slot == 2 * 3 * 4 + 8 + 4 * 2


def test_a_released_lease_is_worth_nothing() -> None:
    p = pool(1)
    (first,) = p.allocate()
    assert p.release(first)
    (second,) = p.allocate()
    assert second.slot == first.slot
    assert not first.valid()
    assert not p.release(first), "the old owner must not free the new owner's slot"
    assert second.valid()
    assert p.free == 0


@given(st.binary(min_size=0, max_size=200))
def test_random_bytes_are_no_state(data: bytes) -> None:
    with pytest.raises(DataLossError):
        StateBlob.unpack(data)


@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found(position: int, bit: int) -> None:
    data = bytearray(StateBlob({"layout": "d", "seq": 4}, {"h": b"abc" * 20, "n": b""}).pack())
    data[position % len(data)] ^= 1 << bit
    with pytest.raises(DataLossError):
        StateBlob.unpack(bytes(data))


def test_export_and_import_are_exact_for_every_dtype() -> None:
    a, b = pool(), pool()
    for tensor in a.tensors.values():
        tensor[2] = torch.randn(tensor[2].shape).to(tensor.dtype) if tensor.is_floating_point() else 2**40 + 1
    blob = StateBlob.unpack(StateBlob({"layout": "d"}, a.export_slot(2)).pack())
    b.import_slot(1, "d", blob.tensors)
    for name in LAYOUT:
        assert torch.equal(a.tensors[name][2], b.tensors[name][1])
        assert not b.tensors[name][2].any(), "a neighbour changed"


def test_a_foreign_layout_is_refused() -> None:
    a = pool()
    with pytest.raises(LayoutMismatchError, match="'other'"):
        a.import_slot(1, "other", a.export_slot(1))
    tensors = a.export_slot(1)
    tensors["h"] = tensors["h"][:-1]
    with pytest.raises(LayoutMismatchError, match="bytes"):
        a.import_slot(1, "d", tensors)
