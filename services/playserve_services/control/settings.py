"""Settings of `playserve control`: command line over environment (prefix PLAYSERVE_CONTROL_) over these defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from playserve_services.auth.issuer import IssuerSettings
from playserve_services.auth.loopback import is_loopback
from playserve_services.validation import check_together

__all__ = ["ControlSettings"]


class ControlSettings(IssuerSettings, BaseSettings):
    """One control plane. Every field is a variable PLAYSERVE_CONTROL_<NAME>, most are flags, too."""

    model_config = SettingsConfigDict(env_prefix="PLAYSERVE_CONTROL_", extra="forbid", frozen=True)

    data: Path = Path("runs/control")
    """Folder of the registry (with SQLite), of uploads while they come, and of jobs."""
    database: SecretStr = SecretStr("")
    """postgresql://... or sqlite:///FILE; empty: registry.db in the data folder. May hold a password, so it is no flag
    that others could read in a list of processes."""
    store: str = ""
    """Folder or fsspec URL of the checkpoint store; empty: store in the data folder."""
    grids: Path | None = None
    """Folder whose subfolders are planned grids that jobs may train; none: no grids."""
    recordings: str = ""
    """Folder or fsspec URL that recordings are uploaded to; the dashboard replays what lies below it, and nothing else.
    Empty: recordings in the data folder."""
    host: str = Field("127.0.0.1", min_length=1)
    """Address to listen on. Others than loopback need TLS, or insecure_listen."""
    port: int = Field(8080, ge=0, le=65535)
    """HTTP port; 0: any free one, printed at the start."""
    tls_cert: Path | None = None
    """Certificate chain (PEM); with tls_key."""
    tls_key: Path | None = None
    """Its private key (PEM)."""
    insecure_listen: bool = False
    """Listen on an address that others can reach without TLS, and without keys unless require_keys says so."""
    require_keys: bool | None = None
    """Whether every call needs an API key or a token; none: not on loopback or with insecure_listen, unless there is an
    issuer, else yes."""
    max_upload_mb: int = Field(8192, ge=1)
    """Largest checkpoint that is taken, in MiB."""
    max_recording_mb: int = Field(8192, ge=1)
    """Largest recording that is taken, in MiB."""
    upload_silence_s: float = Field(60.0, gt=0)
    """An upload of which nothing came for so long has broken off."""
    replica_timeout_s: float = Field(30.0, gt=0)
    """A replica that was silent for so long is not asked for its sessions."""
    replica_key: SecretStr = SecretStr("")
    """API key for the replicas' AdminService; empty: none."""
    replica_insecure_key: bool = False
    """Send replica_key to other machines in plain text, too, where others on the network can read it."""
    replica_tls: bool = False
    """Dial the replicas' AdminService with TLS, against the system's roots unless replica_tls_ca says otherwise."""
    replica_tls_ca: Path | None = None
    """Root certificates (PEM) to trust instead; means replica_tls."""
    replica_tls_cert: Path | None = None
    """Certificate (PEM) to show to replicas that want one of every caller; with replica_tls_key; means replica_tls."""
    replica_tls_key: Path | None = None
    """Its private key (PEM)."""
    max_jobs: int = Field(1, ge=0)
    """Jobs that run at once; the others wait. 0: none may be started."""
    max_job_log_mb: int = Field(64, ge=1)
    """A job's log that is longer, in MiB, is put aside and begun anew; one such is kept."""
    cluster: Path | None = None
    """File that says how jobs become Kubernetes Jobs (ClusterSettings); none: jobs are processes of this machine."""
    job_key: SecretStr = SecretStr("")
    """API key that evaluations play with (PLAYSERVE_API_KEY of their processes); empty: none."""
    cancel_grace_s: float = Field(30.0, gt=0)
    """A cancelled job has so long to save what it has, and is killed then."""
    log_format: Literal["text", "json"] = "text"
    """Lines for people or for programs."""

    @model_validator(mode="after")
    def _together(self) -> ControlSettings:
        check_together(self, "tls_cert", "tls_key")
        check_together(self, "replica_tls_cert", "replica_tls_key")
        if self.jwt_issuer and self.require_keys is False:
            raise ValueError("jwt_issuer has no meaning where require_keys is false: nobody is asked for a token")
        return self

    @model_validator(mode="after")
    def _listen(self) -> ControlSettings:
        if is_loopback(self.host) or self.insecure_listen:
            return self
        if self.tls_cert is None:
            raise ValueError(
                f"host {self.host!r} can be reached by others, and there is no TLS; give tls_cert and tls_key, or say "
                "insecure_listen (--insecure-listen) if that is meant"
            )
        if self.require_keys is False:
            raise ValueError(
                f"host {self.host!r} can be reached by others, and require_keys is false; say insecure_listen "
                "(--insecure-listen) if that is meant"
            )
        return self

    @property
    def keys_required(self) -> bool:
        """Whether every call needs an API key or a token."""
        if self.require_keys is None:
            return bool(self.jwt_issuer) or not (is_loopback(self.host) or self.insecure_listen)
        return self.require_keys

    @property
    def database_url(self) -> str:
        """URL of the registry's database."""
        return self.database.get_secret_value() or f"sqlite:///{self.data.absolute() / 'registry.db'}"

    @property
    def store_url(self) -> str:
        """Folder or URL of the checkpoint store."""
        return self.store or str(self.data.absolute() / "store")

    @property
    def recordings_url(self) -> str:
        """Folder or URL below which recordings lie."""
        return self.recordings or str(self.data.absolute() / "recordings")

    @property
    def max_upload_bytes(self) -> int:
        """Largest checkpoint in bytes."""
        return self.max_upload_mb * 1024 * 1024
