"""A cache of made-up games whose tokens tell the frames apart, and an untrained world on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_cache import ACTION, TOKENIZER, Bars, tiny_tokenizer

from playserve_trainer import checkpoint
from playserve_trainer.checkpoint import Manifest
from playserve_trainer.data.tokens.cache import TokenCache, load_tokenizer, write_cache
from playserve_trainer.models.gpt import WorldPolicy
from playserve_trainer.models.registry import build
from playserve_trainer.models.tokenizer import VQTokenizer
from playserve_trainer.worlds.subject import Subject, open_subject

# Codes that lie on frames of the games, as training puts them.
CODE_PASSES = 4


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> TokenCache:
    games, tokenizer = Bars(episodes=24), tiny_tokenizer()
    assert isinstance(tokenizer, VQTokenizer)
    frames = np.concatenate([games.read(unit)[0].frames_NHWC for unit in range(8)])
    tokenizer.standardise_by(torch.full((16, 16, 1), 64.0), torch.full((16, 16, 1), 110.0))
    with torch.no_grad():
        features_MKD = tokenizer.features(torch.from_numpy(frames))
        tokenizer.train()
        for _ in range(CODE_PASSES):
            tokenizer.codebook(features_MKD)
    folder = tmp_path_factory.mktemp("judging") / "cache"
    return write_cache(folder, games, tokenizer.eval(), keep_frames=True, held_out=0.3)


@pytest.fixture(scope="session")
def world_folder(cache: TokenCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    settings = {
        "width": 32, "context": 3, "tokenizer": TOKENIZER, "action": ACTION, "starts": 3, "start_frames": 2,
        "reward_values": [0.0, 1.0], "rate_hz": 20.0, "environment": {"game": "bars"},
    }  # fmt: skip
    policy = build("wm-token", settings)
    assert isinstance(policy, WorldPolicy)
    policy.tokenizer.load(load_tokenizer(cache))
    with torch.no_grad():
        policy.token_head.weight.mul_(20)  # what is drawn hangs on what was seen
    folder = tmp_path_factory.mktemp("judging") / "world"
    checkpoint.save(folder, policy, Manifest.describe(policy))
    return folder


@pytest.fixture
def subject(world_folder: Path, cache: TokenCache) -> Subject:
    return open_subject(world_folder, cache.folder)
