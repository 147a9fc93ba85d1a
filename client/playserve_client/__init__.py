"""Thin client: streams, game environments, scripted experts, recordings and rollouts. Knows no torch."""

from playserve.codec import Action, DesktopAction
from playserve.settings import ActionSource, Consent, Extras, Pace, Sampling, SamplingMode, VersionPolicy
from playserve.specs import Codec
from playserve_client.channels import TlsConfig
from playserve_client.client import PolicyClient
from playserve_client.results import Dropped, PolicyInfo, RolloutBatch, StepResult, StepTimes
from playserve_client.rollout import Rollout
from playserve_client.session import Session

__all__ = [
    "Action", "ActionSource", "Codec", "Consent", "DesktopAction", "Dropped", "Extras", "Pace", "PolicyClient",
    "PolicyInfo", "Rollout", "RolloutBatch", "Sampling", "SamplingMode", "Session", "StepResult", "StepTimes",
    "TlsConfig", "VersionPolicy",
]  # fmt: skip
