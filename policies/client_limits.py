"""Limits of a client's key: whether a request of it may be sent now, and when again where it may not.

What it decides: which limit of a key is in the way of a request, given what the key used by second; when
there is room again; how many tokens a request is taken for before they are known, and where they are booked
once they are.
Why: a limit a minute holds in any 60 seconds. What came in them is counted by second, so any 60 s touch 61
counters: all of a minute may come at once, and the next minute's begins when that is 60 s ago. Tokens are
known after the answer: before, a request is taken for what those of its key came to so far. What it used
beyond that is booked after it, and what does not fit into the minute into the minutes that follow, so that
the average holds however wrong the first guess was. Each refused client gets a second of its own, after those
refused before it, so that a hundred refused clients do not come back as one.
Never: 61 counters in a row hold more requests than a minute's; a token is booked twice, or not at all within
four hours of debts; a refused client may come again at once.

Seconds are whole seconds of a clock that all who share the counters read, and that is never set.

Example:
    >>> limits, window = KeyLimits(requests_per_minute=2), Window([(100, 2, 0)])
    >>> full(limits, window, tokens=0, in_flight=0, now=130.5)
    <Limit.REQUESTS: 'requests_per_minute'>
    >>> refused = refusal("team-a", limits, Limit.REQUESTS, window, tokens=0, now=130.5, history=History())
    >>> refused.text
    'key team-a may make 2 requests a minute and made them; again in 31 s'
    >>> full(limits, window, tokens=0, in_flight=0, now=161.0) is None
    True
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from enum import StrEnum
from itertools import chain
from typing import Final

from policies.keys import KeyLimits
from policies.spend import dollars
from policies.value import value

WINDOW: Final = 60
"""Seconds in which a limit a minute holds."""

SPAN: Final = WINDOW + 1
"""Counters of a second that any 60 s touch."""

MOST_DEBT: Final = 240
"""Minutes that may be booked ahead for answers that were longer than thought."""

LONGEST_WAIT: Final = 60.0
"""Seconds: clients of OpenAI and Anthropic do not wait for longer, and come at once instead."""

_APART: Final = 10  # seconds between two that get what is booked ahead
_DAY: Final = 86_400
_BYTES_OF_A_TOKEN: Final = 4.0
_USUAL_ANSWER: Final = 512  # tokens, of a key's first requests that have no limit
_USUAL_SECONDS: Final = 2.0
_LEAST_WEIGHT: Final = 1 / 32  # of one more request in a mean


class Limit(StrEnum):
    """The limits of a key, as they are written. The values are metric labels."""

    REQUESTS = "requests_per_minute"
    TOKENS = "tokens_per_minute"
    IN_FLIGHT = "in_flight"
    USD = "usd_per_day"


@value
class Refused:
    """A request that is not sent: the limit in its way, its client's words, and seconds to come again in,
    None where that would not help.
    """

    limit: Limit
    text: str
    retry_after: float | None


@value
class Booking:
    """What is added to the counters of a second; less than zero is given back."""

    second: int
    requests: int = 0
    tokens: int = 0


class Window:
    """The counters of one key: rows of second, requests and tokens. Those ahead of the present are debts."""

    __slots__ = ("_requests", "_tokens")

    def __init__(self, rows: Iterable[tuple[int, int, int]] = ()) -> None:
        self._requests: dict[int, int] = {}
        self._tokens: dict[int, int] = {}
        for second, requests, tokens in rows:
            self.book(Booking(second=second, requests=requests, tokens=tokens))

    def book(self, booking: Booking) -> None:
        """Add to the counters."""
        for counters, count in ((self._requests, booking.requests), (self._tokens, booking.tokens)):
            if count:
                counters[booking.second] = counters.get(booking.second, 0) + count

    def forget(self, now: float) -> None:
        """Drop what no minute touches any more."""
        oldest = int(now) - WINDOW
        for counters in (self._requests, self._tokens):
            for second in [second for second in counters if second < oldest]:
                del counters[second]

    def requests(self, now: float) -> int:
        """Requests in the minute that ends now, and those of later seconds: another process got there first,
        and this one read its clock before it waited for its turn.
        """
        first = int(now) - WINDOW
        return sum(count for second, count in self._requests.items() if second >= first)

    def tokens(self, now: float) -> int:
        """Tokens in the minute that ends now."""
        return _sum(self._tokens, int(now) - WINDOW, int(now))

    def peak(self, at: int, now: float) -> int:
        """The most tokens in one of the minutes that a second is in, of those that are not over."""
        first = max(at, int(now))
        used = _sum(self._tokens, first - WINDOW, first)
        most = used
        if max(self._tokens, default=0) > first:
            for end in range(first + 1, at + SPAN):
                used += self._tokens.get(end, 0) - self._tokens.get(end - SPAN, 0)
                most = max(most, used)
        return most

    def again(self, limit: Limit, most: int, need: int, now: float) -> float:
        """Seconds until there is room for `need` under `most` a minute, `LONGEST_WAIT` at most."""
        counters = self._requests if limit is Limit.REQUESTS else self._tokens
        first = int(now)
        used = [_sum(counters, first - WINDOW, first)]
        for second in range(first + 1, first + 2 * SPAN):
            used.append(used[-1] + counters.get(second, 0) - counters.get(second - SPAN, 0))
        for later in range(1, SPAN):
            if max(used[later : later + SPAN]) + need <= most:
                return min(first + later - now, LONGEST_WAIT)
        return LONGEST_WAIT

    @property
    def last(self) -> int:
        """The last second with tokens, 0 without any."""
        return max(self._tokens, default=0)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        for second in sorted(self._requests.keys() | self._tokens.keys()):
            yield second, self._requests.get(second, 0), self._tokens.get(second, 0)


class History:
    """What the requests of one key came to, as one process saw them, and when refused clients come again."""

    __slots__ = ("_answer", "_bytes", "_count", "_due", "_seconds")

    def __init__(self) -> None:
        self._count = 0
        self._bytes = _BYTES_OF_A_TOKEN
        self._answer = float(_USUAL_ANSWER)
        self._seconds = _USUAL_SECONDS
        self._due: dict[int, int] = {}

    def estimate(self, size: int, *, most: int | None, choices: int) -> int:
        """Tokens of a request of so many bytes, with answers of at most so many tokens; None: no limit."""
        usual = self._answer if self._count or most is None else most
        return math.ceil(size / self._bytes + (usual if most is None else min(usual, most)) * choices)

    def learn(self, size: int, *, prompt: int, output: int, choices: int, seconds: float) -> None:
        """A request of so many bytes had so many tokens, and took so many seconds."""
        self._count += 1
        weight = max(1 / self._count, _LEAST_WEIGHT)
        if prompt and size:
            self._bytes += (min(size / prompt, 1000.0) - self._bytes) * weight
        if choices:
            self._answer += (output / choices - self._answer) * weight
        self._seconds += (seconds - self._seconds) * weight

    def place_free(self, in_flight: int) -> float:
        """Seconds until one of so many requests ends, as a rule."""
        return self._seconds / max(in_flight, 1)

    def waiting(self, now: float) -> int:
        """Clients that are to come again later than now."""
        for second in [second for second in self._due if second <= now]:
            del self._due[second]
        return sum(self._due.values())

    def comes_again(self, at: float) -> None:
        """A client is to come again at this instant."""
        second = math.ceil(at)
        self._due[second] = self._due.get(second, 0) + 1


def full(limits: KeyLimits, window: Window, *, tokens: int, in_flight: int, now: float) -> Limit | None:
    """The limit in the way of one more request of so many tokens; None: it may be sent.

    `in_flight`: requests of the key that are under way. A request of more tokens than a minute has needs an
    empty one.
    """
    if limits.requests_per_minute and window.requests(now) + 1 > limits.requests_per_minute:
        return Limit.REQUESTS
    most = limits.tokens_per_minute
    if most and window.peak(int(now), now) + min(tokens, most) > most:
        return Limit.TOKENS
    if limits.in_flight and in_flight + 1 > limits.in_flight:
        return Limit.IN_FLIGHT
    return None


def take(limits: KeyLimits, window: Window, *, tokens: int, now: float) -> Booking:
    """Book a request that is sent; what was booked."""
    booked = Booking(second=int(now), requests=1, tokens=min(tokens, limits.tokens_per_minute))
    window.book(booked)
    return booked


def refusal(
    name: str, limits: KeyLimits, limit: Limit, window: Window, *, tokens: int, now: float, history: History
) -> Refused:
    """The answer to the client of a key whose limit is in the way; each is counted in the history."""
    ahead = history.waiting(now)
    if limit is Limit.IN_FLIGHT:
        most = limits.in_flight
        wait = min(max(1.0, history.place_free(most) * (ahead + 1)), LONGEST_WAIT)
        text = f"key {name} may have {most} requests in flight and has them"
    elif limit is Limit.REQUESTS:
        most = limits.requests_per_minute
        wait = window.again(limit, most, min(ahead + 1, most), now)
        text = f"key {name} may make {most} requests a minute and made them"
    else:
        most = limits.tokens_per_minute
        wait = window.again(limit, most, min(max(tokens, 1) * (ahead + 1), most), now)
        text = (
            f"key {name} may use {most} tokens a minute and used {window.tokens(now)}; "
            f"this request is taken for {min(tokens, most)}"
        )
    history.comes_again(now + wait)
    return Refused(limit=limit, text=f"{text}; again in {math.ceil(wait)} s", retry_after=wait)


def settle(limits: KeyLimits, window: Window, booked: Booking, *, tokens: int, now: float) -> list[Booking]:
    """Make good what was booked for a request, which used so many tokens; what was added to the counters.

    It belongs to the second of the request, or to the present where that counts no more. Tokens beyond those
    that were booked go there as far as there is room, and else into the next minutes that have some.
    """
    most, over, second = limits.tokens_per_minute, tokens - booked.tokens, int(now)
    added: list[Booking] = []
    if not most:
        return added
    free = max(second, window.last - SPAN)  # debts stand in a row: before their last minute all is taken
    later = range(free - free % _APART + _APART, second + MOST_DEBT * SPAN, _APART)
    for at in chain((booked.second,) if _counts(booked, now) else (), (second,), later):
        if part := over if over <= 0 else min(max(most - window.peak(at, now), 0), over):
            added.append(Booking(second=at, tokens=part))
            window.book(added[-1])
            over -= part
        if not over:
            break
    return added


def give_back(window: Window, booked: Booking, *, now: float) -> list[Booking]:
    """Undo what was booked for a request; what was added to the counters."""
    if not _counts(booked, now):
        return []
    undone = Booking(second=booked.second, requests=-booked.requests, tokens=-booked.tokens)
    window.book(undone)
    return [undone]


def over_budget(name: str, limits: KeyLimits, why: str, *, never: bool, now: float) -> Refused:
    """The answer to the client of a key whose dollars of the day do not allow its request. `now`: seconds
    since 1970; `why`: the amounts in words; `never`: no day's dollars would.
    """
    text = f"key {name} may spend {dollars(limits.usd_per_day or 0)} a day: {why}"
    if never:
        text += ", more than any day has; a shorter prompt or a lower limit of tokens may fit"
        return Refused(limit=Limit.USD, text=text, retry_after=None)
    wait = _DAY - now % _DAY
    hours, minutes = divmod(math.ceil(wait / 60), 60)
    text += f"; again at midnight UTC, in {hours} h {minutes} min"
    return Refused(limit=Limit.USD, text=text, retry_after=wait)


def _counts(booked: Booking, now: float) -> bool:
    """Whether the second of a booking is in the minute that ends now."""
    return booked.second >= int(now) - WINDOW


def _sum(counters: dict[int, int], first: int, last: int) -> int:
    return sum(counters.get(second, 0) for second in range(first, last + 1))
