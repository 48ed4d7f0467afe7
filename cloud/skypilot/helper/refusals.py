"""What an error of SkyPilot means, as a word of `cloud.errors`. Pure, and without SkyPilot.

SkyPilot wraps what a cloud said: in the exception's cause (AWS), in a list `errors` of the exception (GCP),
or in its text alone (the others). Only what says that nothing was launched is a refusal; whatever nobody
knows leaves the outcome open.

Source: the error codes of the EC2 API reference, of Compute Engine's API, and of OCI; texts of
`sky/provision/*/utils.py` 0.14.1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Link:
    """One exception of a chain: its class, the cloud's code where it has one, its text."""

    kind: str
    code: str
    text: str


class Said(Exception):
    """An error that this helper itself found, with its word."""

    def __init__(self, word: str, text: str) -> None:
        super().__init__(text)
        self.word = word


_LONGEST: Final = 500
_DEEPEST: Final = 6

_CODES: Final = (
    (
        "no-capacity",
        r"Insufficient\w*Capacity|\w*RESOURCE_POOL_EXHAUSTED\w*|SpotMaxPriceTooLow|OutOfHostCapacity",
    ),
    ("no-capacity", r"MaxSpotInstanceCountReached|stockout|ResourceExhausted"),
    ("quota", r"\w*LimitExceeded(?<!RequestLimitExceeded)|MaxSpotInstanceCountExceeded|(?i:quota_?exceeded)"),
    ("throttled", r"RequestLimitExceeded|Throttl\w*|(?i:rateLimitExceeded|TooManyRequests)|429"),
    ("denied", r"UnauthorizedOperation|AuthFailure[\w.]*|Expired\w*|RequestExpired|InvalidClientToken(Id)?"),
    (
        "denied",
        r"AccessDenied\w*|NotAuthenticated|NotAuthorized\w*|PERMISSION\w*|SignatureDoesNotMatch|401|403",
    ),
    ("misconfigured", r"InvalidParameter\w*|InvalidAMIID[\w.]*|InvalidSubnetID[\w.]*|InvalidGroup[\w.]*"),
    (
        "misconfigured",
        r"InvalidKeyPair[\w.]*|Unsupported\w*|MissingParameter|InvalidBlockDeviceMapping|VPC_NOT_FOUND",
    ),
    (
        "misconfigured",
        r"SUBNET_NOT_FOUND\w*|InvalidInstanceType|InvalidIamInstanceProfile[\w.]*|IncorrectInstanceState",
    ),
    ("not-found", r"InvalidInstanceID[\w.]*"),
)
_KINDS: Final = {
    "NoCredentialsError": "denied",
    "InvalidCloudCredentials": "denied",
    "CloudUserIdentityError": "denied",
    "InvalidCloudConfigs": "misconfigured",
    "ResourcesUnavailableError": "misconfigured",  # what the catalogue lacks: an image, a zone
    "ModuleNotFoundError": "misconfigured",
    "ImportError": "misconfigured",
}
_TEXTS: Final = (
    ("throttled", r"due to RequestLimitExceeded|rate limit|too many requests"),
    (
        "no-capacity",
        r"no longer any instances available|out of (host )?capacity|no (resources|instances?) available",
    ),
    ("no-capacity", r"not enough (resources|capacity)|insufficient capacity"),
    ("misconfigured", r"SKYPILOT_ERROR_NO_NODES_LAUNCHED"),
    ("quota", r"quota .*exceeded|exceeded? .*quota|limit for .* is exceeded"),
    ("denied", r"invalid api key|unauthorized|not authorized|permission denied"),
    (
        "misconfigured",
        r"not found in (the )?catalog|is not (a valid|supported)|invalid (image|region|zone|instance)",
    ),
)
"""Texts are looked at last, and only of clouds that give no code."""


def links(error: BaseException) -> list[Link]:
    """The chain of an exception, from itself to what began it."""
    found: list[Link] = []
    at: BaseException | None = error
    while at is not None and len(found) < _DEEPEST:
        if isinstance(at, Said):
            found.append(Link("Said", at.word, str(at)))
        else:
            found += [Link(type(at).__name__, code, " ".join(str(at).split())) for code in _codes(at)]
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
    return found


def judged(chain: Sequence[Link], *, change: bool) -> tuple[str, str]:
    """The word and a sentence for an error. `change`: of a call that may have changed something."""
    text = "; ".join(dict.fromkeys(f"{link.code or link.kind}: {link.text}" for link in chain))[:_LONGEST]
    for link in chain:
        if link.kind == "Said":
            return link.code, link.text[:_LONGEST]
    for link in reversed(chain):  # what began it says most
        for word, pattern in _CODES:
            if link.code and re.fullmatch(pattern, link.code):
                return word, text
    for link in chain:
        if link.kind in _KINDS:
            return _KINDS[link.kind], text
    if not any(link.code for link in chain):
        for word, pattern in _TEXTS:
            if any(re.search(pattern, link.text, re.IGNORECASE) for link in chain):
                return word, text
    return ("uncertain" if change else "error"), text


def _codes(error: BaseException) -> list[str]:
    """The codes of one exception: boto's response, a list of errors, or an HTTP status; [""] for none."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        return [str(response.get("Error", {}).get("Code", ""))]
    several: Any = getattr(error, "errors", None)
    if isinstance(several, list) and several:
        return [str(each.get("code", "")) if isinstance(each, dict) else "" for each in several]
    status: Any = getattr(error, "status_code", None) or getattr(getattr(error, "resp", None), "status", None)
    return [str(status)] if status else [""]
