"""The p2p family in the service: what it is told of frames, actions and instructions is what training told it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rig import Rig

from playserve.actions import DesktopAction
from playserve.specs import DesktopActionSpec, MouseDecode
from playserve_services.inference.sessions import Answer, Frame, Session, Settings
from playserve_trainer.models.p2p.config import config_of_size
from playserve_trainer.models.p2p.policy import P2PPolicy
from playserve_trainer.models.policy import INSTRUCTION

STEPS = 9
TEXT = "collect the medkits"


@pytest.fixture(scope="module")
def policy() -> P2PPolicy:
    torch.manual_seed(0)
    small = config_of_size("1m", layers=2, width=32, heads=2, decoder_layers=1, history=(3,), text_encoder="words",
                           text_width=16, catch_up_frames=4)  # fmt: skip
    return P2PPolicy(small).eval()


def frames(policy: P2PPolicy) -> np.ndarray:
    side = policy.config.frame_size
    return np.random.default_rng(1).integers(0, 256, (STEPS, side, side, 3), dtype=np.uint8)


def arrive(rig: Rig, session: Session, seq: int, pixels: np.ndarray) -> None:
    frame = Frame(
        seq=seq, episode_id=0, inputs={"frame": pixels}, arrived_ns=rig.now_ns, settings=session.settings
    )  # fmt: skip
    rig.core.arrive(session.slots[0], frame)
    rig.core.pump()


def first_head(policy: P2PPolicy, shown: np.ndarray, executed: list[tuple[int, ...]]) -> torch.Tensor:
    """Return the first head's log-probabilities [T, A] by one forward pass; `executed` before each frame but one."""
    unknown = (-1,) * len(policy.heads())
    executed_TH = torch.tensor([unknown, *executed])
    inputs = {
        "frame": torch.from_numpy(shown)[None],
        INSTRUCTION: policy.embed_instruction(TEXT).expand(1, len(shown), -1),
    }
    first_BT = torch.zeros(1, len(shown), dtype=torch.bool)
    first_BT[0, 0] = True
    with torch.inference_mode():
        logits = policy(inputs, executed_TH[None], first_BT).logits[0][0]
    return torch.log_softmax(logits.double(), -1)


def test_a_lockstep_session_computes_what_one_forward_pass_does(rig: Rig, policy: P2PPolicy) -> None:
    answers: list[Answer] = []
    settings = Settings(log_prob=True, instruction=TEXT)
    session = rig.open(rig.load("p2p", policy), answers, seed=4, settings=settings)
    shown, told = frames(policy), []
    human = DesktopAction(frozenset({"KeyW", "Space"}), frozenset({0}), 30.0, -4.0)
    for seq, pixels in enumerate(shown, 1):
        arrive(rig, session, seq, pixels)
        rig.engine.run_all()
        played = answers[-1].decoded
        assert isinstance(played, DesktopAction)
        if seq == 4:
            session.slots[0].executed(seq, human)
        told.append(policy.encode_action(human if seq == 4 else played))
    wanted = first_head(policy, shown, told[:-1])
    for step, answer in enumerate(answers):
        assert answer.log_prob is not None
        assert answer.log_prob[0] == pytest.approx(float(wanted[step, answer.action[0]]), abs=1e-4)


def test_frames_that_catch_up_leave_the_memory_of_one_forward_pass(rig: Rig, policy: P2PPolicy) -> None:
    answers: list[Answer] = []
    settings = Settings(log_prob=True, instruction=TEXT)
    session = rig.open(rig.load("p2p", policy), answers, live=True, seed=4, settings=settings)
    shown, told = frames(policy), []
    for seq, pixels in enumerate(shown, 1):
        arrive(rig, session, seq, pixels)
        action = DesktopAction(frozenset({("KeyW", "KeyA", "KeyD")[seq % 3]}), mouse_dx_px=float(10 * seq - 45))
        session.slots[0].executed(seq, action)
        told.append(policy.encode_action(action))
        if seq in (1, 5, 6):  # the others wait until then
            rig.engine.run_all()
    rig.engine.run_all()
    assert answers[-1].frame.seq == STEPS
    assert all(dropped.in_memory for answer in answers for dropped in answer.dropped)
    wanted = first_head(policy, shown, told[:-1])
    for answer in answers:
        assert answer.log_prob is not None
        step = answer.frame.seq - 1
        assert answer.log_prob[0] == pytest.approx(float(wanted[step, answer.action[0]]), abs=1e-4)


def test_its_spec_says_how_motion_is_decoded_and_a_session_may_choose(rig: Rig, policy: P2PPolicy) -> None:
    action = policy.spec().action
    assert isinstance(action, DesktopActionSpec)
    assert action.mouse_decode is MouseDecode.TRUNCATED_NORMAL
    loaded, decoded = rig.load("p2p", policy), {}
    for decode in ("", "truncated_normal", "mean", "conservative"):
        answers: list[Answer] = []
        session = rig.open(loaded, answers, seed=4, settings=Settings(decode=decode))
        arrive(rig, session, 1, frames(policy)[0])
        rig.engine.run_all()
        played = answers[0].decoded
        assert isinstance(played, DesktopAction)
        if decode != "conservative":  # which takes the edge, and that is the next bin's
            assert policy.encode_action(played)[-2:] == answers[0].action[-2:], "motion stays in the bin that was drawn"
        decoded[decode] = played
        rig.core.end_all()
    assert decoded[""] == decoded["truncated_normal"]
    assert abs(decoded["conservative"].mouse_dx_px) <= abs(decoded["mean"].mouse_dx_px)
