"""The volumes that a launch makes and those that are left over, and who may use their keys.

Source: the EC2 and KMS API references (BlockDeviceMapping, DescribeSnapshots, GetEbsEncryptionByDefault,
GetEbsDefaultKmsKeyId, DescribeVolumes, DescribeKey, ListGrants, GetKeyPolicy) and the EBS user guide ("How
EBS encryption works": the key of an encrypted snapshot wins over the account's default).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloud.aws.clients import AwsClients, Lane
from cloud.aws.places import POOL_TAG
from cloud.errors import CloudError

Devices = Sequence[Mapping[str, Any]]
"""Block device mappings as EC2 writes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A volume that each launch makes. `size` is GiB, 0 when it is as large as its snapshot. `deleted`: it
    goes away with its machine. `key` is named by the launch, `sealed` says that its snapshot is encrypted."""

    device: str
    size: int = 0
    deleted: bool = True
    encrypted: bool = False
    sealed: bool = False
    key: str = ""
    snapshot: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftVolume:
    """A volume of the pool that no machine uses. `size` is GiB."""

    id: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFacts:
    """A key of KMS's. `own`: a user made it, so it has to be granted. `grants` maps a grantee to what it may
    do with it, `policy` is the key's own; both are empty for a key of AWS's."""

    arn: str
    own: bool
    grants: Mapping[str, frozenset[str]]
    policy: Mapping[str, Any]


def volumes(image: Devices, template: Devices) -> tuple[Volume, ...]:
    """What a launch makes: the image's volumes, with what the template says of the same devices instead."""
    ebs: dict[str, dict[str, Any]] = {}
    for mapping in (*image, *template):
        if "Ebs" in mapping:
            ebs.setdefault(mapping["DeviceName"], {}).update(mapping["Ebs"])
        else:  # NoDevice, or a disk of the machine's own
            ebs.pop(mapping["DeviceName"], None)
    sealed = {m["DeviceName"] for m in image if m.get("Ebs", {}).get("Encrypted")}
    return tuple(
        Volume(
            device=device,
            size=found.get("VolumeSize", 0),
            deleted=found.get("DeleteOnTermination", True),
            encrypted=found.get("Encrypted", False),
            sealed=device in sealed,
            key=found.get("KmsKeyId", ""),
            snapshot=found.get("SnapshotId", ""),
        )
        for device, found in ebs.items()
    )


async def keys(clients: AwsClients, found: Sequence[Volume]) -> tuple[str, ...]:
    """The keys that these volumes get: the launch's, else their snapshot's, else the account's default for
    what is encrypted. Raises CloudError."""
    named = {volume.key for volume in found if volume.key}
    sealed = {volume.snapshot for volume in found if volume.sealed and not volume.key}
    if sealed:
        answer = await _ec2(clients, "describe_snapshots", SnapshotIds=sorted(sealed))
        named |= {entry["KmsKeyId"] for entry in answer["Snapshots"] if entry.get("KmsKeyId")}
    rest = [volume for volume in found if not volume.key and not volume.sealed]
    by_default = rest and (await _ec2(clients, "get_ebs_encryption_by_default"))["EbsEncryptionByDefault"]
    if by_default or any(volume.encrypted for volume in rest):
        named.add((await _ec2(clients, "get_ebs_default_kms_key_id"))["KmsKeyId"])
    return tuple(sorted(named))


async def key(clients: AwsClients, name: str) -> KeyFacts:
    """A key by its id, alias or ARN. Raises CloudError."""
    known = (await _kms(clients, "describe_key", KeyId=name))["KeyMetadata"]
    arn = known["Arn"]
    if known["KeyManager"] != "CUSTOMER":
        return KeyFacts(arn=arn, own=False, grants={}, policy={})
    grants: dict[str, frozenset[str]] = {}
    marker: dict[str, str] = {}
    while True:
        page = await _kms(clients, "list_grants", KeyId=arn, **marker)
        for grant in page["Grants"]:
            grantee = grant["GranteePrincipal"]
            grants[grantee] = grants.get(grantee, frozenset()) | frozenset(grant["Operations"])
        if not page.get("Truncated"):
            break
        marker = {"Marker": page["NextMarker"]}
    policy = json.loads((await _kms(clients, "get_key_policy", KeyId=arn, PolicyName="default"))["Policy"])
    return KeyFacts(arn=arn, own=True, grants=grants, policy=policy)


async def left_behind(clients: AwsClients, pool: str) -> tuple[LeftVolume, ...]:
    """The pool's volumes that no machine uses. Raises CloudError."""
    filters = [
        {"Name": f"tag:{POOL_TAG}", "Values": [pool]},
        {"Name": "status", "Values": ["available"]},
    ]
    found: list[LeftVolume] = []
    async for page in clients.pages(Lane.LIST, "ec2", "describe_volumes", Filters=filters):
        found += [LeftVolume(id=entry["VolumeId"], size=entry["Size"]) for entry in page["Volumes"]]
    return tuple(sorted(found, key=lambda volume: volume.id))


async def _ec2(clients: AwsClients, operation: str, **parameters: Any) -> Mapping[str, Any]:
    return await clients.call(Lane.LIST, "ec2", operation, lost=CloudError, **parameters)


async def _kms(clients: AwsClients, operation: str, **parameters: Any) -> Mapping[str, Any]:
    return await clients.call(Lane.LIST, "kms", operation, lost=CloudError, **parameters)
