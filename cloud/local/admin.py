"""What a test, a demo or an operator may do to a local cloud: reclaims, faults, statistics.

POST with a JSON object (unknown keys are refused), on the same socket as the API:

    /admin/reclaim          {"node", "notice_s"?}        market seconds; 0: none; default: as configured
    /admin/reclaim-zone     {"zone", "notice_s"?}        every spot node there -> {"nodes": [...]}
    /admin/recommend        {"node"}                     a rebalance recommendation
    /admin/capacity         {"zone", "count", "market"?} null count: the market decides again; market "spot"
    /admin/kill-engine      {"node"}                     SIGKILL to its process group; the machine stays up
    /admin/freeze, /thaw    {"node"}                     SIGSTOP, SIGCONT to its process group
    /admin/refuse           {"times", "error"?, "zone"?, "market"?}   the next launches and starts
    /admin/lose-response    {"call", "times"?}           launch, list, terminate, stop, start or any
    /admin/throttle         {"calls"}
    /admin/fail-list        {"times"}
    /admin/list-delay       {"seconds"}                  real seconds
    /admin/list-lag         {"seconds"}                  real seconds; new instances are not listed before
    /admin/forge            {"node", "kind"?, "deadline_s"?}  a notice in the node's metadata that nobody gave
    /admin/channels         {"feed"?, "metadata"?, "feed_delay"?, "metadata_delay"?, "state_changes"?}
    /admin/heal             {}                           all faults off

    GET /admin/statistics   `statistics.Statistics`
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

from aiohttp import web
from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, TypeAdapter

from cloud.errors import Denied, NotFound
from cloud.local.config import Channels
from cloud.local.faults import ERRORS, Faults, Refusal
from cloud.local.feed import Feed
from cloud.local.machines import Machines
from cloud.local.metadata import Shown
from cloud.local.reclaims import Reclaims
from cloud.local.sales import Sales
from cloud.local.statistics import CloudStatistics, Statistics
from cloud.local.table import Table
from cloud.logger import structlog
from cloud.ports import Clock
from policies.model import InstanceState, Market

log = structlog.get_logger("local")

_STRICT = ConfigDict(extra="forbid")
Order = TypeVar("Order")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOrder:
    """Something to do to one node."""

    node: str

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class ReclaimOrder:
    """Reclaim one node."""

    node: str
    notice_s: NonNegativeFloat | None = None

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class ReclaimZoneOrder:
    """Reclaim every spot node of a zone."""

    zone: str
    notice_s: NonNegativeFloat | None = None

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityOrder:
    """Hold a zone's capacity at a count, or leave it to the market again."""

    zone: str
    count: NonNegativeInt | None
    market: Market = Market.SPOT

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class RefuseOrder:
    """Refuse launches and starts."""

    times: NonNegativeInt
    error: str = "InsufficientCapacity"
    zone: str | None = None
    market: Market | None = None

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class LoseOrder:
    """Lose the answers of calls that took effect."""

    call: Literal["launch", "list", "terminate", "stop", "start", "any"]
    times: NonNegativeInt = 1

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class CallsOrder:
    """Throttle calls."""

    calls: NonNegativeInt

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class TimesOrder:
    """Do something some times."""

    times: NonNegativeInt

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondsOrder:
    """Take some real seconds."""

    seconds: NonNegativeFloat

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgeOrder:
    """Put a false notice into a node's metadata. `deadline_s` is in market seconds from now."""

    node: str
    kind: Literal["interruption", "rebalance", "none"] = "interruption"
    deadline_s: Annotated[float, Field(ge=0)] = 120.0

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelsOrder:
    """Change where notices show. None leaves a setting as it is. Delays in market seconds."""

    feed: bool | None = None
    metadata: bool | None = None
    feed_delay: NonNegativeFloat | None = None
    metadata_delay: NonNegativeFloat | None = None
    state_changes: bool | None = None

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class NoOrder:
    """Nothing to say."""

    __pydantic_config__ = _STRICT


_STATISTICS = TypeAdapter(Statistics)
Answer = dict[str, list[str]]


class Admin:
    """The admin API, and what the metadata of each node shows (which admins may forge)."""

    def __init__(
        self,
        *,
        table: Table,
        machines: Machines,
        reclaims: Reclaims,
        feed: Feed,
        faults: Faults,
        statistics: CloudStatistics,
        sales: Sales,
        clock: Clock,
        speed: float,
    ) -> None:
        self._table = table
        self._machines = machines
        self._reclaims = reclaims
        self._feed = feed
        self._faults = faults
        self._statistics = statistics
        self._sales = sales
        self._clock = clock
        self._speed = speed
        self._forged: dict[str, Shown] = {}

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add /admin to the API."""
        router.add_get("/admin/statistics", self._get_statistics)
        self._add(router, "reclaim", ReclaimOrder, self._reclaim)
        self._add(router, "reclaim-zone", ReclaimZoneOrder, self._reclaim_zone)
        self._add(router, "recommend", NodeOrder, self._recommend)
        self._add(router, "capacity", CapacityOrder, self._capacity)
        self._add(router, "kill-engine", NodeOrder, lambda order: self._signal(order, signal.SIGKILL))
        self._add(router, "freeze", NodeOrder, lambda order: self._signal(order, signal.SIGSTOP))
        self._add(router, "thaw", NodeOrder, lambda order: self._signal(order, signal.SIGCONT))
        self._add(router, "refuse", RefuseOrder, self._refuse)
        self._add(router, "lose-response", LoseOrder, self._lose)
        self._add(router, "throttle", CallsOrder, self._throttle)
        self._add(router, "fail-list", TimesOrder, self._fail_list)
        self._add(router, "list-delay", SecondsOrder, self._list_delay)
        self._add(router, "list-lag", SecondsOrder, self._list_lag)
        self._add(router, "forge", ForgeOrder, self._forge)
        self._add(router, "channels", ChannelsOrder, self._channels)
        self._add(router, "heal", NoOrder, self._heal)

    def forecast(self, node: str) -> Shown:
        """What a node's metadata shows now: forged notices first, then true ones once they are due."""
        if node in self._forged:
            return self._forged[node]
        channels, machine = self._reclaims.channels, self._table.get(node)
        if machine is None or not channels.metadata:
            return Shown()
        latest = self._clock.now() - channels.metadata_delay / self._speed
        reclaim = machine.reclaim
        due = reclaim is not None and reclaim.noticed_at is not None and reclaim.noticed_at <= latest
        recommended = machine.recommended_at
        return Shown(
            deadline=reclaim.deadline if reclaim is not None and due else None,
            recommended_at=recommended if recommended is not None and recommended <= latest else None,
        )

    def _add(
        self,
        router: web.UrlDispatcher,
        name: str,
        kind: type[Order],
        obey: Callable[[Order], Answer | None],
    ) -> None:
        adapter = TypeAdapter(kind)

        async def handle(request: web.Request) -> web.StreamResponse:
            order = adapter.validate_json(await request.read() or b"{}")
            answer = obey(order)
            log.info(
                "admin_order.applied",
                order=name,
                **{key: str(value) for key, value in _fields(order).items()},
            )
            return web.json_response(answer or {})

        handler: Callable[[web.Request], Awaitable[web.StreamResponse]] = handle
        router.add_post(f"/admin/{name}", handler)

    async def _get_statistics(self, _request: web.Request) -> web.Response:
        body = _STATISTICS.dump_json(self._statistics.collect())
        return web.Response(body=body, content_type="application/json")

    def _reclaim(self, order: ReclaimOrder) -> Answer:
        return {"nodes": [self._reclaims.reclaim(order.node, order.notice_s).id]}

    def _reclaim_zone(self, order: ReclaimZoneOrder) -> Answer:
        self._need_zone(order.zone)
        nodes = [
            machine.id
            for machine in self._machines.all_held()
            if machine.placement.zone == order.zone and machine.placement.market is Market.SPOT
        ]
        for node in nodes:
            self._reclaims.reclaim(node, order.notice_s, cause=f"zone {order.zone}, asked for")
        return {"nodes": nodes}

    def _recommend(self, order: NodeOrder) -> None:
        self._reclaims.recommend(order.node)

    def _capacity(self, order: CapacityOrder) -> None:
        self._need_zone(order.zone)
        if order.count is None:
            self._sales.overrides.pop((order.zone, order.market), None)
        else:
            self._sales.overrides[order.zone, order.market] = order.count
        self._reclaims.enforce()

    def _signal(self, order: NodeOrder, number: signal.Signals) -> None:
        self._machines.signal_engine(order.node, number)

    def _refuse(self, order: RefuseOrder) -> None:
        if order.error not in ERRORS:
            raise Denied(f"error: {order.error!r} is none of {', '.join(ERRORS)}")
        self._faults.refusals.append(
            Refusal(times=order.times, error=ERRORS[order.error], zone=order.zone, market=order.market)
        )

    def _lose(self, order: LoseOrder) -> None:
        self._faults.lost_responses[order.call] = order.times

    def _throttle(self, order: CallsOrder) -> None:
        self._faults.throttled_calls = order.calls

    def _fail_list(self, order: TimesOrder) -> None:
        self._faults.failing_lists = order.times

    def _list_delay(self, order: SecondsOrder) -> None:
        self._faults.list_delay = order.seconds

    def _list_lag(self, order: SecondsOrder) -> None:
        self._faults.list_lag = order.seconds

    def _forge(self, order: ForgeOrder) -> None:
        machine = self._table.get(order.node)
        if machine is None or machine.state is not InstanceState.RUNNING:
            raise NotFound(f"{order.node} does not run")
        now = self._clock.now()
        if order.kind == "none":
            self._forged.pop(order.node, None)
        elif order.kind == "rebalance":
            self._forged[order.node] = Shown(recommended_at=now)
        else:
            self._forged[order.node] = Shown(deadline=round(now + order.deadline_s / self._speed, 3))

    def _channels(self, order: ChannelsOrder) -> None:
        old = self._reclaims.channels
        self._reclaims.channels = Channels(
            feed=old.feed if order.feed is None else order.feed,
            metadata=old.metadata if order.metadata is None else order.metadata,
            feed_delay=old.feed_delay if order.feed_delay is None else order.feed_delay,
            metadata_delay=old.metadata_delay if order.metadata_delay is None else order.metadata_delay,
            state_changes=old.state_changes if order.state_changes is None else order.state_changes,
        )

    def _heal(self, _order: NoOrder) -> None:
        fresh = Faults()
        for name in Faults.__dataclass_fields__:
            setattr(self._faults, name, getattr(fresh, name))
        self._forged.clear()
        self._sales.overrides.clear()

    def _need_zone(self, zone: str) -> None:
        zones = sorted({offering.placement.zone for offering in self._sales.offerings()})
        if zone not in zones:
            raise NotFound(f"no zone {zone!r}; there are {', '.join(zones)}")


def _fields(order: object) -> dict[str, object]:
    return {name: getattr(order, name) for name in getattr(order, "__dataclass_fields__", {})}
