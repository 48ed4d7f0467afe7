"""Faults that can be switched on in a running local cloud: what each does is said at its field."""

from __future__ import annotations

from dataclasses import dataclass, field

from cloud.errors import EVERY, CloudError, InsufficientCapacity, Throttled
from policies.model import Market, Placement

ERRORS: dict[str, type[CloudError]] = {kind.__name__: kind for kind in EVERY}


@dataclass(slots=True, kw_only=True)
class Refusal:
    """Refuse the next `times` launches and starts that match, with `error`."""

    times: int
    error: type[CloudError] = InsufficientCapacity
    zone: str | None = None
    market: Market | None = None

    def matches(self, placement: Placement) -> bool:
        """True when this refusal is for such a placement and not used up."""
        return (
            self.times > 0 and self.zone in (None, placement.zone) and self.market in (None, placement.market)
        )


@dataclass(slots=True, kw_only=True)
class Faults:
    """What goes wrong next. Counters count down to 0 as they are used."""

    refusals: list[Refusal] = field(default_factory=list)
    throttled_calls: int = 0  # the next calls of any kind do nothing and say Throttled
    failing_lists: int = 0  # the next lists fail
    lost_responses: dict[str, int] = field(default_factory=dict)  # by call: it takes effect, no answer comes
    list_delay: float = 0.0  # real seconds that every list takes longer
    list_lag: float = 0.0  # real seconds after its launch for which an instance is not in lists

    def check_call(self) -> None:
        """Raise Throttled when this call is to be throttled."""
        if self.throttled_calls > 0:
            self.throttled_calls -= 1
            raise Throttled("request rate exceeded (injected)")

    def check_launch(self, placement: Placement) -> None:
        """Raise the error of the first refusal that matches."""
        for refusal in self.refusals:
            if refusal.matches(placement):
                refusal.times -= 1
                self.refusals = [each for each in self.refusals if each.times > 0]
                raise refusal.error(f"{placement}: refused (injected)")

    def check_list(self) -> None:
        """Raise when this list is to fail."""
        if self.failing_lists > 0:
            self.failing_lists -= 1
            raise CloudError("the list failed half-way (injected)")

    def loses_response(self, call: str) -> bool:
        """True when the answer to this call is to get lost. "any" stands for every call."""
        for name in (call, "any"):
            if self.lost_responses.get(name, 0) > 0:
                self.lost_responses[name] -= 1
                return True
        return False
