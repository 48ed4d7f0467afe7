"""Credentials, clock and permissions on AWS, judged."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from cloud.aws.doctor.account import ClockReading, How, Identity, Permission
from cloud.aws.spot_role import MAKE_SPOT_ROLE, SPOT_ROLE
from orchestrator.doctor.findings import Finding, Findings, fail, ok, skipped, warn

_FAR: Final = 30.0  # s of difference that are too much however large a drain's margin is
_NEAR: Final = 2.0  # s that a clock kept by NTP never differs


def credentials(who: Identity) -> Findings:
    """Who acts. The account's root cannot be held to a policy."""
    text = f"{who.arn} in account {who.account}"
    if who.arn.endswith(":root"):
        return [
            fail(
                f"{text}: the keys of the account's root may do everything",
                "make a role with the policy that `orchestrator aws policy FILE` prints, and use that",
            )
        ]
    return [ok(text)]


def spot_role(exists: bool, *, wanted: bool) -> Findings:
    """Whether the account has the role without which no spot node starts. `wanted`: the pool has any."""
    if exists:
        return [ok(f"the role {SPOT_ROLE} exists")]
    text = f"the role {SPOT_ROLE} does not exist: EC2 refuses every spot launch"
    if not wanted:
        return [ok(f"{text}, and the pool wants none")]
    return [fail(f"{text}, and the pool would hold its on-demand floor alone", MAKE_SPOT_ROLE)]


def region(status: str, name: str) -> Findings:
    """Whether the account has the region switched on. `status` is EC2's OptInStatus, empty for no such."""
    if not status:
        return [fail("there is no such region", "correct its name in the configuration", name)]
    if status == "not-opted-in":
        return [
            fail(
                "the account has not opted in to it: every call there is refused as if by wrong credentials",
                f"aws account enable-region --region-name {name}, and wait until it is enabled",
                name,
            )
        ]
    return [ok(f"the account may use it ({status})", name)]


def clock(reading: ClockReading, margin: float) -> Findings:
    """Notices carry deadlines by AWS's clock, which are compared with this machine's. `margin`: seconds kept
    free before a deadline."""
    ahead = max(reading.least, 0.0) or min(reading.most, 0.0)
    if not ahead:
        return [ok("this machine's clock agrees with that of AWS to the second")]
    apart = f"this machine's clock is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} that of AWS"
    advice = "start a time service: systemctl enable --now systemd-timesyncd (or chrony)"
    if abs(ahead) >= max(_NEAR, min(margin, _FAR)):
        text = f"{apart}: deadlines are wrong by as much, and drains keep {margin:g} s free before them"
        return [fail(text, advice)]
    if abs(ahead) >= _NEAR:
        return [warn(f"{apart}: deadlines are wrong by as much", advice)]
    return [ok(f"{apart}")]


def permissions(found: Iterable[Permission], region: str, file: str) -> Findings:
    """Whether the daemon may do what it does. One finding an action."""
    return [_permission(permission, region, file) for permission in found]


def _permission(found: Permission, region: str, file: str) -> Finding:
    subject = f"{found.action} in {region}"
    print_policy = f"orchestrator aws policy {file}"
    if found.allowed:
        return ok(f"allowed, by {found.how}", subject)
    if found.allowed is False:
        why = f": {found.detail}" if found.detail else ""
        return fail(
            f"not allowed, by {found.how}{why}",
            f"give the daemon's role or user the policy that `{print_policy}` prints",
            subject,
        )
    if found.how is How.UNKNOWN:
        why = found.detail or "this identity may not ask IAM's policy simulator"
        return skipped(
            f"it can only be tried by doing it, and {why}",
            f"allow what `{print_policy} --doctor` prints, or compare the policy by eye",
            subject,
        )
    return fail(
        f"the {found.how} was answered by an error: {found.detail}",
        "fix what it says: a launch would be refused in the same way"
        if found.action == "ec2:RunInstances"
        else "fix what it says, then run the check again",
        subject,
    )
