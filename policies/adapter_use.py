"""How much each adapter is used, from what gateways count.

What it decides: the requests and tokens a minute of each adapter lately, by which nodes hold it or not.
Why: counts of a gateway begin anew with it, and what was asked yesterday says little of the next minute. So
what came since the last look is added to what is left of the earlier: of that half goes every `HALF_LIFE`.
Never: what a gateway counted before this daemon first looked counts, nor a restart of it as fewer requests.

Example: 60 requests in the first minute, and none for ten minutes:
    >>> meter = AdapterMeter().read({"sql": AdapterCount(asked=5)}, 0.0)
    >>> meter = meter.read({"sql": AdapterCount(asked=65)}, 60.0)
    >>> [round(together([meter], now)["sql"].asked, 1) for now in (60.0, 660.0)]
    [4.2, 2.1]
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set
from dataclasses import field

from policies.held import AdapterCount, AdapterUse
from policies.value import value

HALF_LIFE = 600.0
"""Seconds in which the use that was counted halves."""

_PER_MINUTE = 60.0 * math.log(2.0) / HALF_LIFE
"""What one request adds to the requests a minute: steady use then shows as what it is."""

_FORGOTTEN = 1e-4  # requests or tokens a minute below which use counts as none


@value
class AdapterMeter:
    """What one gateway counted at the last look, and the use of each adapter as of then."""

    at: float | None = None
    counts: Mapping[str, AdapterCount] = field(default_factory=dict, hash=False)
    use: Mapping[str, AdapterUse] = field(default_factory=dict, hash=False)

    @property
    def waiting(self) -> Set[str]:
        """Adapters that a request waits for."""
        return {name for name, count in self.counts.items() if count.cold}

    def read(self, counts: Mapping[str, AdapterCount], now: float) -> AdapterMeter:
        """The meter after another look."""
        left = self.left(now)
        use: dict[str, AdapterUse] = {}
        for name in sorted({*left, *counts}):
            before, count = left.get(name, AdapterUse()), counts.get(name, AdapterCount())
            known = self.counts.get(name, AdapterCount()) if self.at is not None else count
            found = AdapterUse(
                asked=before.asked + _PER_MINUTE * _since(known.asked, count.asked),
                tokens=before.tokens + _PER_MINUTE * _since(known.tokens, count.tokens),
                waiting=count.cold,
            )
            if found.waiting or max(found.asked, found.tokens) >= _FORGOTTEN:
                use[name] = found
        return AdapterMeter(at=now, counts=dict(counts), use=use)

    def left(self, now: float) -> Mapping[str, AdapterUse]:
        """What is left of the use by now."""
        share = 1.0 if self.at is None else 0.5 ** (max(0.0, now - self.at) / HALF_LIFE)
        return {
            name: AdapterUse(asked=use.asked * share, tokens=use.tokens * share, waiting=use.waiting)
            for name, use in self.use.items()
        }


def together(meters: Iterable[AdapterMeter], now: float) -> dict[str, AdapterUse]:
    """The use of each adapter in all gateways."""
    found: dict[str, AdapterUse] = {}
    for meter in meters:
        for name, use in meter.left(now).items():
            known = found.get(name, AdapterUse())
            found[name] = AdapterUse(
                asked=known.asked + use.asked,
                tokens=known.tokens + use.tokens,
                waiting=known.waiting or use.waiting,
            )
    return found


def _since(before: int, now: int) -> int:
    """What came since a look; a count that fell began anew."""
    return now - before if now >= before else now
