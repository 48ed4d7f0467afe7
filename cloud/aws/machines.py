"""One launch as RunInstances takes it, and one machine as DescribeInstances tells it. Pure.

Source of the formats: the EC2 API reference (RunInstances, Instance, InstanceState, StateReason) and user
guide ("Troubleshoot instance launch issues"; "Launch EC2 instances using a launch template": the tags
aws:ec2launchtemplate:id and :version).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any

from cloud.aws.places import ENGINE_TAG, POOL_TAG, PROVIDER, STANDBY_TAG, TOKEN_TAG, AwsRegion
from cloud.aws.tags import listed
from cloud.errors import Misconfigured
from cloud.ports import VOUCHED, LaunchRequest, digest
from policies.model import Ending, Instance, InstanceState, Market, Placement, StandbyKind
from policies.plain_text import one_line

_LONGEST_TOKEN = 64
_LONGEST_WHY = 300
_AT = re.compile(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?:GMT|UTC)\)$")
_ENDED = (InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED)

ENDINGS: Mapping[str, Ending] = MappingProxyType(
    {
        "Server.SpotInstanceTermination": Ending.RECLAIM,
        "Server.SpotInstanceShutdown": Ending.RECLAIM,
        "Server.InsufficientInstanceCapacity": Ending.CAPACITY,
        "Server.InternalError": Ending.FAULT,
        "Client.UserInitiatedShutdown": Ending.REQUEST,
        "Client.UserInitiatedHibernate": Ending.REQUEST,
    }
)
"""What the code of a StateReason says of an end. Every other code of the client's is a fault, such as
Client.InternalError (a key that may not be used), Client.VolumeLimitExceeded, Client.InvalidSnapshot.NotFound
and Client.InstanceInitiatedShutdown; another code of the server's says nothing."""


def launch_parameters(request: LaunchRequest, place: AwsRegion, subnet: str) -> dict[str, Any]:
    """The parameters of RunInstances. A function of the request and the configuration only: the same
    request must give the same parameters, or EC2 refuses the token.

    Raises Misconfigured for a token that EC2 would not take.
    """
    token = request.token
    if not token.isascii() or not 0 < len(token) <= _LONGEST_TOKEN:
        raise Misconfigured(f"token {token!r}: EC2 takes 1 to {_LONGEST_TOKEN} ASCII characters")
    parameters: dict[str, Any] = {
        "ClientToken": token,
        "MinCount": 1,
        "MaxCount": 1,
        "InstanceType": request.placement.instance_type,
        "SubnetId": subnet,
        "LaunchTemplate": template_of(place),
        "MetadataOptions": {
            "HttpEndpoint": "enabled",
            "HttpTokens": "required",  # IMDSv2 only: a forged request header cannot read the role's keys
            "HttpPutResponseHopLimit": 1,
        },
        "TagSpecifications": _tags(request, place),
    }
    if place.image:
        parameters["ImageId"] = place.image
    if request.placement.reservation:
        parameters |= _reserved(request, place)
    elif request.placement.market is Market.SPOT:
        # No MaxPrice: the default is the on-demand price, and a lower one only brings more interruptions.
        parameters["InstanceMarketOptions"] = {
            "MarketType": "spot",
            "SpotOptions": {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"},
        }
    return parameters


def _reserved(request: LaunchRequest, place: AwsRegion) -> dict[str, Any]:
    """Into the reservation alone: where it is full, EC2 refuses instead of launching beside it."""
    named = request.placement.reservation
    known = next((held for held in place.reservations if held.id == named), None)
    if known is None:
        raise Misconfigured(f"{request.placement}: this pool has no reservation {named} in {place.region}")
    target = {"CapacityReservationTarget": {"CapacityReservationId": named}}
    market = {"InstanceMarketOptions": {"MarketType": "capacity-block"}} if known.block else {}
    return {"CapacityReservationSpecification": target, **market}


def _tags(request: LaunchRequest, place: AwsRegion) -> list[dict[str, Any]]:
    """What a launch makes, with its tags. Interfaces and spot requests carry none but for the user's sake:
    nothing of ours looks at them."""
    tags = {**place.tags, "Name": request.pool, POOL_TAG: request.pool, TOKEN_TAG: request.token}
    if request.command.build:
        tags[ENGINE_TAG] = request.command.build
    if request.standby is not None:
        tags[STANDBY_TAG] = str(request.standby)
    made = ["instance", "volume"]
    if place.tags:
        made.append("network-interface")
        if request.placement.market is Market.SPOT:  # EC2 refuses the tags of a request that is not made
            made.append("spot-instances-request")
    return [{"ResourceType": kind, "Tags": listed(tags)} for kind in made]


def is_machine(machine: Mapping[str, Any]) -> bool:
    """Whether a description is complete enough to be read: one that just began may lack its state."""
    return "InstanceId" in machine and "State" in machine and "Placement" in machine


def instance_of(machine: Mapping[str, Any], place: AwsRegion) -> Instance:
    """A machine as the model tells it, without its price: EC2 states prices elsewhere."""
    tags = {tag["Key"]: tag["Value"] for tag in machine.get("Tags", ())}
    spot = machine.get("InstanceLifecycle") == "spot"
    host = machine.get("PrivateIpAddress", "")
    state = InstanceState(machine["State"]["Name"])
    ending, why = _ending(machine.get("StateReason") or {}) if state in _ENDED else (Ending.UNKNOWN, "")
    return Instance(
        id=machine["InstanceId"],
        pool=tags.get(POOL_TAG, ""),
        token=tags.get(TOKEN_TAG) or machine.get("ClientToken", ""),
        placement=Placement(
            provider=PROVIDER,
            region=place.region,
            zone=machine["Placement"]["AvailabilityZone"],
            instance_type=machine["InstanceType"],
            market=Market.SPOT if spot else Market.ON_DEMAND,
            reservation=_in_reservation(machine, place),
        ),
        state=state,
        address=f"{host}:{place.engine_port}" if host else "",
        launched_at=machine["LaunchTime"].timestamp(),
        price=None,
        standby=_standby(tags.get(STANDBY_TAG, "")),
        build=_build(machine.get("ImageId", ""), tags),
        ending=ending,
        ending_why=why,
        ended_at=_ended_at(machine.get("StateTransitionReason", "")) if state in _ENDED else None,
    )


def template_of(place: AwsRegion) -> dict[str, str]:
    """The launch template as RunInstances names it, with its version."""
    key = "LaunchTemplateId" if place.template.startswith("lt-") else "LaunchTemplateName"
    return {key: place.template, "Version": place.template_version}


def _in_reservation(machine: Mapping[str, Any], place: AwsRegion) -> str:
    """The configured reservation that a machine is in. One that EC2 chose by itself, as it does for open
    ones, is none of the pool's."""
    named = machine.get("CapacityReservationId")
    return next((held.id for held in place.reservations if held.id == named), "")


def _ending(reason: Mapping[str, str]) -> tuple[Ending, str]:
    """Why a machine ended, and EC2's words for it, by its StateReason: {"Code": ..., "Message": ...}.

    A message begins with its code, or with "-" where EC2 has nothing to add.
    """
    code, message = str(reason.get("Code") or ""), str(reason.get("Message") or "")
    by_default = Ending.FAULT if code.startswith("Client.") else Ending.UNKNOWN
    why = message if code in message else f"{code}: {message}".rstrip("-: ")
    return ENDINGS.get(code, by_default), one_line(why, _LONGEST_WHY)


def _ended_at(reason: str) -> float | None:
    """When a machine that ends was asked to, or was taken: it is not paid for from then on.

    EC2 puts it at the end of StateTransitionReason, as in "User initiated (2026-11-30 08:12:33 GMT)", and
    leaves it out where it has nothing to say.
    """
    found = _AT.search(reason)
    try:
        return None if found is None else datetime.fromisoformat(f"{found[1]}+00:00").timestamp()
    except ValueError:  # no date of any calendar
        return None


def _build(image: str, tags: Mapping[str, str]) -> str:
    """What a machine was launched to run: its image, the version of its launch template, and the engine as
    the configuration had it for its instance type, which the template holds for all types.

    EC2 tags what it launches by a template with its id and version, and nobody can change these tags. Where
    they are missing, what the machine runs is not known, unless the configuration vouched for it.
    """
    if tags.get(ENGINE_TAG, "").startswith(VOUCHED):
        return tags[ENGINE_TAG]
    template, version = tags.get("aws:ec2launchtemplate:id"), tags.get("aws:ec2launchtemplate:version")
    engine = [tags[ENGINE_TAG]] if ENGINE_TAG in tags else []
    return digest(image, template, version, *engine) if image and template and version else ""


def _standby(value: str) -> StandbyKind | None:
    """The standby tag; a word that somebody else wrote there means none."""
    try:
        return StandbyKind(value)
    except ValueError:
        return None
