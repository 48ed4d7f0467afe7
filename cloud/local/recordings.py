"""Spot markets that others recorded, read from their public formats into a `spotset/1` set.

Two formats are known. Both leave something open that a replay needs; what was assumed is written into the
notes of the set, in words.

`skypilot`: the JSON of skypilot-org/spot-traces, one file per zone, named ZONE_INSTANCE.json:
`{"metadata": {"gap_seconds": 300}, "data": [4, 4, 3, ...]}`, where `data` is the number of nodes obtainable
at each tick. It holds no prices unless `metadata` names `on_demand_price` and `spot_price`, or `prices` gives
the spot price of each tick.

`aws-price-history`: what `aws ec2 describe-spot-price-history` prints, as JSON, as one JSON object a line,
or as CSV with the same names in its header. It says what a node cost, and nothing about whether one could be
had: since AWS smooths its prices, capacity runs out at any price. So capacity is assumed here.
"""

from __future__ import annotations

import csv
import io
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from cloud.local.spotset import SpotSet, SpotsetError, SpotZone, parse_json
from cloud.local.synthetic import SyntheticParameters, synthesise

SPOT_RATIO = 0.30
"""Spot price as a share of the on-demand price where a recording says neither."""

_ZONE = re.compile(r"^([a-z][a-z0-9-]*?\d)-?[a-z]$")  # us-west-2a, us-central1-c
_MOST_TICKS = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """What the recording does not say. Prices are USD/h."""

    name: str  # of the set
    on_demand_price: float | None = None  # None: as recorded
    spot_price: float | None = None  # None: as recorded
    nodes: int | None = None
    """`skypilot`: what a count of 1 stands for; `aws-price-history`: the nodes obtainable in each zone."""
    gap: float = 300.0  # s between two ticks made from a price history
    capacity: Literal["price", "synthetic"] = "price"
    """"price": `nodes` while the price is at most `max_price`, none above; "synthetic": losses of the
    synthetic market of `seed`."""
    max_price: float | None = None  # None: the on-demand price
    seed: int = 1
    instance: str | None = None  # chooses among the rows of a price history, like `product`
    product: str | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    """One change of a price."""

    at: float
    zone: str
    instance: str
    product: str
    price: float


def from_skypilot(files: Sequence[Path], assumed: Assumed) -> SpotSet:
    """A set from files of skypilot-org/spot-traces, one per zone. Raises SpotsetError."""
    read = [(file, _skypilot_file(file)) for file in files]
    gaps = {gap for _, (_, _, gap, _, _) in read}
    if len(gaps) > 1:
        shown = ", ".join(f"{file.name} {gap:g} s" for file, (_, _, gap, _, _) in read)
        raise SpotsetError(f"{files[0].parent}: the files tick differently ({shown}); convert them apart")
    _once([zone for _, (zone, _, _, _, _) in read], files[0].parent, "convert one instance type at a time")
    lengths = [len(data) for _, (_, _, _, data, _) in read]
    ticks, nodes = min(lengths), assumed.nodes or 1
    zones = tuple(
        _skypilot_zone(file, zone, data[:ticks], body, assumed) for file, (zone, _, _, data, body) in read
    )
    notes = {
        "kind": "availability",
        "instance": assumed.instance or "_".join(sorted({kind for _, (_, kind, _, _, _) in read if kind})),
        "source": "skypilot-org/spot-traces format: " + ", ".join(file.name for file in files),
    }
    if nodes != 1:
        notes["capacity"] = f"every recorded count is taken times {nodes}"
    if max(lengths) > ticks:
        notes["length"] = f"cut to the shortest zone; the longest has {max(lengths)} ticks"
    if not all("spot_price" in _metadata(body) or "prices" in body for _, (*_, body) in read):
        told = "given" if assumed.spot_price else f"assumed at {SPOT_RATIO:.0%} of on-demand"
        notes["prices"] = f"not in the recording: spot {told}"
    starts = {str(start) for _, (*_, body) in read if (start := _metadata(body).get("start_time"))}
    if len(starts) == 1:
        notes["start_time"] = starts.pop()
    return SpotSet(name=assumed.name, gap_seconds=gaps.pop(), ticks=ticks, zones=zones, notes=notes)


def from_price_history(files: Sequence[Path], assumed: Assumed) -> SpotSet:
    """A set from AWS spot price history; capacity is assumed. Raises SpotsetError."""
    where = ", ".join(str(file) for file in files)
    rows = _chosen([row for file in files for row in _price_rows(file)], assumed, where)
    if assumed.on_demand_price is None:
        raise SpotsetError(f"{where}: a price history has no on-demand price; give --on-demand-price")
    by_zone: dict[str, dict[float, float]] = {}
    for row in rows:
        by_zone.setdefault(row.zone, {})[row.at] = row.price
    begin = max(min(changes) for changes in by_zone.values())
    end = max(max(changes) for changes in by_zone.values())
    ticks = int((end - begin) / assumed.gap)
    if ticks < 1:
        raise SpotsetError(
            f"{where}: less than one tick of {assumed.gap:g} s in which every zone has a price; "
            f"give a longer history (--start-time of the aws command) or a shorter --gap"
        )
    if ticks > _MOST_TICKS:
        raise SpotsetError(f"{where}: {ticks} ticks are too many; give a longer --gap")
    ceiling = assumed.on_demand_price if assumed.max_price is None else assumed.max_price
    nodes = 16 if assumed.nodes is None else assumed.nodes
    zones = tuple(
        _priced_zone(zone, changes, begin, ticks, assumed, ceiling=ceiling, nodes=nodes, where=where)
        for zone, changes in sorted(by_zone.items())
    )
    told = f"the history says none: {nodes} nodes while the price is at most {ceiling:g} USD/h, else none"
    if assumed.capacity == "synthetic":
        zones = _synthetic_capacity(zones, ticks, assumed, nodes)
        told = f"the history says none: losses of the synthetic market of seed {assumed.seed}, {nodes} nodes"
    return SpotSet(
        name=assumed.name,
        gap_seconds=assumed.gap,
        ticks=ticks,
        zones=zones,
        notes={
            "kind": "prices",
            "provider": "aws",
            "instance": rows[0].instance,
            "product": rows[0].product,
            "start_time": datetime.fromtimestamp(begin, tz=UTC).isoformat(),
            "source": "aws ec2 describe-spot-price-history: " + ", ".join(file.name for file in files),
            "capacity": told,
        },
    )


# -- skypilot --------------------------------------------------------------------------------------


def _skypilot_file(file: Path) -> tuple[str, str, float, list[int], dict[str, Any]]:
    """Zone, instance, gap, counts and the whole object of one file."""
    body = parse_json(file, _text(file))
    if not isinstance(body, dict):
        raise SpotsetError(f"{file}: must hold one JSON object with metadata and data")
    stem, _, kind = file.name.removesuffix(".json").partition("_")
    metadata = _metadata(body)
    zone = metadata.get("zone", stem)
    gap = metadata.get("gap_seconds")
    if isinstance(gap, bool) or not isinstance(gap, int | float) or not 0 < gap < 1e7:
        raise SpotsetError(f"{file}: metadata.gap_seconds: must be a number of seconds, is {gap!r}")
    data = body.get("data")
    if not isinstance(data, list) or not data:
        raise SpotsetError(f"{file}: data: must be a list of node counts, one per tick")
    for tick, count in enumerate(data):
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise SpotsetError(f"{file}: data[{tick}]: {count!r} must be a whole number, 0 or more")
    return _zone_name(str(zone), file), kind, float(gap), data, body


def _skypilot_zone(
    file: Path, zone: str, data: list[int], body: dict[str, Any], assumed: Assumed
) -> SpotZone:
    metadata = _metadata(body)
    on_demand = assumed.on_demand_price or _price(file, metadata, "on_demand_price")
    if on_demand is None:
        raise SpotsetError(f"{file}: the recording has no on-demand price; give --on-demand-price in USD/h")
    spot = assumed.spot_price or _price(file, metadata, "spot_price") or round(on_demand * SPOT_RATIO, 4)
    prices = body.get("prices")
    if prices is not None:
        if not isinstance(prices, list) or len(prices) < len(data):
            raise SpotsetError(f"{file}: prices: must be a list as long as data")
        prices = [_number(file, f"prices[{tick}]", price) for tick, price in enumerate(prices[: len(data)])]
    return SpotZone(
        zone=zone,
        region=region_of(zone),
        spot_price=spot,
        on_demand_price=on_demand,
        data=tuple(count * (assumed.nodes or 1) for count in data),
        prices=tuple(prices or ()),
    )


def _metadata(body: Mapping[str, Any]) -> dict[str, Any]:
    found = body.get("metadata")
    return found if isinstance(found, dict) else {}


def _price(file: Path, metadata: Mapping[str, Any], key: str) -> float | None:
    value = metadata.get(key)
    return None if value is None else _number(file, f"metadata.{key}", value)


# -- price history ---------------------------------------------------------------------------------


def _price_rows(file: Path) -> Iterator[_Row]:
    text = _text(file)
    records = list(_records(file, text))
    if not records:
        raise SpotsetError(f"{file}: holds no price; give what describe-spot-price-history printed")
    for number, record in enumerate(records):
        where = f"record {number}"
        missing = [k for k in ("Timestamp", "AvailabilityZone", "InstanceType") if not record.get(k)]
        if missing or record.get("SpotPrice") in (None, ""):
            names = ", ".join([*missing] or ["SpotPrice"])
            raise SpotsetError(
                f"{file}: {where}: has no {names}; give what describe-spot-price-history printed"
            )
        yield _Row(
            at=_instant(file, where, record["Timestamp"]),
            zone=_zone_name(str(record["AvailabilityZone"]), file),
            instance=str(record["InstanceType"]),
            product=str(record.get("ProductDescription") or ""),
            price=_number(file, f"{where}: SpotPrice", record["SpotPrice"]),
        )


def _records(file: Path, text: str) -> Iterator[dict[str, Any]]:
    """Records of a JSON document, of JSON lines, or of CSV with a header."""
    if not text.lstrip().startswith(("{", "[")):
        yield from csv.DictReader(io.StringIO(text))
        return
    try:
        documents = [parse_json(file, text)]
    except SpotsetError:
        documents = [
            parse_json(file, line, at=number)
            for number, line in enumerate(text.splitlines(), 1)
            if line.strip()
        ]
    for document in documents:
        pages = document if isinstance(document, list) else [document]
        for page in pages:
            found = page.get("SpotPriceHistory", page) if isinstance(page, dict) else None
            for record in found if isinstance(found, list) else [found]:
                if not isinstance(record, dict):
                    raise SpotsetError(f"{file}: {record!r} is no price; expected objects with SpotPrice")
                yield record


def _chosen(rows: list[_Row], assumed: Assumed, where: str) -> list[_Row]:
    """The rows of one instance type and one product."""
    for field, option in (("instance", "--instance"), ("product", "--product")):
        wanted, known = getattr(assumed, field), sorted({getattr(row, field) for row in rows})
        if wanted is None and len(known) > 1:
            raise SpotsetError(f"{where}: holds several: {', '.join(known)}; choose one with {option}")
        if wanted is not None:
            rows = [row for row in rows if getattr(row, field) == wanted]
            if not rows:
                raise SpotsetError(f"{where}: has no {wanted}, only {', '.join(known)}; fix {option}")
    return rows


def _priced_zone(
    zone: str,
    changes: Mapping[float, float],
    begin: float,
    ticks: int,
    assumed: Assumed,
    *,
    ceiling: float,
    nodes: int,
    where: str,
) -> SpotZone:
    times = sorted(changes)
    prices = []
    for tick in range(ticks):
        prices.append(changes[times[bisect_right(times, begin + tick * assumed.gap) - 1]])
    if assumed.on_demand_price is None:
        raise SpotsetError(f"{where}: give --on-demand-price")
    return SpotZone(
        zone=zone,
        region=region_of(zone),
        spot_price=round(sum(prices) / len(prices), 6),
        on_demand_price=assumed.on_demand_price,
        data=tuple(nodes if price <= ceiling else 0 for price in prices),
        prices=tuple(prices),
    )


def _synthetic_capacity(
    zones: tuple[SpotZone, ...], ticks: int, assumed: Assumed, nodes: int
) -> tuple[SpotZone, ...]:
    """The same zones with the capacity of a synthetic market: a region of it for each recorded region."""
    regions = sorted({zone.region for zone in zones})
    members = {region: [zone for zone in zones if zone.region == region] for region in regions}
    market = synthesise(
        SyntheticParameters(
            regions=len(regions),
            zones_per_region=max(len(found) for found in members.values()),
            days=ticks * assumed.gap / 86400.0,
            gap_seconds=assumed.gap,
            most=nodes,
        ),
        assumed.seed,
    )
    made = {
        region: [z for z in market.zones if z.region == f"syn-{i}"] for i, region in enumerate(regions, 1)
    }
    return tuple(
        replace(zone, data=made[region][place].data[:ticks])
        for region in regions
        for place, zone in enumerate(members[region])
    )


# -- both ------------------------------------------------------------------------------------------


def region_of(zone: str) -> str:
    """The region of a zone by its name: us-west-2a is in us-west-2, us-central1-c in us-central1."""
    found = _ZONE.match(zone)
    return found.group(1) if found else zone


def _zone_name(zone: str, file: Path) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", zone):
        raise SpotsetError(
            f"{file}: {zone!r} is no name of a zone; files are named ZONE_INSTANCE.json, "
            f"as us-west-2a_v100_1.json"
        )
    return zone


def _once(names: Sequence[str], where: Path, advice: str) -> None:
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise SpotsetError(f"{where}: {', '.join(repeated)} given twice; {advice}")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SpotsetError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SpotsetError(f"{file}: not UTF-8 text; is this a compressed file?") from None


def _number(file: Path, where: str, value: object) -> float:
    try:
        number = float(value) if isinstance(value, str | int | float) else 0.0
    except ValueError:
        number = 0.0
    if isinstance(value, bool) or not 0 < number < 1e6:
        raise SpotsetError(f"{file}: {where}: must be a price above 0 (USD per hour), is {value!r}")
    return number


def _instant(file: Path, where: str, value: object) -> float:
    try:
        found = datetime.fromisoformat(str(value))
    except ValueError:
        raise SpotsetError(f"{file}: {where}: Timestamp: {value!r} is no ISO 8601 time") from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
