"""Broken streams are finished by another engine, from the token ids that the first one sent."""

from orchestrator.gateway.continuation.capability import probe
from orchestrator.gateway.continuation.kinds import Broken, Capability, Kind, Plan, Way, plan_of
from orchestrator.gateway.continuation.prepare import may_ask_usage, prepared
from orchestrator.gateway.continuation.stitch import Continuation
from orchestrator.gateway.continuation.transcript import Transcript

__all__ = [
    "Broken",
    "Capability",
    "Continuation",
    "Kind",
    "Plan",
    "Transcript",
    "Way",
    "may_ask_usage",
    "plan_of",
    "prepared",
    "probe",
]
