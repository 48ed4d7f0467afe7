"""What a port may raise. Each error says what the caller may conclude, not which call failed."""

from __future__ import annotations


class CloudError(Exception):
    """Any failure of an adapter. The message says what was tried and what came back."""


class InsufficientCapacity(CloudError):
    """The provider has no such machine there now. Nothing was launched."""


class QuotaExceeded(CloudError):
    """The account may not have more of this. Trying another zone does not help. Nothing was launched."""


class Throttled(CloudError):
    """Too many calls. Nothing was done."""


class NotFound(CloudError):
    """The thing does not exist, or not yet: describe calls may lag behind launches."""


class Denied(CloudError):
    """Credentials are missing, expired or not allowed to do this. Nothing was done."""


class Uncertain(CloudError):
    """The outcome is unknown: the call may or may not have taken effect. Ask again with the same token."""
