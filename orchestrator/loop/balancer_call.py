"""Calls on a balancer: a fault of its adapter is that balancer's trouble, not another's nor the pool's.

A pool that fails begins again, and the only one of a daemon ends it. A balancer that sends what its adapter
was not made for must not bring that about: others carry the pool's requests, and its nodes are replaced.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import ClassVar, TypeVar

from cloud.errors import CloudError, Uncertain
from cloud.logger import structlog
from orchestrator.metrics.calls import CRASHED

log = structlog.get_logger("loop")

T = TypeVar("T")


class AdapterFault(Uncertain):
    """An adapter raised what no port may; what came of the call is not known."""

    word: ClassVar[str] = CRASHED


async def kept_apart(balancer: str, kind: str, call: Awaitable[T]) -> T:
    """The result of a call, to "read" or to "write". Raises what a port may, TimeoutError, AdapterFault."""
    try:
        return await call
    except (CloudError, TimeoutError):
        raise
    except Exception as error:
        log.exception("call.crashed", kind=kind, token=balancer)
        raise AdapterFault(f"a fault of its adapter: {type(error).__name__}: {error}") from error
