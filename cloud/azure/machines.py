"""One launch as Azure takes it, and one machine as Azure tells it. Pure.

Source of the formats: the REST reference of Microsoft.Compute (Virtual Machines: Create Or Update, List,
Instance View), "States and billing status of Azure Virtual Machines", "Use Azure Spot Virtual Machines".
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

from cloud.azure.errors import ending_of
from cloud.azure.places import BUILD_TAG, POOL_TAG, PROVIDER, STANDBY_TAG, TOKEN_TAG, AzureRegion
from cloud.errors import Misconfigured
from cloud.ports import LaunchRequest, digest, machine_build
from policies.model import Ending, Instance, InstanceState, Market, Placement, StandbyKind
from policies.plain_text import one_line

CUSTOM_DATA_LIMIT: Final = 65535
"""Bytes of custom data that Azure takes, before they are encoded for the call."""

_NAME: Final = re.compile(r"so-[0-9a-f]{20}")
_LONGEST_WHY = 300
_POWER: Final[Mapping[str, InstanceState]] = MappingProxyType(
    {
        "starting": InstanceState.PENDING,
        "running": InstanceState.RUNNING,
        "stopping": InstanceState.STOPPING,
        "deallocating": InstanceState.STOPPING,
        "stopped": InstanceState.STOPPED,
        "deallocated": InstanceState.STOPPED,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What a machine's instance view says: its power, and the code and words of a failure."""

    provisioning: str = ""  # such as "succeeded"; empty where it is not known
    power: str = ""  # such as "running"; empty where none is stated
    failure: str = ""
    why: str = ""


def name_of(token: str) -> str:
    """The machine of a token. It is also the node's id, and its name on the network."""
    return f"so-{digest(token)}"


def is_name(node: str) -> bool:
    """Whether a machine of that name can be one of ours."""
    return _NAME.fullmatch(node) is not None


def build_of(request: LaunchRequest, place: AzureRegion) -> str:
    """A digest of what a machine is launched to run: its image, and the engine."""
    return machine_build(request.command.at(request.placement.instance_type).build, place.image.text)


def launch_body(request: LaunchRequest, place: AzureRegion, custom_data: bytes) -> dict[str, Any]:
    """The body of the call that makes a machine.

    Its disk and its interface are made with it and go with it. Raises Misconfigured for what Azure would not
    take.
    """
    if len(custom_data) > CUSTOM_DATA_LIMIT:
        raise Misconfigured(
            f"the custom data has {len(custom_data)} bytes, and Azure takes {CUSTOM_DATA_LIMIT}"
        )
    name = name_of(request.token)
    try:
        zone = place.zone_of(request.placement.zone)
    except ValueError:
        raise Misconfigured(
            f"{request.placement}: this pool has no zone {request.placement.zone} on Azure"
        ) from None
    properties: dict[str, Any] = {
        "hardwareProfile": {"vmSize": request.placement.instance_type},
        "storageProfile": {
            "imageReference": place.image.reference(),
            "osDisk": {
                "name": f"{name}-os",
                "createOption": "FromImage",
                "diskSizeGB": place.disk_gb,
                "managedDisk": {"storageAccountType": place.disk_type},
                "deleteOption": "Delete",
            },
        },
        "osProfile": _system(name, place, custom_data),
        "networkProfile": _network(name, place),
        "diagnosticsProfile": {"bootDiagnostics": {"enabled": True}},  # what it writes on its console
    }
    if request.placement.market is Market.SPOT:
        properties |= {
            "priority": "Spot",
            "evictionPolicy": "Delete" if place.eviction == "delete" else "Deallocate",
            "billingProfile": {"maxPrice": -1 if place.max_price is None else place.max_price},
        }
    body = {"location": place.region, "tags": _tags(request, place), "properties": properties}
    if zone:
        body["zones"] = [zone]
    if place.identity:
        body["identity"] = {"type": "UserAssigned", "userAssignedIdentities": {place.identity: {}}}
    return body


def _system(name: str, place: AzureRegion, custom_data: bytes) -> dict[str, Any]:
    key = {"path": f"/home/{place.admin_user}/.ssh/authorized_keys", "keyData": place.ssh_public_key}
    return {
        "computerName": name,
        "adminUsername": place.admin_user,
        "customData": base64.b64encode(custom_data).decode(),
        "linuxConfiguration": {"disablePasswordAuthentication": True, "ssh": {"publicKeys": [key]}},
    }


def _network(name: str, place: AzureRegion) -> dict[str, Any]:
    address = {"name": "first", "properties": {"subnet": {"id": place.subnet}, "primary": True}}
    interface: dict[str, Any] = {"primary": True, "deleteOption": "Delete", "ipConfigurations": [address]}
    if place.security_group:
        interface["networkSecurityGroup"] = {"id": place.security_group}
    return {
        "networkApiVersion": "2022-11-01",
        "networkInterfaceConfigurations": [{"name": f"{name}-nic", "properties": interface}],
    }


def _tags(request: LaunchRequest, place: AzureRegion) -> dict[str, str]:
    tags = {
        **place.tags,
        POOL_TAG: request.pool,
        TOKEN_TAG: request.token,
        BUILD_TAG: build_of(request, place),
    }
    return tags if request.standby is None else {**tags, STANDBY_TAG: str(request.standby)}


def status_of(statuses: Iterable[Mapping[str, Any]]) -> Status:
    """The statuses of an instance view, such as "PowerState/running" and
    "ProvisioningState/failed/AllocationFailed" with its message."""
    provisioning, power, failure, why = "", "", "", ""
    for status in statuses:
        parts = str(status.get("code", "")).split("/")
        if parts[0] == "PowerState" and len(parts) > 1:
            power = parts[1].lower()
        if parts[0] == "ProvisioningState" and len(parts) > 1:
            provisioning = parts[1].lower()
            if provisioning == "failed" and len(parts) > 2:
                failure, why = parts[2], str(status.get("message") or "")
    return Status(provisioning=provisioning, power=power, failure=failure, why=why)


def is_in(machine: Mapping[str, Any], place: AzureRegion, pool: str) -> bool:
    """Whether a machine of the resource group is the pool's, in that region."""
    where = str(machine.get("location", "")).lower().replace(" ", "")
    named = is_name(str(machine.get("name", "")))
    return named and where == place.region and tags_of(machine).get(POOL_TAG) == pool


def tags_of(machine: Mapping[str, Any]) -> Mapping[str, str]:
    """Its tags."""
    return machine.get("tags") or {}


def interfaces_of(machine: Mapping[str, Any]) -> tuple[str, ...]:
    """The ids of its interfaces, in small letters: Azure does not tell them apart by case."""
    profile = machine.get("properties", {}).get("networkProfile") or {}
    return tuple(str(entry.get("id", "")).lower() for entry in profile.get("networkInterfaces") or ())


def addresses_of(interfaces: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The private address of each interface, by its id in small letters."""
    found: dict[str, str] = {}
    for interface in interfaces:
        for entry in interface.get("properties", {}).get("ipConfigurations") or ():
            address = entry.get("properties", {}).get("privateIPAddress")
            if address:
                found.setdefault(str(interface.get("id", "")).lower(), str(address))
    return found


def settles(machine: Mapping[str, Any]) -> bool:
    """Whether it needs an instance view to say what it does: it is neither being made nor deleted."""
    return _provisioning(machine) not in ("creating", "deleting")


def instance_of(
    machine: Mapping[str, Any], status: Status, address: str, place: AzureRegion, made_at: float
) -> Instance:
    """A machine as the model tells it, without its price: Azure states prices elsewhere.

    `made_at`: when it was asked for, where Azure does not say when it was made.
    """
    properties, tags = machine.get("properties", {}), tags_of(machine)
    zones = machine.get("zones") or ()
    spot = str(properties.get("priority", "")).lower() == "spot"
    # Machines are listed before what they do is: the status is the newer word.
    state, ending, why = _state(status.provisioning or _provisioning(machine), status)
    return Instance(
        id=str(machine["name"]),
        pool=tags.get(POOL_TAG, ""),
        token=tags.get(TOKEN_TAG, ""),
        placement=Placement(
            provider=PROVIDER,
            region=place.region,
            zone=f"{place.region}-{zones[0]}" if zones else place.region,
            instance_type=str((properties.get("hardwareProfile") or {}).get("vmSize", "")),
            market=Market.SPOT if spot else Market.ON_DEMAND,
        ),
        state=state,
        address=f"{address}:{place.engine_port}" if address else "",
        launched_at=_time(properties.get("timeCreated"), made_at),
        price=None,
        standby=_standby(tags.get(STANDBY_TAG, "")),
        build=tags.get(BUILD_TAG, ""),
        ending=ending,
        ending_why=one_line(why, _LONGEST_WHY),
    )


def _state(provisioning: str, status: Status) -> tuple[InstanceState, Ending, str]:
    """A machine that "failed" may run all the same, as one whose system booted more slowly than Azure waits.
    One that failed and has no power never got its hardware."""
    if provisioning == "deleting":
        return InstanceState.SHUTTING_DOWN, Ending.UNKNOWN, ""
    if provisioning == "failed" and status.power not in _POWER:
        why = f"{status.failure}: {status.why}".rstrip(": ") or "Azure could not make it and does not say why"
        return InstanceState.TERMINATED, ending_of(status.failure), why
    return _POWER.get(status.power, InstanceState.PENDING), Ending.UNKNOWN, ""


def _provisioning(machine: Mapping[str, Any]) -> str:
    return str(machine.get("properties", {}).get("provisioningState", "")).lower()


def _time(text: object, otherwise: float) -> float:
    try:
        return datetime.fromisoformat(re.sub(r"\.\d+", "", str(text))).timestamp()
    except ValueError:
        return otherwise


def _standby(value: str) -> StandbyKind | None:
    """The standby tag; a word that somebody else wrote there means none."""
    try:
        return StandbyKind(value)
    except ValueError:
        return None
