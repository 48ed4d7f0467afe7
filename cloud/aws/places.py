"""Where a pool may launch on AWS, and with which launch template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PROVIDER = "aws"

POOL_TAG = "orchestrator:pool"
TOKEN_TAG = "orchestrator:token"  # noqa: S105 - the name of a tag
STANDBY_TAG = "orchestrator:standby"
ENGINE_TAG = "orchestrator:engine"
GENERATION_TAG = "orchestrator:generation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Capacity that is held for the account: an on-demand capacity reservation or, by `block`, a Capacity
    Block. `price`: what the user counts for an hour of one machine in it, in USD."""

    id: str
    zone: str
    instance_type: str
    price: float
    block: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AwsRegion:
    """One region of a pool. Raises ValueError with what is wrong and what to write."""

    region: str
    subnets: Mapping[str, str]  # by zone: the one subnet that launches there use
    instance_types: tuple[str, ...]
    template: str
    template_version: str
    """A number: with "$Latest" one idempotency token could mean two different launches."""
    image: str = ""  # overrides the template's AMI
    engine_port: int = 8000
    on_demand_prices: Mapping[str, float] = field(default_factory=dict)
    """The user's own USD/h per instance type; they win over the price list."""
    tags: Mapping[str, str] = field(default_factory=dict)  # the user's own, on what a launch makes
    reservations: tuple[Reservation, ...] = ()

    def __post_init__(self) -> None:
        if not self.subnets:
            raise ValueError(f"{self.region}: no subnet is given; name one for each zone")
        if not self.instance_types:
            raise ValueError(f"{self.region}: no instance type is given")
        if not self.template_version.isdigit():
            raise ValueError(
                f"{self.region}: the launch template's version is {self.template_version!r}; pin a number, "
                "since the same launch asked for twice must mean the same"
            )
        foreign = [zone for zone in self.subnets if not zone.startswith(self.region)]
        if foreign:
            raise ValueError(f"{self.region}: the zone {foreign[0]} is not in this region")
