"""What keeps a pool from running through SkyPilot, and what is doubtful."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from cloud.skypilot.clouds import CLOUDS, NOT_OFFERED
from orchestrator.config.errors import Found, Key
from orchestrator.config.tables.file import ConfigFile
from orchestrator.config.tables.pool import PoolConfig
from orchestrator.config.tables.skypilot import SkyPilotTable
from orchestrator.units import shown

_USER_ID: Final = re.compile(r"[a-z0-9]{4,16}")
_GROUP: Final = re.compile(r"sg-[0-9a-f]{3,17}")
_IMAGE: Final = re.compile(r"ami-[0-9a-f]{3,17}")


def sky_errors(at: Key, pool: PoolConfig) -> Iterator[Found]:
    """What keeps a pool from running."""
    table, at = pool.cloud.skypilot, (*at, "cloud", "skypilot")
    if table.cloud not in CLOUDS:
        why = NOT_OFFERED.get(table.cloud, "")
        known = ", ".join(CLOUDS)
        text = f"{shown(table.cloud)} is not launched on: {why}" if why else f"write one of {known}"
        yield (*at, "cloud"), "is missing; " + text if not table.cloud else text
        return
    if not CLOUDS[table.cloud].ran and not pool.accept_unproven:
        yield (
            (*at, "cloud"),
            f"{table.cloud} through SkyPilot is proved by *source only*: nobody has run it; write "
            "accept_unproven = true in the pool where that is meant",
        )
    if not table.instance_types:
        yield (*at, "instance_types"), 'is missing; write instance_types = ["g6.xlarge"]'
    for name in sorted(pool.units.keys() - set(table.instance_types)) if table.instance_types else ():
        yield (
            (*at[:-2], "units", name),
            f"{shown(name)} is not one of cloud.skypilot.instance_types; correct the name or add the type",
        )
    if not table.regions:
        yield (*at, "regions"), f"is missing; write a table [{'.'.join(map(str, at))}.regions.NAME]"
    if table.user_id and not _USER_ID.fullmatch(table.user_id):
        yield (*at, "user_id"), f"{shown(table.user_id)} is none; write 4 to 16 of a-z and 0-9"
    if not table.private and not table.public_ip:
        yield (*at, "private"), "is false, and machines without public_ip have no other address; write true"
    if table.cloud != "aws":
        for key in ("instance_profile", "tags", "endpoint"):
            if getattr(table, key):
                yield (*at, key), f"is for aws only; leave it out on {table.cloud}"
    for name in table.regions:
        yield from _region_errors((*at, "regions", name), name, table)
    if len({region.network for region in table.regions.values()}) > 1 and table.cloud in ("gcp", "nebius"):
        yield (
            (*at, "regions"),
            f"SkyPilot takes one network for all regions of {table.cloud}; name the same in each",
        )


def _region_errors(at: Key, name: str, table: SkyPilotTable) -> Iterator[Found]:
    region, row = table.regions[name], CLOUDS[table.cloud]
    if row.zones and not region.zones:
        yield (*at, "zones"), "is missing; name the zones that may be used"
    if not row.zones and region.zones:
        yield (*at, "zones"), f"{table.cloud} has no zones; leave it out"
    if row.network and not region.network:
        yield (*at, "network"), f"is missing; name {row.network}, or SkyPilot would open ports to the world"
    if table.cloud == "aws":
        if region.network and not _GROUP.fullmatch(region.network):
            yield (*at, "network"), f"{shown(region.network)} is not the id of a security group (sg-...)"
        if region.image and not _IMAGE.fullmatch(region.image):
            yield (*at, "image"), f"{shown(region.image)} is not the id of an image (ami-...)"
        for zone in region.zones:
            if not zone.startswith(name):
                yield (*at, "zones"), f"{shown(zone)} is not a zone of {name}; write it in its own region"


def sky_warnings(at: Key, pool: PoolConfig) -> Iterator[Found]:
    """What is doubtful."""
    table, at = pool.cloud.skypilot, (*at, "cloud", "skypilot")
    if not table.python.exists():
        yield (
            (*at, "python"),
            f"{table.python} is not there; make the environment with tools/skypilot/install.sh",
        )
    for name, region in table.regions.items():
        if not region.image:
            yield (
                (*at, "regions", name, "image"),
                "is not set, and SkyPilot's own image has no engine; name one that has it, or let nodes run "
                'it in a container (engine.run = "container")',
            )


def sky_among(parsed: ConfigFile) -> Iterator[Found]:
    """One helper serves all pools with its home; they say the same of what belongs to it."""
    seen: dict[object, tuple[str, dict[str, object]]] = {}
    for name, pool in parsed.pool.items():
        if "skypilot" not in pool.cloud.kinds:
            continue
        table = pool.cloud.skypilot
        own: dict[str, object] = {
            "python": table.python,
            "user_id": table.user_of(name),
            "cloud": table.cloud,
            "regions": {key: region.network for key, region in table.regions.items()},
            "public_ip": table.public_ip,
            "credentials": table.credentials,
            "endpoint": table.endpoint,
        }
        first, other = seen.setdefault(table.home, (name, own))
        for key, value in own.items():
            if other[key] != value:
                yield (
                    ("pool", name, "cloud", "skypilot", key),
                    f"differs from pool {first}, which has the same helper; write the same, or another home",
                )
