"""What a failed call says of its provider: whether it is left alone, for how long, and for which model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hand_clock import HandClock

from cloud.providers.wire import Blame
from orchestrator.gateway.failure import Failure
from orchestrator.gateway.provider import ProviderBackend

NOW = HandClock().now()


class Noted:
    """A breaker, or the metrics, that note what they are told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def good(self) -> None:
        self.told.append(("good",))

    def fail(self, now: float, retry_after: float | None = None) -> None:
        self.told.append(("fail", now, retry_after))

    def failed(self, provider: str, failure: Failure) -> None:
        self.told.append((provider, failure))


def fault(blame: Blame, *, status: int = 500, retry_after: float | None = None) -> Any:
    return SimpleNamespace(blame=blame, status=status, retry_after=retry_after)


@pytest.mark.parametrize(
    ("failure", "said", "told", "unknown"),
    [
        (Failure.DEADLINE, None, [], {}),
        (Failure.CONNECT, None, [("fail", NOW, None)], {}),
        (Failure.UNAVAILABLE, fault(Blame.REQUEST, status=400), [("good",)], {}),
        (Failure.UNAVAILABLE, fault(Blame.ACCOUNT, status=404), [("good",)], {"m": NOW + 30.0}),
        (Failure.UNAVAILABLE, fault(Blame.ACCOUNT, status=401), [("fail", NOW, 30.0)], {}),
        (Failure.UNAVAILABLE, fault(Blame.BUSY), [("fail", NOW, None)], {}),
        (Failure.UNAVAILABLE, fault(Blame.BUSY, retry_after=0.9), [("fail", NOW, None)], {}),
        (Failure.UNAVAILABLE, fault(Blame.BUSY, retry_after=1.0), [("fail", NOW, 1.0)], {}),
        (Failure.UNAVAILABLE, fault(Blame.FAILED, retry_after=7.0), [("fail", NOW, 7.0)], {}),
    ],
)
def test_whether_and_for_how_long_a_provider_is_left_alone(
    failure: Failure, said: Any, told: list[Any], unknown: dict[str, float]
) -> None:
    breaker, metrics = Noted(), Noted()
    backend: Any = SimpleNamespace(
        _clock=HandClock(),
        _metrics=metrics,
        _breaker=breaker,
        _unknown={},
        spec=SimpleNamespace(name="claude"),
    )
    ProviderBackend._blamed(backend, SimpleNamespace(failure=failure, fault=said), "m")  # type: ignore[arg-type]
    assert breaker.told == told
    assert backend._unknown == unknown
    assert metrics.told == [("claude", failure)]
