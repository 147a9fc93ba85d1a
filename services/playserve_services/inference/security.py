"""Puts the gate together from the settings: who is let in, how keys are kept up to date, when streams are ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from grpc_health.v1 import health
from prometheus_client import CollectorRegistry, Counter, Gauge
from tritonclient.grpc import service_pb2 as oip

from playserve.v1 import admin_service_pb2, policy_service_pb2, state_transfer_service_pb2
from playserve_services.auth.certificates import Certificates
from playserve_services.auth.gate import Gate
from playserve_services.auth.keyring import ApiKeys, KeyFile, KeyFileWatch, KeyRing
from playserve_services.auth.keys import Scope
from playserve_services.auth.loopback import is_loopback
from playserve_services.auth.principal import Anonymous, Authenticator, FirstOf, OpenDoor
from playserve_services.auth.quotas import Accounts
from playserve_services.inference.settings import ServeSettings
from playserve_services.inference.tls import CertificateFiles, ServerTls

__all__ = ["ADMIN_SERVICE", "INFERENCE_SERVICE", "POLICY_SERVICE", "TRANSFER_SERVICE", "Security", "SecurityMetrics"]

_log = logging.getLogger(__name__)

POLICY_SERVICE = policy_service_pb2.DESCRIPTOR.services_by_name["PolicyService"].full_name
ADMIN_SERVICE = admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name
INFERENCE_SERVICE: str = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
TRANSFER_SERVICE = state_transfer_service_pb2.DESCRIPTOR.services_by_name["StateTransferService"].full_name
#: What a call needs. What policies and models there are, and reflection, are anybody's who has a key at all.
_SCOPES: dict[str, Scope | None] = {
    f"{POLICY_SERVICE}/Play": Scope.PLAY,
    f"{POLICY_SERVICE}/Rollout": Scope.ROLLOUT,
    f"{INFERENCE_SERVICE}/ModelInfer": Scope.PLAY,
    f"{INFERENCE_SERVICE}/ModelStreamInfer": Scope.PLAY,
    ADMIN_SERVICE: Scope.ADMIN,
    # The session's own player may, too: the servicer looks.
    f"{ADMIN_SERVICE}/WatchSession": None,
    f"{ADMIN_SERVICE}/EndSession": None,
    TRANSFER_SERVICE: Scope.ADMIN,
}
_PLAYERS = frozenset({Scope.PLAY, Scope.ROLLOUT})
_SWEEP_S = 1.0


class SecurityMetrics:
    """What an operator sees of keys, certificates and the registry.

    Args:
        registry: Where they are registered.
        follows: Whether there is a registry of policies to be followed.
    """

    def __init__(self, registry: CollectorRegistry, *, follows: bool) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"playserve_{name}", text, labels, registry=registry)

        self.refused = counter("calls_refused", "Calls that did not pass the gate.", "reason")
        self.access_ended = counter("sessions_access_ended", "Sessions ended with their key.")
        self.key_file_failures = counter("key_file_failures", "Changed key files that could not be read.")
        self.certificates = counter("certificate_reloads", "Changed certificates: taken or refused.", "result")
        self.policies_failed = counter(
            "registry_versions_failed", "Attempts to warm a version that the registry names, and that failed.", "policy"
        )
        # Without a registry they are not there: an alert on its silence must not ring then.
        shown = registry if follows else None
        self.registry_up = Gauge(
            "playserve_registry_up", "Whether the registry answered last (1), or did not (0).", registry=shown
        )
        self.registry_revision = Gauge(
            "playserve_registry_revision", "Revision of the view in force; -1: none.", registry=shown
        )
        self.registry_age = Gauge(
            "playserve_registry_view_age_seconds", "Since the registry confirmed the view.", registry=shown
        )
        self.cache_failures = Counter(
            "playserve_registry_cache_failures", "Views that could not be kept on disk.", registry=shown
        )

    def failed(self, policy: str) -> None:
        """Count a version of a policy that the registry names, and that could not be had."""
        self.policies_failed.labels(policy).inc()

    def reloaded(self, ok: bool) -> None:
        """Count an attempt to take new certificates."""
        self.certificates.labels("taken" if ok else "refused").inc()


class Security:
    """Everything between a port and the services behind it.

    Args:
        settings: All settings.
        metrics: Counted here.

    Raises:
        BadSettingError: A file cannot be read, or a URL may not be asked.
        DataLossError: The key file is damaged.
    """

    def __init__(self, settings: ServeSettings, metrics: SecurityMetrics) -> None:
        self._metrics = metrics
        self.ring = KeyRing()
        self._watch: KeyFileWatch | None = None
        if settings.keys is not None:
            self._watch = KeyFileWatch(KeyFile(settings.keys), self.ring)
            self._watch.load()
        authenticator = self._authenticator(settings)
        self.gate = Gate(
            authenticator,
            Accounts(),
            _SCOPES,
            exempt=frozenset({health.SERVICE_NAME}),
            on_refused=lambda reason: metrics.refused.labels(reason).inc(),
        )
        self.tls: ServerTls | None = None
        if settings.tls_cert is not None and settings.tls_key is not None:
            files = CertificateFiles(
                certificate=settings.tls_cert, key=settings.tls_key, client_ca=settings.tls_client_ca
            )
            self.tls = ServerTls(files, metrics.reloaded)

    def _authenticator(self, settings: ServeSettings) -> Authenticator:
        if not settings.authenticates:
            return OpenDoor()
        found: list[Authenticator] = []
        if settings.keys is not None or settings.registry:
            found.append(ApiKeys(self.ring))
        if tokens := settings.tokens():
            found.append(tokens)
        if settings.tls_client_ca is not None and settings.certificate_scopes:
            found.append(Certificates(settings.certificate_scopes))
        if settings.anonymous:
            # On a laptop, where only a registry says who has keys, its dashboard must be able to steer us.
            only_registry = settings.keys is None and not settings.jwt_issuer and settings.tls_client_ca is None
            everything = is_loopback(settings.host) and only_registry
            found.append(Anonymous(frozenset(Scope) if everything else _PLAYERS))
        return FirstOf(found)

    async def watch(self, end_sessions: Callable[[], int]) -> None:
        """For ever: take a changed key file, end what runs under keys that are no longer good.

        Args:
            end_sessions: Ends the sessions of such keys, with their reason; returns how many.
        """
        while True:
            await asyncio.sleep(_SWEEP_S)
            try:
                if self._watch is not None and self._watch.look():
                    self._metrics.key_file_failures.inc()
                ended = end_sessions()
                if ended:
                    self._metrics.access_ended.inc(ended)
                    _log.info("%d sessions ended: their keys were revoked, or have expired", ended)
                await self.gate.sweep()
            except Exception:  # noqa: BLE001 - revocation must go on, whatever one round meets
                _log.exception("looking after the keys failed this time")
