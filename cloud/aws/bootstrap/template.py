"""The content of the launch template: what bootstrap manages of it, and what it leaves to people. Pure.

Managed, which means that a new version says what the configuration says:
    ImageId, SecurityGroupIds, UserData;
    MetadataOptions: HttpEndpoint, HttpTokens, HttpPutResponseHopLimit;
    IamInstanceProfile and KeyName, where the configuration names one;
    BlockDeviceMappings, of each EBS device of the image: DeleteOnTermination, and where the configuration
    says so VolumeSize, VolumeType with Throughput and Iops, VolumeInitializationRate, Encrypted with
    KmsKeyId.
Taken out, because a launch says it itself and EC2 refuses both or would mix the markets up:
    InstanceMarketOptions, InstanceRequirements, NetworkInterfaces, SecurityGroups.
Taken out too, because the daemon could not end or stop its machines, and EC2 refuses it for spot:
    DisableApiTermination, DisableApiStop.
Everything else that the newest version holds is kept: other devices, tag specifications, capacity
reservation, placement, monitoring, and whatever EC2 may yet come to know.

Source of the shapes: the EC2 API reference (RequestLaunchTemplateData, ResponseLaunchTemplateData).
"""

from __future__ import annotations

import base64
import binascii
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from cloud.aws.bootstrap.wanted import Difference, Wanted, canonical
from cloud.aws.disks import mappings
from cloud.cloud_init.user_data import unpacked

Data = Mapping[str, Any]

_SAID_BY_LAUNCHES: Final = frozenset(
    {"InstanceMarketOptions", "InstanceRequirements", "NetworkInterfaces", "SecurityGroups"}
)
_PROTECTION: Final = frozenset({"DisableApiTermination", "DisableApiStop"})
_OF_AWS: Final = frozenset({"Operator"})  # answers hold it, and no request may
_STATE: Final = "State"  # of MetadataOptions, likewise
_TOGETHER: Final = (("VolumeType", "Throughput", "Iops"), ("Encrypted", "KmsKeyId"))
"""Fields of a volume that mean something together only."""

_DEVICES: Final = "BlockDeviceMappings"
_LISTS: Final = {_DEVICES: "DeviceName", "TagSpecifications": "ResourceType"}
"""Lists that are shown entry by entry, and the field that names one."""

_MOST_LINES: Final = 40  # of a difference that is shown


def managed(wanted: Wanted, groups: Sequence[str], image: Data) -> dict[str, Any]:
    """What the configuration says, for nodes in these security groups; `image` as DescribeImages tells it."""
    data: dict[str, Any] = {
        "ImageId": wanted.image,
        "SecurityGroupIds": list(groups),
        "UserData": base64.b64encode(wanted.user_data).decode(),
        "MetadataOptions": {
            "HttpEndpoint": "enabled",
            "HttpTokens": "required",
            "HttpPutResponseHopLimit": 1,  # a container on the node cannot reach the role's credentials
        },
        _DEVICES: mappings(image, wanted.disk),
    }
    if wanted.profile:
        data["IamInstanceProfile"] = {"Name": wanted.profile}
    if wanted.key_name:
        data["KeyName"] = wanted.key_name
    return data


def merged(found: Data, ours: Data, gone: Iterable[str] = ()) -> dict[str, Any]:
    """The content of a version that says what is ours and keeps what else was `found` in the newest one.

    `gone`: devices that only the image before had. They would become empty disks, or be refused.
    """
    kept = {
        key: value for key, value in found.items() if key not in _SAID_BY_LAUNCHES | _PROTECTION | _OF_AWS
    }
    made = {**kept, **ours}
    options = {key: value for key, value in kept.get("MetadataOptions", {}).items() if key != _STATE}
    made["MetadataOptions"] = {**options, **ours["MetadataOptions"]}
    made[_DEVICES] = _devices(kept.get(_DEVICES, ()), ours[_DEVICES], frozenset(gone))
    return {key: value for key, value in made.items() if value not in ([], {}, None)}


def same(one: Data, other: Data) -> bool:
    """Whether two contents mean the same, whatever order and states AWS adds."""
    return _normal(one) == _normal(other)


def differences(before: Data, after: Data) -> tuple[Difference, ...]:
    """How two contents differ; user-data line by line, once it is unpacked."""
    old, new = dict(_rows(_plain(before))), dict(_rows(after))
    found = [
        Difference(field, old.get(field, ""), new.get(field, ""))
        for field in sorted(old.keys() | new.keys())
        if old.get(field, "") != new.get(field, "")
    ]
    return (*found, *_lines(_text(before.get("UserData")), _text(after.get("UserData"))))


def kept(content: Data, ours: Data) -> dict[str, str]:
    """What of a content is not ours, by field, as it is shown."""
    found = dict(_rows({key: value for key, value in content.items() if key not in ours}))
    managed_fields = {mapping["DeviceName"]: mapping["Ebs"].keys() for mapping in ours[_DEVICES]}
    for mapping in content.get(_DEVICES, ()):
        name = mapping["DeviceName"]
        ebs = mapping.get("Ebs", {})
        rest = {key: value for key, value in ebs.items() if key not in managed_fields.get(name, ())}
        outlives = bool(ebs) and ebs.get("DeleteOnTermination") is not True
        if name not in managed_fields or rest or not ebs:
            warning = "; such a volume may outlive its node" if outlives else ""
            found[f"{_DEVICES} {name}"] = canonical(rest or _unnamed(mapping, "DeviceName")) + warning
    return found


def _devices(found: Iterable[Data], ours: Iterable[Data], gone: frozenset[str]) -> list[Data]:
    held: dict[str, Data] = {m["DeviceName"]: m for m in found if m["DeviceName"] not in gone}
    for mapping in ours:
        name, there = mapping["DeviceName"], held.get(mapping["DeviceName"])
        if there is None:
            held[name] = mapping
        elif "Ebs" in there:  # else somebody took the device away
            held[name] = {**there, "Ebs": _volume(there["Ebs"], mapping["Ebs"])}
    return [held[name] for name in sorted(held)]


def _volume(found: Data, ours: Data) -> Data:
    replaced = {name for names in _TOGETHER if any(n in ours for n in names) for name in names}
    return {**{key: value for key, value in found.items() if key not in replaced}, **ours}


def _plain(data: Data) -> dict[str, Any]:
    """A content as AWS answers it, without what AWS added."""
    made = {key: value for key, value in data.items() if key not in _OF_AWS and value not in ([], {}, None)}
    if "MetadataOptions" in made:
        made["MetadataOptions"] = {k: v for k, v in made["MetadataOptions"].items() if k != _STATE}
    return made


def _normal(data: Data) -> dict[str, Any]:
    made = {key: _ordered(value) for key, value in _plain(data).items()}
    return {**made, "UserData": _text(data.get("UserData"))}


def _ordered(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _ordered(item) for key, item in value.items()}
    if isinstance(value, list):
        return sorted((_ordered(item) for item in value), key=canonical)
    return value


def _rows(data: Data) -> Iterator[tuple[str, str]]:
    """Fields and what they hold, all but the user-data."""
    for field, value in data.items():
        if field in _LISTS:
            for entry in value:
                yield f"{field} {entry[_LISTS[field]]}", canonical(_unnamed(entry, _LISTS[field]))
        elif field != "UserData":
            yield field, canonical(_ordered(value))


def _unnamed(entry: Data, name: str) -> dict[str, Any]:
    return {key: _ordered(value) for key, value in entry.items() if key != name}


def _text(data: Any) -> str:
    try:
        return unpacked(base64.b64decode(data or "", validate=True))
    except (binascii.Error, ValueError, OSError, EOFError):
        return str(data)


def _lines(before: str, after: str) -> list[Difference]:
    if before == after:
        return []
    if not before:
        return [Difference("UserData", "", f"{len(after.splitlines())} lines of cloud-init")]
    lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0))[2:]
    lines = [line for line in lines if not line.startswith("@@")]
    shown = "\n".join(lines[:_MOST_LINES])
    more = f"\n... and {len(lines) - _MOST_LINES} lines more" if len(lines) > _MOST_LINES else ""
    return [Difference("UserData", "", shown + more)]
