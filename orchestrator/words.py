"""Numbers as people read them: ages, countdowns, money, shares, times. Imports nothing heavy."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from orchestrator.views.api import RejectedView


_SMALL: Final = 0.1  # USD below which cents say too little


def age(seconds: float | None) -> str:
    """A length of time in two units at most: "48s", "3m20s", "5h2m", "4d3h"."""
    if seconds is None:
        return "-"
    whole = max(0, round(seconds))
    for unit, smaller, size, small in (("d", "h", 86400, 3600), ("h", "m", 3600, 60), ("m", "s", 60, 1)):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size}{unit}" + (f"{rest}{smaller}" if rest else "")
    return f"{whole}s"


def short_time(seconds: float) -> str:
    """A length of time that may be well below a second: "80ms", "3.2s", "1m5s"."""
    if seconds < 1:
        return f"{max(0.0, seconds) * 1000:.0f}ms"
    return f"{seconds:.1f}s" if seconds < 10 else age(seconds)


def countdown(seconds: float) -> str:
    """Time left as a clock shows it: "1:46", "0:07", "2:03:10". Never below zero."""
    whole = max(0, int(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{secs:02}" if hours else f"{minutes}:{secs:02}"


def money(dollars: float) -> str:
    """US dollars with cents."""
    return f"-${-dollars:,.2f}" if round(dollars, 2) < 0 else f"${abs(dollars):,.2f}"


def small_money(dollars: float) -> str:
    """US dollars that may be far below a cent: "$1.30", "$0.021"."""
    return f"${dollars:.2g}" if 0 < dollars < _SMALL else money(dollars)


def percent(share: float) -> str:
    """A share as whole percent."""
    return f"{share * 100:.0f}%"


def instant(at: float) -> str:
    """A time as ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(at, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def clock_time(at: float) -> str:
    """The time of day in UTC."""
    return datetime.fromtimestamp(at, tz=UTC).strftime("%H:%M:%SZ")


def plural(count: int, noun: str, many: str = "") -> str:
    """A count with its noun: "1 request", "3,000 requests"."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def rejection(rejected: RejectedView) -> str:
    """That a configuration was not taken up, what holds instead, and the first fault."""
    first, more = rejected["problems"][0], len(rejected["problems"]) - 1
    also = f" (and {plural(more, 'more fault')})" if more else ""
    return f"the changed configuration was rejected, {rejected['in_force']}: {first}{also}"


def clean(text: str) -> str:
    """Text that came from elsewhere, safe for a terminal: one line, nothing that moves the cursor."""
    return "".join(char if char.isprintable() else " " for char in text)
