"""The training loop: it learns, it is a function of its settings, and a stop in the middle changes nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from playserve.errors import BadSettingError, DataLossError, NotFoundError
from playserve_trainer.flops import count_flops
from playserve_trainer.models.policy import Policy
from playserve_trainer.train.errors import DataChangedError, TrainingDivergedError
from playserve_trainer.train.loop import Trainer
from playserve_trainer.train.state import STATE_NAME

MakeTrainer = Callable[..., Trainer]


def _lines(trainer: Trainer, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (trainer.out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def _weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in policy.state_dict().items()}


def _assert_same_weights(a: Policy, b: Policy) -> None:
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name


def test_it_learns_and_says_so(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_steps=60, lr=0.05)
    before = trainer.evaluate()
    assert trainer.run()
    assert before is not None
    assert trainer.last_evaluation is not None
    assert trainer.last_evaluation.loss < 0.3 * before.loss
    assert trainer.last_evaluation.accuracy > 0.95
    losses = [line["loss"] for line in _lines(trainer, "train")]
    assert losses[-1] < losses[0]
    evals = _lines(trainer, "eval")
    assert [line["step"] for line in evals] == list(range(10, 61, 10))
    assert evals[-1]["held_out_accuracy"] == trainer.last_evaluation.accuracy
    assert trainer.best["loss"] == min(line["held_out_loss"] for line in evals)


def test_samples_and_flops_are_counted_exactly(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_steps=7)
    trainer.run()
    per_sample = count_flops(trainer.policy, 6).training
    assert trainer.samples == 7 * 8 * 6
    assert trainer.flops == 7 * 8 * 6 * per_sample
    assert trainer.flops_6nd == 6 * trainer.policy.num_params() * 7 * 8 * 6
    last = _lines(trainer, "train")[-1]
    assert (last["step"], last["samples"], last["flops"]) == (7, trainer.samples, trainer.flops)


def test_the_first_limit_ends_the_run(make_trainer: MakeTrainer) -> None:
    by_samples = make_trainer("a", max_samples=100)
    assert by_samples.run()
    assert by_samples.step == 3  # 48 samples a step: the step that reaches the limit is done
    by_flops = make_trainer("b", max_flops=by_samples.flops_per_sample * 48 * 5, max_steps=1000)
    assert by_flops.run()
    assert by_flops.step == 5
    by_time = make_trainer("c", max_minutes=1e-4, max_steps=10**6)
    assert by_time.run()
    assert by_time.step < 10**6


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_runs_of_one_seed_are_equal_bit_for_bit(make_trainer: MakeTrainer, precision: str) -> None:
    runs = [make_trainer(name, max_steps=10, precision=precision) for name in ("a", "b")]
    for trainer in runs:
        trainer.run()
    _assert_same_weights(runs[0].policy, runs[1].policy)
    assert all(p.dtype == torch.float32 for p in runs[0].policy.parameters())
    other = make_trainer("c", max_steps=10, precision=precision, seed=1)
    other.run()
    assert not torch.equal(other.policy.head.weight, runs[0].policy.head.weight)  # type: ignore[union-attr]


@pytest.mark.parametrize("optimizer", ["adamw", "adam"])
@pytest.mark.parametrize("carries_state", [False, True])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(
    make_trainer: MakeTrainer, echo_source: Any, carries_state: bool, optimizer: str
) -> None:
    def source() -> Any:
        return echo_source(delay=1, carries_state=carries_state)

    settings = {"max_steps": 20, "log_every_steps": 7, "optimizer": optimizer, "weight_decay": 0.1}
    whole = make_trainer("whole", source=source(), **settings)
    assert whole.run()
    for stop_at in (7, 10, 16):
        made: list[Trainer] = []
        resume = bool((whole.out.parent / "parts" / STATE_NAME).exists())
        part = make_trainer(
            "parts", source=source(), resume=resume, **settings,
            should_stop=lambda made=made, stop_at=stop_at: made[0].step >= stop_at,  # type: ignore[misc]
        )  # fmt: skip
        made.append(part)
        assert not part.run()
        assert part.step == stop_at
    torch.manual_seed(12345)  # whatever happened in between
    last = make_trainer("parts", source=source(), resume=True, **settings)
    assert last.step == 16
    assert last.run()
    _assert_same_weights(whole.policy, last.policy)
    assert (last.step, last.samples, last.best) == (whole.step, whole.samples, whole.best)
    key = [(line["step"], line["held_out_loss"]) for line in _lines(whole, "eval")]
    assert [(line["step"], line["held_out_loss"]) for line in _lines(last, "eval")] == key


def test_metrics_behind_the_last_save_are_cut_off_on_resume(make_trainer: MakeTrainer) -> None:
    whole = make_trainer("whole", max_steps=30, log_every_steps=2)
    whole.run()
    killed = make_trainer("killed", max_steps=30, log_every_steps=2, save_every_steps=8)
    states: list[bytes] = []
    save = killed.save_state

    def keep() -> None:
        save()
        states.append((killed.out / STATE_NAME).read_bytes())

    killed.save_state = keep  # type: ignore[method-assign]
    killed.run()
    # As a kill behind step 30 would leave it: the state of step 16, metrics up to 30, the last line torn.
    (killed.out / STATE_NAME).write_bytes(states[2])
    with (killed.out / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')
    again = make_trainer("killed", max_steps=30, log_every_steps=2, resume=True)
    assert again.step == 16
    again.run()
    _assert_same_weights(whole.policy, again.policy)
    assert [line["step"] for line in _lines(again, "train")] == list(range(2, 31, 2))


def test_memory_goes_on_from_batch_to_batch(make_trainer: MakeTrainer, echo_source: Any) -> None:
    # T = 1 and a label that was seen one step ago: without carried memory nothing can be known (accuracy 1/4).
    settings = {"sequence_length": 1, "batch_size": 32, "max_steps": 5}
    source = echo_source(32, 1, delay=1, carries_state=True)
    trainer = make_trainer(source=source, **settings)
    trainer.run()
    batch = source.batch(5)
    remembered = trainer.policy(batch.inputs, batch.executed_BTH, batch.first_BT, trainer._memory).logits[0]
    forgotten = trainer.policy(batch.inputs, batch.executed_BTH, batch.first_BT, None).logits[0]
    assert not torch.allclose(remembered, forgotten)
    assert all(not tensor.requires_grad for tensor in trainer._memory.values())


def test_a_loss_that_is_no_number_is_an_error_with_its_step(make_trainer: MakeTrainer, echo_source: Any) -> None:
    class Poisoned(echo_source):  # type: ignore[misc]
        def batch(self, index: int) -> Any:
            batch = super().batch(index)
            if index == 12:
                batch.inputs["observation"].fill_(float("nan"))
            return batch

    trainer = make_trainer(source=Poisoned(), save_every_steps=5)
    with pytest.raises(TrainingDivergedError, match="step 13") as caught:
        trainer.run()
    assert caught.value.step == 13
    saved = make_trainer(resume=True)
    assert saved.step == 10
    assert all(torch.isfinite(p).all() for p in saved.policy.parameters())


def test_labels_to_ignore_teach_nothing(make_trainer: MakeTrainer, echo_source: Any) -> None:
    class Unlabelled(echo_source):  # type: ignore[misc]
        def batch(self, index: int) -> Any:
            batch = super().batch(index)
            batch.labels_BTH.fill_(-1)
            return batch

    trainer = make_trainer(source=Unlabelled(), max_steps=4, weight_decay=0.0)
    before = _weights(trainer.policy)
    trainer.run()
    for name, tensor in trainer.policy.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_resuming_needs_the_same_run(make_trainer: MakeTrainer) -> None:
    with pytest.raises(NotFoundError, match="nothing to resume"):
        make_trainer("nothing", resume=True)
    make_trainer(max_steps=3).run()
    with pytest.raises(BadSettingError, match=r"lr was 0\.02, now 0\.5"):
        make_trainer(lr=0.5, resume=True)
    with pytest.raises(DataChangedError, match="same episodes"):
        make_trainer(digest="other", resume=True)
    assert make_trainer(max_steps=9, save_every_steps=2, resume=True).step == 3


@pytest.mark.parametrize("damage", [lambda b: b[:-40], lambda b: b[:4], lambda b: b"", lambda b: b"x" * len(b)])
def test_a_damaged_state_is_a_typed_error(make_trainer: MakeTrainer, damage: Callable[[bytes], bytes]) -> None:
    trainer = make_trainer(max_steps=2)
    trainer.run()
    path = trainer.out / STATE_NAME
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataLossError, match="no whole training state"):
        make_trainer(resume=True)


def test_evaluation_is_always_the_same_and_changes_nothing(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer()
    before, rng = _weights(trainer.policy), torch.get_rng_state()
    first, second = trainer.evaluate(), trainer.evaluate()
    assert first == second
    assert first is not None
    assert first.labels == 96
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.policy.state_dict().items())
    assert trainer.policy.training
