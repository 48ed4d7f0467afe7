"""One launch as instances.insert takes it, and one machine as instances.get tells it. Pure.

Source of the formats: the Compute Engine API v1 (Instance, Scheduling, Operation), as google-cloud-compute
1.57 has them.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from cloud.gcp.places import (
    BUILD_LABEL,
    NOTICE_KEY,
    POOL_LABEL,
    PROVIDER,
    STANDBY_LABEL,
    TOKEN_KEY,
    GcpMachines,
    GcpRegion,
)
from cloud.gcp.startup import startup_script
from cloud.ports import EngineCommand, LaunchRequest, digest, machine_build
from cloud.tombstones import Entry
from policies.model import Ending, Instance, InstanceState, Market, Placement, StandbyKind
from policies.plain_text import one_line

NOTICE: Final = 120
"""Seconds of notice that every spot machine asks for: 0 or 120 can be had, beside the 30 of the shutdown."""

_NAMESPACE: Final = uuid.UUID("7d1f0a52-7f0f-4c0c-9a43-0d3c5b2c8f11")
_LONGEST_WHY: Final = 300

_STATES: Final[Mapping[str, InstanceState]] = {
    "PROVISIONING": InstanceState.PENDING,
    "STAGING": InstanceState.PENDING,
    "RUNNING": InstanceState.RUNNING,
    "REPAIRING": InstanceState.RUNNING,  # Google brings it back; probes tell whether it serves
    "PENDING_STOP": InstanceState.STOPPING,
    "STOPPING": InstanceState.STOPPING,
    "SUSPENDING": InstanceState.STOPPING,
    "SUSPENDED": InstanceState.STOPPED,
    "TERMINATED": InstanceState.STOPPED,  # Google's word for a machine that is stopped
    "DEPROVISIONING": InstanceState.SHUTTING_DOWN,
}
_ENDINGS: Final[Mapping[str, Ending]] = {
    "compute.instances.preempted": Ending.RECLAIM,
    "compute.instances.hostError": Ending.FAULT,
    "compute.instances.guestTerminate": Ending.FAULT,
    "compute.instances.terminateOnHostMaintenance": Ending.FAULT,
    "delete": Ending.REQUEST,
}
PREEMPTED: Final = "compute.instances.preempted"


def name_of(request: LaunchRequest) -> str:
    """The name of a request's machine: the same for the same token, and a valid one (RFC 1035)."""
    return f"so-{request.pool}-{digest(request.token)}"


def request_id(entry: Entry) -> str:
    """The requestId of an attempt: Google does the same request once."""
    return str(uuid.uuid5(_NAMESPACE, f"{entry.token}\n{entry.attempt}"))


def body_of(request: LaunchRequest, name: str, place: GcpRegion, made: GcpMachines) -> dict[str, Any]:
    """The machine of a launch. With a template only what is the launch's own is written over it."""
    zone, kind = request.placement.zone, request.placement.instance_type
    items = {TOKEN_KEY: request.token}
    if request.placement.market is Market.SPOT:
        items[NOTICE_KEY] = str(NOTICE)
    if made.setup is not None:
        gpus = made.setup.gpus_on.get(kind, made.setup.gpus)
        setup = replace(made.setup, command=request.command.at(kind), gpus=gpus)
        items["startup-script"] = startup_script(setup)
    body: dict[str, Any] = {
        "name": name,
        "machineType": f"zones/{zone}/machineTypes/{kind}",
        "labels": _labels(request, made),
        "scheduling": scheduling(request.placement.market),
        "metadata": {"items": [{"key": key, "value": value} for key, value in items.items()]},
    }
    if made.template:
        return body
    disk: dict[str, Any] = {"sourceImage": made.image}
    if made.disk_gib:
        disk["diskSizeGb"] = str(made.disk_gib)
    if made.disk_type:
        disk["diskType"] = f"zones/{zone}/diskTypes/{made.disk_type}"
    interface: dict[str, Any] = {"network": "global/networks/default"}
    if place.subnetwork:
        path = f"regions/{place.region}/subnetworks/{place.subnetwork}"
        interface = {"subnetwork": place.subnetwork if "/" in place.subnetwork else path}
    if made.external_address:
        interface["accessConfigs"] = [{"type": "ONE_TO_ONE_NAT", "name": "external-nat"}]
    body |= {
        "disks": [{"boot": True, "autoDelete": True, "initializeParams": disk}],
        "networkInterfaces": [interface],
    }
    if made.service_account:
        scope = "https://www.googleapis.com/auth/cloud-platform"
        body["serviceAccounts"] = [{"email": made.service_account, "scopes": [scope]}]
    if made.network_tags:
        body["tags"] = {"items": list(made.network_tags)}
    return body


def scheduling(market: Market) -> dict[str, Any]:
    """How Google may end a machine. One with GPUs cannot be moved; spot machines ask for the long notice."""
    if market is Market.SPOT:
        return {
            "provisioningModel": "SPOT",
            "instanceTerminationAction": "DELETE",
            "onHostMaintenance": "TERMINATE",
            "automaticRestart": False,
            "preemptionNoticeDuration": {"seconds": str(NOTICE)},
        }
    return {"provisioningModel": "STANDARD", "onHostMaintenance": "TERMINATE", "automaticRestart": True}


def build_of(request: LaunchRequest, made: GcpMachines) -> str:
    """What a machine is launched to run: image, template, startup script and engine."""
    setup = "" if made.setup is None else repr(replace(made.setup, command=EngineCommand(argv=())))
    return machine_build(request.command.build, made.image, made.template, setup)


def instance_of(machine: Mapping[str, Any], place: GcpRegion, port: int) -> Instance:
    """A machine as the model tells it, without its price: Google states prices elsewhere."""
    labels, metadata = machine.get("labels") or {}, (machine.get("metadata") or {}).get("items") or ()
    market = _market(machine)
    host = str(((machine.get("networkInterfaces") or [{}])[0]).get("networkIP") or "")
    return Instance(
        id=str(machine["name"]),
        pool=str(labels.get(POOL_LABEL, "")),
        token=next((str(item["value"]) for item in metadata if item.get("key") == TOKEN_KEY), ""),
        placement=Placement(
            provider=PROVIDER,
            region=place.region,
            zone=_last(machine["zone"]),
            instance_type=_last(machine["machineType"]),
            market=market,
        ),
        state=_state(str(machine["status"]), market),
        address=f"{host}:{port}" if host else "",
        launched_at=when(machine.get("creationTimestamp")) or 0.0,
        price=None,
        standby=_standby(str(labels.get(STANDBY_LABEL, ""))),
        build=str(labels.get(BUILD_LABEL, "")),
    )


def gone(entry: Entry, ending: Ending, why: str, at: float | None) -> Instance:
    """A machine that is no more, by the ledger."""
    return replace(entry.gone(), ending=ending, ending_why=one_line(why, _LONGEST_WHY), ended_at=at)


def ending_of(operations: Sequence[Mapping[str, Any]]) -> tuple[Ending, str, float | None]:
    """Why a machine is gone, in words, and since when, by the operations on it.

    A machine that was preempted is deleted by Google afterwards, so a preemption wins over a deletion.
    """
    told = [op for op in operations if op.get("operationType") in _ENDINGS]
    ranked = sorted(told, key=lambda op: (op["operationType"] == "delete", str(op.get("insertTime"))))
    if not ranked:
        return Ending.UNKNOWN, "", None
    first = ranked[0]
    words = first.get("statusMessage") or f"{first['operationType']} by {first.get('user') or 'Google'}"
    return _ENDINGS[first["operationType"]], str(words), when(first.get("endTime") or first.get("insertTime"))


def when(text: object) -> float | None:
    """A time as Google writes it (RFC 3339), in seconds since the epoch."""
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None


def _labels(request: LaunchRequest, made: GcpMachines) -> dict[str, str]:
    labels = {**made.labels, POOL_LABEL: request.pool, BUILD_LABEL: build_of(request, made)}
    if request.standby is not None:
        labels[STANDBY_LABEL] = str(request.standby)
    return labels


def _market(machine: Mapping[str, Any]) -> Market:
    plan = machine.get("scheduling") or {}
    spot = plan.get("provisioningModel") == "SPOT" or plan.get("preemptible") is True
    return Market.SPOT if spot else Market.ON_DEMAND


def _state(status: str, market: Market) -> InstanceState:
    """A spot machine is never stopped by us: one that stops was taken and goes."""
    state = _STATES.get(status, InstanceState.PENDING)
    if market is Market.SPOT:
        taken = {
            InstanceState.STOPPING: InstanceState.SHUTTING_DOWN,
            InstanceState.STOPPED: InstanceState.TERMINATED,
        }
        return taken.get(state, state)
    return state


def _standby(value: str) -> StandbyKind | None:
    try:
        return StandbyKind(value)
    except ValueError:
        return None


def _last(path: object) -> str:
    return str(path).rpartition("/")[2]
