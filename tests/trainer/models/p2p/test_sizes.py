"""Sizes, memory and FLOPs by the numbers, the mask by its table, the loss by its formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from playserve.actions import DesktopAction
from playserve.errors import BadActionError, BadSettingError, DataLossError, NotFoundError, NotImplementedHereError
from playserve.specs import DesktopActionSpec, GapMode, PolicySpec
from playserve_trainer.flops import count_flops
from playserve_trainer.models.p2p import SIZES, P2PConfig, P2PPolicy, config_of_size
from playserve_trainer.models.p2p.packed import can_pack, computes_bfloat16
from playserve_trainer.models.p2p.tokens import step_mask, window_mask
from playserve_trainer.models.p2p.trunk import EfficientNetTrunk, ImageTokenizer, load_torchvision_trunk
from playserve_trainer.models.policy import IGNORED_LABEL, INSTRUCTION, TARGETS, LabelCounts
from playserve_trainer.models.registry import build, describe

MakeSmall = Callable[..., P2PPolicy]


def on_meta(size: str) -> P2PPolicy:
    with torch.device("meta"):
        return P2PPolicy(config_of_size(size))


@pytest.mark.parametrize(
    ("size", "millions", "megabytes"),
    [("150m", 183.2, 90), ("300m", 309.2, 180), ("600m", 644.3, 162), ("1.2b", 1298.9, 396)],
)
def test_released_sizes(size: str, millions: float, megabytes: float) -> None:
    policy = on_meta(size)
    assert policy.num_params() / 1e6 == pytest.approx(millions, abs=0.05)
    layout = policy.state_layout()
    held = sum(torch.empty(t.shape, dtype=t.dtype, device="meta").nbytes for t in layout.values())
    assert held / 1e6 == pytest.approx(megabytes, rel=0.01)


def test_small_sizes_are_about_what_they_are_called() -> None:
    counts = {size: on_meta(size).num_params() / 1e6 for size in ("1m", "6m", "16m")}
    assert counts == pytest.approx({"1m": 1.7, "6m": 6.5, "16m": 17.4}, rel=0.02)
    assert all(config_of_size(size).trunk == "conv3" and config_of_size(size).size == size for size in counts)


def test_flops_are_those_of_the_layers() -> None:
    policy = on_meta("150m")
    counted = count_flops(policy, num_steps=4)
    width, hidden, tokens, past = 1024, 2736, 12, 200 * 11
    linear = 2 * width * (3 * width + width + 3 * hidden)
    last = 2 * width * (tokens * 3 * width + width + 3 * hidden)  # the last layer is finished for action_out alone
    seen = 12 * past + 3 * 3 + 4 + 8 * 11
    backbone = 9 * (tokens * linear + 4 * width * seen) + last + 4 * width * (past + 4)
    assert sum(n for name, n in counted.by_layer.items() if name.startswith("backbone")) == backbone
    decoder = 3 * (8 * linear + 4 * width * sum(range(2, 10))) + 2 * width * width
    assert sum(n for name, n in counted.by_layer.items() if name.startswith("decoder")) == decoder
    assert counted.by_layer["tokens.text"] == 0 if "tokens.text" in counted.by_layer else True
    trunk = sum(n for name, n in counted.by_layer.items() if name.startswith("image.trunk"))
    assert 0.3e9 < trunk < 0.4e9


def test_text_layer_counts_where_text_is_taken(small: MakeSmall) -> None:
    assert count_flops(small()).by_layer["tokens.text"] == 2 * 16 * 32
    assert "tokens.text" not in count_flops(small(text_encoder="none")).by_layer


def test_mask_of_a_step_is_the_table() -> None:
    rows = ["111000000000"] * 3 + ["111100000000"] + ["111011111111"] * 8
    assert ["".join(str(int(x)) for x in row) for row in step_mask(8)] == rows


def test_mask_of_steps() -> None:
    mask = window_mask(torch.tensor([[0, 0, 0, 0, 1]]), 2, 8)[0, 0].view(5, 12, 5, 12)
    past = torch.ones(12, 12, dtype=torch.bool)
    past[:, 3] = False
    assert torch.equal(mask[3, :, 2], past)
    assert torch.equal(mask[3, :, 1], past)
    assert not mask[3, :, 0].any()  # 3 steps ago
    assert not mask[3, :, 4].any()  # the future
    assert not mask[4, :, :4].any()  # another episode
    assert torch.equal(mask[2, :, 2], step_mask(8))
    only = window_mask(torch.tensor([[0, 0, 0, 0, 1]]), 2, 8, only_out=True)[0, 0]
    assert torch.equal(only, mask.flatten(2)[:, 3])


def test_the_last_step_of_200_sees_2193_tokens() -> None:
    mask = window_mask(torch.zeros(1, 200, dtype=torch.int64), 200, 8, only_out=True)
    assert mask[0, 0, -1].sum() == 2193


def test_loss_of_parts_adds_up_and_ignores_what_is_masked(small: MakeSmall) -> None:
    policy = small()
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(4, 6, n, generator=generator) * 2 for n in policy.heads()]
    drawn = [torch.randint(0, n, (4, 6), generator=generator) for n in policy.heads()]
    labels = torch.stack(drawn, -1)
    labels[torch.rand(4, 6, generator=generator) < 0.3] = IGNORED_LABEL
    counts, whole = LabelCounts.of(labels), policy.loss_parts(logits, labels)
    halves = [policy.loss([x[rows] for x in logits], labels[rows], counts) for rows in (slice(0, 1), slice(1, 4))]
    assert sum(halves).item() == pytest.approx(whole.total.item(), abs=1e-6)  # type: ignore[union-attr]
    known = (labels != IGNORED_LABEL).all(-1)
    keys = torch.stack(logits[:4], 2)[known].log_softmax(-1).gather(-1, labels[..., :4][known].unsqueeze(-1))
    assert whole.cross_entropy[0].item() == pytest.approx(-keys.mean().item(), abs=1e-6)
    z = sum(
        (torch.stack(logits[a:b], 2).logsumexp(-1).square() * known.unsqueeze(-1)).sum() / (24 * (b - a))
        for a, b in ((0, 4), (4, 6), (6, 7), (7, 8))
    )
    assert whole.z.item() == pytest.approx(float(z), abs=1e-5)
    nats = [x.item() for x in whole.cross_entropy]
    total = sum(x / math.log(n) for x, n in zip(nats, (20, 4, 23, 17), strict=True)) + 1e-4 * float(z)
    assert whole.total.item() == pytest.approx(total, abs=1e-5)
    nothing = policy.loss_parts(logits, torch.full_like(labels, IGNORED_LABEL))
    assert nothing.total.item() == 0.0


def test_it_learns_and_every_weight_gets_a_gradient() -> None:
    config = P2PConfig(layers=2, width=32, heads=2, decoder_layers=1, decoder_heads=2, history=(4,), trunk="conv3",
                       frame_size=32, text_encoder="words", text_width=16)  # fmt: skip
    torch.manual_seed(0)
    policy = P2PPolicy(config).train()
    frames = torch.randint(0, 256, (2, 6, 32, 32, 3)).to(torch.uint8)
    actions = torch.stack([torch.randint(0, n, (2, 6)) for n in policy.heads()], -1)
    text = torch.randn(2, 6, 16)
    text[0] = 0
    inputs = {"frame": frames, INSTRUCTION: text, TARGETS: actions}
    first = torch.zeros(2, 6, dtype=torch.bool)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        output = policy(inputs, torch.full_like(actions, -1), first)
        assert not output.state
        loss = policy.loss(output.logits, actions, LabelCounts.of(actions))
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        missing = [name for name, p in policy.named_parameters() if p.grad is None or not p.grad.abs().sum()]
        assert not missing
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    with pytest.raises(NotImplementedHereError, match="whole clips"):
        policy(inputs, actions, first, {"steps": torch.zeros(2)})


def test_bfloat16_autocast_is_near_float32(small: MakeSmall) -> None:
    policy = small()
    frames = torch.randint(0, 256, (1, 5, 32, 32, 3)).to(torch.uint8)
    actions, first = torch.zeros(1, 5, 8, dtype=torch.int64), torch.zeros(1, 5, dtype=torch.bool)
    wanted = policy({"frame": frames}, actions, first).logits
    with torch.autocast("cpu", torch.bfloat16):
        got = policy({"frame": frames}, actions, first).logits
    half = policy.to(torch.bfloat16)({"frame": frames}, actions, first).logits
    for a, b, c in zip(wanted, got, half, strict=True):
        assert b.dtype == c.dtype == torch.float32
        torch.testing.assert_close(b, a, atol=0.15, rtol=0.1)
        torch.testing.assert_close(c, a, atol=0.15, rtol=0.1)


def test_spec_and_actions(small: MakeSmall) -> None:
    policy = small(catch_up_frames=3)
    spec = policy.spec()
    assert PolicySpec.from_json(spec.to_json()) == spec
    assert isinstance(spec.action, DesktopActionSpec)
    assert (spec.rate_hz, spec.takes_instruction, spec.uses_executed_actions) == (20.0, True, True)
    assert (spec.gap_rule.mode, spec.gap_rule.catch_up_frames) == (GapMode.CATCH_UP, 3)
    assert spec.inputs[0].resize_id == "hamming-v1"
    assert policy.heads() == (20, 20, 20, 20, 4, 4, 23, 17)
    action = DesktopAction(frozenset({"KeyW", "ControlLeft"}), frozenset({0}), 5.0, -3.0)
    tokens = policy.encode_action(action)
    back = policy.decode_action(tokens, (0.5, 0.5), "mean")
    assert isinstance(back, DesktopAction)
    assert (back.keys, back.buttons) == (frozenset({"KeyW"}), frozenset({0}))
    assert policy.vocabulary.dropped(action) == frozenset({"ControlLeft"})
    with pytest.raises(BadActionError, match="DesktopAction"):
        policy.encode_action(3)
    with pytest.raises(BadSettingError, match="sideways"):
        policy.decode_action(tokens, (0.5, 0.5), "sideways")
    name, config = describe(policy)
    assert describe(build(name, config)) == (name, config)
    assert small(text_encoder="none").context_inputs() == {}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"layers": 0}, "layers"),
        ({"history": (3, 4, 5)}, "history"),
        ({"trunk": "vit"}, "trunk"),
        ({"frame_size": 100}, "frame_size"),
        ({"heads": 3}, "multiple of 2"),
        ({"state_dtype": "int8"}, "state_dtype"),
        ({"mouse_decode": "mode"}, "mouse_decode"),
        ({"vocabulary": {"keys": []}}, "vocabulary"),
    ],
)
def test_a_config_out_of_range_is_refused_by_name(small: MakeSmall, changes: dict[str, object], named: str) -> None:
    with pytest.raises(BadSettingError, match=named):
        small(**changes)
    with pytest.raises(BadSettingError, match="7t"):
        config_of_size("7t")


def test_size_names_are_in_the_manifest() -> None:
    assert all(describe(on_meta(size))[1]["size"] == size for size in ("150m", "1m"))
    assert set(SIZES) == {"150m", "300m", "600m", "1.2b", "1m", "6m", "16m"}


def test_torchvision_weights_of_the_trunk(small: MakeSmall, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = P2PConfig(layers=1, width=32, heads=2, decoder_heads=2, frame_size=32)
    theirs = {f"features.{name}": torch.rand_like(x.float()) for name, x in EfficientNetTrunk().state_dict().items()}
    extra = {"features.8.0.weight": torch.zeros(2), "classifier.1.bias": torch.zeros(1000)}
    path = tmp_path / "efficientnet_b0.pth"
    torch.save({**theirs, **extra}, path)
    tokenizer = ImageTokenizer(config)
    assert load_torchvision_trunk(tokenizer, path) == tuple(sorted(extra))
    for name, tensor in tokenizer.trunk.state_dict().items():
        torch.testing.assert_close(tensor.float(), theirs[f"features.{name}"].to(tensor.dtype).float())
    with pytest.raises(BadSettingError, match="three convolutions"):
        load_torchvision_trunk(small().image, path)
    torch.save(extra, path)
    with pytest.raises(DataLossError, match="lacks"):
        load_torchvision_trunk(tokenizer, path)
    with pytest.raises(NotFoundError, match="no such file"):
        load_torchvision_trunk(tokenizer, tmp_path / "nothing.pth")


@pytest.mark.parametrize(("precision", "close"), [("float32", 1e-5), ("bfloat16", 0.02)])
def test_weights_made_for_play_play_alike(small: MakeSmall, precision: str, close: float) -> None:
    if precision == "bfloat16" and computes_bfloat16():
        close = 0.2
    torch.manual_seed(0)
    policy = small(width=256, heads=4, trunk="efficientnet_b0", frame_size=64)
    for module in policy.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    frames = torch.randint(0, 256, (1, 6, 64, 64, 3)).to(torch.uint8)
    inputs = {"frame": frames, TARGETS: torch.zeros(1, 6, 8, dtype=torch.int64)}
    actions, first = torch.zeros(1, 6, 8, dtype=torch.int64), torch.zeros(1, 6, dtype=torch.bool)
    wanted = policy(inputs, actions, first).logits
    assert policy.prepare_for_play(precision) == (precision == "float32" or computes_bfloat16() or can_pack())
    for got, logits in zip(policy(inputs, actions, first).logits, wanted, strict=True):
        torch.testing.assert_close(got, logits, atol=close, rtol=close)
