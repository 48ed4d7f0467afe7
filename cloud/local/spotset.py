"""Recorded and synthetic spot markets on disk: the `spotset/1` format, strictly read and written.

A set is a directory with `set.json` (name, gap_seconds, ticks, zones with zone, region, file, spot_price,
on_demand_price) and one JSON file per zone (`data`: nodes obtainable in each tick; optional `prices`: spot
price in USD/h in each tick). Keys beyond these are notes for people and are kept out of the way.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FORMAT = "spotset/1"
_MOST_TICKS = 10_000_000


class SpotsetError(Exception):
    """A set that cannot be read: which file, what is wrong, what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpotZone:
    """One zone of a set. `data`: nodes obtainable per tick. `prices`: USD/h per tick, empty when constant."""

    zone: str
    region: str
    spot_price: float
    on_demand_price: float
    data: tuple[int, ...]
    prices: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SpotSet:
    """A spot market over `ticks` steps of `gap_seconds`. `notes` are further string keys of set.json."""

    name: str
    gap_seconds: float
    ticks: int
    zones: tuple[SpotZone, ...]
    notes: Mapping[str, str] = field(default_factory=dict)


def read_spotset(directory: Path) -> SpotSet:
    """Read and check a whole set. Raises SpotsetError."""
    manifest_path = directory / "set.json"
    if not directory.is_dir():
        raise SpotsetError(f"{directory}: no such directory; give the directory that holds set.json")
    manifest = _object(manifest_path)
    found = manifest.get("format", FORMAT)
    if found != FORMAT:
        raise SpotsetError(f"{manifest_path}: format: is {found!r}, this reader knows {FORMAT!r}; convert it")
    gap = _number(manifest_path, manifest, "gap_seconds", above=0.0)
    ticks = _whole(manifest_path, manifest, "ticks", at_least=1)
    entries = manifest.get("zones")
    if not isinstance(entries, list) or not entries:
        raise SpotsetError(f"{manifest_path}: zones: must be a list with at least one zone")
    zones = tuple(
        _zone(directory, manifest_path, number, entry, ticks) for number, entry in enumerate(entries)
    )
    names = [zone.zone for zone in zones]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise SpotsetError(f"{manifest_path}: zones: {', '.join(repeated)} listed twice; keep one")
    return SpotSet(
        name=_text(manifest_path, manifest, "name"),
        gap_seconds=gap,
        ticks=ticks,
        zones=zones,
        notes={
            key: value
            for key, value in manifest.items()
            if isinstance(value, str) and key not in ("format", "name")
        },
    )


def write_spotset(spotset: SpotSet, directory: Path) -> None:
    """Write a set so that `read_spotset` gives an equal one. Creates the directory; overwrites its files."""
    directory.mkdir(parents=True, exist_ok=True)
    entries = []
    for zone in spotset.zones:
        file = f"{zone.zone}.json"
        entries.append(
            {
                "zone": zone.zone,
                "region": zone.region,
                "file": file,
                "spot_price": zone.spot_price,
                "on_demand_price": zone.on_demand_price,
            }
        )
        body: dict[str, Any] = {"data": zone.data}
        if zone.prices:
            body["prices"] = zone.prices
        (directory / file).write_text(json.dumps(body, separators=(",", ":")) + "\n", encoding="utf-8")
    manifest = {
        "format": FORMAT,
        "name": spotset.name,
        "gap_seconds": spotset.gap_seconds,
        "ticks": spotset.ticks,
        **spotset.notes,
        "zones": entries,
    }
    # set.json last: a directory without it is not yet a set.
    (directory / "set.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def save_spotset(spotset: SpotSet, directory: Path, *, replace: bool = False) -> None:
    """Write a set so that it is there whole or not at all, and read back equal.

    An existing set is only written over with `replace`, and then as a whole. Raises SpotsetError.
    """
    taken = directory.exists() and (not directory.is_dir() or any(directory.iterdir()))
    if taken and not replace:
        raise SpotsetError(f"{directory}: is there already; give another directory, or --force to replace it")
    if taken and not (directory / "set.json").is_file():
        raise SpotsetError(f"{directory}: holds no set.json, so it is no set and is not replaced")
    made = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
        fresh = made / "new"
        write_spotset(spotset, fresh)
        if read_spotset(fresh) != spotset:
            raise SpotsetError(f"{directory}: the set does not read back as it was written; nothing is kept")
        if taken:
            os.rename(directory, made / "old")
        try:
            os.rename(fresh, directory)
        except OSError:
            if taken:
                os.rename(made / "old", directory)
            raise
    except OSError as error:
        raise SpotsetError(f"{directory}: cannot be written: {error.strerror}") from None
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)


def _zone(directory: Path, manifest_path: Path, number: int, entry: object, ticks: int) -> SpotZone:
    where = f"zones[{number}]"
    if not isinstance(entry, dict):
        raise SpotsetError(f"{manifest_path}: {where}: must be an object with zone, region, file and prices")
    file = _text(manifest_path, entry, "file", where)
    if Path(file).name != file:
        raise SpotsetError(f"{manifest_path}: {where}.file: {file!r} must be a name inside the directory")
    path = directory / file
    body = _object(path)
    data = body.get("data")
    if not isinstance(data, list):
        raise SpotsetError(f"{path}: data: must be a list of whole numbers, one per tick")
    if len(data) != ticks:
        raise SpotsetError(f"{path}: data: has {len(data)} ticks, set.json says {ticks}; make them equal")
    for tick, count in enumerate(data):
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise SpotsetError(f"{path}: data[{tick}]: {count!r} must be a whole number, 0 or more")
    return SpotZone(
        zone=_text(manifest_path, entry, "zone", where),
        region=_text(manifest_path, entry, "region", where),
        spot_price=_number(manifest_path, entry, "spot_price", where, above=0.0),
        on_demand_price=_number(manifest_path, entry, "on_demand_price", where, above=0.0),
        data=tuple(data),
        prices=_prices(path, body.get("prices"), ticks),
    )


def _prices(path: Path, prices: object, ticks: int) -> tuple[float, ...]:
    if prices is None:
        return ()
    if not isinstance(prices, list) or len(prices) != ticks:
        count = len(prices) if isinstance(prices, list) else "no list"
        raise SpotsetError(
            f"{path}: prices: has {count} ticks, set.json says {ticks}; make them equal or omit"
        )
    for tick, price in enumerate(prices):
        if not _is_number(price) or price <= 0:
            raise SpotsetError(f"{path}: prices[{tick}]: {price!r} must be a number above 0 (USD per hour)")
    return tuple(float(price) for price in prices)


def _object(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpotsetError(f"{path}: no such file; a set needs it") from None
    except OSError as error:
        raise SpotsetError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SpotsetError(f"{path}: not UTF-8 text; is this a compressed file?") from None
    value = parse_json(path, text)
    if not isinstance(value, dict):
        raise SpotsetError(f"{path}: must hold one JSON object")
    return value


def parse_json(path: Path, text: str, *, at: int = 0) -> Any:
    """The value in the text of a file, of which it may be line `at` alone. Raises SpotsetError."""
    line = at
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line, why = at or error.lineno, error.msg
    except RecursionError:
        why = "it is nested too deeply"
    except ValueError:
        why = "a number has too many digits"
    place = f"{path}:{line}" if line else str(path)
    raise SpotsetError(f"{place}: not JSON: {why}; correct it or download it again") from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text(path: Path, holder: Mapping[str, Any], key: str, where: str = "") -> str:
    value = holder.get(key)
    if not isinstance(value, str) or not value:
        raise SpotsetError(f"{path}: {_key(where, key)}: must be a text that is not empty, is {value!r}")
    return value


def _number(path: Path, holder: Mapping[str, Any], key: str, where: str = "", *, above: float) -> float:
    value = holder.get(key)
    if not _is_number(value) or not isinstance(value, int | float) or value <= above:
        raise SpotsetError(f"{path}: {_key(where, key)}: must be a number above {above:g}, is {value!r}")
    return float(value)


def _whole(path: Path, holder: Mapping[str, Any], key: str, *, at_least: int) -> int:
    value = holder.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not at_least <= value <= _MOST_TICKS:
        raise SpotsetError(f"{path}: {key}: must be a whole number from {at_least} up, is {value!r}")
    return value


def _key(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
