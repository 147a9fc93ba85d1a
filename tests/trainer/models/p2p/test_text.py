"""Text encoders: what is built in works, and what is not installed is asked for by name."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from playserve.errors import BadSettingError, NotImplementedHereError
from playserve_trainer.models.p2p import P2PPolicy
from playserve_trainer.models.p2p.text import LazyEncoder, WordEncoder, load_encoder

MakeSmall = Callable[..., P2PPolicy]


def test_words_lie_near_texts_that_share_them() -> None:
    encoder = WordEncoder(256)

    def near(one: str, other: str) -> float:
        return torch.cosine_similarity(encoder.encode(one), encoder.encode(other), dim=0).item()

    assert near("collect the medkits", "Collect the medkits!") == pytest.approx(1.0)
    assert near("collect the medkits", "go and collect every medkit") > 0.25
    assert near("collect the medkits", "shoot all demons") < 0.2
    assert encoder.encode("...").norm() > 0
    assert encoder.encode("open").norm().item() == pytest.approx(16.0, rel=1e-5)
    assert torch.equal(encoder.encode("a b"), WordEncoder(256).encode("a b"))


def test_no_text_is_the_null_vector(small: MakeSmall) -> None:
    policy = small()
    assert not policy.embed_instruction("").any()
    assert policy.embed_instruction("go").shape == (16,)
    frames, actions = torch.zeros(1, 1, 32, 32, 3, dtype=torch.uint8), torch.zeros(1, 1, 8, dtype=torch.int64)
    first = torch.ones(1, 1, dtype=torch.bool)
    without = policy({"frame": frames}, actions, first).logits[0]
    absent = policy({"frame": frames, "@instruction": torch.zeros(1, 1, 16)}, actions, first).logits[0]
    told = policy({"frame": frames, "@instruction": policy.embed_instruction("go").view(1, 1, 16)}, actions, first)
    assert torch.equal(without, absent)
    assert not torch.allclose(without, told.logits[0])


def test_a_policy_without_an_encoder_takes_no_text() -> None:
    with pytest.raises(BadSettingError, match="takes no instruction"):
        load_encoder("none", 16)


def test_many_threads_share_one_encoder() -> None:
    lazy = LazyEncoder("words", 64)
    assert copy.deepcopy(lazy) is lazy
    with ThreadPoolExecutor(4) as threads:
        vectors = list(threads.map(lazy.embed, ["run"] * 16))
    assert all(torch.equal(vector, vectors[0]) for vector in vectors)


@pytest.mark.parametrize(
    ("name", "package"), [("embeddinggemma", "transformers"), ("all-MiniLM-L6-v2", "sentence_transformers")]
)
def test_a_library_that_is_not_installed_is_named(name: str, package: str) -> None:
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(NotImplementedHereError, match=rf"'{package}'; install it with pip install 'playserve\[text\]'"):
        load_encoder(name, 768)
