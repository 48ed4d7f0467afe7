"""From what AWS answers to what the caller may conclude: error codes as `cloud.errors` classes.

The codes are those of the EC2, ELBv2, SQS and Pricing API references. Code before status: EC2 says
InsufficientInstanceCapacity with status 500, and yet nothing was launched. A 4xx code that is not listed
means that AWS refused the request and did nothing: Denied.

One code means two things: `Unsupported` says that a type is not sold in a zone, where another zone helps, and
that a launch is put together wrongly, where none does. Its message tells them apart.
"""

from __future__ import annotations

import os
from pathlib import Path

from cloud.aws.spot_role import MAKE_SPOT_ROLE, SPOT_ROLE
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

# The provider has no such machine there now; another offering may be had.
_CAPACITY = frozenset(
    {
        "InsufficientInstanceCapacity",
        "InsufficientCapacity",
        "InsufficientHostCapacity",
        "InsufficientReservedInstanceCapacity",
        "InsufficientFreeAddressesInSubnet",
        "ReservationCapacityExceeded",
        "SpotMaxPriceTooLow",
        "UnfulfillableCapacity",
        "VolumeTypeNotAvailableInZone",
    }
)
_QUOTA = frozenset(
    {
        "InstanceLimitExceeded",
        "MaxFleetCountExceeded",
        "MaxIOPSLimitExceeded",
        "MaxSpotInstanceCountExceeded",
        "NetworkInterfaceLimitExceeded",
        "PendingVerification",
        "TooManyTargets",
        "VcpuLimitExceeded",
        "VolumeLimitExceeded",
    }
)
# What is asked for cannot be. By the part of a code before its first full stop: InvalidAMIID.NotFound and
# InvalidAMIID.Malformed are one family.
_MISCONFIGURED = frozenset(
    {
        "EncryptedVolumesNotSupported",
        "InvalidAMIAttributeItemValue",
        "InvalidAMIID",
        "InvalidAMIName",
        "InvalidAvailabilityZone",
        "InvalidBlockDeviceMapping",
        "InvalidCapacityReservationId",
        "InvalidCapacityReservationState",
        "InvalidGroup",
        "InvalidGroupId",
        "InvalidIamInstanceProfileArn",
        "InvalidInput",
        "InvalidInstanceType",
        "InvalidInterface",
        "InvalidKMSKey",
        "InvalidKeyPair",
        "InvalidLaunchTemplateId",
        "InvalidLaunchTemplateName",
        "InvalidLaunchTemplateVersion",
        "InvalidNetworkInterface",
        "InvalidNetworkInterfaceID",
        "InvalidParameter",
        "InvalidParameterCombination",
        "InvalidParameterDependency",
        "InvalidParameterValue",
        "InvalidPlacementGroup",
        "InvalidSecurityGroup",
        "InvalidSecurityGroupID",
        "InvalidSecurityGroupId",
        "InvalidSnapshot",
        "InvalidSnapshotID",
        "InvalidSubnet",
        "InvalidSubnetID",
        "InvalidSubnetId",
        "InvalidTagKey",
        "InvalidTenancy",
        "InvalidUserData",
        "InvalidZone",
        "MissingParameter",
        "TagLimitExceeded",
        "TagPolicyViolation",
        "UnknownParameter",
        "UnsupportedOperation",
        "UnsupportedTenancy",
        "VPCIdNotSpecified",
    }
)
_THROTTLED = frozenset(
    {
        "EC2ThrottledException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
_NOT_FOUND = frozenset(
    {
        "AWS.SimpleQueueService.NonExistentQueue",
        "InvalidInstanceID.Malformed",  # no instance has such an id
        "InvalidInstanceID.NotFound",
        "QueueDoesNotExist",
        "TargetGroupNotFound",
    }
)
# AWS broke off: whether the call took effect is not known.
_AMBIGUOUS = frozenset(
    {
        "IdempotentCallInProgress",
        "IdempotentParameterMismatch",  # the token belongs to another launch: see cloud.aws.instances
        "InternalError",
        "InternalFailure",
        "InternalServerError",
        "RequestTimeout",
        "ServiceUnavailable",
        "Unavailable",
    }
)

_CREDENTIALS = frozenset(
    {
        "AuthFailure",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidClientTokenId",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)

_REFUSED = frozenset(
    {"AccessDenied", "AccessDeniedException", "AuthorizationError", "NotAuthorized", "UnauthorizedOperation"}
)

_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException"})

_SHOWN = 300  # characters of a message: a refusal of EC2 ends in a kilobyte that only AWS can decode

_HINTS = {
    "AccessDenied": "allow the action in the daemon's IAM policy",
    "AccessDeniedException": "allow the action in the daemon's IAM policy",
    "AuthFailure": (
        "check that this region is enabled in the account (one that must be opted into first answers so), "
        "the credentials, and the clock of this machine"
    ),
    "AuthFailure.ServiceLinkedRoleCreationNotPermitted": (
        f"create the role {SPOT_ROLE} once: {MAKE_SPOT_ROLE}"
    ),
    "InvalidClientTokenId": "check the access key",
    "MaxSpotInstanceCountExceeded": "ask AWS for a higher quota of spot vCPUs of this family",
    "OptInRequired": "enable the region or the service in the account, or accept the terms of the image",
    "PendingVerification": "AWS is verifying the account",
    "RequestExpired": "renew the credentials, or set the clock of this machine",
    "SignatureDoesNotMatch": "check the secret key and the clock of this machine",
    "UnauthorizedOperation": "allow the action in the daemon's IAM policy",
    "UnrecognizedClientException": "check the access key",
    "VcpuLimitExceeded": "ask AWS for a higher quota of vCPUs of this family",
    "MaxIOPSLimitExceeded": "ask AWS for a higher quota of provisioned IOPS",
    "VolumeLimitExceeded": "ask AWS for a higher quota of EBS storage, or delete volumes that are left over",
}


_NOT_IN_ZONE = "not supported in your requested Availability Zone"


def error_class(code: str, status: int, *, lost: type[CloudError], message: str = "") -> type[CloudError]:
    """What an error answer means. `lost` is what an unknown outcome is for this call.

    Uncertain for a call that changes something; CloudError for one that only reads.
    """
    if code == "Unsupported":
        return InsufficientCapacity if _NOT_IN_ZONE in message else Misconfigured
    if code in _CAPACITY:
        return InsufficientCapacity
    if code in _QUOTA:
        return QuotaExceeded
    if code in _THROTTLED:
        return Throttled
    if code in _NOT_FOUND:
        return NotFound
    if code in _AMBIGUOUS or status >= 500:
        return lost
    if code.partition(".")[0] in _MISCONFIGURED:
        return Misconfigured
    return Denied


def translate(error: Exception, what: str, *, lost: type[CloudError] = Uncertain) -> CloudError:
    """An exception of boto3 as an error of the port, with what was tried and what to do."""
    from botocore import exceptions as boto

    if isinstance(error, boto.ClientError):
        code, status = code_of(error), _status_of(error)
        message = str(error.response.get("Error", {}).get("Message", "")).strip().removesuffix(".")
        kind = error_class(code, status, lost=lost, message=message)
        hint = f"renew the credentials: {renewal()}" if code in _EXPIRED else _HINTS.get(code, "")
        return kind(f"{what}: {code}: {message}{hint and '; '}{hint}")
    if isinstance(error, _credential_errors()):
        return Denied(f"{what}: no usable credentials: {error}; renew them: {renewal()}")
    if isinstance(error, boto.ParamValidationError | boto.NoRegionError | boto.DataNotFoundError):
        return Misconfigured(f"{what}: cannot be asked like this: {error}")
    return lost(f"{what}: no usable answer: {str(error) or type(error).__name__}")


def renewal() -> str:
    """How renewed credentials come to this process.

    boto3 finds them anew in a shared file, a cache of SSO or the role of the instance. A file that systemd
    loaded for the unit (LoadCredential) stays as it was at the unit's start.
    """
    loaded, file = os.environ.get("CREDENTIALS_DIRECTORY"), os.environ.get("AWS_SHARED_CREDENTIALS_FILE")
    if loaded and file and Path(file).is_relative_to(loaded) and Path(file).exists():
        return (
            f"systemd loaded {Path(file).name} when the service started, so write the new ones where the "
            "unit loads them from and restart the service, which touches no node"
        )
    return "no restart is needed"


def speaks_of_credentials(error: Exception) -> bool:
    """Whether other credentials could help: these are missing, expired or not known to AWS."""
    return isinstance(error, _credential_errors()) or code_of(error) in _CREDENTIALS


def _credential_errors() -> tuple[type[Exception], ...]:
    from botocore import exceptions as boto

    return (
        boto.NoCredentialsError,
        boto.PartialCredentialsError,
        boto.CredentialRetrievalError,
        boto.TokenRetrievalError,
        boto.UnauthorizedSSOTokenError,
        boto.SSOTokenLoadError,
        boto.ProfileNotFound,
    )


def code_of(error: BaseException | None) -> str:
    """The error code of AWS behind an exception or behind the port's error made of it; "" for none."""
    seen = error.__cause__ if isinstance(error, CloudError) else error
    response = getattr(seen, "response", None)
    if not isinstance(response, dict):
        return ""
    return str(response.get("Error", {}).get("Code", ""))


def error_text(error: BaseException) -> str:
    """What AWS itself said, shortened: its code and message; the whole error when it said nothing."""
    seen = error.__cause__ if isinstance(error, CloudError) else error
    response = getattr(seen, "response", None)
    if not isinstance(response, dict):
        return str(error)
    message = str(response.get("Error", {}).get("Message", "")).strip()
    return f"{code_of(error)}: {message[:_SHOWN]}"


def is_refusal(error: BaseException) -> bool:
    """Whether AWS knows who asks and does not permit it."""
    return code_of(error) in _REFUSED


def _status_of(error: BaseException) -> int:
    response = getattr(error, "response", {})
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
