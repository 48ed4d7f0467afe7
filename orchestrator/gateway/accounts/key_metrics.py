"""The metrics of the clients' keys, in the gateway's registry. They are read when asked for."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from orchestrator.gateway.accounts.keyfile import ClientKeys, Refused

_PREFIX = "orchestrator_gateway_"


class KeyMetrics:
    """What became of the file of keys, and who was refused."""

    def __init__(self, registry: CollectorRegistry, keys: ClientKeys) -> None:
        self._keys = keys
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """The families of one scrape."""
        keys = self._keys
        held = GaugeMetricFamily(
            f"{_PREFIX}keys", "Keys of clients in the file that was taken last", labels=["state"]
        )
        for state, count in keys.count().items():
            held.add_metric([state.value], count)
        yield held
        yield GaugeMetricFamily(
            f"{_PREFIX}keys_unread",
            "1 while no file of clients' keys could be read yet, and everybody is refused",
            value=keys.unread,
        )
        yield GaugeMetricFamily(
            f"{_PREFIX}keys_file_refused",
            "1 while the file of clients' keys is not taken, and those that were read before hold",
            value=bool(keys.fault),
        )
        refused = CounterMetricFamily(
            f"{_PREFIX}clients_refused", "Requests refused for their key, by why", labels=["reason"]
        )
        for reason in Refused:
            refused.add_metric([reason.value], keys.refused[reason])
        yield refused
