"""The settings of one gateway process."""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cloud.engines.row import Ranking
from cloud.providers.prices import OwnPrice
from orchestrator.gateway.clocks import Limits
from orchestrator.units import HostPort
from policies.routing import ANY_TASK, Kind, Route, Task
from policies.spend import Rates

IDLE = 4.0
"""Seconds for which a connection to a target is kept without a request. vLLM's server closes its own after
5 s where nobody says otherwise; the gateway lets go first."""

_LONGEST_SOCKET_PATH = 107  # bytes a unix socket address holds on Linux


class GatewayError(Exception):
    """The gateway cannot start. The message says what is wrong, where, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolGate:
    """How the gateway treats one pool. Durations are seconds, sizes bytes, shares fractions.

    Raises GatewayError when a value makes no sense.
    """

    targets_file: Path
    name: str = ""  # only target sets of this pool are taken; empty: any
    served: str = ""  # the name of the model at its engines
    adapters: tuple[str, ...] = ()  # names of adapters that every engine serves
    loaded: tuple[str, ...] = ()  # names of adapters that a target has when the target set says so
    numbered: bool = False
    """Engines know adapters by number and apply all of them unless a request says otherwise (llama.cpp)."""
    tasks: frozenset[Task] = ANY_TASK
    tells_ids: bool = True  # streams have the id of every token; without them no stream is continued
    ranking: Ranking | None = None  # how engines are asked to order texts, where clients ask in another form

    health_path: str = "/health"
    health_interval: float = 0.3  # between checks of a target that owes answers and is silent; else three
    health_timeout: float = 4.4
    """A target that is silent for so long and fails a check, or leaves it unanswered, is lost: its requests
    go to another one."""
    health_fall: int = 2  # failed checks in a row before a target counts as unhealthy

    queue_limit: int = 1024
    queue_deadline: float = 30.0
    no_target_wait: float = 1.0  # how long a request waits while no target can be hoped for
    max_in_flight: int = 512  # requests per target and unit; more wait in the queue
    tokens_in_flight: int = 0  # per target and unit, of requests and what they may bring; 0: not counted

    connect_timeout: float = 2.0
    first_token_timeout: float = 60.0
    """From sending a streaming request to its first token, while its target is silent to others too."""
    answer_timeout: float = 600.0  # longest life of a plain request
    stream_timeout: float = 3600.0  # longest life of a stream
    stall_factor: float = 20.0
    """A stream that is silent for so many times the mean gap of its target is continued elsewhere, where
    that is possible."""
    stall_least: float = 15.0  # shortest such silence
    idle_timeout: float = 60.0  # after this silence a stream is continued elsewhere, or ends
    continuation: str = "on"
    """"on" continues broken streams on another target that serves the same, also inexactly; "exact" only
    where the rest is what the first target would have sent; "off" never."""
    drain_margin: float = 10.0  # streams move so long before the drain deadline of their target

    max_retries: int = 2  # of a request that a target may have worked on; refused ones do not count
    retry_budget: float = 0.2  # retries per request served, over time; the loss of one target costs one
    retry_reserve: int = 200  # retries that may be saved up
    breaker_failures: int = 3  # failures in a row that open a target's circuit breaker
    breaker_open: float = 1.0  # first time that it stays open; doubled each time
    breaker_longest: float = 60.0

    allow_paths: tuple[str, ...] = ("/health", "/version")  # proxied besides /v1/
    api_key: str | None = field(default=None, repr=False)
    """Sent to nodes in place of the client's key. None: that is passed on, unless the gateway has keys of
    its own for clients."""
    charge: Rates | None = None  # what its tokens cost keys with dollars a day; None: nothing

    def __post_init__(self) -> None:
        _check_numbers(self)
        if self.continuation not in CONTINUATIONS:
            known = ", ".join(CONTINUATIONS)
            raise GatewayError(f"gateway: continuation: {self.continuation!r}: must be one of {known}")
        for path in (self.health_path, *self.allow_paths):
            if not path.startswith("/"):
                raise GatewayError(f"gateway: path {path!r}: must start with a slash")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all that it serves."""
        return tuple(filter(None, (self.served, *self.adapters, *self.loaded)))

    def limits(self) -> Limits:
        """What the clocks are judged by."""
        return Limits(
            health_timeout=self.health_timeout,
            first_token_timeout=self.first_token_timeout,
            idle_timeout=self.idle_timeout,
            stall_factor=self.stall_factor,
            stall_least=self.stall_least,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSpec:
    """An API outside. Durations are seconds; money is in picodollars (1e-12 USD)."""

    name: str
    kind: str  # the wire format: "openai" or "anthropic"
    url: str  # without a trailing slash
    api_key_file: Path | None = None
    """Read again when it changes; a relative path is in `$CREDENTIALS_DIRECTORY`. None: no key."""
    api_version: str = "2023-06-01"  # Anthropic's
    sampling: bool = False  # whether temperature, top_p and top_k may be sent to Anthropic
    usd_per_day_pico: int | None = None  # cap of a day (UTC); None: no cap
    in_flight: int = 64  # requests at a time
    connect_timeout: float = 3.0
    first_token_timeout: float = 30.0
    answer_timeout: float = 600.0
    retries: int = 2  # of a request, on 429, 529 and 5xx
    ca_file: Path | None = None  # certificates trusted besides the system's
    allow_http: bool = False  # plain http is allowed beyond the loopback
    prices: Mapping[str, OwnPrice] = field(default_factory=lambda: MappingProxyType({}))
    """By model; they come before the public list."""
    listed_as: str = ""  # the provider's name in the public list, where its url does not give it


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """Everything one gateway process needs to know. Durations are seconds, sizes bytes.

    Raises GatewayError when a value makes no sense.
    """

    socket: Path
    pools: tuple[PoolGate, ...] = ()  # in the order of the file
    routes: tuple[Route, ...] = ()  # as written, without the implicit ones of pools
    providers: Mapping[str, ProviderSpec] = field(default_factory=lambda: MappingProxyType({}))  # by name
    default_route: str = ""  # the model of requests that name none
    spend_file: Path | None = None  # what was spent at providers; None: not kept
    usage_file: Path | None = None  # what every key used; None: not kept
    keys_file: Path | None = None  # keys of clients; None: they need none

    host: str = "127.0.0.1"
    port: int = 8000
    tls_cert_file: Path | None = None  # None: plain HTTP
    tls_key_file: Path | None = None
    metrics_listen: HostPort | None = None  # for Prometheus
    control_listen: HostPort | None = None  # for daemons on other hosts; under TLS, with a token
    control_token_file: Path | None = None
    poll_interval: float = 0.2  # between looks at the targets files
    retry_after: int = 2  # s, `Retry-After` of a refusal

    body_limit: int = 64 * 1024 * 1024  # largest request body
    bodies_limit: int = 512 * 1024 * 1024  # all bodies held at a time
    body_timeout: float = 30.0  # longest silence inside a body
    body_rate: int = 16 * 1024  # bytes a second that a body must have on average after `body_timeout`
    answer_limit: int = 32 * 1024 * 1024  # largest plain answer held for a retry; longer ones pass through
    connection_limit: int = 16_384  # connections of clients
    head_limit: int = 64 * 1024  # largest head of a request
    head_timeout: float = 10.0  # for a whole head
    unread_timeout: float = 60.0  # how long a client may leave an answer unread
    unread_limit: int = 256 * 1024 * 1024  # what all clients together may leave unread
    allowed_hosts: tuple[str, ...] = ()  # names beside our own; none: any, unless it listens on the loopback
    trusted_proxies: tuple[str, ...] = ()  # addresses and networks whose X-Forwarded-* is believed

    linger: float = 1.0  # time a stopping gateway still accepts, telling clients to reconnect elsewhere
    drain_timeout: float = 600.0
    seed: int | None = None  # of tie-breaks and request ids; None draws it from the system

    def __post_init__(self) -> None:
        _check_numbers(self)
        if not 0 <= self.port <= 65535:
            raise GatewayError(f"gateway: port: {self.port}: must be 0 (any free port) to 65535")
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise GatewayError("gateway: tls_cert_file, tls_key_file: write both or neither")
        if self.control_listen is not None and None in (self.control_token_file, self.tls_cert_file):
            raise GatewayError("gateway: control_listen: needs control_token_file and tls_cert_file")
        for network in self.trusted_proxies:
            try:
                ipaddress.ip_network(network, strict=False)
            except ValueError:
                raise GatewayError(
                    f"gateway: trusted_proxies: {network!r}: must be an address or a network, as 10.0.0.0/8"
                ) from None
        if len(str(self.socket).encode()) > _LONGEST_SOCKET_PATH:
            raise GatewayError(
                f"gateway: socket: {self.socket}: longer than {_LONGEST_SOCKET_PATH} bytes; "
                f"choose a shorter directory"
            )
        _check_routes(self)

    @property
    def routed(self) -> bool:
        """Whether requests are sent by the model they name. One pool and no route: they are not looked at,
        unless there are adapters to tell apart.
        """
        return bool(self.routes) or len(self.pools) != 1 or bool(self.pools[0].loaded)

    @property
    def unnamed(self) -> str:
        """The model of requests that name none; empty where they are refused."""
        if self.default_route or self.routes or len(self.pools) != 1:
            return self.default_route
        return self.pools[0].served


def one_pool(**settings: Any) -> GatewayConfig:
    """The settings of a gateway with one pool and no route, its pool's among the rest, as one flat table.

    `pool` is the pool's name. Raises GatewayError; TypeError for a key that neither has.
    """
    if "pool" in settings:
        settings["name"] = settings.pop("pool")
    gate = {key: settings.pop(key) for key in POOL_KEYS & settings.keys()}
    return GatewayConfig(pools=(PoolGate(**gate),), **settings)


POOL_KEYS = frozenset(each.name for each in dataclasses.fields(PoolGate))
"""The settings that each pool has of its own."""


def _check_numbers(settings: PoolGate | GatewayConfig) -> None:
    names = [each.name for each in dataclasses.fields(settings)]
    for name in POSITIVE:
        if name in names and not getattr(settings, name) > 0:
            raise GatewayError(f"gateway: {name}: {getattr(settings, name)!r}: must be more than zero")
    for name in _NOT_NEGATIVE:
        if name in names and not getattr(settings, name) >= 0:
            raise GatewayError(f"gateway: {name}: {getattr(settings, name)!r}: must be zero or more")


def _check_routes(config: GatewayConfig) -> None:
    """What the router takes for granted. Raises GatewayError."""
    pools = {gate.name for gate in config.pools}
    if len(pools) < len(config.pools):
        raise GatewayError("gateway: two pools have the same name")
    files = {gate.targets_file for gate in config.pools}
    if len(files) < len(config.pools):
        raise GatewayError("gateway: two pools have the same targets_file; each needs one of its own")
    if not config.pools and not config.routes:
        raise GatewayError("gateway: there is neither a pool nor a route: nothing could be served")
    if config.routed and "" in pools:
        raise GatewayError("gateway: a pool has no name; with routes, adapters or several pools each has one")
    named: set[str] = set()
    for route in config.routes:
        for name in route.models:
            if name in named:
                raise GatewayError(f"gateway: route: {name!r} is in two routes, or twice in one")
            named.add(name)
        for backend in route.backends:
            known = pools if backend.kind is Kind.POOL else config.providers.keys()
            if backend.name not in known:
                raise GatewayError(f"gateway: route {route.name!r}: there is no {backend}")
    own = {name for gate in config.pools for name in gate.names}
    if config.default_route and config.default_route not in named | own:
        raise GatewayError(f"gateway: default_route: there is no route {config.default_route!r}")


CONTINUATIONS = ("off", "exact", "on")
"""The settings of `continuation`, the strictest first."""

POSITIVE = (
    "poll_interval",
    "health_interval",
    "health_timeout",
    "health_fall",
    "queue_deadline",
    "max_in_flight",
    "connect_timeout",
    "first_token_timeout",
    "answer_timeout",
    "stream_timeout",
    "stall_factor",
    "stall_least",
    "idle_timeout",
    "breaker_failures",
    "breaker_open",
    "breaker_longest",
    "body_limit",
    "bodies_limit",
    "body_timeout",
    "body_rate",
    "answer_limit",
    "connection_limit",
    "head_limit",
    "head_timeout",
    "unread_timeout",
    "unread_limit",
)
_NOT_NEGATIVE = (
    "queue_limit",
    "tokens_in_flight",
    "no_target_wait",
    "drain_margin",
    "retry_after",
    "max_retries",
    "retry_budget",
    "retry_reserve",
    "linger",
    "drain_timeout",
)
