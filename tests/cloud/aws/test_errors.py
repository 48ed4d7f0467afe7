"""What AWS answers, as what the caller may conclude."""

import pytest
from botocore import exceptions as boto

from cloud.aws.errors import code_of, translate
from cloud.errors import (
    CloudError,
    Denied,
    InsufficientCapacity,
    NotFound,
    QuotaExceeded,
    Throttled,
    Uncertain,
)


def answer(code: str, status: int = 400, message: str = "words") -> boto.ClientError:
    body = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return boto.ClientError(body, "RunInstances")


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("InsufficientInstanceCapacity", 500, InsufficientCapacity),
        ("UnfulfillableCapacity", 400, InsufficientCapacity),
        ("InsufficientFreeAddressesInSubnet", 400, InsufficientCapacity),
        ("SpotMaxPriceTooLow", 400, InsufficientCapacity),
        ("Unsupported", 400, InsufficientCapacity),
        ("MaxSpotInstanceCountExceeded", 400, QuotaExceeded),
        ("VcpuLimitExceeded", 400, QuotaExceeded),
        ("PendingVerification", 400, QuotaExceeded),
        ("RequestLimitExceeded", 503, Throttled),
        ("ThrottlingException", 400, Throttled),
        ("EC2ThrottledException", 400, Throttled),
        ("InvalidInstanceID.NotFound", 400, NotFound),
        ("TargetGroupNotFound", 400, NotFound),
        ("InternalError", 500, Uncertain),
        ("Unavailable", 503, Uncertain),
        ("SomethingNew", 502, Uncertain),
        ("IdempotentParameterMismatch", 400, Uncertain),
        ("SomethingNew", 400, Denied),
        ("UnauthorizedOperation", 403, Denied),
        ("ExpiredToken", 400, Denied),
        ("InvalidAMIID.NotFound", 400, Denied),
        ("InvalidLaunchTemplateName.NotFoundException", 400, Denied),
        ("AuthFailure.ServiceLinkedRoleCreationNotPermitted", 403, Denied),
    ],
)
def test_codes(code, status, expected):
    error = translate(answer(code, status), "ec2.run_instances")
    assert type(error) is expected
    assert str(error).startswith(f"ec2.run_instances: {code}: words")


def test_a_reading_call_is_never_uncertain():
    for error in (answer("InternalError", 500), boto.ReadTimeoutError(endpoint_url="x")):
        assert type(translate(error, "list", lost=CloudError)) is CloudError


@pytest.mark.parametrize(
    "error",
    [
        boto.ConnectTimeoutError(endpoint_url="x"),
        boto.ReadTimeoutError(endpoint_url="x"),
        boto.EndpointConnectionError(endpoint_url="x"),
        boto.ConnectionClosedError(endpoint_url="x"),
        boto.ResponseStreamingError(error="x"),
    ],
)
def test_no_answer_is_uncertain(error):
    assert type(translate(error, "launch")) is Uncertain


@pytest.mark.parametrize(
    "error",
    [
        boto.NoCredentialsError(),
        boto.PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY"),
        boto.CredentialRetrievalError(provider="sso", error_msg="x"),
        boto.ProfileNotFound(profile="x"),
    ],
)
def test_credentials_that_cannot_be_used_are_denied_with_what_to_do(error):
    found = translate(error, "launch")
    assert type(found) is Denied
    assert "renew" in str(found)


@pytest.mark.parametrize(
    ("code", "hint"),
    [("ExpiredToken", "renew"), ("UnauthorizedOperation", "IAM policy"), ("VcpuLimitExceeded", "quota")],
)
def test_errors_say_what_to_do(code, hint):
    assert hint in str(translate(answer(code), "launch"))


def test_the_code_stays_readable_behind_the_error():
    error = translate(answer("X"), "launch")
    error.__cause__ = answer("X")
    assert code_of(error) == code_of(answer("X")) == "X"
    assert code_of(Denied("no answer behind it")) == ""
    assert code_of(boto.NoCredentialsError()) == ""
