import pytest
import torch

from playserve.errors import BadSettingError
from playserve.specs import GapMode
from playserve_trainer.models.policy import UNKNOWN_ACTION
from playserve_trainer.models.tiny_recurrent import TinyRecurrentConfig, TinyRecurrentPolicy

STEPS = 20


@pytest.fixture
def policy() -> TinyRecurrentPolicy:
    torch.manual_seed(0)
    return TinyRecurrentPolicy(TinyRecurrentConfig())


def _play(policy: TinyRecurrentPolicy, observation: torch.Tensor, executed: torch.Tensor) -> torch.Tensor:
    """Return the last logits [A] of one sequence: observation [T, 8, 8], executed [T]."""
    first = torch.zeros(1, len(executed), dtype=torch.bool)
    first[0, 0] = True
    with torch.no_grad():
        return policy({"observation": observation[None]}, executed[None, :, None], first).logits[0][0, -1]


@pytest.fixture
def sequence() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    observation = torch.randint(0, 256, (STEPS, 8, 8), dtype=torch.uint8, generator=generator)
    executed = torch.randint(0, 4, (STEPS,), generator=generator)
    executed[0] = UNKNOWN_ACTION
    return observation, executed


@pytest.mark.parametrize("when", [0, 1, STEPS // 2, STEPS - 1])
def test_every_observation_of_the_past_changes_the_answer(policy, sequence, when: int) -> None:
    observation, executed = sequence
    other = observation.clone()
    other[when] = 255 - other[when]
    assert (_play(policy, observation, executed) - _play(policy, other, executed)).abs().max() > 1e-2


@pytest.mark.parametrize("when", [1, STEPS // 2, STEPS - 1])
def test_every_executed_action_changes_the_answer(policy, sequence, when: int) -> None:
    observation, executed = sequence
    for replacement in ((executed[when] + 1) % 4, UNKNOWN_ACTION):
        other = executed.clone()
        other[when] = replacement
        assert (_play(policy, observation, executed) - _play(policy, observation, other)).abs().max() > 1e-2


def test_a_lost_step_or_one_taken_twice_changes_the_answer(policy, sequence) -> None:
    observation, executed = sequence
    wanted = _play(policy, observation, executed)
    keep = [t for t in range(STEPS) if t != 5]
    twice = sorted([*range(STEPS), 5])
    for order in (keep, twice):
        assert (wanted - _play(policy, observation[order], executed[order])).abs().max() > 1e-2


def test_what_was_executed_before_the_episode_does_not_matter(policy, sequence) -> None:
    observation, executed = sequence
    other = executed.clone()
    other[0] = 2
    assert torch.equal(_play(policy, observation, executed), _play(policy, observation, other))


def test_argmax_actions_vary_before_training(policy) -> None:
    observation = torch.randint(0, 256, (16, 30, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    logits = policy({"observation": observation}, torch.zeros(16, 30, 1, dtype=torch.int64),
                    torch.zeros(16, 30, dtype=torch.bool)).logits[0]  # fmt: skip
    assert len(logits.argmax(-1).unique()) == 4


def test_memory_has_several_tensors_and_survives_bfloat16_weights(policy, sequence) -> None:
    layout = policy.state_layout()
    assert {tensor.dtype for tensor in layout.values()} == {torch.float32, torch.int64}
    assert layout["age"].shape == ()
    observation, executed = sequence
    wanted = _play(policy, observation, executed)
    got = _play(policy.to(torch.bfloat16), observation, executed).float()
    torch.testing.assert_close(got, wanted, atol=0.2, rtol=0.1)


def test_spec_carries_pace_and_gap_rule() -> None:
    live = TinyRecurrentPolicy(TinyRecurrentConfig(rate_hz=20.0, catch_up_frames=4)).spec()
    assert (live.rate_hz, live.gap_rule.mode, live.gap_rule.catch_up_frames) == (20.0, GapMode.CATCH_UP, 4)
    assert live.uses_executed_actions
    assert live.context_frames == 0
    assert TinyRecurrentPolicy(TinyRecurrentConfig()).spec().gap_rule.mode is GapMode.SKIP


def test_layouts_differ_by_size_not_by_pace() -> None:
    def digest(**config: object) -> str:
        return TinyRecurrentPolicy(TinyRecurrentConfig(**config)).layout()

    assert digest(hidden=8) != digest(hidden=16)
    assert digest(hidden=8) == digest(hidden=8, rate_hz=20.0, catch_up_frames=2)


@pytest.mark.parametrize(
    "changes",
    [{"hidden": 0}, {"num_actions": 0}, {"observation_shape": ()}, {"observation_shape": (0,)},
     {"observation_dtype": "int64"}, {"rate_hz": -1.0}, {"catch_up_frames": -1}],
)  # fmt: skip
def test_a_config_out_of_range_is_refused_by_name(changes: dict[str, object]) -> None:
    with pytest.raises(BadSettingError, match=next(iter(changes))):
        TinyRecurrentConfig(**changes)
