"""A plan of capacity as text for a terminal."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from rich.console import Group, RenderableType
from rich.text import Text

from orchestrator.render.parts import Look, pack, table_of, text_of
from orchestrator.words import clean, instant, money, percent, plural

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from orchestrator.views.capacity import (
        AlternativeView,
        CapacityPlanView,
        HourView,
        LimitView,
        OutlookView,
        PoolCapacityView,
    )

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_ROOMY: Final = 100  # columns from which names of limits stay whole
_SOURCES: Final = {
    "given": "as given",
    "configured": "as the file says",
    "measured": "the most that an hour showed",
}
_BY: Final = {"present": "it runs", "units": "units", "bandwidth": "estimate"}


def capacity_plan(view: CapacityPlanView, look: Look) -> str:
    """What each pool needs and when, and which limit binds first."""
    blocks = [[*_pool(pool, view["week_from"], look)] for pool in view["pools"]]
    blocks.append([*_limits(view["limits"], look)])
    blocks.append([pack([Text(f"! {clean(note)}", style="yellow")], look.width) for note in view["notes"]])
    parts: list[RenderableType] = []
    for block in filter(None, blocks):
        parts += [Text(), *block] if parts else block
    return text_of(Group(*parts), look)


def _pool(pool: PoolCapacityView, week: float, look: Look) -> Iterator[RenderableType]:
    if pool["why_not"]:
        yield pack([Text(f"{pool['pool']}: no plan: {clean(pool['why_not'])}", style="yellow")], look.width)
        return
    now = pool["outlook"][0]
    head = Text(pool["pool"], style="bold")
    head.append(
        f": {plural(now['units'], 'unit')} at the highest hour of the week from now, "
        f"{_weekday(now['at'])}, for {now['tokens_per_second']:,.0f} tokens/s; replicas is {pool['replicas']}"
    )
    yield pack([head], look.width)
    for line in (_history(pool), _growth(pool), _rate(pool), _spike(pool)):
        if line:
            yield pack([Text(f"  {line}")], look.width)
    yield Text()
    yield Text(f"Units by hour of the week (UTC), in the week from {_date(week)}", style="dim")
    yield _week(pool["week"], wide=look.wide)
    yield Text()
    yield pack([Text(_schedule(pool))], look.width)
    yield Text()
    yield _outlook(pool["outlook"])
    if len(pool["alternatives"]) > 1:
        yield Text()
        yield _alternatives(pool["alternatives"])
    yield from (pack([Text(f"- {clean(note)}", style="dim")], look.width) for note in pool["notes"])


def _history(pool: PoolCapacityView) -> str:
    history = pool["history"]
    if history is None:
        return ""
    return (
        f"history  {history['hours'] / 24:.1f} days, requests in {history['active_hours']:,} of "
        f"{history['hours']:,} hours"
    )


def _growth(pool: PoolCapacityView) -> str:
    growth = pool["growth"]
    if growth is None:
        return ""
    said = f"growth   {_signed(growth['weekly_share'])} a week"
    if growth["source"] == "given":
        return f"{said}, as given"
    if growth["source"] == "unknown":
        return f"{said}, for want of a measured one"
    return (
        f"{said}; {plural(growth['comparisons'], 'comparison')} of days that are weeks apart, eight of ten "
        f"between {_signed(growth['low_share'])} and {_signed(growth['high_share'])}"
    )


def _rate(pool: PoolCapacityView) -> str:
    rate = pool["tokens_per_second"]
    if rate is None:
        return ""
    full = percent(1.0 - pool["headroom_share"])
    size = "" if pool["units_per_node"] == 1 else f"; a node is {plural(pool['units_per_node'], 'unit')}"
    return f"a unit   {rate:,.0f} tokens/s, {_SOURCES[pool['rate_source']]}; planned up to {full} of it{size}"


def _spike(pool: PoolCapacityView) -> str:
    spike = pool["spike"]
    if spike is None:
        return ""
    return (
        f"spike    {_hour(spike['at'])} alone makes the peak, {spike['tokens_per_second']:,.0f} tokens/s; "
        f"without it {spike['without_tokens_per_second']:,.0f}, {plural(spike['without_units'], 'unit')}"
    )


def _week(hours: Sequence[HourView], *, wide: bool) -> RenderableType:
    """A row for each hour of the day; those that are alike are one."""
    table = table_of("HOUR", *_DAYS, right=_DAYS)
    rows = [
        tuple(_cell(hours[day * 24 + hour], wide=wide) for day in range(len(_DAYS))) for hour in range(24)
    ]
    begin = 0
    for hour in range(1, 25):
        if hour == 24 or rows[hour] != rows[begin]:
            table.add_row(f"{begin:02}-{hour:02}", *rows[begin])
            begin = hour
    return table


def _cell(hour: HourView, *, wide: bool) -> str:
    return f"{hour['units']} ({hour['tokens_per_second']:,.0f}/s)" if wide else str(hour["units"])


def _schedule(pool: PoolCapacityView) -> str:
    """The same as two days, with what it saves."""
    days: dict[str, list[str]] = {}
    for each in pool["schedule"]:
        part = f"{each['begin']:02}-{each['end']:02} {each['units']}"
        days.setdefault(each["days"], []).append(part)
    said = "; ".join(f"{name} {', '.join(parts)}" for name, parts in days.items())
    hours, most = pool["schedule_unit_hours"] or 0, max(each["units"] for each in pool["schedule"])
    saved = 1.0 - hours / (most * 168)
    less = f", {percent(saved)} less than {most} throughout" if round(saved, 2) > 0 else ""
    return f"As a schedule: {said}: {hours:,} unit-hours a week{less}"


def _outlook(rows: Sequence[OutlookView]) -> RenderableType:
    table = table_of(
        "HIGHEST HOUR", "", "TOKENS/S", "UNITS", "NODES", "$/H", right={"TOKENS/S", "UNITS", "NODES", "$/H"}
    )
    for row in rows:
        table.add_row(
            f"in {plural(row['weeks'], 'week')}" if row["weeks"] else "this week",
            _hour(row["at"]),
            f"{row['tokens_per_second']:,.0f}",
            f"{row['units']:,}",
            f"{row['nodes']:,}",
            _money(row["usd_per_hour"]),
        )
    return table


def _alternatives(rows: Sequence[AlternativeView]) -> RenderableType:
    table = table_of(
        "AT ITS PEAK ON", "GPUS", "TOKENS/S A NODE", "NODES", "$/H EACH", "$/H", "KNOWN BY",
        right={"TOKENS/S A NODE", "NODES", "$/H EACH", "$/H"}, wrapping={"GPUS"},
    )  # fmt: skip
    for row in rows:
        table.add_row(
            row["instance_type"],
            row["gpus"] or "-",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['nodes']:,}",
            _money(row["usd_per_node_hour"]),
            _money(row["usd_per_hour"]),
            _BY[row["source"]],
        )
    return table


def _limits(rows: Sequence[LimitView], look: Look) -> Iterator[RenderableType]:
    if not rows:
        return
    table = table_of(
        "LIMIT", "ALLOWS", "NEEDS NOW", "TOO LITTLE FROM", "BETWEEN", "COUNTED",
        right={"ALLOWS", "NEEDS NOW"},
        wrapping={"COUNTED"} if look.width >= _ROOMY else {"LIMIT", "BETWEEN", "COUNTED"},
    )  # fmt: skip
    for row in rows:
        table.add_row(
            row["limit"],
            _amount(row, row["allows"]),
            _amount(row, row["needs"]),
            _when(row),
            _between(row),
            clean(row["why"]),
            style="red" if row["hours_above"] else "",
        )
    yield table


def _when(row: LimitView) -> str:
    if row["binds_at"] is None:
        return "not within a year"
    if row["hours_above"]:
        return f"now, {plural(row['hours_above'], 'hour')} a week"
    return _hour(row["binds_at"])


def _between(row: LimitView) -> str:
    ends = [row["earliest_at"], row["latest_at"]]
    if ends[0] == ends[1] or row["hours_above"]:
        return ""
    first, last = ("after a year" if end is None else _date(end) for end in ends)
    return f"{first} and {last}"


def _amount(row: LimitView, amount: float) -> str:
    return f"{money(amount)}/h" if row["counted"] == "usd" else f"{amount:,.0f} {row['counted']}"


def _money(dollars: float | None) -> str:
    return "-" if dollars is None else money(dollars)


def _signed(share: float) -> str:
    return f"{share * 100.0:+.1f}%"


def _hour(at: float) -> str:
    """A whole hour: "2026-12-03 14:00Z"."""
    return f"{_date(at)} {instant(at)[11:16]}Z"


def _date(at: float) -> str:
    return instant(at)[:10]


def _weekday(at: float) -> str:
    when = datetime.fromtimestamp(at, tz=UTC)
    return f"{_DAYS[when.weekday()]} {when:%H}:00"
