"""The nethack family: what the encoder sees, what the cores remember, and the specs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from playserve.errors import BadSettingError
from playserve_client.nethack.keys import ACTION_NAMES
from playserve_trainer import checkpoint
from playserve_trainer.checkpoint import Manifest
from playserve_trainer.flops import count_flops
from playserve_trainer.models.nethack import NetHackConfig, NetHackPolicy
from playserve_trainer.models.nethack.encoder import NetHackEncoder, crop_codes
from playserve_trainer.models.nethack.text import LineNumbers, WordHashes
from playserve_trainer.models.policy import UNKNOWN_ACTION, Memory
from playserve_trainer.models.registry import build, config_from_json, config_to_json, describe

MESSAGE = "You see here a newt corpse.  You kill it!"
STATUS_1 = "Agent the Candidate        St:18/50 Dx:17 Co:13 In:8 Wi:15 Ch:7 Neutral S:25"
STATUS_2 = "Dlvl:1 $:0 HP:9(14) Pw:4(5) AC:4 Xp:1/19 T:123 Hungry"


def line(text: str) -> Tensor:
    return torch.tensor(list(text.ljust(80).encode()), dtype=torch.uint8)


def screen(message: str = MESSAGE, *, player: tuple[int, int] = (10, 30), **rows: str) -> dict[str, Tensor]:
    """Return one frame [1, ...] with the player in a small room; row10="..." puts text into row 10."""
    chars = torch.full((24, 80), 32, dtype=torch.uint8)
    chars[0], chars[22], chars[23] = line(message), line(STATUS_1), line(STATUS_2)
    chars[8:13, 26:36] = ord(".")
    for name, text in rows.items():
        chars[int(name.removeprefix("row"))] = line(text)
    chars[player] = ord("@")
    colors = torch.full((24, 80), 7, dtype=torch.int8)
    cursor = torch.tensor(player, dtype=torch.uint8)
    return {"tty_chars": chars[None], "tty_colors": colors[None], "tty_cursor": cursor[None]}


def codes(text: str, *, digits: bool = True) -> list[int]:
    return codes_of(line(text)[None], digits=digits)[0].tolist()


def codes_of(lines: Tensor, *, digits: bool = True) -> Tensor:
    words = WordHashes(80, 16)
    of_words = lines > 32
    if not digits:
        of_words &= (lines < 48) | (lines > 57)
    return words.codes(words(lines, of_words), 8192)


def encode(encoder: NetHackEncoder, frame: dict[str, Tensor], executed: int = 3) -> Tensor:
    return encoder(frame["tty_chars"], frame["tty_colors"], frame["tty_cursor"], torch.tensor([executed]), None)


def encoder_of(**settings: bool) -> NetHackEncoder:
    torch.manual_seed(0)
    return NetHackEncoder(NetHackConfig(width=32, **settings)).requires_grad_(False)


@pytest.fixture
def encoder() -> NetHackEncoder:
    return encoder_of()


def test_words_are_known_wherever_they_stand() -> None:
    here, there = codes("You kill the newt!"), codes("   You   kill the newt!  Wow")
    assert here[:4] == there[:4]
    assert len(set(here[:4])) == 4
    assert here[16:19] == there[16:19]  # pairs
    assert here[31] != there[31]  # the whole line
    assert codes("newt")[0] != codes("newts")[0] != codes("tnew")[0]
    assert codes("newt You")[0] == codes("You newt")[1]
    assert codes("newt You")[16] != codes("You newt")[16]


def test_an_empty_line_has_no_words_but_is_one() -> None:
    assert codes("")[:31] == [0] * 31
    assert codes("")[31] > 0


def test_more_words_than_there_is_room_for_are_left_out() -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    found = codes(" ".join(letters))
    assert all(found[:16])
    assert found[:31] == codes(" ".join(letters[:16]))[:31]


def test_without_digits_numbers_part_words() -> None:
    assert codes("HP:9(14)", digits=False)[:3] == codes("HP:120(0)", digits=False)[:3]
    assert codes("HP:9(14)")[:1] != codes("HP:120(0)")[:1]


def test_words_of_many_lines_at_once_are_those_of_each_alone() -> None:
    texts = [MESSAGE, "", "--More--", "x" * 80, "y z"]
    together = codes_of(torch.stack([line(text) for text in texts]))
    assert together.tolist() == [codes(text) for text in texts]
    assert together.min() >= 0
    assert together.max() < 8192


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        (STATUS_1, [18, 50, 17, 13, 8, 15, 7, 25]),
        (STATUS_2, [1, 0, 9, 14, 4, 5, 4, 1, 19, 123]),
        ("", []),
        ("9" * 5 + " 0012345 x7", [99999, 12345, 7]),
        ("a" * 79 + "8", [8]),
        ("1 2 3 4 5 6 7 8 9 10 11 12 13 14", list(range(1, 13))),
    ],
)
def test_numbers_in_order(text: str, numbers: list[int]) -> None:
    value, known = LineNumbers(12)(line(text)[None])
    assert value[0].tolist() == numbers + [0] * (12 - len(numbers))
    assert known[0].tolist() == [True] * len(numbers) + [False] * (12 - len(numbers))


@pytest.mark.parametrize(
    "other",
    [
        screen("You see here a jackal corpse."),
        screen(row23=STATUS_2.replace("HP:9", "HP:1")),
        screen(row23=STATUS_2.replace("Hungry", "Weak")),
        screen(row22=STATUS_1.replace("S:25", "S:99")),
        screen(player=(11, 30)),
        screen(row11="x".rjust(31)),  # beside the player
        screen(row20=">".rjust(70)),  # far away
    ],
    ids=["message", "hit points", "hunger", "score", "place", "near", "far"],
)
def test_the_encoder_sees_it(encoder: NetHackEncoder, other: dict[str, Tensor]) -> None:
    assert (encode(encoder, screen()) - encode(encoder, other)).abs().max() > 1e-4


TOP = (3, 30)  # the crop of a cursor here reaches row 0


@pytest.mark.parametrize("map_", [True, False], ids=["map", "no map"])
@pytest.mark.parametrize("player", [(10, 30), TOP], ids=["middle", "top"])
def test_without_the_message_its_line_is_not_looked_at(map_: bool, player: tuple[int, int]) -> None:
    other = screen("You see here a jackal corpse.", player=player)
    other["tty_colors"][0, 0] = 3
    seeing, blind = encoder_of(map=map_), encoder_of(message=False, map=map_)
    assert (encode(seeing, screen(player=player)) - encode(seeing, other)).abs().max() > 1e-4
    assert torch.equal(encode(blind, screen(player=player)), encode(blind, other))
    assert map_ == bool((encode(blind, screen(player=player)) - encode(blind, screen(row11="x" * 31))).any())


@pytest.mark.parametrize("message", [True, False], ids=["message", "no message"])
def test_without_the_map_text_lines_and_the_previous_key_are_all_that_is_looked_at(message: bool) -> None:
    encoder = encoder_of(message=message, map=False)
    frame, other = screen(), screen(player=(5, 50), row15="d" * 80)
    other["tty_colors"][0, 1:22] = 3
    assert torch.equal(encode(encoder, frame), encode(encoder, other))
    for seen in (screen(row23=STATUS_2.replace("HP:9", "HP:1")), screen(row23=STATUS_2.replace("Hungry", "Weak"))):
        assert (encode(encoder, frame) - encode(encoder, seen)).abs().max() > 1e-4
    assert (encode(encoder, frame) - encode(encoder, frame, executed=UNKNOWN_ACTION)).abs().max() > 1e-2
    assert message == bool((encode(encoder, frame) - encode(encoder, screen("It hits!"))).any())


def test_what_is_left_out_has_no_weights_and_takes_no_flops() -> None:
    whole = build("nethack", {"width": 32})
    sizes = {name: parameter.numel() for name, parameter in whole.named_parameters()}
    flops = count_flops(whole).by_layer
    branches = {
        "message": ("encoder.message.",),
        "map": ("encoder.crop.", "encoder.zones.", "encoder.row.", "encoder.column."),
    }
    for left_out in (("message",), ("map",), ("message", "map")):
        gone = tuple(prefix for name in left_out for prefix in branches[name])
        policy = build("nethack", {"width": 32, **dict.fromkeys(left_out, False)})
        kept = {name: size for name, size in sizes.items() if not name.startswith(gone)}
        assert {name: parameter.numel() for name, parameter in policy.named_parameters()} == kept
        assert count_flops(policy).by_layer == {n: count for n, count in flops.items() if not n.startswith(gone)}
        assert policy.spec().inputs == whole.spec().inputs  # the environment's terminal is the same
        assert policy.layout() == whole.layout()


def test_a_config_of_before_the_switches_is_one_that_sees_all() -> None:
    before = {
        "width": 32, "core": "transformer", "layers": 1, "context": 8, "inventory": False,
        "character": "mon-hum-neu-mal", "num_actions": 121, "action_names": [],
    }  # fmt: skip
    torch.manual_seed(0)
    old = build("nethack", before)
    torch.manual_seed(0)
    new = build("nethack", {**before, "message": True, "map": True})
    assert describe(old) == describe(new)
    assert old.layout() == new.layout()
    assert list(old.state_dict()) == list(new.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(old.state_dict().values(), new.state_dict().values(), strict=True))


def test_a_checkpoint_without_message_and_map_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    policy = NetHackPolicy(NetHackConfig(width=32, message=False, map=False)).eval()
    checkpoint.save(tmp_path / "blind", policy, Manifest.describe(policy))
    loaded, manifest = checkpoint.load(tmp_path / "blind")
    assert (manifest.config["message"], manifest.config["map"]) == (False, False)
    assert manifest.num_params == sum(parameter.numel() for parameter in policy.parameters())
    sequence = _sequence(policy, 4)
    assert torch.equal(loaded(*sequence).logits[0], policy(*sequence).logits[0])


def test_the_encoder_sees_colours_and_the_previous_key(encoder: NetHackEncoder) -> None:
    frame, brown = screen(), screen()
    brown["tty_colors"][0, 10, 31] = 3
    assert (encode(encoder, frame) - encode(encoder, brown)).abs().max() > 1e-4
    assert (encode(encoder, frame) - encode(encoder, frame, executed=UNKNOWN_ACTION)).abs().max() > 1e-2


def test_what_is_near_the_cursor_looks_the_same_everywhere(encoder: NetHackEncoder) -> None:
    chars = torch.full((1, 24, 80), 32, dtype=torch.uint8)
    moved = chars.clone()
    chars[0, 10, 31], moved[0, 4, 61] = ord("d"), ord("d")
    colors = torch.zeros(1, 24, 80, dtype=torch.int8)
    here = (chars, colors, torch.tensor([10]), torch.tensor([30]))
    there = (moved, colors, torch.tensor([4]), torch.tensor([60]))
    torch.testing.assert_close(encoder.crop(*here), encoder.crop(*there))
    assert torch.equal(encoder.zones.counts(*here), encoder.zones.counts(*there))


def test_counts_are_the_same_where_shapes_must_not_depend_on_the_data(encoder: NetHackEncoder) -> None:
    generator = torch.Generator().manual_seed(0)
    chars = torch.randint(0, 256, (5, 24, 80), dtype=torch.uint8, generator=generator)
    chars[torch.rand(5, 24, 80, generator=generator) < 0.7] = 32
    colors = torch.randint(-128, 128, (5, 24, 80), dtype=torch.int8, generator=generator)
    row, column = torch.tensor([0, 5, 10, 23, 1]), torch.tensor([0, 79, 40, 3, 1])
    compact = encoder.zones.counts(chars, colors, row, column)
    dense = encoder.zones.counts_of_all(chars, colors, encoder.zones.zones_of_cells(row, column))
    assert torch.equal(compact.float(), dense)
    assert int(compact.sum()) == int((chars[:, 1:22] > 32).sum())


@given(
    st.lists(st.text(" \0ab09:9(", max_size=80) | st.binary(max_size=80).map(lambda b: b.decode("latin1")), min_size=1)
)
def test_words_and_numbers_are_the_same_where_shapes_must_not_depend_on_the_data(texts: list[str]) -> None:
    lines = torch.stack([torch.tensor(list(text.ljust(80).encode("latin1")), dtype=torch.uint8) for text in texts])
    words, numbers, of_words = WordHashes(80, 16), LineNumbers(12), lines > 32
    assert torch.equal(words(lines, of_words), words.of_lines(lines, of_words))
    for compact, dense in zip(numbers(lines), numbers.of_lines(lines), strict=True):
        assert torch.equal(compact, dense)


@pytest.mark.parametrize("first_row", [0, 1])
def test_the_crop_is_the_same_where_shapes_must_not_depend_on_the_data(first_row: int) -> None:
    crop = encoder_of(message=first_row == 0).crop
    assert crop is not None
    generator = torch.Generator().manual_seed(0)
    chars = torch.randint(0, 256, (6, 24, 80), dtype=torch.uint8, generator=generator)
    colors = torch.randint(-128, 128, (6, 24, 80), dtype=torch.int8, generator=generator)
    row, column = torch.tensor([0, 5, 10, 23, 1, 23]), torch.tensor([0, 79, 40, 3, 1, 79])
    dense = crop.codes(chars, colors, row, column)
    screens = (chars.numpy(), colors.numpy(), row.numpy(), column.numpy())
    assert torch.equal(torch.from_numpy(crop_codes(*screens, first_row)), dense)


def test_a_cursor_at_the_edge_or_beyond_is_no_error(encoder: NetHackEncoder) -> None:
    for place in ((0, 0), (23, 79), (255, 255)):
        frame = screen()
        frame["tty_cursor"][0] = torch.tensor(place, dtype=torch.uint8)
        assert encode(encoder, frame).isfinite().all()


def _sequence(policy: NetHackPolicy, steps: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    frames = [screen(player=(8 + t % 5, 26 + t % 10)) for t in range(steps)]
    inputs = {name: torch.stack([frame[name] for frame in frames], dim=1) for name in frames[0]}
    first = torch.zeros(1, steps, dtype=torch.bool)
    first[:, 0] = True
    executed = torch.arange(steps).view(1, steps, 1) % policy.config.num_actions
    return inputs, executed, first


@pytest.mark.parametrize("layers", [1, 2])
def test_a_transformer_sees_its_window_and_no_further(layers: int) -> None:
    torch.manual_seed(0)
    context, steps = 4, 12
    config = NetHackConfig(width=32, core="transformer", layers=layers, context=context)
    policy = NetHackPolicy(config).eval().requires_grad_(False)
    inputs, executed, first = _sequence(policy, steps)
    before = policy(inputs, executed, first).logits[0]
    changed = executed.clone()
    changed[0, 2] += 1
    differs = (policy(inputs, changed, first).logits[0] - before).abs().amax(2)[0] > 0
    seen = policy.spec().context_frames
    assert seen == layers * (context - 1) + 1
    assert differs.tolist() == [2 <= t < 2 + seen for t in range(steps)]


def test_no_gradient_flows_into_what_came_before_a_sequence() -> None:
    torch.manual_seed(0)
    policy = NetHackPolicy(NetHackConfig(width=32, core="transformer", context=4))
    inputs, executed, first = _sequence(policy, 6)
    state = policy(inputs, executed, first).state
    assert not any(tensor.requires_grad for tensor in state.values())


@pytest.mark.parametrize("core", ["lstm", "transformer"])
def test_both_cores_learn_to_remember(core: str) -> None:
    """The label is the key before the previous one: nothing of it is in the frame or in `executed`."""
    torch.manual_seed(0)
    policy = NetHackPolicy(NetHackConfig(width=32, core=core, context=8, num_actions=4))
    optimizer = torch.optim.Adam(policy.parameters(), lr=5e-3)
    frame = screen()
    inputs = {name: tensor[None].expand(16, 12, *tensor.shape[1:]) for name, tensor in frame.items()}
    first = torch.zeros(16, 12, dtype=torch.bool)
    first[:, 0] = True
    loss = torch.zeros(())
    for _ in range(120):
        executed = torch.randint(0, 4, (16, 12, 1))
        logits = policy(inputs, executed, first).logits[0]
        # What was executed before the first step belongs to no episode.
        loss = F.cross_entropy(logits[:, 2:].flatten(0, 1), executed[:, 1:-1, 0].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
    assert loss.item() < 0.2


def test_memory_does_not_grow_and_does_not_leak_what_was_before() -> None:
    torch.manual_seed(0)
    policy = NetHackPolicy(NetHackConfig(width=32, core="transformer", context=4)).eval().requires_grad_(False)
    pools = {name: torch.zeros(3, *t.shape, dtype=t.dtype) for name, t in policy.state_layout().items()}
    inputs, executed, _ = _sequence(policy, 9)
    for t in range(9):
        frame = {name: tensor[:, t] for name, tensor in inputs.items()}
        memory = Memory(pools, torch.tensor([2]), torch.tensor([t in (0, 8)]))
        policy.step(frame, executed[:, t], memory, lambda logits, head: logits.argmax(-1))
    assert pools["steps"].tolist() == [0, 0, 1]
    filled = pools["keys"][2].abs().amax((0, 2)) > 0
    assert filled.tolist() == [True, False, False, False]


def test_the_spec_is_the_environments() -> None:
    policy = NetHackPolicy(NetHackConfig(width=32, inventory=True, action_names=ACTION_NAMES))
    spec = policy.spec()
    assert [(t.name, t.dtype, tuple(t.shape)) for t in spec.inputs] == [
        ("tty_chars", "uint8", (24, 80)),
        ("tty_colors", "int8", (24, 80)),
        ("tty_cursor", "uint8", (2,)),
        ("inv_glyphs", "int16", (55,)),
    ]
    assert spec.environment == {"family": "nethack", "character": "mon-hum-neu-mal"}
    assert spec.uses_executed_actions
    assert spec.context_frames == 0


def test_config_as_json_round_trip() -> None:
    config = NetHackConfig(width=64, core="transformer", layers=2, context=16, action_names=ACTION_NAMES)
    assert config_from_json(NetHackConfig, config_to_json(config)) == config
    family, value = describe(build("nethack", config_to_json(config)))
    assert (family, value) == ("nethack", config_to_json(config))


@pytest.mark.parametrize(
    "change",
    [
        {"width": 0}, {"layers": 0}, {"context": 0}, {"num_actions": 0}, {"core": "gru"}, {"character": ""},
        {"core": "transformer", "width": 40}, {"action_names": ("a", "b")},
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(BadSettingError, match=r"^nethack: "):
        NetHackConfig(**change)


def test_flops_by_hand() -> None:
    lstm = count_flops(build("nethack", {"width": 64, "layers": 2}))
    assert lstm.by_layer["core.lstm"] == 2 * (2 * 4 * 64 * (64 + 64))
    assert lstm.by_layer["encoder.crop.linear"] == 2 * 81 * 16 * 64
    config = {"width": 64, "core": "transformer", "context": 20}
    for steps in (1, 7):
        count = count_flops(build("nethack", config), num_steps=steps).by_layer
        assert count["core.blocks.0.attention"] == 2 * 2 * 20 * 64
        assert count["core.blocks.0.qkv"] == 2 * 64 * 3 * 64
        assert count["core.blocks.0.up"] == count["core.blocks.0.down"] == 2 * 64 * 4 * 64
