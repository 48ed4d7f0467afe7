"""What ends an attempt has a name, also where two things end it in the same instant."""

from __future__ import annotations

import aiohttp
import pytest

from orchestrator.gateway.attempt import AttemptFailed, Attempts
from orchestrator.gateway.failure import Failure

PULLED = [
    None,
    Failure.LOST,
    Failure.STALLED,
    Failure.DEADLINE,
    Failure.FIRST_TOKEN_TIMEOUT,
    Failure.MOVED,
]
ERRORS = [
    TimeoutError(),
    TimeoutError(),
    ConnectionResetError(104, "Connection reset by peer"),
    aiohttp.ClientPayloadError("not completed"),
    aiohttp.ServerDisconnectedError(),
    aiohttp.ConnectionTimeoutError("to host"),
]


class Leash:
    heard = True

    def __init__(self, failure: Failure | None) -> None:
        self.failure = failure


class Job:
    def __init__(self, *, whole: bool) -> None:
        self.whole = whole


@pytest.mark.parametrize("pulled", PULLED)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_in_the_instant_in_which_the_wait_ends_is_a_failed_attempt(error, pulled) -> None:
    attempts = object.__new__(Attempts)
    with pytest.raises(AttemptFailed) as failed, attempts._failures_named(Job(whole=False), Leash(pulled)):
        raise error
    assert failed.value.failure in (pulled, Failure.DISCONNECTED, Failure.CONNECT)
    assert str(failed.value)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_nothing_fails_an_attempt_whose_client_has_its_whole_answer(error) -> None:
    with object.__new__(Attempts)._failures_named(Job(whole=True), Leash(Failure.LOST)):
        raise error
