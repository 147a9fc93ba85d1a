"""One checkpoint as a folder: ``model.safetensors`` and ``manifest.json``, which says all that there is to know of it.

The manifest is written last, so a folder without one is no checkpoint. Weights are raw tensors under a SHA-256 digest:
nothing in a checkpoint can run code. Where checkpoints lie together is the store's business.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file

from playserve.errors import BadSettingError, DataLossError, NotFoundError, StateError
from playserve.files import replacing, sync_directory
from playserve.specs import PolicySpec
from playserve_trainer.models.policy import Policy
from playserve_trainer.models.registry import build, config_from_json, config_to_json, describe
from playserve_trainer.wording import utc_now

__all__ = ["FORMAT_VERSION", "MANIFEST_NAME", "WEIGHTS_NAME", "Manifest", "file_sha256", "is_complete", "load",
           "outline", "read_manifest", "save", "verify"]  # fmt: skip

#: Version of the folder's format that this code writes, and the only one that it reads.
FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
WEIGHTS_NAME = "model.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What is known of a checkpoint. :meth:`describe` fills in what the policy itself knows.

    Attributes:
        family: Key of the registry's FAMILIES.
        config: The family's config as JSON.
        spec: PolicySpec as JSON; its name and version are empty until the checkpoint is published.
        state_layout: Digest of the memory layout.
        num_params: N, all parameters but those that are frozen for good.
        num_params_without_embeddings: N less the embedding tables.
        samples_seen: D, frames trained on, repeats counted.
        flops: FLOPs of the training so far, counted layer by layer (see playserve_trainer.flops).
        flops_6nd: 6 * N * D, for comparison with the literature: D in tokens, where a sample holds several.
        data_digest: Digest of the training data; empty: untrained.
        code_version: Version or commit of the code that trained it.
        seed: Seed of the training run.
        metrics: Held-out numbers by name ("loss", "accuracy").
        created_at: UTC time of writing, ISO 8601.
        origin: How it was made, for people: commands, settings, results; empty: nobody said.
        weights_sha256: Digest of model.safetensors; filled in by :func:`save`.
        format_version: See :data:`FORMAT_VERSION`.
    """

    family: str
    config: Mapping[str, Any]
    spec: Mapping[str, Any]
    state_layout: str
    num_params: int
    num_params_without_embeddings: int
    samples_seen: int = 0
    flops: int = 0
    flops_6nd: int = 0
    data_digest: str = ""
    code_version: str = ""
    seed: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    created_at: str = ""
    origin: Mapping[str, Any] = field(default_factory=dict)
    weights_sha256: str = ""
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        bad = sorted(name for name, value in self.metrics.items() if not math.isfinite(value))
        if bad:
            raise BadSettingError(f"manifest: metrics {bad} are not finite; leave out what could not be measured")

    @classmethod
    def describe(
        cls,
        policy: Policy,
        *,
        samples_seen: int = 0,
        flops: int = 0,
        data_digest: str = "",
        code_version: str = "",
        seed: int = 0,
        metrics: Mapping[str, float] | None = None,
    ) -> Manifest:
        """Return the manifest of `policy`, created now; the arguments are those attributes that it cannot know."""
        family, config = describe(policy)
        return cls(
            family=family,
            config=config,
            spec=policy.spec().to_json(),
            state_layout=policy.layout(),
            num_params=policy.num_params(),
            num_params_without_embeddings=policy.num_params_without_embeddings(),
            samples_seen=samples_seen,
            flops=flops,
            flops_6nd=6 * policy.num_params() * samples_seen * policy.tokens_per_sample(),
            data_digest=data_digest,
            code_version=code_version,
            seed=seed,
            metrics=dict(metrics or {}),
            created_at=utc_now(),
        )

    def published_as(self, name: str, version: str) -> Manifest:
        """Return this manifest with the name and version in its spec."""
        spec = dataclasses.replace(self.policy_spec(), name=name, version=version)
        return dataclasses.replace(self, spec=spec.to_json())

    def policy_spec(self) -> PolicySpec:
        """Return the spec that the checkpoint was written with."""
        return PolicySpec.from_json(self.spec)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object; an empty origin is left out, as before there was one."""
        value = config_to_json(self)
        if not self.origin:
            del value["origin"]
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Manifest:
        """Return the manifest of a JSON object.

        Raises:
            BadSettingError: The format version is another one, or keys are unknown, missing or ill-typed.
        """
        found = value.get("format_version")
        if found != FORMAT_VERSION:
            raise BadSettingError(f"manifest has format_version {found!r}; this code reads {FORMAT_VERSION}")
        return config_from_json(cls, value)

    def to_bytes(self) -> bytes:
        """Return the text of manifest.json."""
        return (json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, source: str) -> Manifest:
        """Return the manifest of a file's bytes; `source` names the file in errors.

        Raises:
            DataLossError: The bytes are no JSON object.
            BadSettingError: As :meth:`from_json`.
        """
        try:
            value = json.loads(data)
        except ValueError as error:
            raise DataLossError(f"{source}: not JSON ({error})") from error
        if not isinstance(value, dict):
            raise DataLossError(f"{source}: holds {type(value).__name__}, not a JSON object")
        try:
            return cls.from_json(value)
        except BadSettingError as error:
            raise BadSettingError(f"{source}: {error}") from error


def save(directory: str | Path, policy: Policy, manifest: Manifest, *, overwrite: bool = False) -> Manifest:
    """Write a checkpoint into `directory` (made if absent) and return its manifest with the weights' digest.

    A kill at any moment leaves either a whole checkpoint or a folder without a manifest, never a mixture. With
    `overwrite` the old checkpoint is gone once writing begins; runs that must survive a kill write each checkpoint to
    a folder of its own.

    Raises:
        StateError: The directory holds a checkpoint already, and `overwrite` is False.
    """
    directory = Path(directory)
    manifest_path = directory / MANIFEST_NAME
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.state_dict().items()}
    if manifest_path.exists():
        if not overwrite:
            raise StateError(f"{directory} holds a checkpoint already; choose another folder, or overwrite it")
        manifest_path.unlink()
        sync_directory(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with replacing(directory / WEIGHTS_NAME, durable=True) as temporary:
        save_file(tensors, temporary)
    manifest = dataclasses.replace(manifest, weights_sha256=file_sha256(directory / WEIGHTS_NAME))
    with replacing(manifest_path, durable=True) as temporary:
        temporary.write_bytes(manifest.to_bytes())
    return manifest


def load(
    directory: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> tuple[Policy, Manifest]:
    """Return the policy of a checkpoint, in eval mode on `device`, and its manifest.

    Args:
        directory: Folder of the checkpoint.
        device: Where the weights go.
        dtype: Floating-point type of the weights; None: as they were saved.

    Raises:
        NotFoundError: The folder holds no (finished) checkpoint.
        DataLossError: A file is damaged: its digest, or a tensor's name, shape or type, is not what was written.
        BadSettingError: The manifest or its config has keys or values that this code does not know.
    """
    directory = Path(directory)
    manifest = verify(directory)
    with torch.random.fork_rng(devices=[]):  # building draws weights; a caller's random stream must not move
        policy = build(manifest.family, manifest.config)
    if policy.layout() != manifest.state_layout:
        raise DataLossError(
            f"{directory / MANIFEST_NAME}: state layout {manifest.state_layout} was written, but this code and config "
            f"make {policy.layout()}"
        )
    _load_weights(policy, directory / WEIGHTS_NAME)
    policy.eval()
    return policy.to(device=device, dtype=dtype), manifest


def outline(manifest: Manifest) -> Policy:
    """Return the policy of a manifest, in eval mode, without weights: it knows its layout, and translates actions."""
    with torch.device("meta"):
        return build(manifest.family, manifest.config).eval()


def read_manifest(directory: str | Path) -> Manifest:
    """Return the manifest of a checkpoint's folder; raises as :func:`load`."""
    path = Path(directory) / MANIFEST_NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} is not there: {directory} holds no checkpoint, or an unfinished one") from error
    return Manifest.from_bytes(data, str(path))


def is_complete(directory: str | Path) -> bool:
    """Return whether a folder holds a finished checkpoint; its digest is not checked."""
    return (Path(directory) / MANIFEST_NAME).is_file() and (Path(directory) / WEIGHTS_NAME).is_file()


def verify(directory: str | Path) -> Manifest:
    """Return the manifest of a checkpoint whose weights have the digest that it states; raises as :func:`load`."""
    manifest = read_manifest(directory)
    path = Path(directory) / WEIGHTS_NAME
    if not path.exists():
        raise DataLossError(f"{path} is not there; the manifest wants a file of sha256 {manifest.weights_sha256}")
    got = file_sha256(path)
    if got != manifest.weights_sha256:
        raise DataLossError(f"{path}: sha256 is {got}, the manifest wants {manifest.weights_sha256}")
    return manifest


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load_weights(policy: Policy, path: Path) -> None:
    """Copy the tensors of a weights file into the policy, after checking each one's name, shape and dtype."""
    try:
        tensors = load_file(path)
    except safetensors.SafetensorError as error:
        raise DataLossError(f"{path}: not a safetensors file ({error})") from error
    wanted = policy.state_dict()
    if set(tensors) != set(wanted):
        extra, missing = sorted(set(tensors) - set(wanted)), sorted(set(wanted) - set(tensors))
        raise DataLossError(f"{path}: tensors that the policy does not have {extra}, tensors that it lacks {missing}")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise DataLossError(
                f"{path}: tensor {name!r} has shape {list(tensor.shape)}, the config makes {list(wanted[name].shape)}"
            )
    # assign: the tensors keep the dtype that they were saved with.
    policy.load_state_dict(tensors, assign=True)
