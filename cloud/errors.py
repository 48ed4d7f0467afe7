"""What a port may raise. Each error says what the caller may conclude, not which call failed."""

from __future__ import annotations

from typing import ClassVar


class CloudError(Exception):
    """Any failure of an adapter. The message says what was tried and what came back.

    `word` names the class in metrics; words are a fixed set.
    """

    word: ClassVar[str] = "error"


class InsufficientCapacity(CloudError):
    """The provider has no such machine there now. Nothing was launched."""

    word = "no-capacity"


class QuotaExceeded(CloudError):
    """The account may not have more of this. Trying another zone does not help. Nothing was launched."""

    word = "quota"


class Throttled(CloudError):
    """Too many calls. Nothing was done."""

    word = "throttled"


class NotFound(CloudError):
    """The thing does not exist, or not yet: describe calls may lag behind launches."""

    word = "not-found"


class Misconfigured(CloudError):
    """What is asked for cannot be: an image, template, key, subnet, type or parameter is wrong.

    Nothing was launched. Another zone does not help, and asking again does not either.
    """

    word = "misconfigured"


class Denied(CloudError):
    """Credentials are missing, expired or not allowed to do this. Nothing was done."""

    word = "denied"


class Uncertain(CloudError):
    """The outcome is unknown: the call may or may not have taken effect. Ask again with the same token."""

    word = "uncertain"


EVERY: tuple[type[CloudError], ...] = (
    CloudError,
    InsufficientCapacity,
    QuotaExceeded,
    Throttled,
    NotFound,
    Misconfigured,
    Denied,
    Uncertain,
)
"""All of them: the general one, and each that says more."""
