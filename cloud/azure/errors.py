"""From what Azure answers to what the caller may conclude: error codes as `cloud.errors` classes.

The codes are those of Azure Resource Manager and of its compute provider ("Common deployment errors",
"Troubleshoot allocation failures", "Error codes for Spot VMs"). Code before status: a capacity refusal comes
with 409 as a conflict does. A 4xx code that is not listed means that Azure refused and did nothing: Denied,
but for 409, which says that something else is under way.

One code means several things: `OperationNotAllowed` says that a quota is full, that spot costs more than
may be paid, and that the machine's state does not allow it. Its message tells them apart. An accepted
launch may still fail: then the code stands in the machine's status, see `ending_of`.
"""

from __future__ import annotations

from typing import Any, Final

from cloud.errors import (
    CloudError,
    Denied,
    InsufficientCapacity,
    Misconfigured,
    NotFound,
    QuotaExceeded,
    Throttled,
    Uncertain,
)
from policies.model import Ending

_CAPACITY: Final = frozenset(
    {
        "AllocationFailed",
        "AllocationTimeout",
        "OverconstrainedAllocationRequest",
        "OverconstrainedZonalAllocationRequest",
        "SkuNotAvailable",
        "SpotCapacityNotAvailable",
        "SubnetIsFull",
        "ZonalAllocationFailed",
    }
)
_QUOTA: Final = frozenset(
    {
        "PublicIPCountLimitReached",
        "QuotaExceeded",
        "ResourceCountExceedsLimitDueToTemplate",
        "ResourceQuotaExceeded",
        "SubscriptionRequestsQuotaExceeded",
    }
)
_MISCONFIGURED: Final = frozenset(
    {
        "BadRequest",
        "GalleryImageNotFound",
        "ImageNotFound",
        "InvalidApiVersionParameter",
        "InvalidParameter",
        "InvalidRequestContent",
        "InvalidRequestFormat",
        "InvalidResourceGroup",
        "InvalidResourceLocation",
        "InvalidResourceReference",
        "InvalidSubscriptionId",
        "LinkedInvalidPropertyId",
        "LocationNotAvailableForResourceType",
        "MarketplacePurchaseEligibilityFailed",
        "MissingSubscriptionRegistration",
        "NetworkSecurityGroupNotFound",
        "PlatformImageNotFound",
        "PropertyChangeNotAllowed",
        "RequestDisallowedByPolicy",
        "ResourceGroupBeingDeleted",
        "ResourceGroupNotFound",
        "ResourcePurchaseValidationFailed",
        "SubnetNotFound",
        "SubscriptionNotFound",
        "SubscriptionNotRegistered",
        "UnsupportedVMSize",
        "VMMarketplaceInvalidInput",
        "VMSizeDoesntSupportPremiumStorage",
    }
)
_THROTTLED: Final = frozenset(
    {"OperationThrottled", "SubscriptionRequestsThrottled", "TooManyRequests", "TooManyRequestsReceived"}
)
_NOT_FOUND: Final = frozenset({"NotFound", "ResourceNotFound"})
_AMBIGUOUS: Final = frozenset(
    {
        "GatewayTimeout",
        "InternalExecutionError",
        "InternalOperationError",
        "InternalServerError",
        "NetworkingInternalOperationError",
        "RetryableError",
        "ServerTimeout",
        "ServiceUnavailable",
    }
)
_CREDENTIALS: Final = frozenset(
    {
        "AuthenticationFailed",
        "ExpiredAuthenticationToken",
        "InvalidAuthenticationToken",
        "InvalidAuthenticationTokenTenant",
    }
)

_LONGEST_MESSAGE = 300

_HINTS: Final = {
    "AuthorizationFailed": "give the daemon's identity the role that the documentation lists",
    "ExpiredAuthenticationToken": "set the clock of this machine; tokens are renewed without a restart",
    "InvalidAuthenticationToken": "check the tenant, the identity and the clock of this machine",
    "InvalidAuthenticationTokenTenant": "the identity is of another tenant than the subscription",
    "LinkedAuthorizationFailed": "give the daemon's identity rights on what the machine joins, as its subnet",
    "MissingSubscriptionRegistration": "az provider register --namespace Microsoft.Compute (and .Network)",
    "RequestDisallowedByPolicy": "a policy of the subscription forbids it",
    "ResourceGroupNotFound": "make the resource group, or correct its name",
    "ScopeLocked": "a lock of the resource group forbids it",
}


def error_class(code: str, status: int, message: str = "", *, lost: type[CloudError]) -> type[CloudError]:
    """What an error answer means. `lost` is what an unknown outcome is for this call."""
    if code == "OperationNotAllowed" and (meaning := _not_allowed(message)) is not None:
        return meaning
    if code in _CAPACITY:
        return InsufficientCapacity
    if code in _QUOTA:
        return QuotaExceeded
    if code in _THROTTLED or status == 429:
        return Throttled
    if code in _AMBIGUOUS or status >= 500:
        return lost
    if code in _MISCONFIGURED:
        return Misconfigured
    if code in _NOT_FOUND or status == 404:
        return NotFound
    return lost if status == 409 else Denied  # it does not go with what is under way: look again


def _not_allowed(message: str) -> type[CloudError] | None:
    said = message.lower()
    if "quota" in said:
        return QuotaExceeded
    if "max price" in said or "maxprice" in said:
        return InsufficientCapacity
    return None


def ending_of(code: str) -> Ending:
    """Why a machine that was accepted never ran, by the code in its status."""
    return Ending.CAPACITY if code in _CAPACITY else Ending.FAULT


def translate(error: Exception, what: str, *, lost: type[CloudError] = Uncertain) -> CloudError:
    """An exception of Azure's SDK as an error of the port, with what was tried and what to do."""
    from azure.core import exceptions as azure

    if isinstance(error, azure.HttpResponseError) and error.status_code is not None:
        code, message = code_of(error), message_of(error)
        kind = error_class(code, error.status_code, message, lost=lost)
        hint = _HINTS.get(code, "")
        said = f"{code}: {message}" if code else f"status {error.status_code}: {message}"
        return kind(f"{what}: {said}{hint and '; '}{hint}")
    if isinstance(error, azure.ClientAuthenticationError):
        said = " ".join((str(error) or "none").split())[:_LONGEST_MESSAGE]
        return Denied(f"{what}: no usable credentials: {said}; renew them: no restart is needed")
    return lost(f"{what}: no usable answer: {str(error) or type(error).__name__}")


def was_sent(error: BaseException | None) -> bool:
    """Whether what failed may have arrived at Azure; `error` is the SDK's, or the port's error made of it."""
    from azure.core import exceptions as azure

    seen = error.__cause__ if isinstance(error, CloudError) else error
    return not isinstance(seen, azure.ServiceRequestError)


def speaks_of_credentials(error: Exception) -> bool:
    """Whether other credentials could help."""
    from azure.core import exceptions as azure

    return isinstance(error, azure.ClientAuthenticationError) or code_of(error) in _CREDENTIALS


def code_of(error: BaseException | None) -> str:
    """The error code of Azure behind an exception or behind the port's error made of it; "" for none."""
    return str(getattr(_told(error), "code", "") or "")


def message_of(error: BaseException | None) -> str:
    """Azure's words, in one line."""
    seen = error.__cause__ if isinstance(error, CloudError) else error
    text = str(getattr(_told(error), "message", "") or getattr(seen, "reason", "") or "")
    return " ".join(text.split())[:_LONGEST_MESSAGE].removesuffix(".")


def retry_after(error: BaseException | None) -> float | None:
    """Seconds after which Azure wants to be asked again; None where it does not say.

    Azure states it in seconds; the other form that HTTP knows, a date, is not used by it.
    """
    seen = error.__cause__ if isinstance(error, CloudError) else error
    response: Any = getattr(seen, "response", None)
    try:
        seconds = float(response.headers["Retry-After"])
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return seconds if 0.0 <= seconds < float("inf") else None


def _told(error: BaseException | None) -> Any:
    """What the body of an error answer says, as the SDK read it."""
    seen = error.__cause__ if isinstance(error, CloudError) else error
    return getattr(seen, "error", None)
