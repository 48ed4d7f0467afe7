"""What clients are told whose key may not ask now: which limit, what it is, and when again."""

from __future__ import annotations

import math
from collections import Counter as Counts
from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Metric

from cloud.ports import Clock
from orchestrator.gateway.accounts.usage_metrics import MOST_KEYS, Few
from orchestrator.gateway.endings import Turned, Unserved, shape_for
from orchestrator.gateway.job import Job
from orchestrator.gateway.metrics import Outcome
from orchestrator.gateway.replies import error_response
from orchestrator.gateway.spend_file import CapReached
from policies.client_limits import LONGEST_WAIT, Limit, Refused, over_budget
from policies.routing import Trouble

_TOO_MANY = 429


class Refusals:
    """Makes the answers, and counts them by key and limit. `names` are those of keys that metrics tell."""

    def __init__(self, registry: CollectorRegistry, clock: Clock) -> None:
        self._clock = clock
        self.names = Few(MOST_KEYS)
        self._counts: Counts[tuple[str, Limit]] = Counts()
        registry.register(self)

    def turned(self, job: Job, refused: Refused) -> Turned:
        """The answer to a request that a limit does not allow. It is no failure of the gateway's."""
        name = "" if job.client is None else job.client.name
        self._counts[self.names.of(name), refused.limit] += 1
        wait = None if refused.retry_after is None else math.ceil(refused.retry_after)
        response = error_response(
            _TOO_MANY,
            "budget_exceeded" if refused.limit is Limit.USD else "rate_limit_exceeded",
            refused.text,
            request_id=job.exchange.id,
            retry_after=wait,
            shape=shape_for(job),
        )
        if (
            wait is None or wait > LONGEST_WAIT
        ):  # clients that do not wait for so long would come again at once
            response.headers["x-should-retry"] = "false"
        return Turned(response, Outcome.BAD_REQUEST)

    def unpaid(self, job: Job, reached: CapReached) -> Unserved:
        """A backend that costs is not asked, for the key's dollars of the day. Another backend may answer."""
        client = job.client
        if client is None:
            raise AssertionError(f"request {job.exchange.id}: nobody's dollars are spent")
        refused = over_budget(
            client.name, client.limits, str(reached), never=reached.never, now=self._clock.now()
        )
        return Unserved(
            Trouble.DOWN, f"may not be paid: {refused.text}", self.turned(job, refused), said=True
        )

    def collect(self) -> Iterable[Metric]:
        """The family of one scrape."""
        family = CounterMetricFamily(
            "orchestrator_gateway_key_refused",
            "Requests, or calls of a backend that costs, not made because of a limit of their key",
            labels=["key", "limit"],
        )
        for (key, limit), count in self._counts.items():
            family.add_metric([key, limit.value], count)
        yield family
