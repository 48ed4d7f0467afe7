"""The markets of `orchestrator simulate`: sets on disk or the synthetic market, cut to what is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

from cloud.local.spotset import SpotSet, SpotsetError, SpotZone, read_spotset
from cloud.local.synthetic import SyntheticParameters, synthesise
from orchestrator.backtest.scenario import Scenario, ScenarioError, cut
from orchestrator.backtest.score import WARM_UP
from orchestrator.views.simulate import SetView, SetZoneView

DAY = 86400.0


class MarketError(Exception):
    """A market that cannot be had: what, where, what to do."""


class NoZone(MarketError):
    """A set has none of the zones that are asked for."""


def read_sets(directory: Path) -> list[tuple[Path, SpotSet]]:
    """The set in a directory, or all sets in the directories in it, by name. Raises MarketError."""
    if not directory.is_dir():
        raise MarketError(
            f"{directory}: no such directory; give one that holds set.json, or several such ones"
        )
    if (directory / "set.json").is_file():
        places = [directory]
    else:
        places = sorted(found for found in directory.iterdir() if (found / "set.json").is_file())
    if not places:
        raise MarketError(
            f"{directory}: holds no set.json, and no directory with one; make one with "
            f"`orchestrator trace convert` or `orchestrator trace synthesise`"
        )
    try:
        return [(place, read_spotset(place)) for place in places]
    except SpotsetError as error:
        raise MarketError(str(error)) from None


def synthetic(seed: int, days: float | None) -> SpotSet:
    """The market that is played when no recording is given."""
    parameters = SyntheticParameters() if days is None else SyntheticParameters(days=days)
    return synthesise(parameters, seed)


def scenario_of(
    spotset: SpotSet, *, replicas: int, zones: Sequence[str], days: float | None, skip_days: float
) -> Scenario:
    """The part of a set that is played. Raises MarketError."""
    ticks = spotset.ticks
    first = min(ticks, round(skip_days * DAY / spotset.gap_seconds))
    last = ticks if days is None else min(ticks, first + round(days * DAY / spotset.gap_seconds))
    seconds = (last - first) * spotset.gap_seconds
    if seconds <= WARM_UP:
        raise MarketError(
            f"set {spotset.name!r}: {seconds / 3600:.1f} h would be played of its "
            f"{ticks * spotset.gap_seconds / DAY:.1f} days; the first {WARM_UP / 3600:g} h are not measured, "
            f"so play more"
        )
    try:
        # Half a tick more, so that the share falls on the tick that is meant.
        begin, end = (first + 0.5) / ticks if first else 0.0, min(1.0, (last + 0.5) / ticks)
        return cut(spotset, replicas=replicas, zones=zones, begin=begin, end=end)
    except ScenarioError as error:
        raise NoZone(str(error)) from None


def begin_of(spotset: SpotSet, skip_days: float) -> str | None:
    """The date at which what is played begins, ISO 8601; None where the set does not say."""
    try:
        began = datetime.fromisoformat(spotset.notes.get("start_time", ""))
    except ValueError:
        return None
    return (began + timedelta(days=skip_days)).isoformat()


def description(spotset: SpotSet) -> SetView:
    """What is in a set, in numbers."""
    return {
        "name": spotset.name,
        "days": spotset.ticks * spotset.gap_seconds / DAY,
        "gap_seconds": spotset.gap_seconds,
        "ticks": spotset.ticks,
        "start_time": spotset.notes.get("start_time"),
        "instance_type": spotset.notes.get("instance"),
        "notes": [f"{key}: {value}" for key, value in sorted(spotset.notes.items())],
        "zones": [_zone(zone, spotset) for zone in spotset.zones],
    }


def _zone(zone: SpotZone, spotset: SpotSet) -> SetZoneView:
    days = spotset.ticks * spotset.gap_seconds / DAY
    falls = [(before, after) for before, after in pairwise(zone.data) if after < before]
    prices = zone.prices or (zone.spot_price,)
    return {
        "zone": zone.zone,
        "region": zone.region,
        "available_share": sum(count > 0 for count in zone.data) / len(zone.data),
        "mean_nodes": sum(zone.data) / len(zone.data),
        "most_nodes": max(zone.data),
        "losses_per_day": sum(after == 0 for _, after in falls) / days,
        "dips_per_day": sum(after > 0 for _, after in falls) / days,
        "spot_price": sum(prices) / len(prices),
        "lowest_spot_price": min(prices),
        "highest_spot_price": max(prices),
        "on_demand_price": zone.on_demand_price,
    }
