"""Statistics of spot traces (`spotset/1`) that the synthetic market's defaults come from.

    python bench/trace_statistics.py ../shared/traces                    one column per set, and the mean
    python bench/trace_statistics.py ../shared/traces --synthetic 50     beside it the mean of synthetic sets

Definitions. A zone is in plenty while at least one node can be had, else in drought; a spell is an unbroken
run of either. Spells cut off by the end of the recording count as censored. The hazard of a spell's end at
age t (hours) is fitted as shape / (t + scale) + rate by maximum likelihood; it falls with age, as in every
trace known. Shared losses: of the other zones of the same region (or of other regions) that were in plenty,
the share that falls within ten minutes of a zone's fall. Dips: plenty with fewer nodes than the zone's most.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

from cloud.local.spotset import SpotSet, SpotZone, read_spotset
from cloud.local.synthetic import SyntheticParameters, synthesise

_HOUR = 3600.0
_NEAR = 600.0  # s within which two falls count as shared

Spell = tuple[float, bool]  # hours, ended (False: censored)


def spells(zone: SpotZone, gap: float) -> tuple[list[Spell], list[Spell]]:
    """Plenty and drought spells of a zone. The first and last are censored: their ends were not seen."""
    runs = [(up, len(list(run))) for up, run in groupby(count > 0 for count in zone.data)]
    plenty: list[Spell] = []
    drought: list[Spell] = []
    for number, (up, ticks) in enumerate(runs):
        if number == 0 and len(runs) > 1:
            continue  # its age is unknown
        (plenty if up else drought).append((ticks * gap / _HOUR, number < len(runs) - 1))
    return plenty, drought


def fit(lengths: Sequence[Spell]) -> tuple[float, float, float]:
    """Shape, scale (h) and rate (1/h) of the hazard shape / (age + scale) + rate, by maximum likelihood."""

    def badness(point: Sequence[float]) -> float:
        shape, scale, rate = (math.exp(value) for value in point)
        total = 0.0
        for hours, ended in lengths:
            total += shape * math.log1p(hours / scale) + rate * hours
            if ended:
                total -= math.log(shape / (hours + scale) + rate)
        # A weak pull to the middle keeps short samples from running off to infinity.
        return total + 0.02 * sum((value - start) ** 2 for value, start in zip(point, _START, strict=True))

    best = list(_START)
    step = 1.0
    while step > 1e-3:
        moved = False
        for axis in range(3):
            for way in (-step, step):
                trial = list(best)
                trial[axis] += way
                if badness(trial) < badness(best) - 1e-9:
                    best, moved = trial, True
        if not moved:
            step /= 2
    shape, scale, rate = (math.exp(value) for value in best)
    return shape, scale, rate


_START = (math.log(0.5), math.log(0.3), math.log(0.02))


def falls(zone: SpotZone) -> list[int]:
    """Ticks at which a zone went from plenty to drought."""
    return [t for t in range(1, len(zone.data)) if zone.data[t] == 0 and zone.data[t - 1] > 0]


def shared(spotset: SpotSet, *, same_region: bool) -> float:
    """Share of the other zones in plenty that fall within ten minutes of a zone's fall; nan without any."""
    near = max(1, round(_NEAR / spotset.gap_seconds))
    asked = fell = 0
    for zone in spotset.zones:
        for other in spotset.zones:
            if other is zone or (other.region == zone.region) is not same_region:
                continue
            others = falls(other)
            for tick in falls(zone):
                if other.data[max(0, tick - near - 1)] > 0:
                    asked += 1
                    fell += any(abs(tick - fall) <= near for fall in others)
    return fell / asked if asked else math.nan


def dips(spotset: SpotSet) -> tuple[float, float, float]:
    """Share of plenty spent in dips; mean depth of a dip as a share of the most; mean length in hours."""
    inside = plenty = 0
    levels: list[float] = []
    lengths: list[float] = []
    for zone in spotset.zones:
        most = max(zone.data)
        plenty += sum(count > 0 for count in zone.data)
        for low, run in groupby(zone.data, key=partial(_dipped, most)):
            counts = list(run)
            if low:
                inside += len(counts)
                levels += [count / most for count in counts]
                lengths.append(len(counts) * spotset.gap_seconds / _HOUR)
    if not levels:
        return 0.0, math.nan, math.nan
    return inside / max(1, plenty), statistics.fmean(levels), statistics.fmean(lengths)


def _dipped(most: int, count: int) -> bool:
    return 0 < count < most


def price_moves(spotset: SpotSet) -> tuple[float, float]:
    """Price changes per zone and day, and their mean size as a share; nan where prices are constant."""
    moves: list[float] = []
    priced = [zone for zone in spotset.zones if len(set(zone.prices)) > 1]
    for zone in priced:
        pairs = zip(zone.prices, zone.prices[1:], strict=False)
        moves += [abs(math.log(later / earlier)) for earlier, later in pairs if later != earlier]
    if not moves:
        return math.nan, math.nan
    days = spotset.ticks * spotset.gap_seconds / 86400 * len(priced)
    return len(moves) / days, statistics.fmean(moves)


def correlation(spotset: SpotSet) -> float:
    """Mean correlation of plenty between zones; zones that never change are left out."""
    series = [[float(count > 0) for count in zone.data] for zone in spotset.zones]
    series = [line for line in series if 0 < sum(line) < len(line)]
    pairs = [statistics.correlation(a, b) for number, a in enumerate(series) for b in series[number + 1 :]]
    return statistics.fmean(pairs) if pairs else math.nan


def summary(spotset: SpotSet) -> dict[str, float]:
    """All statistics of a set, by name."""
    gap = spotset.gap_seconds
    plenty: list[Spell] = []
    drought: list[Spell] = []
    for zone in spotset.zones:
        up, down = spells(zone, gap)
        plenty += up
        drought += down
    available = [sum(count > 0 for count in zone.data) / spotset.ticks for zone in spotset.zones]
    ratios = [
        statistics.fmean(zone.prices or (zone.spot_price,)) / zone.on_demand_price for zone in spotset.zones
    ]
    result = {
        "zones": float(len(spotset.zones)),
        "days": spotset.ticks * gap / 86400,
        "available, mean over zones": statistics.fmean(available),
        "available, least zone": min(available),
        "available, spread (sd)": statistics.pstdev(available),
    }
    for name, group in (("plenty", plenty), ("drought", drought)):
        ended = [hours for hours, over in group if over] or [math.nan]
        shape, scale, rate = fit(group)
        result |= {
            f"{name} spells per zone-day": len(group) / result["zones"] / result["days"],
            f"{name} spell, median h": statistics.median(ended),
            f"{name} spell, mean h": statistics.fmean(ended),
            f"{name} hazard shape": shape,
            f"{name} hazard scale h": scale,
            f"{name} hazard rate 1/h": rate,
        }
    dip_share, dip_level, dip_hours = dips(spotset)
    changes, size = price_moves(spotset)
    return result | {
        "correlation of zones": correlation(spotset),
        "shared loss, same region": shared(spotset, same_region=True),
        "shared loss, other regions": shared(spotset, same_region=False),
        "dip share of plenty": dip_share,
        "dip level": dip_level,
        "dip, mean h": dip_hours,
        "spot / on-demand price": statistics.fmean(ratios),
        "price ratio, spread (sd)": statistics.pstdev(ratios),
        "price changes per zone-day": changes,
        "price change, mean size": size,
    }


def mean(columns: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of every statistic over the sets where it is known."""
    result = {}
    for row in columns[0]:
        known = [column[row] for column in columns if not math.isnan(column[row])]
        result[row] = statistics.fmean(known) if known else math.nan
    return result


def table(columns: dict[str, dict[str, float]]) -> str:
    """A text table: one row per statistic, one column per name."""
    lines = ["| statistic | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in next(iter(columns.values())):
        cells = " | ".join(_cell(column[row]) for column in columns.values())
        lines.append(f"| {row} | {cells} |")
    return "\n".join(lines)


def _cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def main(arguments: Iterable[str] | None = None, show: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, nargs="?", help="a directory that holds sets, or one set")
    parser.add_argument(
        "--synthetic", type=int, metavar="N", help="synthetic sets with seeds 1 to N; 20 without a directory"
    )
    parser.add_argument("--quick", action="store_true", help="two synthetic sets: shows that it runs")
    options = parser.parse_args(None if arguments is None else list(arguments))
    columns: dict[str, dict[str, float]] = {}
    if options.directory is not None:
        here = options.directory
        found = [here] if (here / "set.json").exists() else sorted(p.parent for p in here.glob("*/set.json"))
        if not found:
            parser.error(f"{here}: no set.json in it or in its directories")
        for directory in found:
            columns[directory.name] = summary(read_spotset(directory))
    if len(columns) > 1:
        columns["mean"] = mean(list(columns.values()))
    if options.quick or not (options.synthetic or columns):
        options.synthetic = 2 if options.quick else 20
    if options.synthetic:
        seeds = range(1, options.synthetic + 1)
        made = [summary(synthesise(SyntheticParameters(), seed)) for seed in seeds]
        columns[f"synthetic, {options.synthetic} seeds"] = mean(made)
    show(table(columns))


if __name__ == "__main__":
    main()
