"""Which sizes a subscription may use where, by Azure's list of resource SKUs. Pure.

Source: REST reference of Microsoft.Compute, Resource SKUs - List.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """One size in one region. `zones`: where it may be launched; `anywhere`: also without naming a zone."""

    zones: frozenset[str]
    anywhere: bool
    spot: bool
    gpus: int = 0

    def sold(self, zone: str) -> bool:
        """Whether it may be launched in a zone, or in the region itself for ""."""
        return zone in self.zones if zone else self.anywhere


def read_skus(rows: Iterable[Mapping[str, Any]], region: str) -> dict[str, Size]:
    """Sizes of machines by name. A size that no row names is not sold in the region."""
    found = {}
    for row in rows:
        if row.get("resourceType") != "virtualMachines":
            continue
        places = [p for p in row.get("locationInfo") or () if str(p.get("location", "")).lower() == region]
        if not places:
            continue
        able = {str(c.get("name")): str(c.get("value")) for c in row.get("capabilities") or ()}
        forbidden, everywhere = _restrictions(row.get("restrictions") or (), region)
        zones = {str(zone) for place in places for zone in place.get("zones") or ()}
        found[str(row.get("name"))] = Size(
            zones=frozenset() if everywhere else frozenset(zones - forbidden),
            anywhere=not everywhere,
            spot=able.get("LowPriorityCapable", "False") == "True",
            gpus=int(able["GPUs"]) if able.get("GPUs", "").isdigit() else 0,
        )
    return found


def _restrictions(rows: Iterable[Mapping[str, Any]], region: str) -> tuple[set[str], bool]:
    """The zones that may not be used, and whether nothing in the region may."""
    zones, everywhere = set[str](), False
    for row in rows:
        about = row.get("restrictionInfo") or {}
        where = [str(place).lower() for place in about.get("locations") or row.get("values") or ()]
        if region not in where:
            continue
        if str(row.get("type")) == "Zone":
            zones |= {str(zone) for zone in about.get("zones") or ()}
        else:
            everywhere = True
    return zones, everywhere
