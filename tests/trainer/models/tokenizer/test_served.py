"""A tokenizer is served as any policy is: a frame up, its tokens and its reconstruction down, among others or alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rig import Rig
from toy_tokens import square_frames, tiny_tokenizer

from playserve_services.inference.sessions import Answer, Frame, Settings
from playserve_trainer.models.tokenizer import NetHackTokenizer, NetHackTokenizerConfig, Tokenizer


def _tokenizer(kind: str) -> tuple[Tokenizer, np.ndarray]:  # type: ignore[type-arg]
    torch.manual_seed(4)
    if kind == "nethack":
        frames = np.random.default_rng(0).integers(32, 127, (6, 5, 7, 1)).astype(np.uint8)
        return NetHackTokenizer(NetHackTokenizerConfig(height=5, width=7)).eval(), frames
    tokenizer = tiny_tokenizer().eval()
    with torch.no_grad():
        tokenizer.codebook.table.normal_()
    return tokenizer, square_frames(np.arange(6))


@pytest.mark.parametrize("kind", ["vqvae", "nethack"])
def test_a_tokenizer_is_served(kind: str) -> None:
    tokenizer, frames = _tokenizer(kind)
    rig = Rig(slots=4, max_batch=4)
    loaded = rig.load("eyes", tokenizer)
    answers: list[list[Answer]] = [[], []]
    sessions = [rig.open(loaded, row, settings=Settings()) for row in answers]
    for t in range(3):
        for number, session in enumerate(sessions):
            frame = frames[t + 3 * number]
            rig.core.arrive(
                session.slots[0],
                Frame(seq=t + 1, episode_id=0, inputs={"frame": frame}, arrived_ns=rig.now_ns, settings=Settings()),
            )
        rig.core.pump()
        rig.engine.run_all()
    tokens = tokenizer.encode(torch.from_numpy(frames))
    made = tokenizer.decode(tokens)
    for number, row in enumerate(answers):
        assert len(row) == 3
        for t, answer in enumerate(row):
            assert answer.outputs["tokens"].tolist() == tokens[t + 3 * number].tolist()
            assert np.array_equal(answer.outputs["reconstruction"], made[t + 3 * number].numpy())
