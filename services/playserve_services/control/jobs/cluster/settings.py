"""How jobs become Kubernetes Jobs: one JSON file, such as the chart's ConfigMap."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from playserve.errors import BadSettingError
from playserve.files import read_json
from playserve_services.validation import in_words

__all__ = ["ClusterSettings", "PodSettings", "SecretItem", "load_cluster"]

DnsLabel = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
DnsName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
# Two names and an id of 16 digits make the name of a Job; of a pod's host name 63 characters are taken.
Prefix = Annotated[str, StringConstraints(pattern=r"^[a-z]([-a-z0-9]{0,34}[a-z0-9])?$")]
# YAML reads a number where Kubernetes has a quantity.
Quantity = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if isinstance(value, int | float) else value),
    StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?([kMGTP]i?|m)?$"),
]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SecretItem(_Model):
    """One item of a Secret."""

    secret: DnsName
    item: str = Field(min_length=1)


class PodSettings(_Model):
    """The pods of one kind of job."""

    image: str = Field(min_length=1)
    """With playserve in it: extra envs for evaluations, train for grids."""
    service_account: DnsName = "default"
    """Its token is not mounted."""
    resources: dict[Literal["requests", "limits"], dict[str, Quantity]] = {}
    """As Kubernetes has them, such as {"limits": {"nvidia.com/gpu": "2"}}."""
    processes: int = Field(1, ge=1, le=64)
    """Grids only: processes that share each run; above 1 they are started by torchrun, one for each GPU."""
    retries: int = Field(3, ge=0, le=100)
    """How often one index may fail. Nodes that go away are not counted."""
    deadline_s: int = Field(604_800, ge=1)
    """The whole job is ended after so long."""
    grace_s: int = Field(120, ge=1, le=3600)
    """A pod that is stopped has so long to save what it has."""
    ttl_s: int = Field(604_800, ge=0)
    """The Kubernetes Job goes so long after its end; results stay on the volume."""
    shared_memory: Quantity = "2Gi"
    runtime_class: str = ""
    node_selector: dict[str, str] = {}
    tolerations: list[dict[str, Any]] = []
    labels: dict[str, str] = {}
    """Of the pods, for network policies."""
    env: dict[str, str] = {}
    env_secret: str = ""
    """Secret whose items are variables, such as the keys of S3; empty: none."""


class ClusterSettings(_Model):
    """Where and how jobs run in a cluster."""

    namespace: DnsLabel
    kubeconfig: Path | None = None
    """File that says where the API is and who we are; none: this is a pod, with its service account."""
    name: Prefix = "playserve"
    """Jobs are called <name>-<id>."""
    claim: DnsName
    """PersistentVolumeClaim (ReadWriteMany) with the results of evaluations and the grids."""
    folder: Path
    """Where that volume is mounted, in this control plane and in every pod."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    pull_secrets: list[DnsName] = []
    key: SecretItem | None = None
    """API key that evaluations play with; none: they play without one."""
    tls_secret: str = ""
    """Secret with ca.crt, by which evaluations check the fleet's certificate; empty: they play in plain text, or, where
    the request says TLS, against the system's roots."""
    mutual: bool = False
    """Whether evaluations show tls.crt of that Secret, too."""
    pod_security: dict[str, Any] = {
        "runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001,
        "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    container_security: dict[str, Any] = {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    evaluation: PodSettings | None = None
    """None: no evaluations."""
    grid: PodSettings | None = None
    """None: no grids."""

    @model_validator(mode="after")
    def _sense(self) -> ClusterSettings:
        if not self.folder.is_absolute():
            raise ValueError(f"folder {str(self.folder)!r} is where a volume is mounted: wanted an absolute path")
        if self.mutual and not self.tls_secret:
            raise ValueError("mutual is set and tls_secret is not: there is no certificate to show")
        if self.evaluation is not None and self.evaluation.processes != 1:
            raise ValueError("evaluation.processes has no meaning: an evaluation says its own workers")
        return self


def load_cluster(path: Path) -> ClusterSettings:
    """Return the settings in a JSON file.

    Raises:
        BadSettingError: There is no such file, or it says what cannot be.
        DataLossError: It is no JSON object.
    """
    try:
        value = read_json(path)
    except OSError as error:
        raise BadSettingError(f"cannot read {path}: {error.strerror}") from error
    if value is None:
        raise BadSettingError(f"there is no file {path} that says how jobs run in a cluster")
    try:
        return ClusterSettings.model_validate(value)
    except ValidationError as error:
        raise BadSettingError(f"{path}: {in_words(error.errors())}") from error
