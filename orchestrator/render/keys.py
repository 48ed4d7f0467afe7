"""Keys of clients as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from rich.console import Group
from rich.text import Text

from orchestrator.render.parts import Look, table_of, text_of
from orchestrator.words import clean, money

if TYPE_CHECKING:
    from orchestrator.views.keys import KeyLimitsView, KeyNowView, ListedKeyView

_WIDE: Final = 160  # columns from which on all limits of a key stand on its line
_STYLES: Final = {"valid": "", "expired": "yellow", "revoked": "dim"}


def key_table(keys: Sequence[ListedKeyView], look: Look) -> str:
    """One line for each key; requests and tokens are those of the day (UTC), limits stand with their use."""
    headers = ("NAME", "STATE", "KEY", "MODELS", "LIMITS", "EXPIRES", "REQUESTS", "TOKENS")
    table = table_of(*headers, right=headers[-2:], wrapping=("MODELS",))
    for key in keys:
        today = key["today"]
        table.add_row(
            key["name"],
            Text(key["state"], style=_STYLES[key["state"]]),
            f"...{clean(key['hint'])}" if key["hint"] else "-",
            "all" if key["models"] == ["*"] else clean(", ".join(key["models"])) or "none",
            ("\n" if look.width < _WIDE else ", ").join(_limits(key["limits"], key["now"])) or "none",
            _day(key["expires"]),
            "-" if today is None else f"{today['requests']:,}",
            "-" if today is None else f"{today['tokens_in'] + today['tokens_out']:,}",
        )
    return text_of(Group(table, Text("Requests and tokens: today's, in UTC.", style="dim")), look)


def _limits(limits: KeyLimitsView, now: KeyNowView | None) -> list[str]:
    said = []
    if (requests := limits["requests_per_minute"]) is not None:
        said.append(f"{_of(now and now['requests'])}{requests:,} req/min")
    if (tokens := limits["tokens_per_minute"]) is not None:
        said.append(f"{_of(now and now['tokens'])}{tokens:,} tok/min")
    if (in_flight := limits["in_flight"]) is not None:
        said.append(f"{_of(now and now['in_flight'])}{in_flight:,} at once")
    if (dollars := limits["usd_per_day"]) is not None:
        said.append(f"{money(now['usd_today']) + '/' if now else ''}{money(dollars)} a day")
    return said


def _of(used: int | None) -> str:
    """What is used of a limit, where that is known."""
    return "" if used is None else f"{used:,}/"


def _day(moment: float | None) -> str:
    return "-" if moment is None else f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d}"
