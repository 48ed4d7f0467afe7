"""Keys of the gateway's clients: who a key stands for, which models it may ask for, and whether it holds.

What it decides: whether a key holds at an instant, and whether it may ask for a model by the name that its
client uses.
Why: a name stands for a client everywhere (metrics, limits, usage), and the key itself is known nowhere: what
is kept is its SHA-256, which is as good as the key for telling it and useless for showing it. A key is 256
random bits, so a plain hash cannot be searched.
Never: a revoked key holds, whatever the clocks say; a key with a list of models asks for what no name on it
matches, or for nothing in particular.

Example:
    >>> team = ClientKey(name="team-a", sha256="00" * 32, models=("chat", "small-*"), expires=100.0)
    >>> team.state(99.0).value, team.state(100.0).value
    ('valid', 'expired')
    >>> team.may_ask("small-8b"), team.may_ask("large"), team.may_ask("")
    (True, False, False)
"""

from __future__ import annotations

from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final

from policies.value import value

ALL_MODELS: Final = ("*",)
"""The patterns of a key that may ask for anything."""


class KeyState(StrEnum):
    """Whether a key holds. The values are metric labels."""

    VALID = "valid"
    EXPIRED = "expired"
    REVOKED = "revoked"


@value
class KeyLimits:
    """What a key may use; 0 or None is no limit.

    `requests_per_minute` and `tokens_per_minute`: in any 60 s. `in_flight`: requests at one time.
    `usd_per_day`: picodollars (1e-12 USD) a day (UTC).
    """

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    in_flight: int = 0
    usd_per_day: int | None = None

    @property
    def none(self) -> bool:
        """Whether nothing is limited."""
        return self == _NO_LIMITS


_NO_LIMITS: Final = KeyLimits()


@value
class ClientKey:
    """A key as it is kept.

    `sha256`: of the key, 64 hexadecimal digits in lower case. `hint`: its last characters, for people who
    look for it. `models`: patterns (fnmatch, upper and lower case differ) of the names that its client may
    ask for. `created`, `expires` and `revoked` are seconds since 1970.
    """

    name: str
    sha256: str
    hint: str = ""
    models: tuple[str, ...] = ALL_MODELS
    limits: KeyLimits = _NO_LIMITS
    created: float = 0.0
    expires: float | None = None
    revoked: float | None = None

    def state(self, now: float) -> KeyState:
        """Whether it holds. When it was revoked is for people: it does not hold from then on, at any time."""
        if self.revoked is not None:
            return KeyState.REVOKED
        if self.expires is not None and now >= self.expires:
            return KeyState.EXPIRED
        return KeyState.VALID

    @property
    def asks_all(self) -> bool:
        """Whether it may ask for every model, and for what is of none."""
        return "*" in self.models

    def may_ask(self, model: str) -> bool:
        """Whether it may ask for a model by this name; empty: for something that names none."""
        return self.asks_all or (bool(model) and any(fnmatchcase(model, each) for each in self.models))
