"""Volumes and their keys, judged: what outlives its machine, what is left, who may use the keys.

Source of the price: AWS's list of EBS prices, gp3 in us-east-1.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from cloud.aws.doctor.disks import KeyFacts, LeftVolume, Volume
from cloud.aws.keys import grant_command
from cloud.aws.places import AwsRegion
from orchestrator.doctor.findings import Finding, Findings, fail, ok, skipped, warn
from orchestrator.words import money, plural

_MONTH: Final = 0.08  # USD a month for a GiB
_NEEDED: Final = frozenset({"CreateGrant", "Decrypt", "GenerateDataKeyWithoutPlaintext"})
_SHOWN: Final = 20  # volumes in a command


def kept(volumes: Sequence[Volume], place: AwsRegion) -> Findings:
    """Whether every volume goes away with its machine."""
    stays = [volume for volume in volumes if not volume.deleted]
    if not stays:
        text = f"{plural(len(volumes), 'volume')} a machine, deleted with it"
        return [ok(text if volumes else "no volumes of the image outlive a machine", place.region)]
    names = ", ".join(_named(volume) for volume in stays)
    text = f"{names} of the image outlive the machine: each launch and each reclaim leaves them behind"
    size = sum(volume.size for volume in stays)
    cost = f", {money(size * _MONTH)} a month every time" if size else ""
    mappings = [{"DeviceName": v.device, "Ebs": {"DeleteOnTermination": True}} for v in stays]
    by = "--launch-template-id" if place.template.startswith("lt-") else "--launch-template-name"
    command = (
        f"aws ec2 create-launch-template-version --region {place.region} {by} {place.template} "
        f"--source-version {place.template_version} --launch-template-data "
        f"'{json.dumps({'BlockDeviceMappings': mappings})}', and write the number of the new version"
    )
    return [fail(f"{text}{cost}", command, place.region)]


def grants(key: KeyFacts, needed: Mapping[str, str], by_iam: Collection[str], region: str) -> Findings:
    """Whether those may use a key who start machines with it. `needed` maps who that is in words to the ARN;
    `by_iam` are the ARNs whose own policies allow it, which counts where the key leaves it to IAM."""
    if not key.own:
        return [ok(f"the volumes' key {key.arn} is AWS's own and needs no grants", region)]
    return [_grant(key, who, arn, arn in by_iam, region) for who, arn in needed.items()]


def ungranted(key: str, needed: Iterable[str], region: str, why: str) -> Finding:
    """A key whose grants nobody may read: the commands make them, again if need be."""
    commands = "; ".join(grant_command(region, key, arn) for arn in needed)
    return skipped(
        f"volumes are encrypted with {key}, and who may use it cannot be read ({why}): if it is a key of "
        "your own without grants, EC2 accepts launches and ends every machine with Client.InternalError",
        commands,
        region,
    )


def unknown_keys(region: str, why: str) -> Finding:
    """Nobody may read which keys the volumes get."""
    return skipped(
        f"whether the volumes are encrypted with a key of your own cannot be read: {why}",
        "allow what `orchestrator aws policy FILE --doctor` prints",
        region,
    )


def left(found: Sequence[LeftVolume], region: str) -> Findings:
    """Volumes of the pool that no machine uses any more."""
    if not found:
        return [ok("no volume of the pool is left over", region)]
    size = sum(volume.size for volume in found)
    names = " ".join(volume.id for volume in found[:_SHOWN])
    more = f", and then the other {len(found) - _SHOWN}" if len(found) > _SHOWN else ""
    return [
        warn(
            f"{plural(len(found), 'volume')} of machines that ended, {size} GiB in all, cost "
            f"{money(size * _MONTH)} a month and nobody uses them",
            f"for v in {names}; do aws ec2 delete-volume --region {region} --volume-id $v; done{more}",
            region,
        )
    ]


def _grant(key: KeyFacts, who: str, grantee: str, by_iam: bool, region: str) -> Finding:
    command = grant_command(region, key.arn, grantee)
    if key.grants.get(grantee, frozenset()) >= _NEEDED:
        return ok(f"{who} has a grant for the volumes' key {key.arn}", region)
    named = _named_in(key.policy)
    if grantee in named:
        return ok(f"the policy of the volumes' key {key.arn} names {who}", region)
    text = f"volumes are encrypted with {key.arn}, and {who} has no grant for it"
    left_to_iam = any(arn.endswith(":root") for arn in named)
    if left_to_iam and by_iam:
        return ok(f"{who} may use the volumes' key {key.arn} by its own policy", region)
    if left_to_iam and ":role/aws-service-role/" not in grantee:
        return warn(
            f"{text}: unless its own policy allows the key, EC2 ends every machine that it launches",
            command,
            region,
        )
    return fail(
        f"{text}: EC2 accepts the launch and ends the machine with Client.InternalError, every time",
        command,
        region,
    )


def _named_in(policy: Mapping[str, Any]) -> frozenset[str]:
    """Whom a key's policy allows to use it for machines: those that it names for CreateGrant or for all."""
    found: set[str] = set()
    for statement in policy.get("Statement", ()):
        actions, principal = statement.get("Action", ()), statement.get("Principal", {})
        actions = {actions} if isinstance(actions, str) else set(actions)
        if statement.get("Effect") == "Allow" and actions & {"kms:*", "kms:CreateGrant", "*"}:
            named = principal.get("AWS", ()) if isinstance(principal, dict) else principal
            found |= {named} if isinstance(named, str) else set(named)
    return frozenset(found)


def _named(volume: Volume) -> str:
    return f"{volume.device} ({volume.size} GiB)" if volume.size else volume.device
