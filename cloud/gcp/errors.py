"""What Compute Engine's refusals mean to the daemon. Pure.

Two shapes. An answer: {"error": {"code", "message", "errors": [{"reason", "message"}], "details":
[{"reason"}]}}. An operation that failed: {"error": {"errors": [{"code", "message"}]}, "httpErrorStatusCode"};
capacity shows there alone, seconds after the request was accepted. Sources: "Troubleshooting resource
availability" and "Troubleshooting VM creation"; codes as SkyPilot and Airflow handle them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from cloud.errors import (
    CloudError,
    Denied,
    InsufficientCapacity,
    Misconfigured,
    NotFound,
    QuotaExceeded,
    Throttled,
)
from policies.plain_text import one_line

Answer = Mapping[str, Any]

_MOST: Final = 300  # characters of Google's words

_CAPACITY: Final = frozenset(
    {
        "ZONE_RESOURCE_POOL_EXHAUSTED",
        "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS",
        "REGION_RESOURCE_POOL_EXHAUSTED",
        "RESOURCE_POOL_EXHAUSTED",
        "GPU_STOCKOUT",
        "STOCKOUT",
        "insufficientCapacity",
        "UNSUPPORTED_OPERATION",  # seen where a spot machine is preempted while it is made (SkyPilot)
    }
)
_QUOTA: Final = frozenset({"QUOTA_EXCEEDED", "quotaExceeded", "limitExceeded"})
_RATE: Final = frozenset(
    {
        "rateLimitExceeded",
        "userRateLimitExceeded",
        "RATE_LIMIT_EXCEEDED",
        "RESOURCE_OPERATION_RATE_EXCEEDED",
        "CONCURRENT_OPERATIONS_QUOTA_EXCEEDED",
    }
)
_DENIED: Final = frozenset(
    {
        "forbidden",
        "authError",
        "required",
        "accessNotConfigured",
        "insufficientPermissions",
        "PERMISSIONS_ERROR",
        "SERVICE_DISABLED",
        "IAM_PERMISSION_DENIED",
        "BILLING_DISABLED",
    }
)
_ABSENT: Final = frozenset({"notFound", "RESOURCE_NOT_FOUND", "NOT_FOUND"})
_WRONG: Final = frozenset(
    {
        "invalid",
        "badRequest",
        "parseError",
        "INVALID_FIELD_VALUE",
        "INVALID_USAGE",
        "INVALID_ARGUMENT",
        "unsupported",
        "conditionNotMet",
        "CONDITION_NOT_MET",
    }
)
EXISTS: Final = frozenset({"alreadyExists", "RESOURCE_ALREADY_EXISTS"})
NOT_READY: Final = frozenset({"resourceNotReady", "RESOURCE_NOT_READY", "resourceInUseByAnotherResource"})


class Refused(CloudError):
    """An answer of Google that has no word of its own; `codes` says which."""


def codes_of(error: BaseException) -> frozenset[str]:
    """Google's codes and reasons behind an error; none where it is not Google's."""
    found: frozenset[str] = getattr(error, "gcp_codes", frozenset())
    return found


def of_answer(status: int, body: object, what: str, lost: type[CloudError]) -> CloudError:
    """The error of an answer that is none of success. `lost` is raised where it may have taken effect."""
    told: Any = body.get("error") if isinstance(body, Mapping) else None
    told = told if isinstance(told, Mapping) else {}
    codes, text = _said(told)
    text = text or f"status {status}"
    kind = _by_code(codes)
    if kind is None:
        by_status = {400: Misconfigured, 401: Denied, 403: Denied, 404: NotFound, 429: Throttled}
        kind = by_status.get(status, lost if status >= 500 else Refused)
    return _made(kind, f"{what}: {text}", codes)


def of_operation(operation: Answer, what: str) -> CloudError | None:
    """The error that ended an operation; None for one that did what it was to do, or has not ended."""
    told = operation.get("error")
    status = int(operation.get("httpErrorStatusCode") or 0)
    if not told and status < 400:
        return None
    codes, text = _said(told if isinstance(told, Mapping) else {})
    kind = _by_code(codes)
    if kind is None or kind is NotFound:  # what it names is not there: an image, a network, a template
        by_status = {403: Denied, 429: Throttled}
        kind = Misconfigured if kind is NotFound or status in (400, 404) else by_status.get(status, Refused)
    return _made(kind, f"{what}: {text or operation.get('httpErrorMessage') or 'failed'}", codes)


def _made(kind: type[CloudError], text: str, codes: frozenset[str]) -> CloudError:
    error = kind(one_line(text, _MOST))
    error.gcp_codes = codes  # type: ignore[attr-defined]
    return error


def _said(told: Mapping[str, Any]) -> tuple[frozenset[str], str]:
    """Codes and words of an error's body, whatever of it is missing."""
    parts: Sequence[Any] = [*(told.get("errors") or ()), *(told.get("details") or ())]
    rows = [part for part in parts if isinstance(part, Mapping)]
    codes = {str(row[key]) for row in rows for key in ("reason", "code") if row.get(key)}
    words = [str(told.get("message") or ""), *(str(row.get("message") or "") for row in rows)]
    text = next((word for word in words if word), "")
    return frozenset(codes), f"{text} ({', '.join(sorted(codes))})" if codes else text


def _by_code(codes: frozenset[str]) -> type[CloudError] | None:
    """The most specific meaning that one of the codes has."""
    for known, kind in (
        (_CAPACITY, InsufficientCapacity),
        (_RATE, Throttled),
        (_QUOTA, QuotaExceeded),
        (_DENIED, Denied),
        (_ABSENT, NotFound),
        (_WRONG, Misconfigured),
    ):
        if codes & known:
            return kind
    return None
