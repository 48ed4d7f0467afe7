"""What AWS answers, as what the caller may conclude."""

import pytest
from botocore import exceptions as boto

from cloud.aws.errors import code_of, translate
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
        ("VolumeTypeNotAvailableInZone", 400, InsufficientCapacity),
        ("MaxSpotInstanceCountExceeded", 400, QuotaExceeded),
        ("VcpuLimitExceeded", 400, QuotaExceeded),
        ("PendingVerification", 400, QuotaExceeded),
        ("VolumeLimitExceeded", 400, QuotaExceeded),
        ("MaxIOPSLimitExceeded", 400, QuotaExceeded),
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
        ("InvalidClientTokenId", 403, Denied),
        ("OptInRequired", 403, Denied),
        ("InvalidTarget", 400, Denied),
        ("InvalidAMIID.NotFound", 400, Misconfigured),
        ("InvalidAMIID.Malformed", 400, Misconfigured),
        ("InvalidBlockDeviceMapping", 400, Misconfigured),
        ("InvalidKeyPair.NotFound", 400, Misconfigured),
        ("InvalidLaunchTemplateId.VersionNotFound", 400, Misconfigured),
        ("InvalidLaunchTemplateName.NotFoundException", 400, Misconfigured),
        ("InvalidParameterCombination", 400, Misconfigured),
        ("InvalidParameterValue", 400, Misconfigured),
        ("InvalidParameterValue", 500, Uncertain),
        ("InvalidSnapshot.NotFound", 400, Misconfigured),
        ("InvalidSubnetID.NotFound", 400, Misconfigured),
        ("MissingParameter", 400, Misconfigured),
        ("TagPolicyViolation", 400, Misconfigured),
        ("UnsupportedOperation", 400, Misconfigured),
        ("AuthFailure.ServiceLinkedRoleCreationNotPermitted", 403, Denied),
    ],
)
def test_codes(code, status, expected):
    error = translate(answer(code, status), "ec2.run_instances")
    assert type(error) is expected
    assert str(error).startswith(f"ec2.run_instances: {code}: words")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "Your requested instance type (p5.48xlarge) is not supported in your requested Availability Zone "
            "(us-east-1e). Please retry your request by not specifying an Availability Zone or choosing "
            "us-east-1a, us-east-1b.",
            InsufficientCapacity,
        ),
        (
            "The requested configuration is currently not supported. Please check the documentation for "
            "supported configurations.",
            Misconfigured,
        ),
        ("", Misconfigured),
    ],
)
def test_unsupported_means_a_zone_or_a_configuration(message, expected):
    assert type(translate(answer("Unsupported", 400, message), "launch")) is expected


def test_what_aws_says_and_what_to_do_are_one_sentence():
    code = "AuthFailure.ServiceLinkedRoleCreationNotPermitted"
    told = str(translate(answer(code, 400, "You may not make the role."), "launch"))
    assert told.startswith(f"launch: {code}: You may not make the role; create the role AWSService")


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
    [
        ("ExpiredToken", "renew"),
        ("UnauthorizedOperation", "IAM policy"),
        ("VcpuLimitExceeded", "quota"),
        ("VolumeLimitExceeded", "quota"),
        ("AuthFailure", "region is enabled"),
        ("AuthFailure.ServiceLinkedRoleCreationNotPermitted", "create-service-linked-role"),
    ],
)
def test_errors_say_what_to_do(code, hint):
    assert hint in str(translate(answer(code), "launch"))


def test_the_code_stays_readable_behind_the_error():
    error = translate(answer("X"), "launch")
    error.__cause__ = answer("X")
    assert code_of(error) == code_of(answer("X")) == "X"
    assert code_of(Denied("no answer behind it")) == ""
    assert code_of(boto.NoCredentialsError()) == ""


EXPIRED = [answer("ExpiredToken"), answer("ExpiredTokenException"), boto.NoCredentialsError()]


@pytest.mark.parametrize("error", EXPIRED)
def test_credentials_that_systemd_loaded_need_a_restart(error, monkeypatch, tmp_path):
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws-credentials"))
    assert "no restart is needed" in str(translate(error, "launch"))  # there is none: a role, or SSO
    (tmp_path / "aws-credentials").write_text("[default]")
    text = str(translate(error, "launch"))
    assert "no restart" not in text
    assert "systemd loaded aws-credentials when the service started" in text
    assert "restart the service" in text


@pytest.mark.parametrize("error", EXPIRED)
def test_credentials_that_boto3_reads_itself_need_none(error, monkeypatch, tmp_path):
    (tmp_path / "aws-credentials").write_text("[default]")
    for loaded in ("", str(tmp_path / "unit")):
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", loaded)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws-credentials"))
        assert "no restart is needed" in str(translate(error, "launch"))
