"""Counts and times the daemon's calls on the world, by port, operation and how they ended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final

from prometheus_client import Counter, Histogram

from cloud.errors import EVERY, CloudError
from orchestrator.metrics import metrics

OK, LATE, CUT_OFF, CRASHED = "ok", "late", "cut-off", "crashed"

OUTCOMES: Final = (
    OK,
    *(kind.word for kind in EVERY),
    LATE,  # no answer in time
    CUT_OFF,  # the daemon stopped meanwhile
    CRASHED,  # a fault of the adapter
)


@contextmanager
def counted(pool: str, port: str, operation: str) -> Iterator[None]:
    """Count the call that the body makes. Its exceptions pass through."""
    outcomes, seconds = _series(pool, port, operation)
    clock = asyncio.get_running_loop().time
    began, outcome = clock(), OK
    try:
        yield
    except CloudError as error:
        outcome = error.word
        raise
    except TimeoutError:
        outcome = LATE
        raise
    except Exception:
        outcome = CRASHED
        raise
    except BaseException:
        outcome = CUT_OFF
        raise
    finally:
        outcomes[outcome].inc()
        seconds.observe(clock() - began)


@cache
def _series(pool: str, port: str, operation: str) -> tuple[dict[str, Counter], Histogram]:
    """The series of an operation, every outcome from 0: a rate needs a first value."""
    outcomes = {word: metrics.CALLS.labels(pool, port, operation, word) for word in OUTCOMES}
    return outcomes, metrics.CALL_SECONDS.labels(pool, port, operation)


def aws_call_ended(region: str, operation: str, outcome: str, seconds: float) -> None:
    """Count a call of the AWS API."""
    metrics.AWS_CALLS.labels(region, operation, outcome).inc()
    metrics.AWS_CALL_SECONDS.labels(operation).observe(seconds)
