"""What the protocol says of models: their tensors, their configuration, what is in the repository."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version

from tritonclient.grpc import model_config_pb2 as triton
from tritonclient.grpc import service_pb2 as oip

from playserve.specs import PolicySpec
from playserve_services.inference.catalog import LoadedPolicy, version_key
from playserve_services.inference.core import CoreLimits
from playserve_services.triton.sequence_config import describe_sequences

__all__ = ["model_config", "model_metadata", "repository_index", "server_metadata"]

#: Extensions of the protocol, by Triton's names for them.
_EXTENSIONS = ("sequence", "sequence(string_id)", "model_configuration", "parameters", "statistics")
_PLATFORM = "playserve"


def server_metadata() -> oip.ServerMetadataResponse:
    """Return what this server is."""
    return oip.ServerMetadataResponse(name="playserve", version=version("playserve"), extensions=_EXTENSIONS)


def model_config(policy: LoadedPolicy, limits: CoreLimits) -> triton.ModelConfig:
    """Return the configuration of a policy version, of the form that Triton's have."""
    config = triton.ModelConfig(
        name=policy.spec.name, platform=_PLATFORM, backend=_PLATFORM, max_batch_size=limits.max_batch
    )
    describe_sequences(
        config, policy.spec, policy.runtime.heads, sequences=policy.pool.capacity,
        idle_us=limits.idle_timeout_ns // 1000,
    )  # fmt: skip
    return config


def model_metadata(policy: LoadedPolicy, limits: CoreLimits, versions: Iterable[str]) -> oip.ModelMetadataResponse:
    """Return the tensors of a policy version.

    Args:
        policy: The version.
        limits: Of the server.
        versions: All that can be asked for.
    """
    config = model_config(policy, limits)
    response = oip.ModelMetadataResponse(
        name=config.name, platform=config.platform, versions=sorted(set(versions), key=version_key)
    )
    for tensors, into in ((config.input, response.inputs), (config.output, response.outputs)):
        for tensor in tensors:
            kind = triton.DataType.Name(tensor.data_type).removeprefix("TYPE_")
            into.add(name=tensor.name, datatype=kind, shape=(-1, *tensor.dims))
    return response


def repository_index(
    loaded: Iterable[PolicySpec], known: Iterable[PolicySpec], *, only_ready: bool
) -> oip.RepositoryIndexResponse:
    """Return the versions that can be asked for, by name, the newest version last.

    Args:
        loaded: Ready to play.
        known: In the store, and loaded when somebody asks for them.
        only_ready: Leave those out.
    """
    found = [(spec, "READY", "") for spec in loaded]
    if not only_ready:
        found += [(spec, "UNAVAILABLE", "not loaded; the first sequence that asks for it loads it") for spec in known]
    found.sort(key=lambda item: (item[0].name, version_key(item[0].version)))
    response = oip.RepositoryIndexResponse()
    for spec, state, reason in found:
        response.models.add(name=spec.name, version=spec.version, state=state, reason=reason)
    return response
