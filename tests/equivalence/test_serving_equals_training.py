"""What is served is what was trained: `forward` over a sequence equals the service's steps, alone and among others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from rig import Rig

from playserve_services.inference.sessions import Answer, Frame, Session, Settings
from playserve_trainer.models.atari import AtariConfig, AtariPolicy
from playserve_trainer.models.nethack import NetHackConfig, NetHackPolicy
from playserve_trainer.models.policy import UNKNOWN_ACTION, Policy
from playserve_trainer.models.tiny_recurrent import TinyRecurrentConfig, TinyRecurrentPolicy

STEPS = 24
RESET_AT = 11  # a new episode begins here
FAMILIES = ["atari", "nethack/lstm", "nethack/transformer", "tiny_recurrent"]


def make(family: str) -> Policy:
    torch.manual_seed(3)
    if family == "atari":
        return AtariPolicy(AtariConfig(game="breakout", num_actions=4, width=3)).eval()
    if family.startswith("nethack"):
        core = family.partition("/")[2]
        config = NetHackConfig(
            width=64, num_actions=8, core=core, layers=2, context=5
        )  # wraps before and after a reset
        return NetHackPolicy(config).eval()
    return TinyRecurrentPolicy(TinyRecurrentConfig()).eval()


def observations(policy: Policy, seed: int) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    rng = np.random.default_rng(seed)
    return {t.name: rng.integers(0, 256, (STEPS, *t.shape)).astype(t.numpy_dtype) for t in policy.spec().inputs}


def serve(
    rig: Rig, session: Session, inputs: dict[str, Any], mates: list[Session], mate_inputs: dict[str, Any]
) -> None:
    """Step one session to the end, its mates raggedly beside it: mate i sits out every (i + 2)th step."""
    seqs = [0] * len(mates)
    for t in range(STEPS):
        for i, mate in enumerate(mates):
            if t % (i + 2):
                seqs[i] += 1
                send(rig, mate, seqs[i], {n: a[(t + i) % STEPS] for n, a in mate_inputs.items()}, 0)
        send(rig, session, t + 1, {n: a[t] for n, a in inputs.items()}, int(t >= RESET_AT))
        rig.core.pump()
        rig.engine.run_all()


def send(rig: Rig, session: Session, seq: int, inputs: dict[str, Any], episode: int) -> None:
    frame = Frame(seq=seq, episode_id=episode, inputs=inputs, arrived_ns=rig.now_ns, settings=session.settings)
    rig.core.arrive(session.slots[0], frame)


ARGMAX = Settings(argmax=True, log_prob=True)


def played(policy: Policy, num_mates: int, *, fixed: bool) -> list[Answer]:
    rig = Rig(slots=8, max_batch=8)
    rig.factory.buckets = [8] if fixed else None
    loaded = rig.load("p", policy)
    mates = [rig.open(loaded, settings=Settings()) for _ in range(num_mates)]
    answers: list[Answer] = []
    session = rig.open(loaded, answers, settings=ARGMAX)
    serve(rig, session, observations(policy, 0), mates, observations(policy, 1))
    return answers


@pytest.mark.parametrize("num_mates", [0, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_service_gives_the_distribution_of_the_training_forward(family: str, num_mates: int) -> None:
    policy = make(family)
    answers = played(policy, num_mates, fixed=False)
    actions = [a.action[0] for a in answers]
    first = torch.zeros(1, STEPS, dtype=torch.bool)
    first[0, [0, RESET_AT]] = True
    executed = torch.tensor([UNKNOWN_ACTION, *actions[:-1]]).view(1, STEPS, 1)
    executed[0, RESET_AT] = UNKNOWN_ACTION
    inputs = {n: torch.from_numpy(a)[None] for n, a in observations(policy, 0).items()}
    with torch.inference_mode():
        logits = policy(inputs, executed, first).logits[0][0]
    assert len(set(actions)) > 1, "a policy that always does the same shows nothing"
    log_probs = torch.log_softmax(logits, -1)
    for t, answer in enumerate(answers):
        assert answer.log_prob is not None
        assert answer.log_prob[0] == pytest.approx(log_probs[t, actions[t]].item(), abs=1e-5)
        assert log_probs[t, actions[t]].item() == pytest.approx(log_probs[t].max().item(), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_fixed_batch_mode_mates_change_no_bit(family: str) -> None:
    policy = make(family)
    alone, among = played(policy, 0, fixed=True), played(policy, 5, fixed=True)
    assert [a.action for a in alone] == [a.action for a in among]
    assert [a.log_prob for a in alone] == [a.log_prob for a in among]
