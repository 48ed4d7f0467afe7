"""Launches that were tried with DryRun, judged: would each type start in each market, and if not, why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cloud.aws.doctor.dry_launches import DryLaunch
from cloud.aws.spot_role import MAKE_SPOT_ROLE
from cloud.errors import InsufficientCapacity, QuotaExceeded, Throttled
from orchestrator.doctor.aws_launch import quota_command
from orchestrator.doctor.findings import Finding, Findings, fail, ok, skipped, warn
from policies.model import Market

_NO_ROLE: Final = "AuthFailure.ServiceLinkedRoleCreationNotPermitted"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reason:
    """Why launches of a market were refused: their types share it."""

    market: Market
    code: str
    error: str


def launches(found: Sequence[DryLaunch], region: str, file: str) -> Findings:
    """One finding for each market in which everything would start, and one for each reason that is in the
    way, with the types that it stops."""
    reasons: dict[_Reason, list[DryLaunch]] = {}
    for launch in found:
        if launch.error:
            reason = _Reason(market=launch.market, code=launch.code, error=launch.error)
            reasons.setdefault(reason, []).append(launch)
    findings = [_refused(reason, stopped, region, file) for reason, stopped in reasons.items()]
    for market in dict.fromkeys(launch.market for launch in found):
        if not any(reason.market is market for reason in reasons):
            kinds = ", ".join(dict.fromkeys(o.instance_type for o in found if o.market is market))
            findings.append(ok(f"{kinds} would start", f"{market} in {region}"))
    return findings


def _refused(reason: _Reason, stopped: Sequence[DryLaunch], region: str, file: str) -> Finding:
    kinds = tuple(dict.fromkeys(launch.instance_type for launch in stopped))
    where = ", ".join(dict.fromkeys(launch.zone for launch in stopped))
    subject = f"{reason.market} in {region}"
    text = f"{', '.join(kinds)} in {where}: {reason.error}"
    if stopped[0].word == Throttled.word:
        return skipped(f"EC2 answers that there are too many calls: {text}", "run it again", subject)
    if reason.code == _NO_ROLE:
        return fail(
            f"no spot node can be launched, and the pool would hold its on-demand floor alone: {text}",
            MAKE_SPOT_ROLE,
            subject,
        )
    if stopped[0].refused:
        advice = f"give the daemon's role or user the policy that `orchestrator aws policy {file}` prints"
        return fail(f"not allowed: {text}", advice, subject)
    if stopped[0].word == QuotaExceeded.word:
        return fail(f"the quota is used up: {text}", quota_command(reason.market, kinds, region), subject)
    if stopped[0].word == InsufficientCapacity.word:
        return warn(f"not to be had there: {text}", "add types, zones or regions", subject)
    return fail(
        f"every launch would be refused: {text}",
        "correct what it names, in the configuration or in a new version of the launch template",
        subject,
    )
