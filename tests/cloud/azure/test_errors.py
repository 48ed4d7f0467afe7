"""What Azure answers, as what the caller may conclude."""

from __future__ import annotations

from typing import Any

import pytest

from cloud.azure.errors import ending_of, error_class, speaks_of_credentials, translate, was_sent
from cloud.azure.machines import Status, instance_of, status_of
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
from policies.model import Ending, InstanceState

QUOTA = (
    "Operation could not be completed as it results in exceeding approved LowPriorityCores quota. "
    "Additional details - Location: eastus, Current Limit: 0, Current Usage: 0"
)
PRICE = (
    "Unable to perform operation 'Create VM' since the provided max price '0.1 USD' is lower than the "
    "current spot price '1.47 USD' for Azure Spot VM size 'Standard_NC24ads_A100_v4'."
)


@pytest.mark.parametrize(
    ("code", "status", "message", "expected"),
    [
        ("SkuNotAvailable", 409, "", InsufficientCapacity),
        ("AllocationFailed", 409, "", InsufficientCapacity),
        ("ZonalAllocationFailed", 409, "", InsufficientCapacity),
        ("OverconstrainedAllocationRequest", 409, "", InsufficientCapacity),
        ("OverconstrainedZonalAllocationRequest", 409, "", InsufficientCapacity),
        ("SubnetIsFull", 400, "", InsufficientCapacity),
        ("OperationNotAllowed", 409, PRICE, InsufficientCapacity),
        ("OperationNotAllowed", 409, QUOTA, QuotaExceeded),
        ("QuotaExceeded", 409, "", QuotaExceeded),
        ("OperationNotAllowed", 409, "The machine is being deleted.", Uncertain),
        ("Conflict", 409, "", Uncertain),
        ("OperationThrottled", 429, "", Throttled),
        ("", 429, "", Throttled),
        ("SomethingNew", 429, "", Throttled),
        ("ResourceNotFound", 404, "", NotFound),
        ("", 404, "", NotFound),
        ("ResourceGroupNotFound", 404, "", Misconfigured),
        ("InvalidParameter", 400, "", Misconfigured),
        ("PlatformImageNotFound", 404, "", Misconfigured),
        ("MissingSubscriptionRegistration", 409, "", Misconfigured),
        ("RequestDisallowedByPolicy", 403, "", Misconfigured),
        ("AuthorizationFailed", 403, "", Denied),
        ("InvalidAuthenticationToken", 401, "", Denied),
        ("SomethingNew", 400, "", Denied),
        ("InternalServerError", 500, "", Uncertain),
        ("RetryableError", 409, "", Uncertain),
        ("", 502, "", Uncertain),
        ("SomethingNew", 503, "", Uncertain),
    ],
)
def test_an_answer_means_one_thing(code: str, status: int, message: str, expected: type[CloudError]) -> None:
    assert error_class(code, status, message, lost=Uncertain) is expected


def test_credentials_that_nobody_has_are_denied_and_looked_for_anew() -> None:
    identity = pytest.importorskip("azure.identity")
    error = identity.CredentialUnavailableError(message="no identity\nat all")
    assert speaks_of_credentials(error)
    assert isinstance(translate(error, "x"), Denied)
    assert "no identity at all; renew" in str(translate(error, "x"))


def test_what_was_never_sent_did_nothing() -> None:
    core = pytest.importorskip("azure.core.exceptions")
    for error, sent in ((core.ServiceRequestError("no"), False), (core.ServiceResponseError("no"), True)):
        meaning = translate(error, "x")
        meaning.__cause__ = error
        assert (was_sent(meaning), type(meaning)) == (sent, Uncertain)


def test_what_an_unknown_outcome_is_depends_on_the_call() -> None:
    assert error_class("InternalServerError", 500, lost=CloudError) is CloudError


def said(provisioning: str, *codes: str, message: str = "") -> tuple[str, list[dict[str, Any]]]:
    return provisioning, [{"code": code, **({"message": message} if message else {})} for code in codes]


@pytest.mark.parametrize(
    ("shown", "state", "ending"),
    [
        (said("Creating", "ProvisioningState/creating"), InstanceState.PENDING, Ending.UNKNOWN),
        (said("Creating"), InstanceState.PENDING, Ending.UNKNOWN),
        (said("Succeeded", "PowerState/running"), InstanceState.RUNNING, Ending.UNKNOWN),
        (
            said("Updating", "ProvisioningState/updating", "PowerState/starting"),
            InstanceState.PENDING,
            Ending.UNKNOWN,
        ),
        (said("Updating", "PowerState/deallocating"), InstanceState.STOPPING, Ending.UNKNOWN),
        (said("Succeeded", "PowerState/deallocated"), InstanceState.STOPPED, Ending.UNKNOWN),
        (said("Succeeded", "PowerState/stopped"), InstanceState.STOPPED, Ending.UNKNOWN),
        (said("Deleting", "PowerState/running"), InstanceState.SHUTTING_DOWN, Ending.UNKNOWN),
        # Its system took longer to boot than Azure waits for it.
        (
            said("Failed", "ProvisioningState/failed/OSProvisioningTimedOut", "PowerState/running"),
            InstanceState.RUNNING,
            Ending.UNKNOWN,
        ),
        # It was to be started, and there was no room: it is what it was.
        (
            said("Failed", "ProvisioningState/failed/AllocationFailed", "PowerState/deallocated"),
            InstanceState.STOPPED,
            Ending.UNKNOWN,
        ),
        (
            said("Failed", "ProvisioningState/failed/AllocationFailed", message="no room"),
            InstanceState.TERMINATED,
            Ending.CAPACITY,
        ),
        (
            said("Failed", "ProvisioningState/failed/VMAgentStatusCommunicationError", message="odd"),
            InstanceState.TERMINATED,
            Ending.FAULT,
        ),
        (said("Failed", "ProvisioningState/failed"), InstanceState.TERMINATED, Ending.FAULT),
    ],
)
def test_a_machine_is_in_the_state_that_both_its_statuses_say(
    shown: tuple[str, list[dict[str, Any]]], state: InstanceState, ending: Ending
) -> None:
    from azure_pool import place

    machine = {"name": "so-00", "location": "eastus", "properties": {"provisioningState": shown[0]}}
    found = instance_of(machine, status_of(shown[1]), "", place(), 5.0)
    assert (found.state, found.ending) == (state, ending)
    assert bool(found.ending_why) == (ending is not Ending.UNKNOWN)
    assert found.launched_at == 5.0


def test_the_words_of_a_failure_name_its_code() -> None:
    status = status_of(
        [{"code": "ProvisioningState/failed/AllocationFailed", "message": "Allocation failed."}]
    )
    assert status == Status(provisioning="failed", failure="AllocationFailed", why="Allocation failed.")
    assert ending_of("OverconstrainedZonalAllocationRequest") is Ending.CAPACITY
