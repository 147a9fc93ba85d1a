"""Moving average, passes, freezing, and beginning from a checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from playserve.errors import BadSettingError, NotFoundError
from playserve_trainer import checkpoint
from playserve_trainer.checkpoint import Manifest
from playserve_trainer.models.policy import LabelCounts, Policy
from playserve_trainer.models.tiny_recurrent import TinyRecurrentConfig, TinyRecurrentPolicy
from playserve_trainer.train import finish
from playserve_trainer.train.loop import Trainer
from playserve_trainer.train.start import begin_from

MakeTrainer = Callable[..., Trainer]


def _tiny(hidden: int = 16) -> TinyRecurrentPolicy:
    config = TinyRecurrentConfig(
        num_actions=4, hidden=hidden, observation_shape=(2, 2), observation_dtype="float32", value_head=False
    )
    return TinyRecurrentPolicy(config)


def _weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in policy.state_dict().items()}


@pytest.mark.parametrize("carries_state", [False, True])
def test_passes_of_a_step_add_up_to_one_pass(make_trainer: MakeTrainer, echo_source: Any, carries_state: bool) -> None:
    runs = []
    for passes in (1, 4):
        source = echo_source(delay=1, carries_state=carries_state)
        runs.append(make_trainer(f"{passes}", source=source, max_steps=6, accumulate=passes))
        runs[-1].run()
    one, four = runs
    assert one.samples == four.samples
    for name, tensor in one.policy.state_dict().items():
        torch.testing.assert_close(four.policy.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)
    for name, tensor in one._memory.items():
        torch.testing.assert_close(four._memory[name].float(), tensor.float(), rtol=1e-3, atol=1e-4)


def test_the_moving_average_is_what_is_evaluated_and_published(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    plain, averaged = make_trainer("plain", max_steps=12), make_trainer("averaged", max_steps=12, ema_decay=0.5)
    seen: list[dict[str, torch.Tensor]] = []
    step = averaged._optimizer.step

    def record(*args: Any) -> Any:
        result = step(*args)
        seen.append(_weights(averaged.policy))
        return result

    first = _weights(averaged.policy)
    averaged._optimizer.step = record  # type: ignore[method-assign]
    plain.run()
    averaged.run()
    for name, tensor in plain.policy.state_dict().items():
        assert torch.equal(averaged.policy.state_dict()[name], tensor)  # training itself is not touched
    wanted = first
    for number, weights in enumerate(seen, 1):
        keep = min(0.5, (1 + number) / (10 + number))
        wanted = {name: keep * wanted[name] + (1 - keep) * tensor for name, tensor in weights.items()}
    manifest = finish.write_checkpoint(averaged, tmp_path / "checkpoint")
    published = checkpoint.load(tmp_path / "checkpoint")[0]
    for name, tensor in wanted.items():
        torch.testing.assert_close(published.state_dict()[name], tensor)
        assert torch.equal(averaged.policy.state_dict()[name], seen[-1][name])  # the run goes on with its own weights
    assert plain.last_evaluation is not None
    assert averaged.last_evaluation is not None
    assert averaged.last_evaluation.loss != plain.last_evaluation.loss
    assert manifest is not None
    assert manifest.metrics["loss"] == averaged.last_evaluation.loss


def test_a_resumed_run_with_average_and_passes_is_the_same_bit_for_bit(
    make_trainer: MakeTrainer, echo_source: Any
) -> None:
    settings = {"max_steps": 14, "accumulate": 2, "ema_decay": 0.9, "precision": "bf16"}

    def source() -> Any:
        return echo_source(delay=1, carries_state=True)

    whole = make_trainer("whole", source=source(), **settings)
    whole.run()
    made: list[Trainer] = []
    part = make_trainer("part", source=source(), should_stop=lambda: bool(made) and made[0].step >= 5, **settings)
    made.append(part)
    assert not part.run()
    last = make_trainer("part", source=source(), resume=True, **settings)
    assert last.run()
    for ours, theirs in ((whole.policy, last.policy),):
        for name, tensor in ours.state_dict().items():
            assert torch.equal(theirs.state_dict()[name], tensor), name
    assert whole._average is not None
    assert last._average is not None
    for name, tensor in whole._average.tensors().items():
        assert torch.equal(last._average.tensors()[name], tensor), name


def test_frozen_parameters_stay_and_the_rest_learns(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_steps=4, freeze="encode, cell.weight", weight_decay=0.1)
    before = _weights(trainer.policy)
    trainer.run()
    same = {name for name, tensor in trainer.policy.state_dict().items() if torch.equal(tensor, before[name])}
    assert same == {"encode.weight", "encode.bias", "cell.weight_ih", "cell.weight_hh"}
    with pytest.raises(BadSettingError, match=r"\['trunk'\] begin no parameter's name; names begin with cell"):
        make_trainer("b", freeze="trunk")
    with pytest.raises(BadSettingError, match="nothing to train"):
        make_trainer("c", freeze="e,c,h")


class _Counting(torch.nn.Linear):
    """Counts its passes in training mode, as batch norm takes in its batches."""

    def __init__(self) -> None:
        super().__init__(4, 16)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.passes += 1
        return super().forward(x)


def test_frozen_modules_keep_their_statistics(make_trainer: MakeTrainer) -> None:
    counted = {}
    for freeze in ("", "encode"):
        policy = _tiny()
        policy.encode = _Counting()
        trainer = make_trainer(f"run{freeze}", policy=policy, max_steps=3, freeze=freeze, eval_every_steps=2)
        trainer.run()
        counted[freeze] = float(policy.encode.passes)
    assert counted == {"": 18.0, "encode": 0.0}  # 3 steps of 6, none of an evaluation's


def test_a_run_begins_with_a_checkpoints_weights(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source, target, other = _tiny(), _tiny(), _tiny(hidden=8)
    checkpoint.save(tmp_path / "a", source.to(torch.bfloat16), Manifest.describe(source, samples_seen=5))
    assert begin_from(target, tmp_path / "a").samples_seen == 5
    for name, tensor in target.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, source.state_dict()[name].float())
    with pytest.raises(BadSettingError, match=r"other weights than the run's settings make: cell.bias_hh"):
        begin_from(other, tmp_path / "a")
    with pytest.raises(NotFoundError):
        begin_from(target, tmp_path / "b")


def test_losses_of_parts_add_up_whatever_labels_are_missing() -> None:
    torch.manual_seed(0)
    policy = _tiny()
    labels = torch.randint(-1, 4, (6, 5, 2))
    labels[0] = -1
    logits = (torch.randn(6, 5, 4), torch.randn(6, 5, 4))
    counts = LabelCounts.of(labels)
    whole = policy.loss(logits, labels, counts)
    spans = [slice(0, 1), slice(1, 4), slice(4, 6)]
    parts = [policy.loss([head[span] for head in logits], labels[span], counts) for span in spans]
    torch.testing.assert_close(sum(parts), whole)
    by_hand = sum(
        torch.nn.functional.cross_entropy(head.flatten(0, 1), labels[..., i].flatten(), ignore_index=-1)
        for i, head in enumerate(logits)
    )
    torch.testing.assert_close(whole, by_hand)


def test_scores_stand_in_metrics_and_manifest(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    class Count:
        def __init__(self) -> None:
            self.batches = 0

        def add(self, logits: Any, labels_BTH: torch.Tensor) -> None:
            assert logits[0].shape[:2] == labels_BTH.shape[:2]
            self.batches += 1

        def take(self, total: Any) -> dict[str, float]:
            batches, self.batches = self.batches, 0
            return {"batches": float(batches), "never": float("nan")}

    trainer = make_trainer(max_steps=3)
    trainer._scores = Count()
    trainer.run()
    assert trainer.last_evaluation is not None
    assert trainer.last_evaluation.scores["batches"] == 2  # 96 samples of 48
    manifest = finish.write_checkpoint(trainer, tmp_path / "checkpoint")
    assert manifest is not None
    assert manifest.metrics["batches"] == 2
    assert "never" not in manifest.metrics
    lines = [json.loads(line) for line in (trainer.out / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["batches"] == 2
