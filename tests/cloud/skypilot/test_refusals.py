"""What SkyPilot raises, as words of the port: only what certainly launched nothing is a refusal."""

import pytest

from cloud.skypilot import wire
from cloud.skypilot.helper.refusals import Said, judged, links


class ClientError(Exception):
    """As botocore's."""

    def __init__(self, code):
        super().__init__(f"An error occurred ({code}) when calling the RunInstances operation: no")
        self.response = {"Error": {"Code": code}}


class ProvisionerError(RuntimeError):
    """As SkyPilot's for GCP."""

    def __init__(self, *codes):
        super().__init__("Failed to launch instances")
        self.errors = [{"code": code, "message": "no"} for code in codes]


def raised(error, cause=None):
    """The exception as it arrives, wrapped as SkyPilot wraps it."""
    try:
        try:
            if cause is not None:
                raise cause
        except Exception as first:
            raise error from first
        raise error
    except Exception as arrived:
        return arrived


MAX = "Failed to launch instances. Max attempts exceeded."


@pytest.mark.parametrize(
    ("error", "cause", "word"),
    [
        (RuntimeError(MAX), ClientError("InsufficientInstanceCapacity"), "no-capacity"),
        (RuntimeError(MAX), ClientError("SpotMaxPriceTooLow"), "no-capacity"),
        (RuntimeError(MAX), ClientError("MaxSpotInstanceCountExceeded"), "quota"),
        (RuntimeError(MAX), ClientError("VcpuLimitExceeded"), "quota"),
        (RuntimeError(MAX), ClientError("VolumeLimitExceeded"), "quota"),
        (RuntimeError(MAX), ClientError("RequestLimitExceeded"), "throttled"),
        (RuntimeError(MAX), ClientError("UnauthorizedOperation"), "denied"),
        (ClientError("ExpiredToken"), None, "denied"),
        (RuntimeError(MAX), ClientError("InvalidAMIID.NotFound"), "misconfigured"),
        (RuntimeError(MAX), ClientError("Unsupported"), "misconfigured"),
        (ClientError("IncorrectInstanceState"), None, "misconfigured"),
        (ClientError("InvalidInstanceID.NotFound"), None, "not-found"),
        (RuntimeError(MAX), ClientError("IdempotentParameterMismatch"), "uncertain"),
        (RuntimeError(MAX), ClientError("InternalError"), "uncertain"),
        (RuntimeError(f"Failed to call f due to RequestLimitExceeded. {MAX}"), None, "throttled"),
        (ProvisionerError("ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS"), None, "no-capacity"),
        (ProvisionerError("QUOTA_EXCEEDED"), None, "quota"),
        (ProvisionerError("quotaExceeded"), None, "quota"),
        (ProvisionerError("VPC_NOT_FOUND"), None, "misconfigured"),
        (ProvisionerError("RESOURCE_NOT_READY"), None, "uncertain"),
        (
            RuntimeError("There are no longer any instances available with the requested GPU"),
            None,
            "no-capacity",
        ),
        (RuntimeError("Out of host capacity."), None, "no-capacity"),
        (RuntimeError("SKYPILOT_ERROR_NO_NODES_LAUNCHED: all subnets are public"), None, "misconfigured"),
        (ModuleNotFoundError("No module named 'runpod'"), None, "misconfigured"),
        (type("NoCredentialsError", (Exception,), {})("Unable to locate credentials"), None, "denied"),
        (type("ResourcesUnavailableError", (Exception,), {})("No image found"), None, "misconfigured"),
        (ConnectionResetError("reset"), None, "uncertain"),
        (TimeoutError("read timed out"), None, "uncertain"),
        (AttributeError("property 'tags' has no setter"), None, "uncertain"),
        (Said("not-found", "it has ended"), None, "not-found"),
    ],
)
def test_a_change_that_failed(error, cause, word):
    said, text = judged(links(raised(error, cause)), change=True)
    assert said == word
    assert text
    assert type(wire.error_of({"word": said, "text": text})).word == word


def test_a_text_of_a_cloud_that_gives_codes_is_not_guessed_at():
    error = raised(RuntimeError("out of capacity"), ClientError("InternalError"))
    assert judged(links(error), change=True)[0] == "uncertain"


def test_a_look_that_failed_is_no_open_outcome():
    assert judged(links(ConnectionResetError("reset")), change=False)[0] == "error"


def test_a_long_chain_is_cut():
    error = RuntimeError("x" * 5000)
    for _ in range(20):
        error = raised(RuntimeError("y" * 5000), error)
    assert len(links(error)) <= 6
    assert len(judged(links(error), change=True)[1]) == 500


def test_a_word_that_nobody_knows_is_uncertain():
    assert wire.error_of({"word": "surprise", "text": "x"}).word == "uncertain"
    assert str(wire.error_of({}))


@pytest.mark.parametrize("data", [b"", b"[1]", b"hello", b'"x"', b"\xff"])
def test_what_is_no_message_is_refused(data):
    with pytest.raises(ValueError):  # noqa: PT011 - any of json's
        wire.message(data)
