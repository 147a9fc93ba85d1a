"""Vectors of the instructions in recordings: stored ones where they fit, else embedded once and kept with the data."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from playserve.files import replacing
from playserve_trainer.data.p2p import Recordings, default_cache
from playserve_trainer.models.p2p import P2PPolicy

__all__ = ["embed_texts"]

_FORMAT = 1

#: Under this name Open P2P stores EmbeddingGemma's vectors.
_GEMMA = "gemma"


def embed_texts(recordings: Recordings, policy: P2PPolicy, cache: str | Path = "") -> dict[str, NDArray[np.float32]]:
    """Return the vector [W] of every instruction, as the policy's text encoder makes it.

    Args:
        recordings: Whose instructions.
        policy: Whose encoder.
        cache: Folder in which vectors are kept; "": the recordings' own.
    """
    encoder, width = policy.config.text_encoder, policy.config.text_width
    found: dict[str, NDArray[np.float32]] = {}
    if encoder.startswith((f"{_GEMMA}:", "embeddinggemma")):
        stored = recordings.embeddings.get(_GEMMA, {})
        found = {text: vector for text, vector in stored.items() if vector.shape == (width,)}
    key = hashlib.sha256(json.dumps([_FORMAT, encoder, width]).encode()).hexdigest()[:16]
    path = (Path(cache) if cache else default_cache(recordings.directory)) / f"texts-{key}.npz"
    if path.exists():
        with np.load(path) as kept:
            found = {**dict(zip(kept["texts"].tolist(), kept["vectors"], strict=True)), **found}
    missing = [text for text in recordings.texts if text not in found]
    if missing:
        for text in missing:
            found[text] = policy.embed_instruction(text).float().cpu().numpy()
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            np.savez(part, texts=np.array(list(found)), vectors=np.stack(list(found.values())))
    return {text: np.ascontiguousarray(found[text], np.float32) for text in recordings.texts}
