"""The tables [gateway] and [pool.NAME.gateway]."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from orchestrator.config.reload import SHARED
from orchestrator.config.types import (
    Address,
    AddressOrOff,
    Duration,
    Factor,
    FilePath,
    HostNames,
    Networks,
    Section,
    Size,
    Strings,
    address_key,
    duration_key,
    path_key,
    share_key,
    size_key,
)
from orchestrator.gateway import config as gateway
from orchestrator.gateway.config import GatewayConfig, PoolGate

_POOL: Final = PoolGate(targets_file=Path("targets.json"))
_DEFAULTS: Final = GatewayConfig(socket=Path("gateway.sock"), pools=(_POOL,))


class GatewayTable(Section):
    """How the gateway treats the nodes of this pool. The defaults are those of [gateway]. In a file with
    one pool the keys of [gateway] may stand here too, but for default_route and the files of spend, usage
    and keys."""

    elsewhere: ClassVar[frozenset[str]] = frozenset()

    listen: Address = address_key(
        f"{_DEFAULTS.host}:{_DEFAULTS.port}", "Address that clients send their requests to."
    )
    tls_cert_file: FilePath | None = Field(
        default=None,
        description="Certificate chain (PEM) that clients of `listen` are shown: they speak HTTPS then, and "
        "only that. Without it: plain HTTP. A pair that is replaced is taken up in seconds, without "
        "a restart; one that does not work is not, and the old one is shown on.",
        examples=["/etc/spot-orchestrator/tls/fullchain.pem"],
        json_schema_extra={"default": None},
    )
    tls_key_file: FilePath | None = Field(
        default=None,
        description="Private key (PEM, without a pass phrase) of the certificate.",
        examples=["/etc/spot-orchestrator/tls/privkey.pem"],
        json_schema_extra={"default": None},
    )
    metrics_listen: AddressOrOff = address_key(
        "127.0.0.1:9478",
        'Address of the listener with /metrics for Prometheus, or "off". It asks for no password, so keep it '
        "on the loopback or a private network. It is opened once its port is free.",
    )
    control_listen: AddressOrOff = Field(
        default=None,
        description="Address at which daemons on other hosts give the gateway its target sets, with kind = "
        '"gateway" and a url in their [[pool.NAME.balancer]]; or "off". Only under TLS, with the certificate '
        "of tls_cert_file, and with the token of control_token_file. Sets that come this way are kept in "
        "targets_file.",
        examples=["10.0.0.7:9479"],
        json_schema_extra={"default": "off"},
    )
    control_token_file: FilePath | None = Field(
        default=None,
        description="File with the token that daemons show at control_listen, of 16 characters at least.",
        examples=["/etc/spot-orchestrator/gateway-token"],
        json_schema_extra={"default": None},
    )
    allowed_hosts: HostNames = Field(
        default=(),
        description="Names under which clients ask for the gateway, besides addresses, localhost and the "
        "names of this machine; others are refused with 421. By default none more where `listen` is "
        "the loopback, which a page in a browser here can reach by a name of its own (DNS rebinding), and "
        'every name, ["*"], where other machines reach it anyway.',
        examples=[["llm.internal"]],
    )
    socket: Annotated[FilePath, SHARED] = path_key(
        "{state_dir}/gateway.sock", "Unix socket on which the gateway takes its target set."
    )
    targets_file: Annotated[FilePath, SHARED] = path_key(
        "{state_dir}/targets.json", "File with the target set, which the gateway reads when it starts."
    )
    api_key_file: FilePath | None = Field(
        default=None,
        description="File with the key that the gateway shows to the engines instead of the client's own.",
    )
    poll_interval: Duration = duration_key(
        _DEFAULTS.poll_interval, "How often the gateway looks at the targets file."
    )
    health_path: str = Field(
        default=_POOL.health_path, pattern="^/", description="Path that tells whether an engine is well."
    )
    health_interval: Duration = duration_key(
        _POOL.health_interval,
        "How often the gateway checks a target that owes answers and is silent; any other is checked at a "
        "third of that pace.",
    )
    health_timeout: Duration = duration_key(
        _POOL.health_timeout,
        "How long a target may be silent and leave its check unanswered. After that it is lost, and what it "
        "was answering goes on elsewhere; a frozen node within this and two of `health_interval`.",
    )
    health_fall: int = Field(
        default=_POOL.health_fall,
        ge=1,
        description="Failed checks in a row before a target counts as unhealthy.",
    )
    queue_limit: int = Field(
        default=_POOL.queue_limit,
        ge=0,
        description="Requests that may wait for a target; more are answered with 503.",
    )
    queue_deadline: Duration = duration_key(
        _POOL.queue_deadline, "How long a request may wait for a target before it is answered with 503."
    )
    no_target_wait: Duration = duration_key(
        _POOL.no_target_wait,
        "How long a request waits while no target can be hoped for, before it is answered with 503.",
    )
    retry_after: Duration = duration_key(
        _DEFAULTS.retry_after, "`Retry-After` of refused requests, in whole seconds."
    )
    max_in_flight: int = Field(
        default=_POOL.max_in_flight,
        ge=1,
        description="Requests that one target may hold for each unit it serves; more wait in the queue.",
    )
    tokens_in_flight: int = Field(
        default=_POOL.tokens_in_flight,
        ge=0,
        description="Tokens that one target may hold for each unit it serves: of its requests, roughly "
        "counted by their bytes, and of the longest answers that they ask for. More wait in the queue, and "
        "the target with the fewest gets the next. 0: requests are counted alone.",
        examples=[200_000],
    )
    connect_timeout: Duration = duration_key(
        _POOL.connect_timeout, "How long opening a connection to a target may take."
    )
    first_token_timeout: Duration = duration_key(
        _POOL.first_token_timeout,
        "Longest wait for the first token of a streaming request, while its target brings nothing to others "
        "either: one that moves is busy, and gets the time it needs.",
    )
    answer_timeout: Duration = duration_key(
        _POOL.answer_timeout, "Longest life of a plain request, whatever its target does."
    )
    stream_timeout: Duration = duration_key(
        _POOL.stream_timeout, "Longest life of a streaming request, whatever its target does."
    )
    stall_factor: float = Field(
        default=_POOL.stall_factor,
        gt=0,
        description="A stream that is silent for so many times the mean gap of its target's streams goes on "
        "elsewhere, even if the target moves.",
    )
    stall_least: Duration = duration_key(
        _POOL.stall_least, "Silence inside a stream that is no stall, whatever `stall_factor` says."
    )
    idle_timeout: Duration = duration_key(
        _POOL.idle_timeout,
        "Longest silence inside a stream: after it the stream goes on elsewhere, or ends with an error.",
    )
    continuation: Literal["on", "exact", "off"] = Field(
        default=_POOL.continuation,  # type: ignore[arg-type]
        description="What becomes of a stream whose node is lost. on: another node of the same build "
        "finishes it, also where the rest cannot be exactly what the first one would have said; such a "
        "stream is marked. exact: only where it can. off: it ends with an error. Clients may ask for less "
        "with the header X-Continuation.",
        examples=["exact"],
    )
    drain_margin: Duration = duration_key(
        _POOL.drain_margin,
        "How long before the deadline of a draining node its streams move that would outlive it.",
    )
    max_retries: int = Field(
        default=_POOL.max_retries,
        ge=0,
        description="How often a request that reached a target may be sent again.",
    )
    retry_budget: Factor = share_key(
        _POOL.retry_budget, "Retries allowed, as a share of the requests served over time."
    )
    retry_reserve: int = Field(
        default=_POOL.retry_reserve,
        ge=0,
        description="Retries that may be saved up, so that the loss of a busy node is made good at once.",
    )
    breaker_failures: int = Field(
        default=_POOL.breaker_failures,
        ge=1,
        description="Failures in a row that keep requests away from a target for a while.",
    )
    breaker_open: Duration = duration_key(
        _POOL.breaker_open,
        "How long requests are kept away before one may try the target again; twice as long each time that "
        "one fails.",
    )
    breaker_longest: Duration = duration_key(
        _POOL.breaker_longest, "Longest time for which requests are kept away from a target at once."
    )
    body_limit: Size = size_key(_DEFAULTS.body_limit, "Largest request body; larger ones get 413.")
    bodies_limit: Size = size_key(
        _DEFAULTS.bodies_limit,
        "Request bodies that may be held at one time, all together; what does not fit gets 503. With copies "
        "of what is being sent the gateway needs up to three times as much memory.",
    )
    body_timeout: Duration = duration_key(
        _DEFAULTS.body_timeout, "Longest silence inside a request body before it is refused with 408."
    )
    body_rate: Size = size_key(
        _DEFAULTS.body_rate,
        "Bytes a second that a request body must bring on the whole after `body_timeout`.",
    )
    answer_limit: Size = size_key(
        _DEFAULTS.answer_limit, "Largest plain answer that is held back so that it could be retried."
    )
    connection_limit: int = Field(
        default=_DEFAULTS.connection_limit,
        ge=1,
        description="Connections that clients may hold, never more than half of what the process may open. "
        "For one more, the one ends that has been silent for longest.",
    )
    head_limit: Size = size_key(
        _DEFAULTS.head_limit, "Largest head of a request, line and fields together; larger ones get 431."
    )
    head_timeout: Duration = duration_key(
        _DEFAULTS.head_timeout, "How long the head of a request may take before it is refused with 408."
    )
    unread_timeout: Duration = duration_key(
        _DEFAULTS.unread_timeout,
        "How long a client may leave a part of its answer unread before its connection ends.",
    )
    unread_limit: Size = size_key(
        _DEFAULTS.unread_limit,
        "What all clients together may leave unread; for more, the connection ends that has most.",
    )
    allow_paths: Strings = Field(
        default=_POOL.allow_paths,
        description="Paths that clients may reach besides /v1/.",
        examples=[["/health", "/tokenize"]],
    )
    trusted_proxies: Networks = Field(
        default=(),
        description="Addresses and networks of proxies in front of the gateway: what they say in "
        "X-Forwarded-For, -Proto and -Host is passed on to the nodes, with theirs added. What others say "
        "there is dropped.",
        examples=[["10.0.0.0/8"]],
    )
    linger: Duration = duration_key(
        _DEFAULTS.linger, "How long a stopping gateway still accepts, telling clients to reconnect."
    )
    drain_timeout: Duration = duration_key(
        _DEFAULTS.drain_timeout, "How long a stopping gateway waits for requests in flight."
    )


PROCESS_KEYS: Final = frozenset(GatewayTable.model_fields) - gateway.POOL_KEYS - {"api_key_file"}
"""Keys of the gateway's process, which all pools share."""

POOL_KEYS: Final = frozenset(GatewayTable.model_fields) - PROCESS_KEYS
"""Keys that each pool may have of its own."""

GatewayTable.elsewhere = PROCESS_KEYS


class SharedGatewayTable(GatewayTable):
    """The gateway in front of the nodes: one process for all pools, which keeps serving while the daemon is
    down. The keys of [pool.NAME.gateway] may stand here too: they hold for every pool that does not say
    otherwise."""

    elsewhere: ClassVar[frozenset[str]] = POOL_KEYS

    default_route: str = Field(
        default="",
        description="Name of the route of requests that name no model. Without it they are refused with "
        "400, except in front of one pool without routes, which gets every request.",
        examples=["assistant"],
    )
    spend_file: FilePath = path_key(
        "{state_dir}/spend.db",
        "File in which the gateway books what providers cost. An old gateway and its heir share it, and the "
        "daemon reads it.",
    )
    usage_file: FilePath = path_key(
        "{state_dir}/usage.db",
        "File in which the gateway counts what every key used of every model, by the hour. All gateway "
        "processes share it, and the daemon reads it.",
    )
    keys_file: FilePath | None = Field(
        default=None,
        description="File with the keys of the gateway's clients, as `orchestrator keys new` writes it: it "
        "holds their SHA-256 alone. With it every request needs a key, which goes no further than the "
        "gateway; without it none is asked for. It is read again within a second of a change.",
        examples=["{state_dir}/keys.toml"],
    )
